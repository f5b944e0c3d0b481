package background

import (
	"errors"
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// The lowest priority for the CPU, the lowest for the disk, and the lowest with which a thread
// still gets its share of the disk. x/sys has no names for those of ioprio_set.
const (
	lowestNice      = 19
	threadNice      = 10
	ioprioWhoThread = 1
	ioprioIdle      = 3 << 13
	ioprioLow       = 2<<13 | 7
)

// LowerProcess makes a process the last to get the CPU and the disk: it is for one that reads much
// and writes little. Priorities belong to threads, and a new thread has those of the one that made
// it; so all are gone through until there is no new one. Failing is harmless.
func LowerProcess(pid int) {
	seen := map[int]bool{}
	for again := true; again; {
		again = false
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid))
		if err != nil {
			return
		}
		for _, t := range tasks {
			tid, err := strconv.Atoi(t.Name())
			if err != nil || seen[tid] {
				continue
			}
			seen[tid], again = true, true
			lower(tid)
		}
	}
}

// Go runs f in a goroutine with a thread of its own, which gets less of the CPU than others and ends
// with f. Of the disk it gets a small share, not only what is left over: a file system's journal may
// have to write f's data before it can finish an etcd's fsync. It is for loops that calculate or
// write much: every switch to another goroutine costs more than usual.
func Go(f func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != os.Getpid() {
			lowerThread()
			f() // never unlocked: the priority couldn't be raised again
			return
		}
		// The first thread of a process can't end by itself. As long as it is held here, another one is found.
		found := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(found)
			lowerThread()
			f()
		}()
		<-found
		runtime.UnlockOSThread()
	}()
}

// lowerThread lowers the thread that calls it, in a process whose other threads have to go on. Not
// to the lowest priority: where Go collects garbage everybody waits until this thread has had the
// CPU. On two cores with three busy processes all goroutines stood still for up to 1.8 s with the
// idle class, 0.8 s with the highest nice value, 0.2 s with this one; a lease lasts 1.25 s.
func lowerThread() {
	tid := unix.Gettid()
	_ = unix.Setpriority(unix.PRIO_PROCESS, tid, threadNice)
	_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, ioprioWhoThread, uintptr(tid), ioprioLow)
}

// lower gives a thread of another process the lowest priorities. The idle class matters beside the nice value: one of
// its threads gives the CPU up the moment that any other wants it, where a nice one would end its
// time slice first, which every request of an etcd beside it would wait for.
func lower(tid int) {
	_ = unix.Setpriority(unix.PRIO_PROCESS, tid, lowestNice)
	_ = unix.SchedSetAttr(tid, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_IDLE, Nice: lowestNice}, 0)
	_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, ioprioWhoThread, uintptr(tid), ioprioIdle)
}

// writeOut has the kernel bring some bytes of a file to the disk, after it has waited for those that are on their way already.
// The kernel reports a failed write once, here or at the sync in the end: who drops the error here lets the sync succeed.
func writeOut(f *os.File, from, n int64) error {
	err := unix.SyncFileRange(int(f.Fd()), from, n, unix.SYNC_FILE_RANGE_WAIT_BEFORE|unix.SYNC_FILE_RANGE_WRITE)
	switch {
	case err == nil, errors.Is(err, unix.ENOSYS), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ESPIPE), errors.Is(err, unix.EPERM):
		return nil // the system or the file doesn't have it
	}
	return &os.PathError{Op: "write out", Path: f.Name(), Err: err}
}
