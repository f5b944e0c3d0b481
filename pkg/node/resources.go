package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"syscall"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

const (
	// resourcesEvery is how often disk and process are looked at.
	resourcesEvery = 5 * time.Second
	// readsLately is how long ago a process may have read last that counts as reading.
	readsLately = 3 * resourcesEvery
)

// resources is what was last seen of the disk and of the process. It is cached: a file system that hangs must not keep a question waiting.
type resources struct {
	total, free int64
	database    int64 // size of the database's file
	pid         int
	read        uint64    // bytes that the process has read from the disk
	readAt      time.Time // when that was last seen to grow
}

// watchResources looks at disk and process until ctx ends.
func (a *Agent) watchResources(ctx context.Context) {
	for {
		a.lookAtResources()
		if !sleep(ctx, resourcesEvery) {
			return
		}
	}
}

func (a *Agent) lookAtResources() {
	a.mu.Lock()
	s, p, seen := a.state, a.proc, a.resources
	a.mu.Unlock()
	was := seen
	seen.total, seen.free = diskSpace(a.cfg.DataDir)
	seen.database = 0
	if s != nil {
		if info, err := os.Stat(filepath.Join(a.l.memberDir(s.Token), "snap", "db")); err == nil {
			seen.database = info.Size()
		}
	}
	if p != nil {
		read, ok := bytesRead(p.PID())
		if ok && p.PID() == seen.pid && read > seen.read {
			seen.readAt = time.Now()
		}
		seen.pid, seen.read = p.PID(), read
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	a.resources = seen
	if a.diskFull() != cluster.DiskFull(was.total, was.free) {
		a.bump()
	}
	if a.diskFull() || seen.total > 0 && seen.free < a.trashLeast() {
		a.kickTrash()
	}
}

// diskFull tells whether etcd can't go on for lack of disk space. mu is held.
func (a *Agent) diskFull() bool {
	return cluster.DiskFull(a.resources.total, a.resources.free)
}

// stopGrace is what etcd gets between SIGTERM and SIGKILL: what was configured, and the time to write a database as large as its own.
func (a *Agent) stopGrace() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.cfg.StopGrace + cluster.LoadTime(a.resources.database)
}

// Disk is the size of the data dir's file system, what was last seen to be free of it, and whether that is too little for etcd to go on.
func (a *Agent) Disk() (total, free int64, full bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.resources.total, a.resources.free, a.diskFull()
}

// withResources adds what was seen to the status. mu is held.
func (a *Agent) withResources(s *cluster.EtcdStatus) {
	if s.DBSize == 0 {
		s.DBSize = a.resources.database
	}
	if a.proc == nil || s.Healthy {
		return
	}
	if !a.upSince.IsZero() {
		s.UpFor = max(time.Since(a.upSince), 1)
	}
	if !a.answeredAt.IsZero() {
		s.AnsweringFor = max(time.Since(a.answeredAt), 1)
	}
	s.Reading = a.resources.pid == a.proc.PID() && time.Since(a.resources.readAt) < readsLately
}

// bytesRead is how much a process has read from the disk, page faults on mapped files included.
func bytesRead(pid int) (uint64, bool) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
	if err != nil {
		return 0, false
	}
	for line := range bytes.Lines(data) {
		if v, ok := bytes.CutPrefix(line, []byte("read_bytes: ")); ok {
			n, err := strconv.ParseUint(string(bytes.TrimSpace(v)), 10, 64)
			return n, err == nil
		}
	}
	return 0, false
}

// nameDisk says of an error that comes from a full disk which disk it is, and what to do.
func (a *Agent) nameDisk(err error) error {
	if !errors.Is(err, syscall.ENOSPC) {
		return err
	}
	total, free := diskSpace(a.cfg.DataDir)
	return fmt.Errorf("the disk of %s is full (%d of %d MiB are free); make room or enlarge it: %w", a.cfg.DataDir, free>>20, total>>20, err)
}

// diskSpace is the size of a file system and what is free of it; 0 if it can't be told.
func diskSpace(path string) (total, free int64) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(path, &s); err != nil {
		return 0, 0
	}
	return int64(s.Blocks) * s.Bsize, int64(s.Bavail) * s.Bsize
}
