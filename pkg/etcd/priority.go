package etcd

import (
	"fmt"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// The lowest priorities there are. x/sys has no names for those of ioprio_set.
const (
	lowestNice      = 19
	ioprioWhoThread = 1
	ioprioIdle      = 3 << 13
)

// lowerPriority makes a process the last to get the CPU and the disk, so that an etcd beside it doesn't feel it. Priorities belong to threads,
// and a new thread has those of the one that made it; so all are gone through until there is no new one. Failing is harmless.
func lowerPriority(pid int) {
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
			_ = unix.Setpriority(unix.PRIO_PROCESS, tid, lowestNice)
			_, _, _ = unix.Syscall(unix.SYS_IOPRIO_SET, ioprioWhoThread, uintptr(tid), ioprioIdle)
		}
	}
}
