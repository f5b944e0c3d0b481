package main

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

var binary string

func TestMain(m *testing.M) {
	dir, err := os.MkdirTemp("", "go-runner")
	if err != nil {
		panic(err)
	}
	binary = filepath.Join(dir, "go-runner")
	out, err := exec.Command("go", "build", "-o", binary, ".").CombinedOutput()
	if err != nil {
		fmt.Fprintf(os.Stderr, "build: %v\n%s", err, out)
		os.Exit(1)
	}
	code := m.Run()
	os.RemoveAll(dir)
	os.Exit(code)
}

// result runs go-runner to its end.
func result(t *testing.T, args ...string) (stdout, stderr string, code int) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), binary, args...)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return out.String(), errs.String(), cmd.ProcessState.ExitCode()
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// eventually waits for a condition.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("never happened: %s", what)
		}
	}
}

func TestOutputGoesToLogAndStdout(t *testing.T) {
	const script = "echo out; echo err >&2"
	for _, c := range []struct {
		flags               string
		log, stdout, stderr string
	}{
		{"--log-file=LOG", "before\nout\nerr\n", "", ""},
		{"--log-file=LOG --also-stdout", "before\nout\nerr\n", "out\nerr\n", ""},
		{"-log-file LOG -also-stdout=true", "before\nout\nerr\n", "out\nerr\n", ""},
		{"--log-file=LOG --also-stdout --redirect-stderr=false", "before\nout\n", "out\n", "err\n"},
		{"--redirect-stderr=true", "before\n", "out\nerr\n", ""},
	} {
		log := filepath.Join(t.TempDir(), "etcd.log")
		if err := os.WriteFile(log, []byte("before\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		args := strings.Fields(strings.ReplaceAll(c.flags, "LOG", log))
		stdout, stderr, code := result(t, append(args, "sh", "-c", script)...)
		if got := read(t, log); got != c.log || stdout != c.stdout || stderr != c.stderr || code != 0 {
			t.Errorf("%s: log %q, stdout %q, stderr %q, code %d", c.flags, got, stdout, stderr, code)
		}
	}
}

func TestArgumentsArePassedAsTheyAre(t *testing.T) {
	// What follows the command is the command's, also what looks like a flag of ours.
	stdout, _, code := result(t, "--also-stdout", "printf", "%s|", "--log-file=/x", "--also-stdout", "a b", "")
	if want := "--log-file=/x|--also-stdout|a b||"; stdout != want || code != 0 {
		t.Errorf("arguments %q, code %d", stdout, code)
	}
}

func TestExitCodes(t *testing.T) {
	dir := t.TempDir()
	plain := filepath.Join(dir, "plain")
	if err := os.WriteFile(plain, []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args   []string
		code   int
		stderr string
	}{
		{[]string{"sh", "-c", "exit 0"}, 0, ""},
		{[]string{"sh", "-c", "exit 7"}, 7, ""},
		{[]string{"sh", "-c", "kill -9 $$"}, 137, ""},
		{[]string{"/does/not/exist"}, 127, "/does/not/exist"},
		{[]string{"no-such-command-anywhere"}, 127, "no-such-command-anywhere"},
		{[]string{plain}, 126, "permission denied"},
		{nil, 2, "no command given"},
		{[]string{"--no-such-flag", "true"}, 2, "no-such-flag"},
		{[]string{"--help"}, 0, "Usage: go-runner"},
		{[]string{"--log-file=" + dir + "/no/etcd.log", "true"}, 1, "directory does not exist"},
		{[]string{"--log-file=" + dir, "true"}, 1, "is a directory"},
		{[]string{"--log-file=" + binary, "true"}, 1, "must be writable"},
	} {
		_, stderr, code := result(t, c.args...)
		if code != c.code || !strings.Contains(stderr, c.stderr) || c.stderr == "" && stderr != "" {
			t.Errorf("%v: code %d, stderr %q", c.args, code, stderr)
		}
	}
}

// running is a go-runner whose command copies its standard input to its output.
type running struct {
	*exec.Cmd
	in  io.WriteCloser
	out *bufio.Reader
}

func start(t *testing.T, args ...string) *running {
	t.Helper()
	cmd := exec.Command(binary, args...)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	return &running{cmd, in, bufio.NewReader(out)}
}

// say writes a line to the command and reads it from go-runner's standard output.
func (r *running) say(t *testing.T, line string) {
	t.Helper()
	if _, err := io.WriteString(r.in, line+"\n"); err != nil {
		t.Fatal(err)
	}
	if got, err := r.out.ReadString('\n'); err != nil || got != line+"\n" {
		t.Fatalf("read %q, %v", got, err)
	}
}

func TestRotation(t *testing.T) {
	dir := t.TempDir()
	log, rotated := filepath.Join(dir, "etcd.log"), filepath.Join(dir, "etcd.log.1")
	r := start(t, "--log-file="+log, "--also-stdout", "cat")
	r.say(t, "one")
	if got := read(t, log); got != "one\n" {
		t.Fatalf("log %q", got)
	}
	// Copy and truncate: goes on at the start, without a hole of zeros.
	if err := os.Truncate(log, 0); err != nil {
		t.Fatal(err)
	}
	r.say(t, "two")
	if got := read(t, log); got != "two\n" {
		t.Fatalf("log after truncation %q", got)
	}
	// Rename: soon a new file appears and nothing is lost.
	if err := os.Rename(log, rotated); err != nil {
		t.Fatal(err)
	}
	lines := 0
	eventually(t, "the log file is made anew", func() bool {
		r.say(t, "more")
		lines++
		_, err := os.Stat(log)
		return err == nil
	})
	r.say(t, "last")
	if got, want := read(t, rotated)+read(t, log), "two\n"+strings.Repeat("more\n", lines)+"last\n"; got != want {
		t.Errorf("both files hold %q, want %q", got, want)
	}
	r.in.Close()
	if err := r.Wait(); err != nil {
		t.Error(err)
	}
}

// TestBound: a log file that nobody rotates has a bound, and so has what is kept of it; no line is torn or lost at the seam. What others
// rotate isn't rotated again.
func TestBound(t *testing.T) {
	path := filepath.Join(t.TempDir(), "etcd.log")
	const most = 1000
	l, err := openLog(path, most)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	size := func(path string) int64 {
		info, err := os.Stat(path)
		if err != nil {
			return 0
		}
		return info.Size()
	}
	for i := range 500 {
		if _, err := fmt.Fprintf(l, "line %04d\n", i); err != nil || size(path) > most || size(path+".1") > most {
			t.Fatalf("line %d: %v, %d and %d bytes", i, err, size(path), size(path+".1"))
		}
	}
	kept := strings.Fields(strings.ReplaceAll(read(t, path+".1")+read(t, path), "line ", ""))
	if len(kept) < 100 || len(kept) > 200 {
		t.Errorf("%d lines are kept", len(kept))
	}
	for i, n := range kept {
		if n != fmt.Sprintf("%04d", 500-len(kept)+i) {
			t.Fatalf("line %d that is kept is %q", i, n)
		}
	}
	// One that is larger at the start, and a piece that is larger than the bound.
	if _, err := l.Write(bytes.Repeat([]byte("x"), 3*most)); err != nil {
		t.Fatal(err)
	}
	again, err := openLog(path, most)
	if err != nil {
		t.Fatal(err)
	}
	defer again.Close()
	fmt.Fprintln(again, "next")
	if read(t, path) != "next\n" || size(path+".1") != 3*most {
		t.Errorf("%q, and %d bytes", read(t, path), size(path+".1"))
	}
	// Rotated by somebody else right before: .1 is theirs.
	fmt.Fprint(again, strings.Repeat("y", most-10))
	if err := os.Rename(path, path+".1"); err != nil {
		t.Fatal(err)
	}
	theirs := read(t, path+".1")
	fmt.Fprintln(again, "after it was rotated")
	if read(t, path) != "after it was rotated\n" || read(t, path+".1") != theirs {
		t.Errorf("%q, and %d bytes", read(t, path), size(path+".1"))
	}
	// What can't be renamed is truncated.
	if err := os.Remove(path + ".1"); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(filepath.Join(path+".1", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	for range 300 {
		if fmt.Fprintln(again, "z"); size(path) > most {
			t.Fatalf("%d bytes", size(path))
		}
	}
	if _, stderr, code := result(t, "--log-file-max-size=-1", "true"); code != exitUsage || !strings.Contains(stderr, "MiB") {
		t.Errorf("exit code %d: %s", code, stderr)
	}
}

func TestFullDiskDoesNotStopTheCommand(t *testing.T) {
	var lines strings.Builder
	for i := range 3000 {
		fmt.Fprintf(&lines, "line %d\n", i)
	}
	cmd := exec.Command(binary, "--log-file=/dev/full", "--also-stdout", "cat")
	cmd.Stdin = strings.NewReader(lines.String())
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil || string(out) != lines.String() {
		t.Errorf("%v, %d bytes of %d came out", err, len(out), lines.Len())
	}
	if n := strings.Count(stderr.String(), "no space left on device"); n != 1 {
		t.Errorf("the failure is reported %d times: %q", n, stderr.String())
	}
}

func TestClosedStdoutDoesNotStopTheCommand(t *testing.T) {
	log := filepath.Join(t.TempDir(), "etcd.log")
	cmd := exec.Command(binary, "--log-file="+log, "--also-stdout", "sh", "-c", "for i in 1 2 3; do echo $i; done; read x; echo got $x")
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	r.Close()
	cmd.Stdout = w
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the log has the first lines", func() bool {
		data, err := os.ReadFile(log)
		return err == nil && string(data) == "1\n2\n3\n"
	})
	if _, err := io.WriteString(in, "it\n"); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Error(err)
	}
	if got := read(t, log); got != "1\n2\n3\ngot it\n" {
		t.Errorf("log %q", got)
	}
}

func TestSignalsAreForwarded(t *testing.T) {
	for sig, name := range map[syscall.Signal]string{syscall.SIGTERM: "TERM", syscall.SIGINT: "INT",
		syscall.SIGHUP: "HUP", syscall.SIGUSR1: "USR1"} {
		r := start(t, "--also-stdout", "sh", "-c",
			fmt.Sprintf("trap 'echo got %s; exit 3' %s; echo ready; while :; do read x; done", name, name))
		if line, err := r.out.ReadString('\n'); err != nil || line != "ready\n" {
			t.Fatalf("read %q, %v", line, err)
		}
		if err := r.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		// Wakes the shell's read where the signal alone doesn't.
		_, _ = io.WriteString(r.in, "\n")
		line, err := r.out.ReadString('\n')
		if err != nil || line != "got "+name+"\n" {
			t.Errorf("%s: read %q, %v", name, line, err)
		}
		_ = r.Wait()
		if code := r.ProcessState.ExitCode(); code != 3 {
			t.Errorf("%s: exit code %d", name, code)
		}
	}
}

// TestOrphanThatHoldsTheOutput: a process that outlives the command must not keep go-runner from ending.
func TestOrphanThatHoldsTheOutput(t *testing.T) {
	began := time.Now()
	stdout, _, code := result(t, "--also-stdout", "sh", "-c", "(echo $$ >/dev/null; exec sleep 60 2>/dev/null) & echo $!; exit 4")
	var pid int
	if _, err := fmt.Sscan(stdout, &pid); err != nil {
		t.Fatalf("stdout %q: %v", stdout, err)
	}
	defer func() { _ = syscall.Kill(pid, syscall.SIGKILL) }()
	if code != 4 || time.Since(began) > 20*time.Second {
		t.Errorf("code %d after %s", code, time.Since(began))
	}
}

// TestReapsAsProcessOne runs go-runner as process 1 of a PID namespace of its own.
func TestReapsAsProcessOne(t *testing.T) {
	// Orphans end while the command goes on; then no zombie may be left. In the namespace /proc is the outer
	// one, so the children are counted from outside, by parent.
	cmd := exec.Command(binary, "--also-stdout", "sh", "-c", "for i in 1 2 3 4 5; do (true & ) ; done; echo ready; read x; exit 5")
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		if errors.Is(err, syscall.EPERM) {
			t.Skipf("needs the right to make a PID namespace: %v", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
	if line, err := bufio.NewReader(out).ReadString('\n'); err != nil || line != "ready\n" {
		t.Fatalf("read %q, %v", line, err)
	}
	children := fmt.Sprintf("/proc/%d/task/%d/children", cmd.Process.Pid, cmd.Process.Pid)
	eventually(t, "only the command is left as a child", func() bool {
		// Every thread may have adopted some; the thread group leader reaps for all.
		return len(strings.Fields(read(t, children))) <= 1 && zombies(t, cmd.Process.Pid) == 0
	})
	if _, err := io.WriteString(in, "\n"); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait()
	if code := cmd.ProcessState.ExitCode(); code != 5 {
		t.Errorf("exit code %d", code)
	}
}

// zombies counts ended children of a process that nobody has reaped.
func zombies(t *testing.T, parent int) (n int) {
	t.Helper()
	stats, err := filepath.Glob("/proc/[0-9]*/stat")
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range stats {
		data, err := os.ReadFile(path)
		if err != nil {
			continue // it has ended since
		}
		var state string
		var ppid int
		if _, err := fmt.Sscan(string(data[bytes.LastIndexByte(data, ')')+1:]), &state, &ppid); err == nil &&
			ppid == parent && state == "Z" {
			n++
		}
	}
	return n
}
