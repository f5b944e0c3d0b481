package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/background"
)

const (
	// etcdLogLook is how often the size of --etcd-log-file is looked at.
	etcdLogLook = 5 * time.Second
	// defaultEtcdLog bounds that file, in MiB.
	defaultEtcdLog = 64
)

// etcdLog is the file that etcd writes its log to. etcd has it open itself, so that it goes on without a manager. So it can't be renamed
// when it gets too large: what it has is copied, and it is truncated.
type etcdLog struct {
	path string
	file *os.File
	most int64 // bytes
}

// openEtcdLog opens, or makes, the file.
func openEtcdLog(path string, most int64) (*etcdLog, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|os.O_APPEND|syscall.O_NOFOLLOW, 0o640)
	if err != nil {
		return nil, fmt.Errorf("--etcd-log-file: %w", err)
	}
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		f.Close()
		return nil, fmt.Errorf("--etcd-log-file: %s is no regular file (%w)", path, err)
	}
	return &etcdLog{path: path, file: f, most: most}, nil
}

// keep bounds the file until ctx ends.
func (l *etcdLog) keep(ctx context.Context) error {
	for {
		if err := l.bound(); err != nil {
			klog.Warningf("the log of etcd, %s, began anew, and what it had is lost: %v", l.path, err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(etcdLogLook):
		}
	}
}

// bound keeps what the file has as path.1, in the place of the one before, and empties it, if it has become too large. It is emptied also
// if that can't be kept, as on a full disk.
func (l *etcdLog) bound() error {
	info, err := l.file.Stat()
	if err != nil || info.Size() <= l.most {
		return err
	}
	tmp := l.path + ".tmp"
	err = l.copyTo(tmp)
	if terr := l.file.Truncate(0); err == nil {
		err = terr
	}
	if err == nil {
		err = os.Rename(tmp, l.path+".1")
	}
	if err != nil {
		_ = os.Remove(tmp)
	}
	return err
}

// copyTo copies up to the end that the file has when it gets there. What etcd adds between that and the truncation, some microseconds
// later, is lost.
func (l *etcdLog) copyTo(path string) error {
	if err := os.Remove(path); err != nil && !os.IsNotExist(err) {
		return err
	}
	out, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o640)
	if err != nil {
		return err
	}
	_, err = io.Copy(background.NewSteady(out), io.NewSectionReader(l.file, 0, 1<<62)) // etcd may use the same disk
	if cerr := out.Close(); err == nil {
		err = cerr
	}
	return err
}

// checkEtcdLog finds out what can't be right before anything starts.
func checkEtcdLog(o *options) error {
	switch {
	case o.etcdLogFile != "" && !filepath.IsAbs(o.etcdLogFile):
		return fmt.Errorf("--etcd-log-file=%s must be an absolute path", o.etcdLogFile)
	case o.etcdLogMost < 1 || o.etcdLogMost > 1<<20:
		return fmt.Errorf("--etcd-log-file-max-size=%d must be a number of MiB, at least 1", o.etcdLogMost)
	}
	return nil
}
