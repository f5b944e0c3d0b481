package volume

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// InHost is the machine seen from a container that shares its process ids: tools and mounts are
// those of process 1's mount namespace. The image needs no tool for that, not even nsenter.
type InHost struct {
	// Proc is where the machine's processes are seen, usually /proc.
	Proc string
	// Root is where the machine's file system is mounted in the container, usually /rootfs. Mounts
	// that are made later may not appear below it; then they are reached through process 1.
	Root string
}

// Do runs f in a thread of its own that has the machine's mounts.
func (h InHost) Do(f func() error) error { return inThread(h.enter, f) }

// Processes is Proc.
func (h InHost) Processes() string { return h.Proc }

// inThread runs f in a thread of its own that has entered other mounts.
func inThread(enter, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != unix.Getpid() {
			doThere(enter, f, done)
			return
		}
		// The first thread can't end, and it is what others see as this process's mounts. It is held until another thread has done it.
		defer runtime.UnlockOSThread()
		elsewhere := make(chan error, 1)
		go func() {
			runtime.LockOSThread()
			doThere(enter, f, elsewhere)
		}()
		done <- <-elsewhere
	}()
	return <-done
}

// doThere is called in a thread that is locked and isn't unlocked again, so that it ends with the
// goroutine: nothing else must ever run in the other mounts.
func doThere(enter, f func() error, done chan<- error) {
	if err := enter(); err != nil {
		done <- err
		return
	}
	done <- f()
}

// enter moves the calling thread into the machine's mount namespace.
func (h InHost) enter() error {
	path := filepath.Join(h.Proc, "1/ns/mnt")
	theirs, err := os.Readlink(path)
	if err == nil {
		var own string
		if own, err = os.Readlink("/proc/thread-self/ns/mnt"); err == nil && own == theirs {
			return fmt.Errorf("--containerized: process 1 is in this container, so the machine's mounts can't be reached; share the host's process ids (hostPID: true, docker run --pid=host)")
		}
	}
	var ns *os.File
	if err == nil {
		ns, err = os.Open(path)
	}
	if err != nil {
		return fmt.Errorf("--containerized: reach the machine's mounts: %w; the container must be privileged and share the host's process ids", err)
	}
	defer ns.Close()
	if err := setNamespace(ns); err != nil {
		return fmt.Errorf("--containerized: enter the machine's mounts: %w; the container must be privileged", err)
	}
	return nil
}

// setNamespace moves the calling thread into a mount namespace.
func setNamespace(ns *os.File) error {
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("a thread of its own: %w", err)
	}
	return unix.Setns(int(ns.Fd()), unix.CLONE_NEWNS)
}

// Run starts a tool in the machine's mounts.
func (h InHost) Run(ctx context.Context, tool string, args ...string) (string, int, error) {
	var out bytes.Buffer
	var cmd *exec.Cmd
	err := h.Do(func() (err error) {
		cmd, err = start(ctx, &out, tool, args)
		return err
	})
	if err != nil {
		return "", -1, err
	}
	return finish(ctx, cmd, &out)
}

// Visible looks below the mounted root, then through process 1.
func (h InHost) Visible(dir string, dev uint64) (string, error) {
	return visible(dev, filepath.Join(h.Root, dir), filepath.Join(h.Proc, "1/root", dir))
}

// deviceOf returns the number of the device on which a path lies.
func deviceOf(path string) (uint64, error) {
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		return 0, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return uint64(st.Dev), nil //nolint:unconvert // its type differs between architectures
}
