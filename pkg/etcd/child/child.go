package child

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/etcd-manager/etcd-manager/pkg/background"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
)

// Command is a hidden subcommand of a program: what it does as a child of itself.
type Command struct {
	Name string
	// Main gets what follows on the name, and returns the exit code.
	Main func(args []string) int
}

// Dispatch is called with a program's arguments, without its name, before it does anything else. It runs the command that they begin with,
// if it is one of these; else ok is false.
func Dispatch(args []string, commands ...Command) (code int, ok bool) {
	if len(args) == 0 {
		return 0, false
	}
	for _, c := range commands {
		if c.Name == args[0] {
			return c.Main(args[1:]), true
		}
	}
	return 0, false
}

// answer is what a child prints: one line of JSON.
type answer[T any] struct {
	Result *T     `json:"result,omitempty"`
	Error  string `json:"error,omitempty"`
	Kind   string `json:"kind,omitempty"`
}

// Call runs a subcommand of exe, which is [Answer], with an order as its standard input, and returns the result or the error that it
// answers. The error wraps the sentinel that the child's did.
func Call[T any](ctx context.Context, exe string, order any, args ...string) (result T, err error) {
	in, err := json.Marshal(order)
	if err != nil {
		return result, err
	}
	out, err := Run(ctx, bytes.NewReader(in), exe, args...)
	if ctx.Err() != nil {
		return result, ctx.Err()
	}
	if err != nil {
		return result, err
	}
	var a answer[T]
	if err := json.Unmarshal(out, &a); err != nil {
		return result, fmt.Errorf("%s %s gave no answer: %w", exe, args[0], err)
	}
	if a.Error != "" {
		return result, Told(a.Error, a.Kind)
	}
	if a.Result == nil {
		return result, fmt.Errorf("%s %s gave no result", exe, args[0])
	}
	return *a.Result, nil
}

// Answer is the whole of a child that [Call] runs. It returns the exit code, 0 also if the work has failed: the answer says so.
func Answer[O, T any](work func(ctx context.Context, order O) (T, error)) int {
	LimitSelf()
	var order O
	if err := json.NewDecoder(os.Stdin).Decode(&order); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 2
	}
	result, err := work(context.Background(), order) // nobody cancels it: who wants it to end kills the process
	a := answer[T]{Result: &result}
	if err != nil {
		a = answer[T]{Error: err.Error(), Kind: KindOf(err)}
	}
	if err := json.NewEncoder(os.Stdout).Encode(a); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// kinds are the sentinels that the answer of a child can name. No error wraps two of them.
var kinds = map[string]error{
	"database": etcd.ErrBadDatabase, "snapshot": etcd.ErrBadSnapshot, "in-use": etcd.ErrDataDirInUse, "absent": os.ErrNotExist, "version": etcd.ErrVersion,
	"config": etcd.ErrConfig, "log": etcd.ErrBadLog, "gap": etcd.ErrGap, "full": syscall.ENOSPC,
}

// sentinelOf gives what the caller branches on.
func sentinelOf(kind string) error {
	if kind == "full" {
		return errors.Join(syscall.ENOSPC, cluster.ErrPermanent)
	}
	return kinds[kind]
}

// KindOf is the name of the sentinel that an error wraps; empty if a child's answer can't name it.
func KindOf(err error) string {
	for kind, sentinel := range kinds {
		if errors.Is(err, sentinel) {
			return kind
		}
	}
	return ""
}

// LimitSelf makes sure that a bad file can't make the process leave a core file, that the process gives way to etcd, and that it is the one that
// the kernel ends where memory runs out. Failing is harmless.
func LimitSelf() {
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0)
	background.LowerProcess(os.Getpid())
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
}

// Told is an error that a child has told, of a kind that [KindOf] gave there.
func Told(message, kind string) error { return &toldError{msg: message, kind: sentinelOf(kind)} }

// toldError is an error that was told by a child process.
type toldError struct {
	msg  string
	kind error
}

func (e *toldError) Error() string { return e.msg }

func (e *toldError) Unwrap() error { return e.kind }

// ErrCrashed means that a child ended by a panic, or by a signal that it has caused itself.
var ErrCrashed = errors.New("crashed")

// ErrKilled means that a child was ended from outside.
var ErrKilled = errors.New("the process that worked on it was killed, perhaps by the kernel because memory ran out; that says nothing of the data")

// Run runs a subcommand of the manager and returns what it printed, also where it wasn't to be told everything. stdin may be nil.
func Run(ctx context.Context, stdin io.Reader, exe string, args ...string) ([]byte, error) {
	c := exec.CommandContext(ctx, exe, args...)
	stdout, stderr := &HeadBuffer{most: maxAnswer}, Complaint()
	c.Stdin, c.Stdout, c.Stderr = stdin, stdout, stderr
	// Nothing of the environment is needed.
	c.Env = []string{"GOTRACEBACK=single"}
	c.WaitDelay = 2 * time.Second
	// A child that outlived its manager would hold locks, and write where the next manager begins again. The kernel takes the end of the
	// thread that has started it for that of its parent.
	c.SysProcAttr = DieWithParent(&syscall.SysProcAttr{})
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := c.Run()
	switch ws, exited := ExitStatus(err); {
	case exited && ws.Signaled() && ws.Signal() == syscall.SIGKILL:
		return stdout.b, ErrKilled
	case exited:
		return nil, fmt.Errorf("%w (%v): %s", ErrCrashed, err, bytes.TrimSpace(stderr.b))
	}
	if stdout.more {
		return nil, fmt.Errorf("%w: it answered with more than %d bytes", ErrCrashed, maxAnswer)
	}
	if err != nil {
		return stdout.b, fmt.Errorf("run %s %s: %w", exe, args[0], err)
	}
	return stdout.b, nil
}

// ExitStatus is how a child ended, if it did.
func ExitStatus(err error) (syscall.WaitStatus, bool) {
	var exit *exec.ExitError
	if !errors.As(err, &exit) {
		return 0, false
	}
	ws, ok := exit.Sys().(syscall.WaitStatus)
	return ws, ok
}

// What is kept of what a child says: an answer is much shorter, and of a complaint that is enough to see a panic's message.
const (
	maxAnswer    = 1 << 20
	maxComplaint = 500
)

// Complaint keeps the beginning of what a child writes to its standard error.
func Complaint() *HeadBuffer { return &HeadBuffer{most: maxComplaint} }

// HeadBuffer keeps the beginning of what is written to it.
type HeadBuffer struct {
	b    []byte
	most int
	// more is true if that wasn't all.
	more bool
}

// Write never fails.
func (t *HeadBuffer) Write(p []byte) (int, error) {
	n := min(len(p), t.most-len(t.b))
	t.b = append(t.b, p[:n]...)
	t.more = t.more || n < len(p)
	return len(p), nil
}

// Bytes is what was kept.
func (t *HeadBuffer) Bytes() []byte { return t.b }

// TimeLimit is how long work on a database may take: a generous bound, because whoever has the lowest priority may wait for long.
func TimeLimit(size int64) time.Duration {
	return 5*time.Minute + time.Duration(size>>20)*time.Second
}
