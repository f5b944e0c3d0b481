package process_test

import (
	"encoding/json"
	"errors"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
)

// launchAndDie is a manager that starts etcd and is gone: args are the files of command line, pid file and log, and more if it overhears it.
func launchAndDie(args []string) {
	b, err := os.ReadFile(args[0])
	if err != nil {
		panic(err)
	}
	var cmd process.CommandLine
	if err := json.Unmarshal(b, &cmd); err != nil {
		panic(err)
	}
	log, err := os.OpenFile(args[2], os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		panic(err)
	}
	if _, err := process.Start(cmd, process.StartOptions{PIDFile: args[1], Stdout: log, Stderr: log, Overhear: len(args) > 3}); err != nil {
		panic(err)
	}
	if err := syscall.Kill(os.Getpid(), syscall.SIGKILL); err != nil {
		panic(err)
	}
	select {}
}

// orphan starts an etcd whose manager has died.
func orphan(t *testing.T, m *testMember, more ...string) {
	t.Helper()
	b, err := json.Marshal(m.Command(t))
	must(t, err)
	f := m.Dir + "/cmd.json"
	must(t, os.WriteFile(f, b, 0o600))
	out, err := exec.Command(self(t), append([]string{"launch-and-die", f, m.PIDFile(), m.LogFile()}, more...)...).CombinedOutput()
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.Sys().(syscall.WaitStatus).Signal() != syscall.SIGKILL {
		t.Fatalf("launcher: %v: %s", err, out)
	}
	t.Cleanup(func() {
		if p, err := process.Reattach(m.PIDFile(), m.Cfg.DataDir); err == nil && p != nil {
			_, _ = p.Stop(t.Context(), 0)
		}
	})
}

func TestAdoptAfterTheManagerWasKilled(t *testing.T) {
	m := makeMembers(t, 1, builtin(t), "orphan", nil, "127.0.0.1")[0]
	orphan(t, m)
	p, err := process.Reattach(m.PIDFile(), m.Cfg.DataDir)
	must(t, err)
	if p == nil {
		t.Fatal("nothing to adopt")
	}
	if !p.Adopted() || p.Info().Fingerprint != m.Command(t).Fingerprint || p.Info().Version != etcd.CompiledVersion {
		t.Errorf("adopted %+v", p.Info())
	}
	m.Proc = p
	m.Dial(t)
	eventually(t, "adopted etcd serves", m.Healthy)

	// A second one must not start, and the message names the first.
	_, err = process.Start(m.Command(t), process.StartOptions{PIDFile: m.PIDFile()})
	if !errors.Is(err, etcd.ErrDataDirInUse) || !strings.Contains(err.Error(), "process") {
		t.Errorf("second start: %v", err)
	}
	_, err = process.Start(m.Command(t), process.StartOptions{PIDFile: m.Dir + "/other.pid"})
	if !errors.Is(err, etcd.ErrDataDirInUse) {
		t.Errorf("second start with another pid file: %v", err)
	}
	if pid, held, err := etcd.DataDirHolder(m.Cfg.DataDir); err != nil || !held || pid != p.PID() {
		t.Errorf("holder: %d %t %v, want %d", pid, held, err, p.PID())
	}

	e, err := p.Stop(t.Context(), 10*time.Second)
	must(t, err)
	if e.Known || !e.Asked {
		t.Errorf("exit of an adopted process: %+v %v", e, e)
	}
	if _, err := os.Stat(m.PIDFile()); !os.IsNotExist(err) {
		t.Errorf("pid file is still there: %v", err)
	}
	if p, err := process.Reattach(m.PIDFile(), m.Cfg.DataDir); p != nil || err != nil {
		t.Errorf("adopting nothing: %v %v", p, err)
	}
	m.Start(t)
	eventually(t, "etcd serves again", m.Healthy)
}

