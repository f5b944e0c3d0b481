package etcd

import (
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// overhear runs an etcd that is expected to end by itself, and returns how it did.
func (m *testMember) overhear(t *testing.T, cmd CommandLine) Exit {
	t.Helper()
	log, err := os.OpenFile(m.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(t, err)
	defer log.Close()
	p, err := Start(cmd, StartOptions{PIDFile: m.pidFile(), Stdout: log, Stderr: log, Overhear: true})
	must(t, err)
	select {
	case <-p.Done():
	case <-time.After(time.Minute):
		_, err := p.Stop(t.Context(), 0)
		t.Fatalf("etcd doesn't end by itself (%v)", err)
	}
	return p.Exit()
}

// TestWhyEtcdEnded: real etcds that can't start say why, in one line, and all that they say stands in the log as well.
func TestWhyEtcdEnded(t *testing.T) {
	for name, x := range map[string]struct {
		spoil func(t *testing.T, m *testMember, cmd *CommandLine)
		want  string
	}{
		"a port that is taken": {func(t *testing.T, m *testMember, _ *CommandLine) {
			u, err := url.Parse(m.cfg.ListenPeerURLs[0])
			must(t, err)
			l, err := net.Listen("tcp", u.Host)
			must(t, err)
			t.Cleanup(func() { l.Close() })
		}, "address already in use"},
		"a variable": {func(_ *testing.T, _ *testMember, cmd *CommandLine) {
			cmd.Env = append(cmd.Env, "ETCD_QUOTA_BACKEND_BYTES=8GiB")
		}, "8GiB"},
		"a flag": {func(_ *testing.T, _ *testMember, cmd *CommandLine) {
			cmd.Argv = append(cmd.Argv, "--made-up=1")
		}, "made-up"},
		"a damaged log": {func(t *testing.T, m *testMember, _ *CommandLine) {
			m.start(t)
			_, err := m.client.Raw().Put(ctxOf(t), "k", strings.Repeat("v", 1<<16))
			must(t, err)
			m.stop(t)
			files, err := filepath.Glob(filepath.Join(m.cfg.DataDir, "member", "wal", "*.wal"))
			must(t, err)
			f, err := os.OpenFile(files[0], os.O_RDWR, 0)
			must(t, err)
			_, err = f.WriteAt([]byte(strings.Repeat("x", 512)), 2048)
			must(t, err)
			must(t, f.Close())
		}, "wal"},
	} {
		t.Run(name, func(t *testing.T) {
			m := makeMembers(t, 1, builtin(t), "WHY", nil, "127.0.0.1")[0]
			cmd := m.command(t)
			x.spoil(t, m, &cmd)
			e := m.overhear(t, cmd)
			t.Logf("%s", e)
			if !strings.Contains(strings.ToLower(e.Reason), strings.ToLower(x.want)) || !strings.Contains(e.String(), e.Reason) {
				t.Errorf("the reason is %q, want one with %q", e.Reason, x.want)
			}
			said, err := os.ReadFile(m.logFile())
			must(t, err)
			if !strings.Contains(string(said), x.want) {
				t.Errorf("the log lacks it:\n%s", said)
			}
			if left, _ := filepath.Glob(m.pidFile() + ".stderr"); len(left) > 0 {
				t.Errorf("%v is left", left)
			}
		})
	}
}

// TestReasonOf: what counts, and that it is one line of bounded length whatever etcd says.
func TestReasonOf(t *testing.T) {
	for said, want := range map[string]string{
		"": "",
		`{"level":"info","msg":"starting"}` + "\n": "",
		`{"level":"warn","msg":"slow","error":"x"}` + "\n" + `{"level":"fatal","msg":"discovery failed","error":"bind: in use"}` + "\n" + `{"level":"info","msg":"closed"}`: "discovery failed: bind: in use",
		`{"level":"warn","msg":"failed to verify flags","error":"bad value"}` + "\n":                                                                                        "failed to verify flags: bad value",
		"flag provided but not defined: -x\n\n":                            "flag provided but not defined: -x",
		"panic: tocommit(755) is out of range\n\ngoroutine 1 [running]:\n": "panic: tocommit(755) is out of range",
		`{"level":"error","msg":"a\nb\u001b[31m` + `"}`:                    "a b[31m",
		"{\"level\":\"err": `{"level":"err`,
	} {
		if got := reasonOf([]byte(said)); got != want {
			t.Errorf("%q: got %q, want %q", said, got, want)
		}
	}
	long := reasonOf([]byte(`{"level":"fatal","msg":"` + strings.Repeat("ü", 10_000) + `"}`))
	if utf8.RuneCountInString(long) > reasonRunes+1 || !utf8.ValidString(long) {
		t.Errorf("the reason has %d bytes", len(long))
	}
}

// TestOverheardGoesOn: an etcd that stays up although it is overheard is handed on by the next manager, and its file doesn't grow without bound.
func TestOverheardGoesOn(t *testing.T) {
	m := makeMembers(t, 1, builtin(t), "HEARD", nil, "127.0.0.1")[0]
	log, err := os.OpenFile(m.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(t, err)
	defer log.Close()
	orphan(t, m, "overhear")
	again, err := Adopt(m.pidFile(), m.cfg.DataDir)
	must(t, err)
	again.Overhear(log)
	if again.heard.Load() == nil {
		t.Fatal("the next manager doesn't go on")
	}
	wait := func(what string, ok func() bool) {
		t.Helper()
		for deadline := time.Now().Add(30 * time.Second); !ok(); time.Sleep(20 * time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal(what)
			}
		}
	}
	has := func(words string) bool {
		b, err := os.ReadFile(m.logFile())
		return err == nil && strings.Contains(string(b), words)
	}
	wait("nothing is handed on", func() bool { return has("serving") })
	file, err := os.OpenFile(overheardFile(m.pidFile()), os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = file.WriteString(strings.Repeat(strings.Repeat("y", 1023)+"\n", 5<<10))
	must(t, err)
	must(t, file.Close())
	wait("the file stays large", func() bool {
		fi, err := os.Stat(overheardFile(m.pidFile()))
		return err == nil && fi.Size() < 1<<20
	})
	file, err = os.OpenFile(overheardFile(m.pidFile()), os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = file.WriteString("what is said behind that\n")
	must(t, err)
	must(t, file.Close())
	_, err = again.Stop(t.Context(), 10*time.Second)
	must(t, err)
	if !has("what is said behind that") {
		t.Error("what was said last isn't handed on")
	}
}
