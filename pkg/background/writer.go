package background

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// step is how many bytes may be on their way to the disk while as many are being written to memory; the free space is looked at as often.
const step = 4 << 20

// Writer writes a large file from its beginning to its end. What is written goes to the disk all
// along instead of piling up in memory, so that no final flush makes an etcd wait for its own
// fsync. It neither syncs nor closes the file. It is for one goroutine at a time.
type Writer struct {
	steady   *Steady
	keepFree int64
	// look is the offset at which the free space is looked at again.
	look int64
}

// NewWriter returns a writer for an empty file. keepFree is how many bytes must stay free on its
// file system; 0 means that it may be filled.
func NewWriter(f *os.File, keepFree int64) *Writer {
	return &Writer{steady: newSteady(f, step), keepFree: keepFree}
}

// Written is the number of bytes written so far.
func (w *Writer) Written() int64 { return w.steady.written }

// Expect fails, before anything is written, if n more bytes are too many for the disk.
func (w *Writer) Expect(n int64) error {
	free, ok := w.free()
	if !ok || free >= n+w.keepFree {
		return nil
	}
	return fmt.Errorf("%w: %s needs %d MiB, of %d MiB that are free on its disk %d MiB must stay free; free some disk space or use a larger volume (%w)",
		syscall.ENOSPC, w.steady.f.Name(), up(n), free>>20, up(w.keepFree), cluster.ErrPermanent)
}

// Write implements io.Writer. A disk that is full, or would be fuller than allowed, is an error
// that wraps syscall.ENOSPC and cluster.ErrPermanent.
func (w *Writer) Write(p []byte) (n int, err error) {
	for len(p) > 0 && err == nil {
		if err = w.room(); err != nil {
			break
		}
		var m int
		m, err = w.steady.Write(p[:min(len(p), step)])
		p = p[m:]
		n += m
	}
	if errors.Is(err, syscall.ENOSPC) && !errors.Is(err, cluster.ErrPermanent) {
		err = fmt.Errorf("%w: free some disk space or use a larger volume (%w)", err, cluster.ErrPermanent)
	}
	return n, err
}

func (w *Writer) room() error {
	if w.keepFree <= 0 || w.steady.written < w.look {
		return nil
	}
	w.look = w.steady.written + step
	free, ok := w.free()
	if !ok || free >= w.keepFree+step {
		return nil
	}
	return fmt.Errorf("%w: after %d MiB of %s only %d MiB are free on its disk, and at least %d MiB must stay free; free some disk space or use a larger volume (%w)",
		syscall.ENOSPC, w.steady.written>>20, w.steady.f.Name(), free>>20, up(w.keepFree), cluster.ErrPermanent)
}

// free tells how much an ordinary process can still write; ok is false where that can't be found out, which stops nobody.
func (w *Writer) free() (n int64, ok bool) {
	var s unix.Statfs_t
	if err := unix.Fstatfs(int(w.steady.f.Fd()), &s); err != nil {
		return 0, false
	}
	return int64(s.Bavail) * int64(s.Bsize), true //nolint:unconvert // other systems have other types
}

// up rounds to MiB, upwards.
func up(n int64) int64 { return (n + 1<<20 - 1) >> 20 }
