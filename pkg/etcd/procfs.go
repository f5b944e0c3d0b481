package etcd

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// procStat is the part of /proc/<pid>/stat that tells one process from another.
type procStat struct {
	state      byte
	startTicks uint64
}

// readStat fails with os.ErrNotExist (or ESRCH) if there is no such process.
func readStat(pid int) (procStat, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return procStat{}, err
	}
	// The command's name stands in parentheses and may hold anything; what follows the last one is regular.
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return procStat{}, fmt.Errorf("read /proc/%d/stat: unexpected form", pid)
	}
	f := strings.Fields(string(b[i+1:]))
	if len(f) < 20 {
		return procStat{}, fmt.Errorf("read /proc/%d/stat: unexpected form", pid)
	}
	ticks, err := strconv.ParseUint(f[19], 10, 64)
	if err != nil {
		return procStat{}, fmt.Errorf("read /proc/%d/stat: %w", pid, err)
	}
	return procStat{state: f[0][0], startTicks: ticks}, nil
}

func (s procStat) dead() bool { return s.state == 'Z' || s.state == 'X' || s.state == 'x' }

func readCmdline(pid int) ([]string, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return nil, err
	}
	return strings.Split(strings.TrimSuffix(string(b), "\x00"), "\x00"), nil
}

// namesDataDir tells whether a command line runs etcd on that data dir.
func namesDataDir(argv []string, dataDir string) bool {
	want := filepath.Clean(dataDir)
	for i, a := range argv {
		name, value, hasValue := strings.Cut(strings.TrimLeft(a, "-"), "=")
		if !strings.HasPrefix(a, "-") || name != "data-dir" {
			continue
		}
		if !hasValue && i+1 < len(argv) {
			value = argv[i+1]
		}
		if filepath.Clean(value) == want {
			return true
		}
	}
	return false
}

// runsOn tells whether a process says, by flag or environment, that its data dir is dataDir.
func runsOn(pid int, dataDir string) ([]string, bool) {
	argv, err := readCmdline(pid)
	if err != nil {
		return nil, false
	}
	if namesDataDir(argv, dataDir) {
		return argv, true
	}
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return argv, false
	}
	for kv := range strings.SplitSeq(string(env), "\x00") {
		if v, ok := strings.CutPrefix(kv, "ETCD_DATA_DIR="); ok && filepath.Clean(v) == filepath.Clean(dataDir) {
			return argv, true
		}
	}
	return argv, false
}

func bootID() string {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(b))
}

// holders returns the processes other than this one that have the file open, as far as they can be seen.
func holders(path string) []int {
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

// oomKills reads the counter of the own control group (version 2, then 1). ok is false where there is none.
func oomKills() (n uint64, ok bool) {
	self, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return 0, false
	}
	var files []string
	for line := range strings.Lines(string(self)) {
		parts := strings.SplitN(strings.TrimSpace(line), ":", 3)
		if len(parts) != 3 {
			continue
		}
		switch {
		case parts[0] == "0" && parts[1] == "":
			files = append(files, filepath.Join("/sys/fs/cgroup", parts[2], "memory.events"), "/sys/fs/cgroup/memory.events")
		case strings.Contains(parts[1], "memory"):
			files = append(files, filepath.Join("/sys/fs/cgroup/memory", parts[2], "memory.oom_control"), "/sys/fs/cgroup/memory/memory.oom_control")
		}
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			if v, found := strings.CutPrefix(strings.TrimSpace(line), "oom_kill "); found {
				if n, err := strconv.ParseUint(v, 10, 64); err == nil {
					return n, true
				}
			}
		}
	}
	return 0, false
}
