package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"syscall"
	"time"
)

// reopenCheck is how often the log file's path is looked at for a rotation by rename.
const reopenCheck = time.Second

// logFile appends to a file that others may rename, remove or truncate at any time.
type logFile struct {
	path string
	// file is nil until the path could be opened.
	file    *os.File
	checked time.Time
	// most is how many bytes the file may have before it is renamed to path.1, in the place of the one before; 0 means no bound. size is
	// how many it has, as far as is known.
	most, size int64
	// lost counts bytes that could not be written since the last success.
	lost int
}

// openLog returns a log file also with an error: it is then tried again while it is written to.
func openLog(path string, most int64) (*logFile, error) {
	f, err := openAppend(path)
	l := &logFile{path: path, file: f, most: most, checked: time.Now()}
	l.measure()
	return l, err
}

// measure asks how large the file is.
func (l *logFile) measure() {
	if l.file == nil {
		return
	}
	if info, err := l.file.Stat(); err == nil {
		l.size = info.Size()
	}
}

// bound renames the file if n more bytes would make it too large. One that can't be renamed, for example since it is mounted by itself,
// is truncated.
func (l *logFile) bound(n int) {
	if l.most <= 0 || l.file == nil || l.size+int64(n) <= l.most {
		return
	}
	l.followRename() // somebody else may have rotated it a moment ago
	if l.measure(); l.size == 0 || l.size+int64(n) <= l.most {
		return
	}
	if err := os.Rename(l.path, l.path+".1"); err != nil {
		_ = l.file.Truncate(0) // if this fails too, there is nothing to be done but to go on
		l.measure()
		return
	}
	l.followRename()
	l.measure()
}

func openAppend(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	switch {
	case err == nil:
		return f, nil
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("open log file %s: its directory does not exist; create or mount it, or name another file: %w", path, err)
	case errors.Is(err, syscall.EISDIR):
		return nil, fmt.Errorf("open log file %s: it is a directory (a container runtime makes one where the file to be mounted is missing on the host); remove it and create a file: %w", path, err)
	}
	return nil, fmt.Errorf("open log file %s: it must be writable; change its permissions or name another file: %w", path, err)
}

// Write appends p. The file is opened for appending, so after a truncation it goes on at the new end.
func (l *logFile) Write(p []byte) (int, error) {
	if now := time.Now(); now.Sub(l.checked) >= reopenCheck {
		l.checked = now
		l.followRename()
		l.measure()
	}
	l.bound(len(p))
	if l.file == nil {
		l.lost += len(p)
		return 0, os.ErrInvalid
	}
	if l.lost > 0 {
		if _, err := fmt.Fprintf(l.file, "go-runner: %d bytes of output could not be written here\n", l.lost); err == nil {
			l.lost = 0
		}
	}
	n, err := l.file.Write(p)
	l.size += int64(n)
	if err != nil {
		if l.lost == 0 {
			fmt.Fprintf(os.Stderr, "go-runner: write log file: %v; output is lost until it works again\n", err)
		}
		l.lost += len(p) - n
	}
	return n, err
}

// followRename opens the path anew if it no longer names the open file. If that fails, writing to the renamed file goes on.
func (l *logFile) followRename() {
	if l.file != nil {
		mine, err := l.file.Stat()
		if err != nil {
			return
		}
		if named, err := os.Stat(l.path); err == nil && os.SameFile(mine, named) {
			return
		}
	}
	f, err := openAppend(l.path)
	if err != nil {
		return
	}
	if l.file != nil {
		l.file.Close()
	}
	l.file = f
}

// Close closes the file.
func (l *logFile) Close() error {
	if l.file == nil {
		return nil
	}
	return l.file.Close()
}
