package servers

import (
	"os/exec"
	"runtime"
)

// startOnThread starts cmd from a thread that lives until cmd has ended, which Pdeathsig depends on, and then closes exited.
func startOnThread(cmd *exec.Cmd, exited chan struct{}) error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		_ = cmd.Wait() // How it ended shows in its log.
		close(exited)
	}()
	return <-started
}
