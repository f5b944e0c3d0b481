package database

import (
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

// claimTime is within what a directory that was just made is locked.
const claimTime = 10 * time.Second

// Claim makes a directory below dir whose name begins with prefix. This process holds a lock on it until remove takes it away.
// Directories of that prefix that nobody holds are removed first: a process that was killed has left them.
func Claim(dir, prefix string) (path string, remove func(), err error) {
	removeAbandoned(dir, prefix)
	path, err = os.MkdirTemp(dir, prefix)
	if err != nil {
		return "", nil, &TempDirError{err}
	}
	held, err := os.Open(path)
	if err == nil {
		err = unix.Flock(int(held.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	}
	if err != nil {
		_ = os.RemoveAll(path)
		return "", nil, &TempDirError{err}
	}
	return path, func() {
		_ = os.RemoveAll(path) // what can't be removed is for the next one, or the system, to clear away
		_ = held.Close()
	}, nil
}

// removeAbandoned does what it can: that a directory can't be removed, or isn't ours, is no reason not to go on.
func removeAbandoned(dir, prefix string) {
	list, err := filepath.Glob(filepath.Join(dir, prefix+"*"))
	if err != nil {
		return
	}
	for _, path := range list {
		fi, err := os.Lstat(path)
		if err != nil || !fi.IsDir() || time.Since(fi.ModTime()) < claimTime {
			continue
		}
		d, err := os.Open(path)
		if err != nil {
			continue
		}
		if unix.Flock(int(d.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
			_ = os.RemoveAll(path)
		}
		_ = d.Close()
	}
}
