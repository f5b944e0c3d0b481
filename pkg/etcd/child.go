package etcd

import (
	"bytes"
	"context"
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
)

// proveKinds are the sentinels that the answer of a child can name. No error wraps two of them.
var proveKinds = map[string]error{
	"database": ErrBadDatabase, "snapshot": ErrBadSnapshot, "in-use": ErrDataDirInUse, "absent": os.ErrNotExist, "version": ErrVersion,
	"config": ErrConfig, "log": ErrBadLog, "gap": ErrGap, "full": syscall.ENOSPC,
}

// sentinelOf gives what the caller branches on.
func sentinelOf(kind string) error {
	if kind == "full" {
		return errors.Join(syscall.ENOSPC, cluster.ErrPermanent)
	}
	return proveKinds[kind]
}

func kindOf(err error) string {
	for kind, sentinel := range proveKinds {
		if errors.Is(err, sentinel) {
			return kind
		}
	}
	return ""
}

// limitSelf makes sure that a bad file can't make the process leave a core file, that the process gives way to etcd, and that it is the one that
// the kernel ends where memory runs out. Failing is harmless.
func limitSelf() {
	_ = os.WriteFile("/proc/self/oom_score_adj", []byte("1000"), 0)
	background.LowerProcess(os.Getpid())
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
}

// childError is an error that was told by a child process.
type childError struct {
	msg  string
	kind error
}

func (e *childError) Error() string { return e.msg }

func (e *childError) Unwrap() error { return e.kind }

// errCrashed means that a child ended by a panic, or by a signal that it has caused itself.
var errCrashed = errors.New("crashed")

// errKilled means that a child was ended from outside.
var errKilled = errors.New("the process that worked on it was killed, perhaps by the kernel because memory ran out; that says nothing of the data")

// runSelf runs a subcommand of the manager and returns what it printed, also where it wasn't to be told everything. stdin may be nil.
func runSelf(ctx context.Context, stdin io.Reader, exe string, args ...string) ([]byte, error) {
	c := exec.CommandContext(ctx, exe, args...)
	stdout, stderr := &headBuffer{most: maxAnswer}, &headBuffer{most: maxComplaint}
	c.Stdin, c.Stdout, c.Stderr = stdin, stdout, stderr
	// Nothing of the environment is needed.
	c.Env = []string{"GOTRACEBACK=single"}
	c.WaitDelay = 2 * time.Second
	// A child that outlived its manager would hold locks, and write where the next manager begins again. The kernel takes the end of the
	// thread that has started it for that of its parent.
	c.SysProcAttr = dieWithParent(&syscall.SysProcAttr{})
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := c.Run()
	switch ws, exited := exitStatus(err); {
	case exited && ws.Signaled() && ws.Signal() == syscall.SIGKILL:
		return stdout.b, errKilled
	case exited:
		return nil, fmt.Errorf("%w (%v): %s", errCrashed, err, bytes.TrimSpace(stderr.b))
	}
	if stdout.more {
		return nil, fmt.Errorf("%w: it answered with more than %d bytes", errCrashed, maxAnswer)
	}
	if err != nil {
		return stdout.b, fmt.Errorf("run %s %s: %w", exe, args[0], err)
	}
	return stdout.b, nil
}

// exitStatus is how a child ended, if it did.
func exitStatus(err error) (syscall.WaitStatus, bool) {
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

// headBuffer keeps the beginning of what is written to it.
type headBuffer struct {
	b    []byte
	most int
	// more is true if that wasn't all.
	more bool
}

func (t *headBuffer) Write(p []byte) (int, error) {
	n := min(len(p), t.most-len(t.b))
	t.b = append(t.b, p[:n]...)
	t.more = t.more || n < len(p)
	return len(p), nil
}
