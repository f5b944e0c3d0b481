package process

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"golang.org/x/sys/unix"

	"github.com/etcd-manager/etcd-manager/pkg/etcd"
)

// pollInterval is how often an adopted process is looked at where the kernel has no pidfd.
const pollInterval = 200 * time.Millisecond

// Reattach finds the etcd that runs on a data dir although the manager that started it is gone. It returns
// nil without an error if nothing runs there. A pid file that names a process which is gone, or another
// one that got its number, is removed. It also finds an etcd whose pid file was never written, or that
// was started by something else; such a process has an empty Fingerprint.
//
// The error means that something does hold the data dir but can't be adopted.
func Reattach(pidFile, dataDir string) (*Process, error) {
	info, err := readPIDFile(pidFile)
	if err == nil {
		if p := watchIfSame(info, pidFile, dataDir); p != nil {
			return p, nil
		}
	}
	if err == nil || !errors.Is(err, os.ErrNotExist) {
		if rerr := os.Remove(pidFile); rerr != nil && !errors.Is(rerr, os.ErrNotExist) {
			return nil, fmt.Errorf("adopt etcd: remove stale pid file: %w", rerr)
		}
	}
	return adoptUnrecorded(pidFile, dataDir)
}

func readPIDFile(path string) (Info, error) {
	var info Info
	b, err := os.ReadFile(path)
	if err != nil {
		return info, err
	}
	if err := json.Unmarshal(b, &info); err != nil {
		return info, fmt.Errorf("read pid file %s: %w", path, err)
	}
	if info.PID <= 1 || info.StartTicks == 0 {
		return info, fmt.Errorf("read pid file %s: incomplete", path)
	}
	return info, nil
}

// watchIfSame returns nil unless the recorded process is still that process.
func watchIfSame(info Info, pidFile, dataDir string) *Process {
	if info.BootID != bootID() {
		return nil
	}
	// First the descriptor, then the check: from here on the number can't be given to another unnoticed.
	p := newProcess(info, pidFile, true)
	st, err := readStat(info.PID)
	_, ours := runsOn(info.PID, dataDir)
	if err != nil || st.startTicks != info.StartTicks || st.dead() || !ours {
		if p.pidfd >= 0 {
			unix.Close(p.pidfd)
		}
		return nil
	}
	p.oomSeen, _ = oomKills()
	go p.watchAdopted()
	return p
}

// adoptUnrecorded looks for an etcd by the locks that it holds.
func adoptUnrecorded(pidFile, dataDir string) (*Process, error) {
	var candidates []int
	held, err := etcd.Locked(launchLockFile(pidFile))
	if err != nil {
		return nil, fmt.Errorf("adopt etcd: %w", err)
	}
	if held {
		candidates = etcd.Holders(launchLockFile(pidFile))
	}
	pid, dbHeld, err := etcd.DataDirHolder(dataDir)
	if err != nil {
		return nil, fmt.Errorf("adopt etcd: %w", err)
	}
	if dbHeld && pid != 0 {
		candidates = append(candidates, pid)
	}
	for _, c := range candidates {
		argv, ours := runsOn(c, dataDir)
		st, err := readStat(c)
		if !ours || err != nil {
			continue
		}
		info := Info{PID: c, StartTicks: st.startTicks, BootID: bootID(), DataDir: dataDir, Argv: argv, Started: time.Now().UTC()}
		if p := watchIfSame(info, pidFile, dataDir); p != nil {
			return p, nil
		}
	}
	if dbHeld || held {
		return nil, fmt.Errorf("adopt etcd: %w: %s is held by %s, which isn't an etcd that can be adopted", etcd.ErrDataDirInUse, dataDir, etcd.ProcessName(pid))
	}
	return nil, nil
}

// watchAdopted waits for the end of a process that isn't, or needn't be, a child.
func (p *Process) watchAdopted() {
	if p.pidfd >= 0 {
		fds := []unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}
		for {
			n, err := unix.Poll(fds, -1)
			if err != nil && !errors.Is(err, unix.EINTR) {
				break
			}
			if n > 0 {
				break
			}
		}
	}
	for {
		st, err := readStat(p.info.PID)
		if err != nil || st.startTicks != p.info.StartTicks || st.dead() {
			break
		}
		time.Sleep(pollInterval)
	}
	e := Exit{}
	var ws unix.WaitStatus
	// After an exec of the manager the process is still a child and must be reaped; else this says ECHILD.
	if pid, err := unix.Wait4(p.info.PID, &ws, unix.WNOHANG, nil); err == nil && pid == p.info.PID {
		e.Known = true
		if ws.Signaled() {
			e.Signal = ws.Signal()
		} else {
			e.Code = ws.ExitStatus()
		}
	}
	p.finish(e)
}
