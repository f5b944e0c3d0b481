package process

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/prometheus/procfs"

	"github.com/etcd-manager/etcd-manager/pkg/etcd"
)

// procStat is the part of /proc/<pid>/stat that tells one process from another.
type procStat struct {
	state      byte
	startTicks uint64
}

// readStat fails with os.ErrNotExist (or ESRCH) if there is no such process.
func readStat(pid int) (procStat, error) {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return procStat{}, err
	}
	stat, err := p.Stat()
	if err != nil {
		return procStat{}, err
	}
	if stat.State == "" {
		return procStat{}, fmt.Errorf("read /proc/%d/stat: it tells no state", pid)
	}
	return procStat{state: stat.State[0], startTicks: stat.Starttime}, nil
}

func (s procStat) dead() bool { return s.state == 'Z' || s.state == 'X' || s.state == 'x' }

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
	argv, err := etcd.Cmdline(pid)
	if err != nil {
		return nil, false
	}
	if namesDataDir(argv, dataDir) {
		return argv, true
	}
	p, err := procfs.NewProc(pid)
	if err != nil {
		return argv, false
	}
	env, err := p.Environ()
	if err != nil {
		return argv, false
	}
	for _, kv := range env {
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

// oomKills reads the counter of the own control group (version 2, then 1). ok is false where there is none.
func oomKills() (n uint64, ok bool) {
	self, err := procfs.Self()
	if err != nil {
		return 0, false
	}
	groups, err := self.Cgroups()
	if err != nil {
		return 0, false
	}
	var files []string
	for _, g := range groups {
		switch {
		case g.HierarchyID == 0 && len(g.Controllers) == 0:
			files = append(files, filepath.Join("/sys/fs/cgroup", g.Path, "memory.events"), "/sys/fs/cgroup/memory.events")
		case slices.Contains(g.Controllers, "memory"):
			files = append(files, filepath.Join("/sys/fs/cgroup/memory", g.Path, "memory.oom_control"), "/sys/fs/cgroup/memory/memory.oom_control")
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
