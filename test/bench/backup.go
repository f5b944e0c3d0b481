package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/pki"
	"github.com/etcd-manager/etcd-manager/test/harness"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// writesPerSecond is the load beside backups.
const writesPerSecond = 200

// benchBackup compares periodic backups of a large database with "etcdctl snapshot save" and "gzip -1" of the same member.
func benchBackup(b *bench, s *settings, r *report) {
	snapshot := b.makeSnapshot(s.mib(s.backupMiB))
	for _, store := range strings.Split(s.stores, ",") {
		b.sub(store, func(b *bench) { backupTo(b, s, r, store, snapshot) })
	}
}

// backupRuns are the figures of one store.
type backupRuns struct {
	wall, refWall, cpu, refCPU, p99, refP99, quiet []time.Duration
	peak                                           []float64
	temporary                                      []string
}

func backupTo(b *bench, s *settings, r *report, store, snapshot string) {
	// Long enough that a backup, the same by hand, and a pause fit.
	interval := 20*time.Second + time.Duration(60*float64(s.mib(s.backupMiB))/650)*time.Second
	o := harness.Options{Env: []string{"ETCD_QUOTA_BACKEND_BYTES=" + quota}, BackupInterval: interval}
	if store == "s3" {
		o.S3 = servers.StartVersityGW(b)
	}
	c := harness.Start(b, o)
	c.WaitBackups(1)
	op := b.restoreNow(c, b.putBackup(c, snapshot))
	b.say("restored in %s", round(op.Finished.Sub(op.Created)))
	w, f := watchManagers(b, c), b.startFlow(c.TLS(), c.ClientURLs(), writesPerSecond)
	defer w.end()
	var runs backupRuns
	known := len(c.WaitBackups(3))
	for i := 0; i < s.slow+1; i++ {
		for _, pid := range w.pids {
			b.must(resetPeak(pid))
		}
		w.seen()
		m := nextBackup(b, c, &known)
		if i == 0 {
			continue // the first one warms up what there is to be warmed up
		}
		runs.ours(b, w, f, m)
		b.sleep(2 * time.Second)
		runs.reference(b, c, f, m)
	}
	f.end()
	if f.failures > 0 {
		r.note("Backup to %s: %d of the client's writes failed.", store, f.failures)
	}
	size := fmt.Sprintf("Backup of %d MiB to %s: ", s.mib(s.backupMiB), map[string]string{"file": "a directory", "s3": "S3"}[store])
	ratio := float64(median(runs.refWall)) / float64(median(runs.wall))
	r.add(row{what: size + "time (reference: `etcdctl snapshot save`, `gzip -1`)", ours: durations(runs.wall),
		reference: durations(runs.refWall),
		compared:  fmt.Sprintf("%.2f times as fast", ratio), limit: "1.5 times as fast", good: ratio >= 1.5, judged: true})
	r.addRatio(size+"CPU of the managers", runs.cpu, runs.refCPU, 0.6)
	r.addMost(size+"peak resident memory of a manager", "%.0f MiB", runs.peak, nil, 100)
	r.add(row{what: size + "temporary files", ours: fmt.Sprint(len(runs.temporary)), reference: "2", compared: "–",
		limit: "0", good: len(runs.temporary) == 0, judged: true})
	r.addRatio(size+fmt.Sprintf("p99 of %d writes a second meanwhile", writesPerSecond), runs.p99, runs.refP99, 1)
	r.note("%sp99 of the writes between backups: %s.", size, durations(runs.quiet))
	if len(runs.temporary) > 0 {
		r.note("%stemporary files: %s.", size, strings.Join(runs.temporary, " "))
	}
}

// watchManagers samples the managers. Files in the store and logs are not temporary files.
func watchManagers(b *bench, c *harness.Cluster) *watcher {
	var pids []int
	for _, n := range c.Nodes {
		pids = append(pids, n.PID())
		b.must(resetPeak(n.PID()))
	}
	ignore := func(path string) bool {
		if strings.HasPrefix(path, filepath.Join(c.Dir, "store")+"/") || strings.HasSuffix(path, ".log") {
			return true
		}
		info, err := os.Stat(path)
		return err == nil && info.Size() < 64<<10 // locks, and what is written atomically
	}
	etcd := func(pid int) bool {
		return slices.ContainsFunc(c.Nodes, func(n *harness.Node) bool { return n.EtcdPID() == pid })
	}
	return watch(pids, ignore, etcd)
}

// nextBackup waits for one more backup.
func nextBackup(b *bench, c *harness.Cluster, known *int) *catalog.Manifest {
	var m *catalog.Manifest
	c.WaitFor("the next backup", 20*time.Minute, func() string {
		b.sleep(250 * time.Millisecond)
		list := c.Backups()
		if len(list) <= *known {
			return fmt.Sprintf("there are %d", len(list))
		}
		*known = len(list)
		var err error
		m, err = c.Catalog.Manifest(b.ctx, list[len(list)-1].Name)
		b.must(err)
		return ""
	})
	b.sleep(500 * time.Millisecond) // until the samples reach so far
	return m
}

func (r *backupRuns) ours(b *bench, w *watcher, f *flow, m *catalog.Manifest) {
	cpu, err := w.between(m.Started.Add(-100*time.Millisecond), m.Finished.Add(200*time.Millisecond))
	b.must(err)
	p99, n := f.p99(m.Started, m.Finished)
	quiet, _ := f.p99(m.Started.Add(-5*time.Second), m.Started.Add(-time.Second))
	peak := 0.0
	for _, pid := range w.pids {
		peak = max(peak, memoryOf(pid, "VmHWM"))
	}
	files, _ := w.seen()
	r.wall, r.cpu, r.p99, r.quiet, r.peak = append(r.wall, m.Duration()), append(r.cpu, cpu), append(r.p99, p99),
		append(r.quiet, quiet), append(r.peak, peak)
	for _, path := range files {
		if !slices.Contains(r.temporary, path) {
			r.temporary = append(r.temporary, path)
		}
	}
	b.say("backup: %s, CPU %s, peak %.0f MiB, p99 %s of %d writes (before: %s), files %v", round(m.Duration()),
		round(cpu), peak, round(p99), n, round(quiet), files)
}

// reference does the same by hand, from the same member.
func (r *backupRuns) reference(b *bench, c *harness.Cluster, f *flow, m *catalog.Manifest) {
	dir := b.TempDir()
	node := c.Node(string(m.Node))
	token := ""
	if s, err := node.State(); err == nil {
		token = s.GetCluster().GetClusterToken()
	}
	pem := pki.EtcdFilesIn(filepath.Join(node.DataDir, "pki", token))
	db := filepath.Join(dir, "snapshot.db")
	from := time.Now()
	cpu := b.command("", "", servers.Binary(b, "etcdctl-3.6"), "--endpoints="+node.ClientURL(),
		"--cacert="+pem.ClientCA, "--cert="+pem.ServerCert, "--key="+pem.ServerKey, "--command-timeout=10m", "snapshot", "save", db)
	saved := time.Now()
	cpu += b.command(db, db+".gz", "gzip", "-1")
	to := time.Now()
	p99, n := f.p99(from, to)
	r.refWall, r.refCPU, r.refP99 = append(r.refWall, to.Sub(from)), append(r.refCPU, cpu), append(r.refP99, p99)
	b.say("by hand: %s (%s of it to save), CPU %s, p99 %s of %d writes", round(to.Sub(from)), round(saved.Sub(from)),
		round(cpu), round(p99), n)
	b.must(os.RemoveAll(dir))
}
