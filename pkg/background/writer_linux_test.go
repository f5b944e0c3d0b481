package background

import (
	"syscall"
	"testing"
)

// TestSmallDisk fills a file system of its own.
func TestSmallDisk(t *testing.T) {
	const size, keep = 32 << 20, 8 << 20
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=33554432"); err != nil {
		t.Skipf("a file system of its own needs root: %v", err)
	}
	defer func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	chunk := make([]byte, 300<<10)
	fill := func(keepFree int64) (*Writer, error) {
		w := NewWriter(create(t, dir), keepFree)
		for {
			if _, err := w.Write(chunk); err != nil {
				return w, err
			}
		}
	}
	w, err := fill(keep)
	full(t, err, "8 MiB must stay free")
	if w.Written() > size-keep || w.Written() < size-keep-2*step {
		t.Errorf("%d of %d bytes were written", w.Written(), size)
	}
	w, err = fill(0)
	full(t, err)
	if w.Written() < size-1<<20 {
		t.Errorf("%d of %d bytes were written", w.Written(), size)
	}
}