func TestAdoptWithoutPIDFile(t *testing.T) {
	m := makeMembers(t, 1, builtin(t), "nofile", nil, "127.0.0.1")[0]
	orphan(t, m)
	must(t, os.Remove(m.PIDFile()))
	p, err := process.Reattach(m.PIDFile(), m.Cfg.DataDir)
	must(t, err)
	if p == nil || p.Info().Fingerprint != "" {
		t.Fatalf("adopted %+v", p)
	}
	must(t, p.Signal(syscall.SIGKILL))
	<-p.Done()

	// An etcd that was started by something else, with everything in the environment.
	cmd := m.Command(t)
	c := exec.Command(cmd.Argv[0], cmd.Argv[1])
	for _, a := range cmd.Argv[2:] {
		k, v, _ := strings.Cut(strings.TrimPrefix(a, "--"), "=")
		c.Env = append(c.Env, process.EnvName(k)+"="+v)
	}
	must(t, c.Start())
	waited := make(chan error, 1)
	go func() { waited <- c.Wait() }()
	t.Cleanup(func() { _ = c.Process.Kill() })
	eventually(t, "foreign etcd is adopted", func() bool {
		p, err = process.Reattach(m.PIDFile(), m.Cfg.DataDir)
		return err == nil && p != nil
	})
	if p.PID() != c.Process.Pid {
		t.Errorf("adopted %d, want %d", p.PID(), c.Process.Pid)
	}
	_, err = p.Stop(t.Context(), 10*time.Second)
	must(t, err)
	<-waited
}

func TestStalePIDFileIsNeverMistaken(t *testing.T) {
	dir := t.TempDir()
	other := exec.Command("/bin/sleep", "60")
	must(t, other.Start())
	t.Cleanup(func() { _ = other.Process.Kill(); _ = other.Wait() })
	ticks, err := process.StartTicks(other.Process.Pid)
	must(t, err)
	good := process.Info{PID: other.Process.Pid, StartTicks: ticks, BootID: process.BootID(), DataDir: dir + "/data"}
	reused, gone, boot := good, good, good
	reused.StartTicks--
	gone.PID = 1<<22 - 1
	boot.BootID = "another"
	for name, info := range map[string]process.Info{"same process, not etcd": good, "number reused": reused, "gone": gone, "before a reboot": boot} {
		b, err := json.Marshal(info)
		must(t, err)
		checkStale(t, name, dir, b)
	}
	checkStale(t, "garbage", dir, []byte("12345\n"))
	checkStale(t, "empty", dir, nil)
	if readErr := syscall.Kill(other.Process.Pid, 0); readErr != nil {
		t.Errorf("the other process was hurt: %v", readErr)
	}
}

func checkStale(t *testing.T, name, dir string, content []byte) {
	t.Helper()
	f := dir + "/etcd.pid"
	must(t, os.WriteFile(f, content, 0o600))
	p, err := process.Reattach(f, dir+"/data")
	if p != nil || err != nil {
		t.Errorf("%s: adopted %v, %v", name, p, err)
	}
	if _, err := os.Stat(f); !os.IsNotExist(err) {
		t.Errorf("%s: the stale pid file is still there", name)
	}
}

func TestExitReasons(t *testing.T) {
	run := func(script string) *process.Process {
		t.Helper()
		dir := t.TempDir()
		p, err := process.Start(process.CommandLine{Argv: []string{"/bin/sh", "-c", script}, DataDir: dir + "/d"}, process.StartOptions{PIDFile: dir + "/pid"})
		must(t, err)
		return p
	}
	p := run("exit 7")
	<-p.Done()
	if e := p.Exit(); !e.Known || e.Code != 7 || e.Asked || !strings.Contains(e.String(), "code 7") {
		t.Errorf("%+v %v", e, e)
	}
	p = run("kill -9 $$")
	<-p.Done()
	if e := p.Exit(); e.Signal != syscall.SIGKILL || !strings.Contains(e.String(), "out-of-memory") {
		t.Errorf("%+v %v", e, e)
	}
	// One that doesn't listen to SIGTERM is killed when the grace is over.
	p = run("trap '' TERM; while :; do sleep 0.01; done")
	time.Sleep(50 * time.Millisecond) // the trap must be set first; nothing tells when it is
	e, err := p.Stop(t.Context(), 100*time.Millisecond)
	must(t, err)
	if e.Signal != syscall.SIGKILL || !e.Asked {
		t.Errorf("%+v", e)
	}
	if e2, err := p.Stop(t.Context(), time.Hour); err != nil || e2 != e {
		t.Errorf("stopping again: %+v %v", e2, err)
	}
	_, err = process.Start(process.CommandLine{Argv: []string{"/nonexistent/etcd"}, DataDir: "/nonexistent"}, process.StartOptions{PIDFile: t.TempDir() + "/pid"})
	if err == nil || !strings.Contains(err.Error(), "/nonexistent/etcd") {
		t.Errorf("missing executable: %v", err)
	}
}
