package process

import (
	"syscall"

	"golang.org/x/sys/unix"
)

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
