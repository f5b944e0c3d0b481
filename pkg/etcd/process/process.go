package process

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/etcd-manager/etcd-manager/pkg/atomicfile"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
)

// killWait bounds the wait for a process after SIGKILL; only one that hangs in the kernel takes longer.
const killWait = 10 * time.Second

// Info is what the pid file says, and what tells a process from every other.
type Info struct {
	PID int `json:"pid"`
	// StartTicks is the start time as /proc/<pid>/stat has it; BootID the boot it counts from.
	StartTicks uint64 `json:"startTicks"`
	BootID     string `json:"bootID"`
	DataDir    string `json:"dataDir"`
	// Version and Fingerprint are those of the CommandLine; empty for a process that this software didn't start.
	Version     string    `json:"version"`
	Fingerprint string    `json:"fingerprint"`
	Argv        []string  `json:"argv"`
	Started     time.Time `json:"started"`
}

// StartOptions are the parts of a start that don't concern etcd itself.
type StartOptions struct {
	// PIDFile is where the process is recorded; its directory must exist. A file of the same name with ".lock" is made beside it.
	PIDFile string
	// Stdout and Stderr are inherited by etcd, which may outlive the manager; nil means to discard. A pipe that
	// the manager itself reads would kill etcd together with the manager.
	Stdout *os.File
	Stderr *os.File
	// Overhear has etcd write into a file beside PIDFile, from which the manager hands on to Stderr, so that Exit.Reason is known. It is for one that
	// didn't stay up: as long as no manager runs, nobody shortens the file.
	Overhear bool
}

// Exit says how a process ended.
type Exit struct {
	// Code is the exit code, if Known and Signal is 0.
	Code int
	// Signal is what killed it, or 0.
	Signal syscall.Signal
	// Known is false for an adopted process, whose end can be seen but not how.
	Known bool
	// Asked is true if Stop was called before it ended.
	Asked bool
	// OOM is true if the kernel's out-of-memory killer was at work in the own control group meanwhile.
	OOM bool
	// After is how long it ran.
	After time.Duration
	// Reason is the last error in its own log, in one line of at most 300 characters; empty if it wasn't overheard, or said nothing.
	Reason string
}

// String is for the operator.
func (e Exit) String() string {
	var s string
	switch {
	case !e.Known:
		s = "ended (it was started by an earlier manager, so the exit code can't be known)"
	case e.Signal == syscall.SIGKILL && e.OOM:
		s = "was killed by the kernel's out-of-memory killer (SIGKILL); it needs a higher memory limit"
	case e.Signal == syscall.SIGKILL && !e.Asked:
		s = "was killed by SIGKILL from outside (perhaps the out-of-memory killer: see the kernel's log)"
	case e.Signal != 0:
		s = fmt.Sprintf("was ended by signal %d (%s)", int(e.Signal), e.Signal)
	default:
		s = fmt.Sprintf("exited with code %d", e.Code)
	}
	if e.Asked {
		return s + " after it was asked to stop"
	}
	s += " after " + e.After.Round(time.Millisecond).String()
	if e.Reason != "" {
		return s + "; it said: " + e.Reason
	}
	return s + "; its own log has the reason"
}

// Process is a running or ended etcd. All methods are safe for concurrent use.
type Process struct {
	info    Info
	pidFile string
	adopted bool
	pidfd   int // -1 where the kernel has none
	fdMu    sync.RWMutex
	asked   atomic.Bool
	termed  sync.Once
	oomSeen uint64
	heard   atomic.Pointer[overheard] // nil if it isn't overheard
	done    chan struct{}
	exit    Exit // written before done is closed
}

// PID is the process id. It may have been given to another process once Done is closed.
func (p *Process) PID() int { return p.info.PID }

// Info returns the record of the process.
func (p *Process) Info() Info { return p.info }

// Adopted is true if an earlier manager started the process.
func (p *Process) Adopted() bool { return p.adopted }

