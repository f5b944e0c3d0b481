package etcd

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/prometheus/procfs"
	"golang.org/x/sys/unix"
)

// Locked tells whether somebody holds the exclusive lock that etcd (bbolt) takes on its database.
// It never waits and leaves nothing behind. An absent file isn't locked.
func Locked(path string) (bool, error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer f.Close()
	err = unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return true, nil
	}
	return false, err
}

// DataDirHolder tells whether a process holds the database of a data dir, and which. The pid is 0 if it
// can't be seen from here (another pid namespace, or not permitted).
func DataDirHolder(dataDir string) (pid int, held bool, err error) {
	p := DBPath(dataDir)
	held, err = Locked(p)
	if err != nil {
		return 0, false, fmt.Errorf("look for a lock on %s: %w", p, err)
	}
	if !held {
		return 0, false, nil
	}
	return LockHolder(p), true, nil
}

// LockHolder is the pid of a process that holds a lock on the file, and 0 if none can be seen.
func LockHolder(path string) int {
	for _, pid := range Holders(path) {
		return pid
	}
	// /proc/locks knows it also where other users' descriptors can't be read.
	fi, err := os.Stat(path)
	if err != nil {
		return 0
	}
	return lockHolderByInode(fi)
}

func lockHolderByInode(fi os.FileInfo) int {
	st, ok := fi.Sys().(*syscall.Stat_t)
	b, err := os.ReadFile("/proc/locks")
	if err != nil || !ok {
		return 0
	}
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 6 || f[1] != "FLOCK" {
			continue
		}
		if strings.HasSuffix(f[5], ":"+strconv.FormatUint(st.Ino, 10)) {
			if pid, err := strconv.Atoi(f[4]); err == nil && pid > 0 {
				return pid
			}
		}
	}
	return 0
}

// Holders returns the processes other than this one that have the file open, as far as they can be seen.
func Holders(path string) []int {
	want, err := os.Stat(path)
	if err != nil {
		return nil
	}
	dirs, err := filepath.Glob("/proc/[0-9]*/fd")
	if err != nil {
		return nil
	}
	var out []int
	for _, d := range dirs {
		pid, err := strconv.Atoi(filepath.Base(filepath.Dir(d)))
		if err != nil || pid == os.Getpid() {
			continue
		}
		fds, err := os.ReadDir(d)
		if err != nil {
			continue
		}
		for _, fd := range fds {
			if fi, err := os.Stat(filepath.Join(d, fd.Name())); err == nil && os.SameFile(fi, want) {
				out = append(out, pid)
				break
			}
		}
	}
	return out
}

// ProcessName names a process in messages. Pid 0 is one that can't be seen.
func ProcessName(pid int) string {
	if pid == 0 {
		return "a process that can't be seen from here"
	}
	if argv, err := Cmdline(pid); err == nil && argv[0] != "" {
		return fmt.Sprintf("process %d (%s)", pid, filepath.Base(argv[0]))
	}
	return fmt.Sprintf("process %d", pid)
}

// Cmdline is the command line of a process.
func Cmdline(pid int) ([]string, error) {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return nil, err
	}
	return p.CmdLine()
}
