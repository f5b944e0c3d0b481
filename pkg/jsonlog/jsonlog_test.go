package jsonlog

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

// TestMain logs, in a process of its own, what the test looks at: klog's state is the process's.
func TestMain(m *testing.M) {
	format := os.Getenv("TEST_LOG_FORMAT")
	if format == "" {
		os.Exit(m.Run())
	}
	f := flag.NewFlagSet("", flag.PanicOnError)
	klog.InitFlags(f)
	_ = f.Set("v", "2")
	Use(format, os.Stderr)
	klog.Infof("info %q", "quoted")
	klog.Warning("two\nlines")
	klog.Error("error \x00 \xff <&>")
	klog.V(2).Infof("verbose")
	klog.V(3).Infof("not shown")
	klog.InfoS("structured", "key", "value")
	klog.ErrorS(errors.New("why"), "structured error")
	klog.Flush()
}

func logged(t *testing.T, format string) []string {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), testutil.Self(t))
	cmd.Env = append(os.Environ(), "TEST_LOG_FORMAT="+format)
	var out bytes.Buffer
	cmd.Stderr = &out
	testutil.Must(t, cmd.Run())
	return strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
}

// TestJSON: every line is an object, with its level, its place and the whole message.
func TestJSON(t *testing.T) {
	type want struct{ level, msg string }
	wants := []want{{"info", `info "quoted"`}, {"warning", "two\nlines"}, {"error", "error \x00 \ufffd <&>"}, {"info", "verbose"},
		{"info", "structured"}, {"error", "structured error"}}
	lines := logged(t, JSON)
	if len(lines) != len(wants) {
		t.Fatalf("%d lines: %q", len(lines), lines)
	}
	for i, w := range wants {
		var have line
		if err := json.Unmarshal([]byte(lines[i]), &have); err != nil || have.Level != w.level || have.Msg != w.msg || have.Time.IsZero() ||
			i < 4 && !strings.HasPrefix(have.Caller, "jsonlog_test.go:") {
			t.Errorf("line %d is %s: %v; want %+v", i, lines[i], err, w)
		}
	}
}

// TestText: the default is klog's own text, byte by byte but for time and process.
func TestText(t *testing.T) {
	text, none := logged(t, Text), logged(t, "none")
	if len(text) != 7 || !header.MatchString(text[0]+" ") || !strings.HasSuffix(text[0], `] info "quoted"`) {
		t.Errorf("text is %q", text)
	}
	for i := range text {
		if _, a, _ := strings.Cut(text[i], "] "); !strings.HasSuffix(none[i], a) {
			t.Errorf("line %d: %q and %q", i, text[i], none[i])
		}
	}
	if Check(Text) != nil || Check(JSON) != nil || Check("yaml") == nil {
		t.Error("the wrong formats are taken")
	}
}

// TestForeignLines: a line that isn't klog's is the message.
func TestForeignLines(t *testing.T) {
	var b bytes.Buffer
	out := &lines{w: &b, now: time.Now}
	for _, text := range []string{"plain\n", "I1201 no header\n", "\n"} {
		b.Reset()
		out.klog([]byte(text))
		var have line
		if err := json.Unmarshal(b.Bytes(), &have); err != nil || have.Msg+"\n" != text || have.Level != "info" {
			t.Errorf("%q became %s: %v", text, b.String(), err)
		}
	}
}
