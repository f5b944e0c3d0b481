// Package file keeps objects as files below a base directory, which several machines may share.
//
// A key is a path below the base. An object appears in one step: it is written to a temporary file
// in the reserved directory ".blob-tmp" of the base, synced, read back, linked or renamed to its
// place, and the directory is synced. All changes of what is visible happen under one advisory lock
// (flock) of the base, so that conditional puts hold between processes, and between machines where
// the file system carries flock, as NFS does. The lock is never held while data is written.
//
// The package never follows a path out of the base and never shows or touches what it did not put there itself,
// except that whatever regular file lies below the base counts as an object.
package file

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// reserved is the directory below the base that holds the lock and temporary files. No key may begin with it.
const reserved = ".blob-tmp"

// Store is a directory as a blob.Store. Make one with New. It holds no resources between calls.
type Store struct {
	base string
	// seen is true once the base was there. One that is gone afterwards is not made anew: it may be a file system that was unmounted.
	seen atomic.Bool
	// sem is the in-process half of the lock, so that goroutines queue instead of polling.
	sem chan struct{}
}

// New returns the store whose base is the directory dir, an absolute path. It touches nothing: the base is
// made by the first put. Until then reading is an error of kind ErrInvalid and not ErrNotFound, since a base that isn't there may
// be a file system that isn't mounted.
func New(dir string) (*Store, error) {
	if !filepath.IsAbs(dir) {
		return nil, fmt.Errorf("open file store: %q is not an absolute path", dir)
	}
	if strings.ContainsRune(dir, 0) {
		return nil, fmt.Errorf("open file store: %q has a NUL byte", dir)
	}
	return &Store{base: filepath.Clean(dir), sem: make(chan struct{}, 1)}, nil
}

// String is the base's URL.
func (s *Store) String() string { return "file://" + s.base }

// Uninterruptible implements blob.Uninterruptible: a file system can hang, and no context ends a system call.
func (s *Store) Uninterruptible() {}

// Stat implements blob.Store.
func (s *Store) Stat(ctx context.Context, key string) (blob.Info, error) {
	root, err := s.open(ctx, "stat", key)
	if err != nil {
		return blob.Info{}, err
	}
	defer root.Close()
	fi, err := stat(root, key)
	if err != nil {
		return blob.Info{}, s.fail("stat", key, err)
	}
	return info(key, fi), nil
}

// Get implements blob.Store. The reader notices a file that is truncated or rewritten in place while it is read; one
// that is replaced is read to its old end.
func (s *Store) Get(ctx context.Context, key string, r blob.Range) (io.ReadCloser, blob.Info, error) {
	root, err := s.open(ctx, "get", key)
	if err != nil {
		return nil, blob.Info{}, err
	}
	defer root.Close()
	f, err := openRegular(root, key)
	if err != nil {
		return nil, blob.Info{}, s.fail("get", key, err)
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, blob.Info{}, s.fail("get", key, err)
	}
	n, err := blob.CheckRange(r, fi.Size())
	if err != nil {
		f.Close()
		return nil, blob.Info{}, s.invalid("get", key, err)
	}
	return &reader{ctx: ctx, s: s, key: key, f: f, fi: fi, pos: r.Offset, left: n}, info(key, fi), nil
}

// reader reads left bytes from pos and then checks that the file is still what it was.
type reader struct {
	ctx       context.Context
	s         *Store
	key       string
	f         *os.File
	fi        fs.FileInfo
	pos, left int64
}

func (r *reader) Read(p []byte) (int, error) {
	if err := r.ctx.Err(); err != nil {
		return 0, r.s.fail("get", r.key, err)
	}
	if r.left == 0 {
		return 0, r.unchanged()
	}
	if int64(len(p)) > r.left {
		p = p[:r.left]
	}
	n, err := r.f.ReadAt(p, r.pos)
	r.pos += int64(n)
	r.left -= int64(n)
	switch {
	case n > 0 && (err == nil || err == io.EOF):
		return n, nil
	case err == io.EOF:
		return n, r.s.fail("get", r.key, fmt.Errorf("the file was cut short while it was read: %w", io.ErrUnexpectedEOF))
	case err != nil:
		return n, r.s.fail("get", r.key, err)
	}
	return n, nil
}

// unchanged returns io.EOF, or what happened to the file.
func (r *reader) unchanged() error {
	now, err := r.f.Stat()
	if err != nil {
		return r.s.fail("get", r.key, err)
	}
	if now.Size() != r.fi.Size() || !now.ModTime().Equal(r.fi.ModTime()) {
		return r.s.fail("get", r.key, fmt.Errorf("the file changed while it was read: %w", io.ErrUnexpectedEOF))
	}
	return io.EOF
}

