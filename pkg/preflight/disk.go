package preflight

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/etcd-manager/etcd-manager/pkg/adopt"
)

const (
	gib = 1 << 30
	// leastSpace is below what an etcd can't be run with at all.
	leastSpace = 1 * gib
	// defaultQuota is etcd's.
	defaultQuota = 2 * gib
	// slowSync is above what etcd's members lose time at each write: etcd's documentation names it for the 99th percentile. uselessSync,
	// the
	// heartbeat interval, is where members are taken for dead.
	slowSync    = 10 * time.Millisecond
	uselessSync = 100 * time.Millisecond
	// syncs and syncTime bound the measurement.
	syncs    = 200
	syncTime = 3 * time.Second
)

// Speed is how long it takes until a small write is on the disk.
type Speed struct {
	Median, P99, Max time.Duration
	Count            int
}

func (r *run) disk() {
	switch {
	case r.DataDir == "" && r.Later != "":
		r.skipped("data-dir", "%s, so neither it nor its disk was checked", r.Later)
		return
	case r.DataDir == "":
		return // a flag is missing, which is said
	}
	at, ok := r.dataDir()
	if !ok {
		return
	}
	r.fileSystem(at)
	r.space(at)
	speed, err := r.Sync(r.ctx, at)
	if err != nil {
		r.problem("disk-speed", "make the directory writable for the manager's user, which is usually root",
			"no file can be written in %s: %v", at, err)
		return
	}
	f := speed.judge(at)
	r.found = append(r.found, f)
}

// dataDir returns the directory whose disk is that of the data dir: itself, or the next one above that exists.
func (r *run) dataDir() (at string, ok bool) {
	info, err := os.Stat(r.DataDir)
	switch {
	case errors.Is(err, fs.ErrNotExist) && r.Mounted:
		r.problem("data-dir", "create it and mount the volume there",
			"--data-dir=%s doesn't exist, and a volume must be mounted there", r.DataDir)
		return "", false
	case errors.Is(err, fs.ErrNotExist):
		at = existing(r.DataDir)
		if err := unix.Access(at, unix.W_OK|unix.X_OK); err != nil {
			r.problem("data-dir", "create it for the manager's user, or run as root",
				"--data-dir=%s doesn't exist and can't be made in %s: %v", r.DataDir, at, err)
			return "", false
		}
		r.ok("data-dir", "%s will be made", r.DataDir)
		return at, true
	case err != nil:
		r.problem("data-dir", "run as the manager's user, which is usually root", "--data-dir: %v", err)
		return "", false
	case !info.IsDir():
		r.problem("data-dir", "give a directory", "--data-dir=%s is a file", r.DataDir)
		return "", false
	}
	if info.Mode().Perm()&0o022 != 0 {
		r.problem("data-dir", "chmod 700 "+r.DataDir, "others can change the data: the permissions of %s are %04o", r.DataDir,
			info.Mode().Perm())
	}
	if r.Mounted && !isMountPoint(r.DataDir) {
		r.problem("data-dir", "mount the volume there; the manager waits for it and writes nothing before",
			"nothing is mounted at --data-dir=%s (--volume-provider=external)", r.DataDir)
		return "", false
	}
	r.content()
	return r.DataDir, true
}

// existing is the next directory at or above a path that exists.
func existing(path string) string {
	for {
		if info, err := os.Stat(path); err == nil && info.IsDir() || path == "/" {
			return path
		}
		path = filepath.Dir(path)
	}
}

// content looks at what is in a data dir already.
func (r *run) content() {
	if err := adopt.Check(r.DataDir, r.StoreURL); err != nil {
		r.problem("data-dir", "continue the adoption", "%v", err)
		return
	}
	list, err := os.ReadDir(r.DataDir)
	if err != nil {
		r.problem("data-dir", "run as the manager's user, which is usually root", "--data-dir: %v", err)
		return
	}
	has := func(name string) bool {
		return slices.ContainsFunc(list, func(e fs.DirEntry) bool { return e.Name() == name })
	}
	switch {
	case has("member") && !has("state"):
		r.problem("data-dir", "give the manager a directory of its own; `etcd-manager adopt` takes over that etcd with its data "+
			"(docs/adopt.md)",
			"%s is the data dir of an etcd that the manager didn't start", r.DataDir)
	case has("state"):
		r.ok("data-dir", "%s holds the data of a member: the manager continues with them", r.DataDir)
	default:
		r.ok("data-dir", "%s has no data yet", r.DataDir)
	}
}

