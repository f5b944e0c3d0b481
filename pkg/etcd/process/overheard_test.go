package process_test

import (
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
)

// overhear runs an etcd that is expected to end by itself, and returns how it did.
func overhear(t *testing.T, m *testMember, cmd process.CommandLine) process.Exit {
	t.Helper()
	log, err := os.OpenFile(m.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(t, err)
	defer log.Close()
	p, err := process.Start(cmd, process.StartOptions{PIDFile: m.PIDFile(), Stdout: log, Stderr: log, Overhear: true})
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
		spoil func(t *testing.T, m *testMember, cmd *process.CommandLine)
		want  string
	}{
		"a port that is taken": {func(t *testing.T, m *testMember, _ *process.CommandLine) {
			u, err := url.Parse(m.Cfg.ListenPeerURLs[0])
			must(t, err)
			l, err := net.Listen("tcp", u.Host)
			must(t, err)
			t.Cleanup(func() { l.Close() })
		}, "address already in use"},
		"a variable": {func(_ *testing.T, _ *testMember, cmd *process.CommandLine) {
			cmd.Env = append(cmd.Env, "ETCD_QUOTA_BACKEND_BYTES=8GiB")
		}, "8GiB"},
		"a flag": {func(_ *testing.T, _ *testMember, cmd *process.CommandLine) {
			cmd.Argv = append(cmd.Argv, "--made-up=1")
		}, "made-up"},
		"a damaged log": {func(t *testing.T, m *testMember, _ *process.CommandLine) {
			m.Start(t)
			_, err := m.Client.Raw().Put(ctxOf(t), "k", strings.Repeat("v", 1<<16))
			must(t, err)
			m.Stop(t)
			files, err := filepath.Glob(filepath.Join(m.Cfg.DataDir, "member", "wal", "*.wal"))
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
			cmd := m.Command(t)
			x.spoil(t, m, &cmd)
			e := overhear(t, m, cmd)
			t.Logf("%s", e)
			if !strings.Contains(strings.ToLower(e.Reason), strings.ToLower(x.want)) || !strings.Contains(e.String(), e.Reason) {
				t.Errorf("the reason is %q, want one with %q", e.Reason, x.want)
			}
			said, err := os.ReadFile(m.LogFile())
			must(t, err)
			if !strings.Contains(string(said), x.want) {
				t.Errorf("the log lacks it:\n%s", said)
			}
			if left, _ := filepath.Glob(m.PIDFile() + ".stderr"); len(left) > 0 {
				t.Errorf("%v is left", left)
			}
		})
	}
}

// TestOverheardGoesOn: an etcd that stays up although it is overheard is handed on by the next manager, and its file doesn't grow without bound.
func TestOverheardGoesOn(t *testing.T) {
	m := makeMembers(t, 1, builtin(t), "HEARD", nil, "127.0.0.1")[0]
	log, err := os.OpenFile(m.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(t, err)
	defer log.Close()
	orphan(t, m, "overhear")
	again, err := process.Reattach(m.PIDFile(), m.Cfg.DataDir)
	must(t, err)
	again.Overhear(log)
	if !process.Heard(again) {
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
		b, err := os.ReadFile(m.LogFile())
		return err == nil && strings.Contains(string(b), words)
	}
	wait("nothing is handed on", func() bool { return has("serving") })
	file, err := os.OpenFile(process.OverheardFile(m.PIDFile()), os.O_WRONLY|os.O_APPEND, 0)
	must(t, err)
	_, err = file.WriteString(strings.Repeat(strings.Repeat("y", 1023)+"\n", 5<<10))
	must(t, err)
	must(t, file.Close())
	wait("the file stays large", func() bool {
		fi, err := os.Stat(process.OverheardFile(m.PIDFile()))
		return err == nil && fi.Size() < 1<<20
	})
	file, err = os.OpenFile(process.OverheardFile(m.PIDFile()), os.O_WRONLY|os.O_APPEND, 0)
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