func (r *reader) Close() error { return r.f.Close() }

// open checks key and ctx and opens the base.
func (s *Store) open(ctx context.Context, op, key string) (*os.Root, error) {
	if err := s.checkKey(key); err != nil {
		return nil, s.invalid(op, key, err)
	}
	return s.openBase(ctx, op, key)
}

func (s *Store) openBase(ctx context.Context, op, key string) (*os.Root, error) {
	if err := ctx.Err(); err != nil {
		return nil, s.fail(op, key, err)
	}
	root, err := os.OpenRoot(s.base)
	if errors.Is(err, fs.ErrNotExist) && s.seen.Load() {
		return nil, s.gone(op, key)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil, s.invalid(op, key, fmt.Errorf("directory %s: %w; the first write creates it (is the file system mounted?)",
			s.base, fs.ErrNotExist))
	}
	if err != nil {
		return nil, s.fail(op, key, err)
	}
	s.seen.Store(true)
	return root, nil
}

func (s *Store) gone(op, key string) error {
	return s.invalid(op, key, fmt.Errorf("directory %s: %w any more; it was there before (is the file system mounted? To start again without the old data, create the directory)", s.base, fs.ErrNotExist))
}

func (s *Store) checkKey(key string) error {
	if err := blob.CheckKey(key); err != nil {
		return err
	}
	if first, _, _ := strings.Cut(key, "/"); first == reserved {
		return fmt.Errorf("key %q begins with the reserved part %q", key, reserved)
	}
	return nil
}

// stat opens the file instead of asking for its name: that makes NFS fetch fresh attributes.
func stat(root *os.Root, key string) (fs.FileInfo, error) {
	f, err := openRegular(root, key)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return f.Stat()
}

// openRegular opens a regular file for reading. Anything else counts as absent: a directory is no object.
func openRegular(root *os.Root, key string) (*os.File, error) {
	f, err := root.OpenFile(filepath.FromSlash(key), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	fi, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	if !fi.Mode().IsRegular() {
		f.Close()
		return nil, &fs.PathError{Op: "open", Path: key, Err: fs.ErrNotExist}
	}
	return f, nil
}

// info describes a file. Its version changes with every replacement: the new file exists beside the old one, so that the
// inode differs, and put stamps it with its own time in nanoseconds, so that a number that is used again differs too.
func info(key string, fi fs.FileInfo) blob.Info {
	var ino uint64
	if st, ok := fi.Sys().(*syscall.Stat_t); ok {
		ino = st.Ino
	}
	return blob.Info{
		Key:      key,
		Size:     fi.Size(),
		Version:  fmt.Sprintf("%x-%x-%x", ino, fi.ModTime().UnixNano(), fi.Size()),
		Modified: fi.ModTime().Round(0).In(time.UTC),
	}
}

func (s *Store) name(key string) string {
	return strings.TrimSuffix(s.String(), "/") + "/" + key
}

func (s *Store) invalid(op, key string, err error) error {
	return &blob.Error{Op: op, Key: s.name(key), Kind: blob.ErrInvalid, Err: err}
}

// fail wraps an error of the file system.
func (s *Store) fail(op, key string, err error) error {
	if known, ok := err.(*blob.Error); ok {
		return known
	}
	e := &blob.Error{Op: op, Key: s.name(key), Err: err}
	dir := path.Dir(path.Join(s.base, key))
	var body *blob.BodyError
	switch {
	case errors.As(err, &body):
	case errors.Is(err, syscall.EROFS):
		e.Kind, e.Action = blob.ErrDenied, "a writable file system at "+s.base
	case errors.Is(err, syscall.EACCES), errors.Is(err, syscall.EPERM):
		e.Kind = blob.ErrDenied
		e.Action = "read " + path.Join(s.base, key)
		if op == "put" || op == "purge" {
			e.Action = "write to " + dir
		}
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		e.Kind, e.Err = blob.ErrTransient, fmt.Errorf("no space is left on the file system of %s: %w", s.base, err)
	case errors.Is(err, syscall.ENOTDIR) && (op == "put"), errors.Is(err, syscall.EISDIR), errors.Is(err, fs.ErrExist):
		e.Kind, e.Err = blob.ErrInvalid, fmt.Errorf("a file can't hold other files: part of the key is a file, or the key is a directory: %w", err)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ENOTDIR):
		e.Kind = blob.ErrNotFound
	case errors.Is(err, syscall.EIO), errors.Is(err, syscall.ESTALE), errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, syscall.EAGAIN),
		errors.Is(err, syscall.EINTR), errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ENOLCK):
		e.Kind = blob.ErrTransient
	}
	return e
}
