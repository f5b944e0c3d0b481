package salvage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/background"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/child"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
)

const (
	// helperPoll is how often a helper is looked at.
	helperPoll = 50 * time.Millisecond
	// helperGrace is how long it gets to write what it has in memory.
	helperGrace = 2 * time.Minute
	// helperSocket is below the work dir. etcd takes it for host and port.
	helperSocket = "client:0"
	// tailSize is how much is kept of what it says.
	tailSize = 2 << 10
)

// helper is an etcd for a moment, on a copy that nobody else has. It ends with this process.
type helper struct {
	cmd    *exec.Cmd
	client *client.Client
	tail   *tailBuffer
	// dir keeps the way to the socket short: socket paths may have about 100 bytes.
	dir  *os.File
	done chan struct{}
	err  error // of Wait, written before done is closed
}

// helperArgs are flags that every version from 3.4 to 3.7 has, but for one. Nobody but this process can reach the sockets, which are
// in a directory of its own.
func helperArgs(dataDir, version string) []string {
	args := []string{
		"--name=salvage", "--data-dir=" + dataDir, "--force-new-cluster",
		"--listen-client-urls=unix://" + helperSocket, "--advertise-client-urls=unix://" + helperSocket,
		"--listen-peer-urls=unix://peer:0", "--initial-advertise-peer-urls=unix://peer:0", "--initial-cluster=salvage=unix://peer:0",
		// Without a quota: the data are as large as they are.
		"--quota-backend-bytes=-1", "--logger=zap", "--log-outputs=stderr",
	}
	if etcd.MinorNumber(version) >= 5 {
		args = append(args, "--unsafe-no-fsync") // a crash costs nothing but the copy
	}
	return args
}

func startHelper(cfg Config, d salvageDir) (_ *helper, err error) {
	dir, err := os.Open(string(d))
	if err != nil {
		return nil, err
	}
	h := &helper{dir: dir, tail: &tailBuffer{}, done: make(chan struct{})}
	if h.client, err = client.Dial([]string{fmt.Sprintf("unix:///proc/self/fd/%d/%s", dir.Fd(), helperSocket)}, nil); err != nil {
		return nil, errors.Join(err, dir.Close())
	}
	line := cfg.Binary.CommandLine(helperArgs(d.data(), cfg.Binary.Version)...)
	var opened io.Closer
	if h.cmd, opened, err = line.Executable(); err != nil {
		return nil, errors.Join(fmt.Errorf("start etcd %s: %w", cfg.Binary.Version, err), h.client.Close(), dir.Close())
	}
	defer opened.Close()
	h.cmd.Dir = filepath.Clean(string(d))
	// Nothing of the environment: what the operator has set is for another etcd.
	h.cmd.Env = []string{"ETCD_UNSUPPORTED_ARCH=" + runtime.GOARCH}
	h.cmd.WaitDelay = 2 * time.Second
	h.cmd.Stderr = h.tail
	if cfg.Stderr != nil {
		h.tail.also = cfg.Stderr
	}
	if cfg.Stdout != nil {
		h.cmd.Stdout = cfg.Stdout
	}
	h.cmd.SysProcAttr = child.DieWithParent(&syscall.SysProcAttr{Setpgid: true})
	started := make(chan error)
	go h.run(started)
	if err := <-started; err != nil {
		return nil, errors.Join(fmt.Errorf("start etcd %s: %w", cfg.Binary.Version, err), h.client.Close(), dir.Close())
	}
	return h, nil
}

// run starts the process and waits for it, on one thread: the kernel takes the end of the thread that has started it for that of its parent.
func (h *helper) run(started chan<- error) {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	err := h.cmd.Start()
	if err == nil {
		background.LowerProcess(h.cmd.Process.Pid)
	}
	started <- err
	if err != nil {
		return
	}
	h.err = h.cmd.Wait()
	close(h.done)
}

// stop ends the process in an orderly way, so that everything is in the database; if it has to be killed that is an error, unless there was no grace.
func (h *helper) stop(ctx context.Context, grace time.Duration) error {
	_ = h.cmd.Process.Signal(syscall.SIGTERM) // it may have ended
	t := time.NewTimer(grace)
	defer t.Stop()
	var err error
	select {
	case <-h.done:
	case <-ctx.Done():
		err = ctx.Err()
	case <-t.C:
		if grace > 0 {
			err = fmt.Errorf("etcd didn't stop within %s; its last lines: %s", grace, h.tail)
		}
	}
	_ = h.cmd.Process.Kill() // it may have ended
	<-h.done
	_ = h.client.Close() // what it says of a connection that broke is no news
	return errors.Join(err, h.dir.Close())
}

func (h *helper) reason() error {
	return fmt.Errorf("%w; its last lines: %s", errors.Join(errors.New("exit"), h.err), h.tail)
}

// tailBuffer keeps the end of what is written to it. It is safe for concurrent use.
type tailBuffer struct {
	mu   sync.Mutex
	b    []byte
	also *os.File
}

// Write never fails: a log that can't be written doesn't end anything.
func (t *tailBuffer) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.also != nil {
		_, _ = t.also.Write(p)
	}
	t.b = append(t.b, p...)
	if len(t.b) > 2*tailSize {
		t.b = append(t.b[:0], t.b[len(t.b)-tailSize:]...)
	}
	return len(p), nil
}

// String is the end in one line.
func (t *tailBuffer) String() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.Join(strings.FieldsFunc(string(t.b[max(0, len(t.b)-tailSize):]), func(r rune) bool { return r == '\n' }), " / ")
}
