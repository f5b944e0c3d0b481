package node

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
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

// disk watches the file system of the data dir, and how etcd uses it. All methods may be called concurrently.
type disk struct {
	cfg     *Config
	l       layout
	changes *changes
	// short is called when there is too little room.
	short func()

	mu   sync.Mutex // guards what follows
	seen resources
}

// watch looks at disk and process until ctx ends. of tells which cluster's data this node has, and the pid of its etcd; 0 if none runs.
func (d *disk) watch(ctx context.Context, of func() (cluster.Token, int)) {
	for {
		d.look(of())
		if !sleep(ctx, resourcesEvery) {
			return
		}
	}
}

func (d *disk) look(token cluster.Token, pid int) {
	d.mu.Lock()
	seen := d.seen
	d.mu.Unlock()
	was := seen
	seen.total, seen.free = diskSpace(d.cfg.DataDir)
	seen.database = 0
	if token != "" {
		if info, err := os.Stat(filepath.Join(d.l.memberDir(token), "snap", "db")); err == nil {
			seen.database = info.Size()
		}
	}
	if pid != 0 {
		read, ok := bytesRead(pid)
		if ok && pid == seen.pid && read > seen.read {
			seen.readAt = time.Now()
		}
		seen.pid, seen.read = pid, read
	}
	d.mu.Lock()
	d.seen = seen
	d.mu.Unlock()
	full := cluster.DiskFull(seen.total, seen.free)
	if full != cluster.DiskFull(was.total, was.free) {
		d.changes.note()
	}
	if full || seen.total > 0 && seen.free < d.least() {
		d.short()
	}
}

// least is what the trash can leaves free on the disk for etcd: room to grow to twice its size, and to stage a restore.
func (d *disk) least() int64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	return min(2*d.seen.database+headroom, d.seen.total/4)
}

// stopGrace is what etcd gets between SIGTERM and SIGKILL: what was configured, and the time to write a database as large as its own.
func (d *disk) stopGrace() time.Duration {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.cfg.StopGrace + cluster.LoadTime(d.seen.database)
}

// last is what was last seen.
func (d *disk) last() resources {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.seen
}

// reading tells whether a process was seen to read from the disk lately.
func (r *resources) reading(pid int) bool {
	return r.pid == pid && time.Since(r.readAt) < readsLately
}

// Disk is the size of the data dir's file system, what was last seen to be free of it, and whether that is too little for etcd to go on.
func (a *Agent) Disk() (total, free int64, full bool) {
	r := a.disk.last()
	return r.total, r.free, cluster.DiskFull(r.total, r.free)
}

// withResources adds what was seen to the status. mu is held.
func (sv *supervisor) withResources(s *cluster.EtcdStatus) {
	seen := sv.disk.last()
	if s.DBSize == 0 {
		s.DBSize = seen.database
	}
	if sv.proc == nil || s.Healthy {
		return
	}
	if !sv.upSince.IsZero() {
		s.UpFor = max(time.Since(sv.upSince), 1)
	}
	if !sv.answeredAt.IsZero() {
		s.AnsweringFor = max(time.Since(sv.answeredAt), 1)
	}
	s.Reading = seen.reading(sv.proc.PID())
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

// name says of an error that comes from a full disk which disk it is, and what to do.
func (d *disk) name(err error) error {
	if !errors.Is(err, syscall.ENOSPC) {
		return err
	}
	total, free := diskSpace(d.cfg.DataDir)
	return fmt.Errorf("the disk of %s is full (%d of %d MiB are free); make room or enlarge it: %w", d.cfg.DataDir, free>>20, total>>20, err)
}

// room checks that the disk can take so many bytes and etcd's log beside them.
func (d *disk) room(what string, size int64) error {
	need, free := size+headroom, diskFree(d.cfg.DataDir)
	if free < need {
		return fmt.Errorf("%s needs %d MiB on the disk of %s, %d MiB are free; make room or use a larger volume: %w",
			what, need>>20, d.cfg.DataDir, free>>20, cluster.ErrPermanent)
	}
	return nil
}

// explain makes an error of a disk that is full one that the operator understands and that isn't tried again. A child process tells it in words.
func (d *disk) explain(err error) error {
	full := errors.Is(err, syscall.ENOSPC) || strings.Contains(err.Error(), syscall.ENOSPC.Error())
	if !full || errors.Is(err, cluster.ErrPermanent) {
		return err
	}
	return fmt.Errorf("there is no room on the disk of %s (%d MiB are free), make some or use a larger volume: %w (%w)", d.cfg.DataDir, diskFree(d.cfg.DataDir)>>20, err, cluster.ErrPermanent)
}

// diskSpace is the size of a file system and what is free of it; 0 if it can't be told.
func diskSpace(path string) (total, free int64) {
	var s syscall.Statfs_t
	if err := syscall.Statfs(path, &s); err != nil {
		return 0, 0
	}
	return int64(s.Blocks) * s.Bsize, int64(s.Bavail) * s.Bsize
}
