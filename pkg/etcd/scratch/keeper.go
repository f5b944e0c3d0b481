// Package scratch runs an etcd over a copy of a database that nobody needs afterwards: in a process of its own, which removes the copy
// when the process that has started it closes it, or dies.
//
// The etcd is the compiled-in one. It listens on loopback alone, without TLS, and is a cluster of one that knows of no other. The package
// never touches anything outside of the directory that it was given.
package scratch

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/child"
)

// Order says what is served.
type Order struct {
	// Snapshot is a snapshot file below the directory, which is used up.
	Snapshot string `json:"snapshot"`
	// Listen is a loopback address with a port; port 0 takes a free one.
	Listen string `json:"listen"`
}

// Serving is what is being served.
type Serving struct {
	// Endpoint is the URL for clients, Version that of the etcd.
	Endpoint string `json:"endpoint"`
	Version  string `json:"version"`
	// Hash is what HashKV answers at the snapshot's revision.
	Hash etcd.HashKV `json:"hash"`
	Keys int64       `json:"keys"`
	// Leases is how many were prolonged, so that none of their keys ends while somebody looks.
	Leases int `json:"leases"`
}

// closeTime is how long a child gets to stop its etcd and to remove the directory.
const closeTime = 20 * time.Second

// Keeper is the process that owns a directory.
type Keeper struct {
	cmd    *exec.Cmd
	in     io.WriteCloser
	out    *bufio.Reader
	stderr *tail
	dir    string
	done   chan struct{}
	err    error // of Wait, written before done is closed
	once   sync.Once
}

// Keep starts the process that removes a directory, at the latest when this process dies. exe is a program that has Command as a hidden
// subcommand.
func Keep(exe, dir string) (*Keeper, error) {
	k := &Keeper{cmd: exec.Command(exe, Subcommand, dir), stderr: &tail{}, dir: dir, done: make(chan struct{})}
	// In a group of its own: who presses Ctrl-C means the parent, which closes it.
	k.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	k.cmd.Env, k.cmd.Stderr, k.cmd.WaitDelay = []string{"GOTRACEBACK=single"}, k.stderr, 2*time.Second
	in, err := k.cmd.StdinPipe()
	if err != nil {
		return nil, fmt.Errorf("start the scratch etcd: %w", err)
	}
	// Not StdoutPipe, which Wait would close before all was read.
	r, w, err := os.Pipe()
	if err != nil {
		return nil, fmt.Errorf("start the scratch etcd: %w", err)
	}
	k.in, k.out, k.cmd.Stdout = in, bufio.NewReader(r), w
	err = k.cmd.Start()
	_ = w.Close() // the child has its own
	if err != nil {
		_ = r.Close()
		return nil, fmt.Errorf("start the scratch etcd: %w", err)
	}
	go func() {
		k.err = k.cmd.Wait()
		close(k.done)
	}()
	return k, nil
}

// reply is what the child says.
type reply struct {
	Serving *Serving `json:"serving,omitempty"`
	Error   string   `json:"error,omitempty"`
	Kind    string   `json:"kind,omitempty"`
}

// Serve makes a data dir of a snapshot and starts an etcd on it. It returns when that serves. It can be called once.
func (k *Keeper) Serve(ctx context.Context, o Order) (Serving, error) {
	if err := json.NewEncoder(k.in).Encode(o); err != nil {
		return Serving{}, k.ended(err)
	}
	answer := make(chan error, 1)
	var r reply
	go func() { answer <- json.NewDecoder(k.out).Decode(&r) }()
	select {
	case <-ctx.Done():
		return Serving{}, context.Cause(ctx)
	case err := <-answer:
		switch {
		case err != nil:
			return Serving{}, k.ended(err)
		case r.Error != "":
			return Serving{}, child.Told(r.Error, r.Kind)
		case r.Serving == nil:
			return Serving{}, errors.New("start the scratch etcd: no answer")
		}
	}
	return *r.Serving, nil
}

// ended says why the process has ended that was asked for something.
func (k *Keeper) ended(err error) error {
	select {
	case <-k.done:
		return k.Err()
	case <-time.After(closeTime):
		return fmt.Errorf("the scratch etcd doesn't answer: %w", err)
	}
}

// Done is closed when the process has ended.
func (k *Keeper) Done() <-chan struct{} { return k.done }

// Err says how the process has ended, after Done is closed.
func (k *Keeper) Err() error {
	return fmt.Errorf("the scratch etcd has ended (%v): %s", k.err, bytes.TrimSpace(k.stderr.bytes()))
}

// Close ends the etcd and removes the directory. It returns when both are gone.
func (k *Keeper) Close() error {
	k.once.Do(func() {
		_ = k.in.Close() // it may have ended
		select {
		case <-k.done:
		case <-time.After(closeTime):
			_ = k.cmd.Process.Kill()
			<-k.done
		}
	})
	return os.RemoveAll(k.dir)
}

// tailSize is how much is kept of what a child says.
const tailSize = 2 << 10

// tail keeps the end of what is written to it.
type tail struct {
	mu sync.Mutex
	b  []byte
}

// Write never fails.
func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.b = append(t.b, p...)
	if n := len(t.b); n > tailSize {
		t.b = append([]byte(nil), t.b[n-tailSize:]...)
	}
	return len(p), nil
}

func (t *tail) bytes() []byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	return bytes.Clone(t.b)
}
