// Package atomicfile replaces small files so that a reader, and the next start after a crash or power
// cut, finds either the whole old content or the whole new content.
//
// It is for files that are read at once: state, journals, certificates. It must not be used for a file
// that is bind-mounted by itself (rename cannot replace those; see pkg/hosts), nor for large data.
package atomicfile

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
)

// Write replaces the content of path by data and sets its permissions to perm, whatever the umask.
//
// The order is: temporary file in the same directory, write, fsync, rename, fsync of the directory.
// When Write returns nil, data is durable. When it returns an error, path holds the old or the new
// content, never a mixture. The temporary file has a fixed name (TempName) and is locked while it is
// written: concurrent writers of one path take turns, and crashes leave at most one such file, which
// the next Write takes over. The directory must exist.
func Write(path string, data []byte, perm fs.FileMode) error {
	if err := write(path, data, perm); err != nil {
		return fmt.Errorf("write %s: %w", path, err)
	}
	return nil
}

// Create is Write for a path at which nothing may be yet: the error wraps fs.ErrExist if something is there, also if it appeared in the
// meantime. What is there is never changed. A crash may leave a temporary file, whose name begins with a dot and the base name.
func Create(path string, data []byte, perm fs.FileMode) error {
	if err := create(path, data, perm); err != nil {
		return fmt.Errorf("create %s: %w", path, err)
	}
	return nil
}

func create(path string, data []byte, perm fs.FileMode) error {
	dir, base := filepath.Split(path)
	// Not the name of Write: after a crash between link and removal it would be a second name of the published file, and be truncated.
	f, err := os.CreateTemp(filepath.Clean(dir), "."+base+".new-*")
	if err != nil {
		return err
	}
	defer f.Close()
	err = fill(f, data, perm)
	if err == nil {
		err = os.Link(f.Name(), path)
	}
	if err := errors.Join(err, os.Remove(f.Name())); err != nil {
		return err
	}
	return SyncDir(filepath.Dir(path))
}

// TempName is the name of the temporary file that Write uses for path.
func TempName(path string) string {
	dir, base := filepath.Split(path)
	return filepath.Join(dir, "."+base+".tmp")
}

func write(path string, data []byte, perm fs.FileMode) error {
	tmp := TempName(path)
	f, err := openLocked(tmp)
	if err != nil {
		return err
	}
	// Closing also gives up the lock; after the rename nobody finds the file under its temporary name.
	defer f.Close()
	if err := fill(f, data, perm); err != nil {
		// Free what a full disk needs; the next writer would truncate it anyway.
		return errors.Join(err, os.Remove(tmp))
	}
	if err := os.Rename(tmp, path); err != nil {
		return errors.Join(err, os.Remove(tmp))
	}
	return SyncDir(filepath.Dir(path))
}

// openLocked opens or creates the temporary file and locks it against other writers, in this process or another.
func openLocked(tmp string) (*os.File, error) {
	for {
		f, err := os.OpenFile(tmp, os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
		if err != nil {
			return nil, err
		}
		if err := flock(f); err != nil {
			f.Close()
			return nil, err
		}
		// Whoever held the lock has renamed or removed the file since: then what was locked is no
		// longer the temporary file, and to write to it would tear the published one.
		same, err := isAt(f, tmp)
		if err != nil {
			f.Close()
			return nil, err
		}
		if same {
			return f, nil
		}
		f.Close()
	}
}

func flock(f *os.File) error {
	for {
		err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
		if !errors.Is(err, syscall.EINTR) {
			return err
		}
	}
}

// isAt tells whether path still names the open file f.
func isAt(f *os.File, path string) (bool, error) {
	open, err := f.Stat()
	if err != nil {
		return false, err
	}
	named, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	return os.SameFile(open, named), nil
}

func fill(f *os.File, data []byte, perm fs.FileMode) error {
	if err := f.Truncate(0); err != nil {
		return err
	}
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Chmod(perm); err != nil {
		return err
	}
	return f.Sync()
}

// SyncDir makes what was created, renamed or removed in dir durable.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}