// Done is closed when the process has ended and has been reaped.
func (p *Process) Done() <-chan struct{} { return p.done }

// Exit says how the process ended; it is the zero value until Done is closed.
func (p *Process) Exit() Exit {
	select {
	case <-p.done:
		return p.exit
	default:
		return Exit{}
	}
}

// Start runs etcd in a process group of its own. It fails with ErrDataDirInUse, naming the process, if
// there is an etcd on the data dir already. When it returns without error the pid file is on disk, and
// a manager that starts later finds the process with Reattach.
func Start(cmd CommandLine, o StartOptions) (*Process, error) {
	if len(cmd.Argv) == 0 || o.PIDFile == "" {
		return nil, fmt.Errorf("%w: a command and a pid file are needed", etcd.ErrConfig)
	}
	lock, err := takeLaunchLock(o.PIDFile, cmd.DataDir)
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if pid, held, err := etcd.DataDirHolder(cmd.DataDir); err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	} else if held {
		return nil, fmt.Errorf("start etcd: %w: %s is held by %s", etcd.ErrDataDirInUse, cmd.DataDir, etcd.ProcessName(pid))
	}
	if err := etcd.UnmarkStaged(cmd.DataDir); err != nil {
		return nil, fmt.Errorf("start etcd: %w", err)
	}
	// The child keeps the launch lock as long as it lives, whatever becomes of this process.
	c, opened, err := cmd.Executable(lock)
	if err != nil {
		return nil, fmt.Errorf("start etcd %s: %w", cmd.Version, err)
	}
	defer opened.Close()
	c.Env = append([]string{}, cmd.Env...)
	if o.Stdout != nil {
		c.Stdout = o.Stdout
	}
	if o.Stderr != nil {
		c.Stderr = o.Stderr
	}
	var heard *overheard
	if o.Overhear {
		var own *os.File
		if heard, own, err = openOverheard(o.PIDFile, writer(o.Stderr)); err != nil {
			return nil, fmt.Errorf("start etcd %s: %w", cmd.Version, err)
		}
		defer own.Close()
		c.Stderr = own
	}
	c.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	oom, _ := oomKills()
	if err := c.Start(); err != nil {
		if heard != nil {
			heard.end()
		}
		return nil, fmt.Errorf("start etcd %s: %w", cmd.Version, err)
	}
	p, err := record(c, cmd, o.PIDFile)
	if err != nil {
		err = errors.Join(err, c.Process.Kill())
		_ = c.Wait() // it was killed just now; the error is the one above
		if heard != nil {
			heard.end()
		}
		return nil, err
	}
	p.oomSeen = oom
	if heard != nil {
		p.overhear(heard)
	}
	go p.waitChild(c)
	return p, nil
}

// record writes the pid file of a process that was started just now.
func record(c *exec.Cmd, cmd CommandLine, pidFile string) (*Process, error) {
	st, err := readStat(c.Process.Pid)
	if err != nil {
		return nil, fmt.Errorf("look at started etcd: %w", err)
	}
	info := Info{
		PID: c.Process.Pid, StartTicks: st.startTicks, BootID: bootID(), DataDir: cmd.DataDir,
		Version: cmd.Version, Fingerprint: cmd.Fingerprint, Argv: cmd.Argv, Started: time.Now().UTC().Truncate(time.Millisecond),
	}
	b, err := json.MarshalIndent(info, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode pid file: %w", err)
	}
	if err := atomicfile.Write(pidFile, append(b, '\n'), 0o600); err != nil {
		return nil, fmt.Errorf("write pid file: %w", err)
	}
	return newProcess(info, pidFile, false), nil
}

func newProcess(info Info, pidFile string, adopted bool) *Process {
	p := &Process{info: info, pidFile: pidFile, adopted: adopted, done: make(chan struct{}), pidfd: openProcess(info.PID)}
	return p
}

// launchLockFile is beside the pid file.
func launchLockFile(pidFile string) string { return pidFile + ".lock" }