// fileSystem warns of what loses data, or is slow.
func (r *run) fileSystem(at string) {
	switch kind := mountOf(at).kind; {
	case kind == "tmpfs" || kind == "ramfs":
		r.problem("data-dir", "choose a directory on a disk with --data-dir",
			"%s is in memory (%s): all data are lost when the machine restarts", at, kind)
	case strings.HasPrefix(kind, "nfs") || kind == "cifs" || strings.HasPrefix(kind, "fuse"):
		r.warning("data-dir", "choose a directory on a local disk with --data-dir", "%s is on %s: etcd needs a local disk", at, kind)
	}
}

func (r *run) space(at string) {
	var s unix.Statfs_t
	if err := unix.Statfs(at, &s); err != nil {
		r.problem("disk-space", "repair the file system", "the free space at %s isn't known: %v", at, err)
		return
	}
	free := int64(s.Bavail) * int64(s.Bsize) //nolint:unconvert // the types differ between systems
	quota := r.quota
	if quota <= 0 {
		quota = defaultQuota
	}
	r.found = append(r.found, judgeSpace(at, free, quota))
}

// judgeSpace is about free bytes. A restore stages a second database beside the first one.
func judgeSpace(at string, free, quota int64) Finding {
	f := Finding{Check: "disk-space", Level: OK, Text: fmt.Sprintf("%s free at %s", amount(free), at)}
	switch {
	case free < leastSpace:
		f.Level, f.Text, f.Do = Problem, fmt.Sprintf("only %s free at %s", amount(free), at),
			"free at least "+amount(2*quota)+", or choose another disk"
	case free < 2*quota:
		f.Level, f.Do = Warning, "free "+amount(2*quota)+", or lower the quota"
		f.Text = fmt.Sprintf("%s free at %s; a database may grow to its quota of %s, and a restore stages a second one beside it",
			amount(free), at,
			amount(quota))
	}
	return f
}

func amount(n int64) string {
	if n < gib {
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/gib)
}

// judge says whether etcd can live with a disk.
func (s Speed) judge(at string) Finding {
	f := Finding{Check: "disk-speed", Level: OK,
		Text: fmt.Sprintf("%d writes to %s were on the disk within %s (median), %s (99 %%), %s (longest)", s.Count, at,
			round(s.Median), round(s.P99),
			round(s.Max))}
	const do = "use an SSD, or a volume with more operations a second, and share it with nothing that writes much"
	switch {
	case s.Median >= uselessSync:
		f.Level, f.Do = Problem, do
		f.Text += fmt.Sprintf(". That is longer than a heartbeat of etcd (%s): members would be taken for dead", uselessSync)
	case s.P99 > slowSync:
		f.Level, f.Do = Warning, do
		f.Text += fmt.Sprintf(". etcd's documentation asks for less than %s (99 %%)", slowSync)
	}
	return f
}

func round(d time.Duration) time.Duration {
	if d < time.Millisecond {
		return d.Round(10 * time.Microsecond)
	}
	return d.Round(100 * time.Microsecond)
}

// MeasureSync writes as etcd's log does, small pieces each of which must be on the disk before the next: at most 200, for at most 3 s.
// The file
// has no name, so nothing of it is left, whatever happens.
func MeasureSync(ctx context.Context, dir string) (Speed, error) {
	f, err := nameless(dir)
	if err != nil {
		return Speed{}, err
	}
	defer f.Close()
	piece := make([]byte, 2300) // as in etcd's own advice for measuring disks
	var took []time.Duration
	begin := time.Now()
	for len(took) < syncs && time.Since(begin) < syncTime && ctx.Err() == nil {
		start := time.Now()
		if _, err := f.Write(piece); err != nil {
			return Speed{}, err
		}
		if err := datasync(f); err != nil {
			return Speed{}, err
		}
		took = append(took, time.Since(start))
	}
	if len(took) == 0 {
		return Speed{}, ctx.Err()
	}
	slices.Sort(took)
	return Speed{Median: took[len(took)/2], P99: took[(len(took)*99-1)/100], Max: took[len(took)-1], Count: len(took)}, nil
}
