package background

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

func create(t *testing.T, dir string) *os.File {
	t.Helper()
	f, err := os.Create(filepath.Join(dir, "large"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := f.Close(); err != nil {
			t.Error(err)
		}
	})
	return f
}

func TestEveryByteArrives(t *testing.T) {
	f := create(t, t.TempDir())
	w := NewWriter(f, 1<<20)
	var want bytes.Buffer
	for i, n := range []int{0, 1, 4095, step - 1, step, step + 1, 3*step + 17, 100} {
		p := bytes.Repeat([]byte{byte(i + 1)}, n)
		want.Write(p)
		if m, err := w.Write(p); m != n || err != nil {
			t.Fatalf("wrote %d of %d bytes: %v", m, n, err)
		}
	}
	got, err := os.ReadFile(f.Name())
	if err != nil || !bytes.Equal(got, want.Bytes()) || w.Written() != int64(want.Len()) {
		t.Errorf("%d bytes are there, %d were written, %d counted: %v", len(got), want.Len(), w.Written(), err)
	}
}

func TestSteadyFilesAreWhole(t *testing.T) {
	f := create(t, t.TempDir())
	w := NewSteady(f)
	var want bytes.Buffer
	for i, n := range []int{0, 1, 4095, smallStep - 1, smallStep, smallStep + 1, 3*smallStep + 17, 100} {
		p := bytes.Repeat([]byte{byte(i + 1)}, n)
		want.Write(p)
		if m, err := w.Write(p); m != n || err != nil {
			t.Fatalf("wrote %d of %d bytes: %v", m, n, err)
		}
		if w.written-w.begun >= smallStep {
			t.Fatalf("%d bytes were written of which nobody has told the kernel", w.written-w.begun)
		}
	}
	got, err := os.ReadFile(f.Name())
	if err != nil || !bytes.Equal(got, want.Bytes()) {
		t.Errorf("%d bytes are there, %d were written: %v", len(got), want.Len(), err)
	}
}

// TestBytesThatDontReachTheDisk: the kernel says of bytes only once that it couldn't write them, so whoever hears of it must not forget it.
func TestBytesThatDontReachTheDisk(t *testing.T) {
	for cause, permanent := range map[syscall.Errno]bool{syscall.EIO: false, syscall.EDQUOT: false, syscall.ENOSPC: true} {
		calls := 0
		fail := func(f *os.File, _, _ int64) error {
			if calls++; calls == 2 {
				return &os.PathError{Op: "write out", Path: f.Name(), Err: cause}
			}
			return nil
		}
		s := NewSteady(create(t, t.TempDir()))
		s.out = fail
		w := NewWriter(create(t, t.TempDir()), 0)
		w.steady.out = fail
		n, err := s.Write(make([]byte, 5*smallStep))
		if n != 2*smallStep || !errors.Is(err, cause) {
			t.Errorf("%v: wrote %d bytes, %v", cause, n, err)
		}
		if _, err := s.Write([]byte("more")); !errors.Is(err, cause) {
			t.Errorf("%v: it is forgotten: %v", cause, err)
		}
		calls = 0
		if _, err := w.Write(make([]byte, 5*step)); !errors.Is(err, cause) || errors.Is(err, cluster.ErrPermanent) != permanent {
			t.Errorf("%v: %v", cause, err)
		}
		if _, err := w.Write([]byte("more")); !errors.Is(err, cause) {
			t.Errorf("%v: the writer forgets: %v", cause, err)
		}
	}
}

func full(t *testing.T, err error, words ...string) {
	t.Helper()
	if !errors.Is(err, syscall.ENOSPC) || !errors.Is(err, cluster.ErrPermanent) {
		t.Fatalf("no room: %v", err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			t.Errorf("%q isn't said: %v", w, err)
		}
	}
}

func TestWhatIsKnownToBeTooMuch(t *testing.T) {
	w := NewWriter(create(t, t.TempDir()), 0)
	full(t, w.Expect(1<<50), "1073741824 MiB", "are free")
	if err := w.Expect(1 << 20); err != nil {
		t.Error(err)
	}
	full(t, NewWriter(create(t, t.TempDir()), 1<<50).Expect(1), "1073741824 MiB must stay free")
}
