package etcd

import (
	"syscall"

	"golang.org/x/sys/unix"
)

// dieWithParent has the kernel kill a child whose parent's thread ends.
func dieWithParent(a *syscall.SysProcAttr) *syscall.SysProcAttr {
	a.Pdeathsig = syscall.SIGKILL
	return a
}

// openProcess is a handle of exactly this process, -1 if there is none to be had.
func openProcess(pid int) int {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return -1
	}
	return fd
}

func signalProcess(fd int, sig syscall.Signal) error {
	return unix.PidfdSendSignal(fd, sig, nil, 0)
}

func changeTimes(st *syscall.Stat_t) (modified, changed int64) {
	return st.Mtim.Nano(), st.Ctim.Nano()
}