// takeLaunchLock closes the gap in which an etcd was started but hasn't opened its database yet, or in
// which the manager died before the pid file was written.
func takeLaunchLock(pidFile, dataDir string) (*os.File, error) {
	path := launchLockFile(pidFile)
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start etcd: open lock: %w", err)
	}
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if err == nil {
		return f, nil
	}
	defer f.Close()
	if errors.Is(err, unix.EWOULDBLOCK) {
		pid := 0
		for _, h := range etcd.Holders(path) {
			pid = h
		}
		return nil, fmt.Errorf("start etcd: %w: %s (lock %s) is held by %s", etcd.ErrDataDirInUse, dataDir, path, etcd.ProcessName(pid))
	}
	return nil, fmt.Errorf("start etcd: lock %s: %w", path, err)
}

func (p *Process) waitChild(c *exec.Cmd) {
	// Wait's error only repeats what the state says.
	_ = c.Wait()
	e := Exit{Known: true, Code: c.ProcessState.ExitCode()}
	if ws, ok := c.ProcessState.Sys().(syscall.WaitStatus); ok && ws.Signaled() {
		e.Signal = ws.Signal()
	}
	p.finish(e)
}

// finish is called once, by the goroutine that watches the process.
func (p *Process) finish(e Exit) {
	e.Asked = p.asked.Load()
	e.After = time.Since(p.info.Started)
	if n, ok := oomKills(); ok && e.Signal == syscall.SIGKILL {
		e.OOM = n > p.oomSeen
	}
	p.fdMu.Lock()
	if p.pidfd >= 0 {
		unix.Close(p.pidfd)
		p.pidfd = -1
	}
	p.fdMu.Unlock()
	if info, err := readPIDFile(p.pidFile); err == nil && info.PID == p.info.PID && info.StartTicks == p.info.StartTicks {
		// A pid file that stays behind is recognized as stale later.
		_ = os.Remove(p.pidFile)
	}
	if o := p.heard.Load(); o != nil {
		e.Reason = o.end()
	}
	p.exit = e
	close(p.done)
}

// Signal sends a signal to exactly this process. It is no error if it has ended.
func (p *Process) Signal(sig syscall.Signal) error {
	select {
	case <-p.done:
		return nil
	default:
	}
	p.fdMu.RLock()
	defer p.fdMu.RUnlock()
	var err error
	if p.pidfd >= 0 {
		err = signalProcess(p.pidfd, sig)
	} else if st, serr := readStat(p.info.PID); serr == nil && st.startTicks == p.info.StartTicks {
		err = unix.Kill(p.info.PID, sig)
	}
	if err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("signal etcd (process %d): %w", p.info.PID, err)
	}
	return nil
}

// Stop sends SIGTERM, and SIGKILL when the grace is over or the context ends, and waits until the process
// is gone. It may be called concurrently and repeatedly; once the process has ended it returns at once.
// An error means that the process may still exist.
func (p *Process) Stop(ctx context.Context, grace time.Duration) (Exit, error) {
	select {
	case <-p.done:
		return p.exit, nil
	default:
	}
	p.asked.Store(true)
	var err error
	p.termed.Do(func() { err = p.Signal(syscall.SIGTERM) })
	if err != nil {
		return Exit{}, fmt.Errorf("stop etcd: %w", err)
	}
	t := time.NewTimer(grace)
	defer t.Stop()
	select {
	case <-p.done:
		return p.exit, nil
	case <-t.C:
	case <-ctx.Done():
	}
	if err := p.Signal(syscall.SIGKILL); err != nil {
		return Exit{}, fmt.Errorf("stop etcd: %w", err)
	}
	t.Reset(killWait)
	select {
	case <-p.done:
		return p.exit, nil
	case <-t.C:
		return Exit{}, fmt.Errorf("stop etcd: process %d is still there %s after SIGKILL (it may wait for its disk)", p.info.PID, killWait)
	}
}
