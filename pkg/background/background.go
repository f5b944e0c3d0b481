// Package background is for large work on a machine on which an etcd serves at the same time: it runs at the lowest priority,
// writes its files steadily, and doesn't fill up the disk.
//
// Whatever is to be kept is still to be synced by its writer. Nothing here is for work that an etcd waits for.
package background

import (
	"fmt"
	"os"
	"runtime"
	"strconv"

	"golang.org/x/sys/unix"
)

// The lowest priorities there are. x/sys has no names for those of ioprio_set.
const (
	lowestNice      = 19
	ioprioWhoThread = 1
	ioprioIdle      = 3 << 13
)

// LowerProcess makes a process the last to get the CPU and the disk. Priorities belong to threads, and a new thread has those of the one that
// made it; so all are gone through until there is no new one. Failing is harmless.
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

// Go runs f in a goroutine with a thread of its own, which is the last to get the CPU and the disk and ends with f. It is for loops that
// calculate or write much: every switch to another goroutine costs more than usual.
func Go(f func()) {
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() != os.Getpid() {
			lower(unix.Gettid())
			f() // never unlocked: the priority couldn't be raised again
			return
		}
		// The first thread of a process can't end by itself. As long as it is held here, another one is found.
		found := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(found)
			lower(unix.Gettid())
			f()
		}()
		<-found
		runtime.UnlockOSThread()
	}()
}

func lower(tid int) {
	_ = unix.Setpriority(unix.PRIO_PROCESS, tid, lowestNice)
	_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, ioprioWhoThread, uintptr(tid), ioprioIdle)
}
