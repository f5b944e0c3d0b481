package background

import (
	"fmt"
	"os"
	"os/exec"
	"testing"

	"golang.org/x/sys/unix"
)

// priorities of a thread, as the kernel has them.
func priorities(t *testing.T, tid int) (nice, io int) {
	t.Helper()
	p, err := unix.Getpriority(unix.PRIO_PROCESS, tid)
	if err != nil {
		t.Error(err)
	}
	r, _, errno := unix.Syscall(unix.SYS_IOPRIO_GET, ioprioWhoThread, uintptr(tid), 0)
	if errno != 0 {
		t.Error(errno)
	}
	return 20 - p, int(r) // the system call returns 20 - nice
}

func TestGoIsLowAndAlone(t *testing.T) {
	own, _ := unix.Getpriority(unix.PRIO_PROCESS, 0)
	done := make(chan int)
	for range 200 { // now and then the first thread is met, which would stay for ever
		Go(func() {
			nice, io := priorities(t, unix.Gettid())
			if nice != threadNice || io != ioprioLow {
				t.Errorf("nice %d, I/O priority %#x", nice, io)
			}
			if a, err := unix.SchedGetAttr(0, 0); err != nil || a.Policy == unix.SCHED_IDLE {
				t.Errorf("scheduled by policy %d, in which every goroutine may wait for this thread: %v", a.Policy, err)
			}
			done <- unix.Gettid()
		})
		tid := <-done
		if tid == os.Getpid() {
			t.Error("it has the first thread")
		}
		for range 10000 { // the thread ends soon after the function
			if _, err := os.Stat(fmt.Sprintf("/proc/self/task/%d", tid)); err != nil {
				break
			}
			unix.Nanosleep(&unix.Timespec{Nsec: 1e6}, nil)
		}
	}
	tasks, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		var id int
		fmt.Sscan(task.Name(), &id)
		if nice, _ := priorities(t, id); nice != 20-own {
			t.Errorf("thread %d is left with nice %d", id, nice)
		}
	}
}

func TestLowerProcess(t *testing.T) {
	c := exec.Command("sleep", "60")
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	defer c.Wait()
	defer c.Process.Kill()
	LowerProcess(c.Process.Pid)
	if nice, io := priorities(t, c.Process.Pid); nice != lowestNice || io != ioprioIdle {
		t.Errorf("nice %d, I/O priority %#x", nice, io)
	}
	LowerProcess(1 << 30) // no such process
}
