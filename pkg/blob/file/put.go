package file

import (
	"context"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/etcd-manager/etcd-manager/pkg/background"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

const (
	lockName  = reserved + "/lock"
	tmpPrefix = reserved + "/put-"
	// staleAfter is the age at which the temporary file of a put that never ended, its process being dead, is removed.
	staleAfter = 24 * time.Hour
	copyBuffer = 256 << 10
	dirMode    = 0o700
	fileMode   = 0o600
)

// Put implements blob.Store.
func (s *Store) Put(ctx context.Context, key string, body io.Reader, opts blob.PutOptions) (blob.Info, error) {
	if err := blob.CheckPut(key, opts); err != nil {
		return blob.Info{}, s.invalid("put", key, err)
	}
	if err := s.checkKey(key); err != nil {
		return blob.Info{}, s.invalid("put", key, err)
	}
	if opts.Hide {
		_, err := s.Purge(ctx, key, func(k string) bool { return k == key })
		return blob.Info{}, err
	}
	if err := ctx.Err(); err != nil {
		return blob.Info{}, s.fail("put", key, err)
	}
	if _, err := os.Stat(s.base); errors.Is(err, fs.ErrNotExist) && s.seen.Load() {
		return blob.Info{}, s.gone("put", key)
	}
	if err := makeBase(filepath.Join(s.base, reserved)); err != nil {
		return blob.Info{}, s.fail("put", key, err)
	}
	root, err := s.openBase(ctx, "put", key)
	if err != nil {
		return blob.Info{}, err
	}
	defer root.Close()
	// What already fails need not be written first; what decides is the same check under the lock.
	if err := s.precondition(root, key, opts); err != nil {
		return blob.Info{}, s.fail("put", key, err)
	}
	tmp, fi, err := writeTemp(ctx, root, body)
	if err != nil {
		return blob.Info{}, s.fail("put", key, err)
	}
	defer func() { _ = root.Remove(tmp) }() // Gone already after a rename.
	if err := s.publish(ctx, root, tmp, key, opts); err != nil {
		return blob.Info{}, s.fail("put", key, err)
	}
	return info(key, fi), nil
}

// writeTemp writes body to a new temporary file, syncs it and reads it back, and returns its name. Nothing is left after an error.
func writeTemp(ctx context.Context, root *os.Root, body io.Reader) (tmp string, fi fs.FileInfo, err error) {
	f, name, err := createTemp(root)
	if err != nil {
		return "", nil, err
	}
	defer func() {
		if e := f.Close(); err == nil && e != nil {
			err = e
		}
		if err != nil {
			_ = root.Remove(name)
		}
	}()
	table := crc32.MakeTable(crc32.Castagnoli)
	written := crc32.New(table)
	buf := make([]byte, copyBuffer)
	// Bringing all of a large object to the disk at the end would hold up an etcd that writes its log to the same one.
	steady := background.NewSteady(f)
	n, err := io.CopyBuffer(struct{ io.Writer }{io.MultiWriter(progressWriter{steady, ctx}, written)}, blob.BodyReader(ctx, body), buf)
	if err != nil {
		return "", nil, err
	}
	now := time.Now()
	if err := root.Chtimes(name, now, now); err != nil {
		return "", nil, err
	}
	if err := unix.Fsync(int(f.Fd())); err != nil {
		return "", nil, &fs.PathError{Op: "sync", Path: f.Name(), Err: err}
	}
	stored := crc32.New(table)
	m, err := io.CopyBuffer(progressWriter{stored, ctx}, blob.BodyReader(ctx, io.NewSectionReader(f, 0, n+1)), buf)
	if err != nil {
		return "", nil, err
	}
	if m != n || stored.Sum32() != written.Sum32() {
		return "", nil, fmt.Errorf("verify %s: %d bytes with checksum %08x were written, %d with %08x are there",
			f.Name(), n, written.Sum32(), m, stored.Sum32())
	}
	fi, err = f.Stat()
	return name, fi, err
}

// progressWriter has what is written count as progress.
type progressWriter struct {
	w   io.Writer
	ctx context.Context
}

func (w progressWriter) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	blob.Progressed(w.ctx)
	return n, err
}

// createTemp makes a temporary file whose name says when, so that forgotten ones are found.
func createTemp(root *os.Root) (*os.File, string, error) {
	for {
		name := fmt.Sprintf("%s%d-%d", tmpPrefix, os.Getpid(), time.Now().UnixNano())
		f, err := root.OpenFile(name, os.O_RDWR|os.O_CREATE|os.O_EXCL, fileMode)
		if errors.Is(err, fs.ErrExist) {
			continue
		}
		return f, name, err
	}
}

