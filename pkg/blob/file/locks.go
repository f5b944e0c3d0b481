package file

import (
	"context"
	"errors"
	"io/fs"
	"os"

	"golang.org/x/sys/unix"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// lockPrefix begins the names of locks that somebody holds to see whether others notice.
const lockPrefix = reserved + "/lock-"

// HoldLock implements blob.Locker with a file of its own, so that nobody waits for it.
func (s *Store) HoldLock(ctx context.Context, name string) (release func(context.Context), err error) {
	if err := blob.CheckLock(name); err != nil || name == "" {
		return nil, s.invalid("lock", name, errors.Join(err, errors.New("a lock needs a name")))
	}
	root, err := s.openBase(ctx, "lock", name)
	if err != nil {
		return nil, err
	}
	f, err := root.OpenFile(lockPrefix+name, os.O_RDWR|os.O_CREATE, fileMode)
	if err == nil {
		err = flock(f)
	}
	if err != nil {
		if f != nil {
			f.Close()
		}
		root.Close()
		return nil, s.fail("lock", name, err)
	}
	return func(context.Context) {
		_ = root.Remove(lockPrefix + name) // else the next put does it, when it is old
		f.Close()
		root.Close()
	}, nil
}

// LockHeld implements blob.Locker. That the file isn't there means that nobody holds it here.
func (s *Store) LockHeld(ctx context.Context, name string) (bool, error) {
	if err := blob.CheckLock(name); err != nil || name == "" {
		return false, s.invalid("lock", name, errors.Join(err, errors.New("a lock needs a name")))
	}
	root, err := s.openBase(ctx, "lock", name)
	if err != nil {
		return false, err
	}
	defer root.Close()
	f, err := root.OpenFile(lockPrefix+name, os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, s.fail("lock", name, err)
	}
	defer f.Close() // which gives it back, if it was taken
	err = flock(f)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	if err != nil {
		return false, s.fail("lock", name, err)
	}
	return false, nil
}

// flock takes the lock of an open file, or fails with EWOULDBLOCK.
func flock(f *os.File) error {
	for {
		err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return &fs.PathError{Op: "flock", Path: f.Name(), Err: err}
		}
		return nil
	}
}
