package file_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/file"
)

// mountExt4 mounts a small file system of its own, and returns what freezes and thaws it.
func mountExt4(t *testing.T) (dir string, freeze func(flag string) error) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can mount and freeze a file system")
	}
	for _, tool := range []string{"mkfs.ext4", "mount", "umount", "fsfreeze"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is needed: %v", tool, err)
		}
	}
	base := t.TempDir()
	image, dir := filepath.Join(base, "image"), filepath.Join(base, "mnt")
	if err := os.WriteFile(image, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(os.Truncate(image, 16<<20), os.Mkdir(dir, 0o700)); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", image).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Skipf("no file system can be mounted here: %v: %s", err, out)
	}
	t.Cleanup(func() {
		_ = exec.Command("fsfreeze", "--unfreeze", dir).Run() // it is thawed already if all went well
		if out, err := exec.Command("umount", dir).CombinedOutput(); err != nil {
			t.Errorf("%v: %s", err, out)
			_ = exec.Command("umount", "--lazy", dir).Run()
		}
	})
	return dir, func(flag string) error { return exec.Command("fsfreeze", flag, dir).Run() }
}

// TestFrozen: on a file system that is frozen a write ends with its time or when it is called off,
// what can be read is read, and what was given up doesn't appear when the file system goes on.
func TestFrozen(t *testing.T) {
	dir, freeze := mountExt4(t)
	f, err := file.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	s := blob.WithTimeouts(blob.Detach(f), blob.Timeouts{Small: 300 * time.Millisecond})
	write := func(ctx context.Context, key string) error {
		_, err := s.Put(ctx, key, strings.NewReader("x"), blob.PutOptions{})
		return err
	}
	if err := write(t.Context(), "before"); err != nil {
		t.Fatal(err)
	}
	if err := freeze("--freeze"); err != nil {
		t.Skipf("this file system can't be frozen: %v", err)
	}
	thaw := time.AfterFunc(15*time.Second, func() { _ = freeze("--unfreeze") }) // if a write hangs for good, so would the cleanup
	defer thaw.Stop()
	err = write(t.Context(), "late-1")
	if !errors.Is(err, blob.ErrTransient) || !strings.Contains(err.Error(), "file://"+dir+"/late-1") {
		t.Errorf("a write ended with %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	time.AfterFunc(10*time.Millisecond, cancel)
	if err := write(ctx, "late-2"); !errors.Is(err, context.Canceled) {
		t.Errorf("a write that was called off ended with %v", err)
	}
	if _, err := s.Stat(t.Context(), "before"); err != nil {
		t.Errorf("what needs no write: %v", err)
	}
	if err := freeze("--unfreeze"); err != nil {
		t.Fatal(err)
	}
	if err := write(t.Context(), "after"); err != nil {
		t.Errorf("after it went on: %v", err)
	}
	// Once the writes that hung are over, nothing of them is left.
	for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		left, err := filepath.Glob(filepath.Join(dir, ".blob-tmp", "put-*"))
		if err == nil && len(left) == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("%v is left, %v", left, err)
		}
	}
	for _, key := range []string{"late-1", "late-2"} {
		if _, err := s.Stat(t.Context(), key); !errors.Is(err, blob.ErrNotFound) {
			t.Errorf("%s: %v", key, err)
		}
	}
}