// publish gives the temporary file its name, under the lock.
func (s *Store) publish(ctx context.Context, root *os.Root, tmp, key string, opts blob.PutOptions) error {
	unlock, err := s.lock(ctx, root, opts.IfAbsent || opts.IfVersion != "")
	if err != nil {
		return err
	}
	defer unlock()
	removeStale(root, time.Now())
	name, dir := filepath.FromSlash(key), path.Dir(key)
	// Another process without the lock (a person) may remove the empty directory in between.
	for try := 0; ; try++ {
		if err := makeDirs(root, dir); err != nil {
			return err
		}
		if err := s.precondition(root, key, opts); err != nil {
			return err
		}
		// A put that was given up while the file system hung must not appear when it goes on.
		if err := ctx.Err(); err != nil {
			return err
		}
		if opts.IfAbsent {
			err = link(root, tmp, name)
		} else {
			err = root.Rename(tmp, name)
		}
		if try < 3 && errors.Is(err, fs.ErrNotExist) {
			continue
		}
		break
	}
	if opts.IfAbsent && errors.Is(err, fs.ErrExist) {
		return s.precondition(root, key, opts)
	}
	if err != nil {
		return err
	}
	return syncDir(root, dir)
}

// link makes the file appear under name only if nothing is there, which holds even against a process without the lock. File
// systems without hard links get a rename, which the lock protects.
func link(root *os.Root, tmp, name string) error {
	err := root.Link(tmp, name)
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.EMLINK) {
		return root.Rename(tmp, name)
	}
	return err
}

// precondition returns an ErrPreconditionFailed if opts does not hold for what is there now.
func (s *Store) precondition(root *os.Root, key string, opts blob.PutOptions) error {
	if !opts.IfAbsent && opts.IfVersion == "" {
		return nil
	}
	failed := func(format string, args ...any) error {
		return &blob.Error{Op: "put", Key: s.name(key), Kind: blob.ErrPreconditionFailed, Err: fmt.Errorf(format, args...)}
	}
	fi, err := stat(root, key)
	switch {
	case errors.Is(err, fs.ErrNotExist) && opts.IfAbsent:
		return nil
	case errors.Is(err, fs.ErrNotExist):
		return failed("the object does not exist")
	case err != nil:
		return err
	case opts.IfAbsent:
		return failed("the object exists")
	}
	if v := info(key, fi).Version; v != opts.IfVersion {
		return failed("the object has version %s, expected %s", v, opts.IfVersion)
	}
	return nil
}

// lock takes the lock of the base and returns what gives it back. Where the file system has no locks, only
// what needs one fails.
func (s *Store) lock(ctx context.Context, root *os.Root, needed bool) (unlock func(), err error) {
	select {
	case s.sem <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	release := func() { <-s.sem }
	f, err := root.OpenFile(lockName, os.O_RDWR|os.O_CREATE, fileMode)
	if err != nil {
		release()
		return nil, err
	}
	wait := time.Millisecond
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		switch {
		case err == nil:
			return func() { f.Close(); release() }, nil
		case errors.Is(err, unix.EWOULDBLOCK), errors.Is(err, unix.EINTR):
		case !needed && (errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) || errors.Is(err, unix.ENOLCK)):
			f.Close()
			return release, nil
		default:
			f.Close()
			release()
			return nil, &fs.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
		t := time.NewTimer(wait)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			f.Close()
			release()
			return nil, fmt.Errorf("wait for lock %s: %w", f.Name(), ctx.Err())
		}
		wait = min(wait*2, 50*time.Millisecond)
	}
}

// removeStale removes temporary files that no living put can own any more, and locks that were held
// to be seen. What fails is tried again by the next put.
func removeStale(root *os.Root, now time.Time) {
	entries, err := fs.ReadDir(root.FS(), reserved)
	if err != nil {
		return
	}
	for _, e := range entries {
		name := reserved + "/" + e.Name()
		if fi, err := e.Info(); err == nil && (strings.HasPrefix(name, tmpPrefix) || strings.HasPrefix(name, lockPrefix)) &&
			now.Sub(fi.ModTime()) > staleAfter {
			_ = root.Remove(name)
		}
	}
}

// makeBase makes dir and its parents and syncs whatever got a new entry.
func makeBase(dir string) error {
	if fi, err := os.Stat(dir); err == nil && fi.IsDir() {
		return nil
	}
	parent := filepath.Dir(dir)
	if parent != dir {
		if err := makeBase(parent); err != nil {
			return err
		}
	}
	if err := os.Mkdir(dir, dirMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	d, err := os.Open(parent)
	if err != nil {
		return err
	}
	defer d.Close()
	return ignoreUnsupported(d.Sync())
}

// makeDirs does the same for a directory below the base.
func makeDirs(root *os.Root, dir string) error {
	if dir == "." {
		return nil
	}
	if fi, err := root.Stat(dir); err == nil && fi.IsDir() {
		return nil
	}
	if err := makeDirs(root, path.Dir(dir)); err != nil {
		return err
	}
	if err := root.Mkdir(dir, dirMode); err != nil {
		if !errors.Is(err, fs.ErrExist) {
			return err
		}
		if fi, serr := root.Stat(dir); serr == nil && !fi.IsDir() {
			return &fs.PathError{Op: "mkdir", Path: dir, Err: syscall.ENOTDIR}
		}
	}
	return syncDir(root, path.Dir(dir))
}

func syncDir(root *os.Root, dir string) error {
	d, err := root.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	return ignoreUnsupported(d.Sync())
}

// ignoreUnsupported: some network file systems can't sync a directory and make entries durable by themselves.
func ignoreUnsupported(err error) error {
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EOPNOTSUPP) {
		return nil
	}
	return err
}
