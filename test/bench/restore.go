package main

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/test/harness"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// restoreRuns are the figures of one size.
type restoreRuns struct {
	total, full, outage, seen, refTotal, refStart []time.Duration
	// quiet and staging are the 99th percentiles of clients' writes before the restore, and while it was prepared.
	quiet, staging []time.Duration
	// waited is how long the command stood in the queue, although it was not to wait for a restart.
	waited []time.Duration
	// peak is a manager's, child what the largest process had that it started to work on the database.
	peak, child, childAnonymous []float64
	steps                       map[string][]time.Duration
}

// benchRestore restores into three running members, and by hand.
func benchRestore(b *bench, s *settings, r *report) {
	for _, text := range strings.Split(s.restoreMiB, ",") {
		n, err := strconv.Atoi(text)
		b.must(err)
		b.sub(text, func(b *bench) { restoreSize(b, s, r, s.mib(n)) })
	}
}

func restoreSize(b *bench, s *settings, r *report, mib int) {
	snapshot := b.makeSnapshot(mib)
	packed := filepath.Join(b.TempDir(), "backup.gz")
	runs := restoreRuns{steps: map[string][]time.Duration{}}
	for i := range s.slow {
		b.sub(fmt.Sprintf("ours-%d", i), func(b *bench) {
			c := harness.Start(b, harness.Options{Env: []string{"ETCD_QUOTA_BACKEND_BYTES=" + quota}})
			c.WaitBackups(1)
			name := b.putBackup(c, snapshot)
			if i == 0 {
				copyBackup(b, c, name, packed)
			}
			runs.total = append(runs.total, runs.ours(b, s, c, name))
			// Once more, with as much data in the cluster that is replaced, whose last state the store must have before.
			c.WaitBackups(3)
			runs.full = append(runs.full, runs.ours(b, s, c, name))
		})
		b.sub(fmt.Sprintf("by-hand-%d", i), func(b *bench) {
			total, start := restoreByHand(b, s, packed)
			runs.refTotal, runs.refStart = append(runs.refTotal, total), append(runs.refStart, start)
			b.say("by hand: %s, of it the start %s", round(total), round(start))
		})
	}
	size := fmt.Sprintf("Restore of %d MiB, three members: ", mib)
	r.addRatio(size+"until clients are served again (reference: `gunzip`, three times `etcdutl snapshot restore`, start)",
		runs.total, runs.refTotal, 1.5)
	r.addRatio(size+"the same, with as much data in the cluster that is replaced", runs.full, runs.refTotal, 1.5)
	r.addMore(size+"clients are not served, by the record (reference: start of etcd)", runs.outage, runs.refStart, 2*time.Second)
	r.addMore(size+"clients are not served, as they see it", runs.seen, runs.refStart, 2*time.Second)
	r.addRatio(size+"p99 of clients' writes while it is prepared (reference: before)", runs.staging, runs.quiet, 2)
	r.addMost(size+"peak resident memory of a manager", "%.0f MiB", runs.peak, nil, 150)
	r.note("%sthe largest process but etcd that a manager starts to work on the database: %s resident, %s without pages of files.",
		size, numbers(runs.child, "%.0f MiB"), numbers(runs.childAnonymous, "%.0f MiB"))
	if s.breakdown {
		var parts []string
		for _, st := range []catalog.OperationState{catalog.StateProving, catalog.StateStaging, catalog.StateSaving,
			catalog.StateStopping, catalog.StateSwitching, catalog.StateVerifying} {
			if list := runs.steps[string(st)]; len(list) > 0 {
				parts = append(parts, fmt.Sprintf("%s %s", st, durations(list)))
			}
		}
		r.note("%ssteps: %s. Before, the command stood in the queue for %s.", size, strings.Join(parts, ", "), durations(runs.waited))
	}
}

// ours restores, and returns how long that took from the record's making until clients were served again.
func (r *restoreRuns) ours(b *bench, s *settings, c *harness.Cluster, name string) time.Duration {
	c.WaitHealthy(len(c.Nodes))
	syscall.Sync()
	w, g := watchManagers(b, c), b.startGap(c.TLS(), c.ClientURLs())
	b.sleep(5 * time.Second) // to compare with
	queued := time.Now()
	op := b.restoreNow(c, name)
	gap := g.end()
	w.end()
	_, child := w.seen()
	peak, anon := 0.0, 0.0
	for _, pid := range w.pids {
		peak, anon = max(peak, memoryOf(pid, "VmHWM")), max(anon, memoryOf(pid, "RssAnon"))
	}
	i := slices.IndexFunc(op.Steps, func(s catalog.Step) bool { return s.Name == string(catalog.StateStopping) })
	stopped := op.Steps[i].Started
	total := stopped.Add(op.Outage).Sub(op.Created)
	r.quiet, r.staging = append(r.quiet, g.p99(queued.Add(-5*time.Second), queued)), append(r.staging, g.p99(op.Created, stopped))
	r.outage, r.seen, r.peak, r.child = append(r.outage, op.Outage), append(r.seen, gap), append(r.peak, peak),
		append(r.child, child.resident)
	r.childAnonymous = append(r.childAnonymous, child.anonymous)
	r.waited = append(r.waited, op.Created.Sub(queued))
	var steps []string
	for _, st := range op.Steps {
		d := st.Finished.Sub(st.Started)
		r.steps[st.Name] = append(r.steps[st.Name], d)
		steps = append(steps, fmt.Sprintf("%s %s", st.Name, round(d)))
	}
	b.say("p99 %s before, %s while it was prepared", round(r.quiet[len(r.quiet)-1]), round(r.staging[len(r.staging)-1]))
	b.say("begun %s after it was queued, restored in %s, outage %s, clients saw %s, peak %.0f MiB (afterwards %.0f anonymous, child %.0f); %s", round(op.Created.Sub(queued)), round(total), round(op.Outage), round(gap), peak, anon, child.resident, strings.Join(steps, ", "))
	if s.keepLogs {
		b.say("log of the leader:\n%s", c.WaitLeader().LogTail(80))
	}
	return total
}

// copyBackup takes the stored file out of the store, so that both sides begin with the same bytes.
func copyBackup(b *bench, c *harness.Cluster, name, path string) {
	in, _, err := c.Catalog.OpenBackupData(b.ctx, name, catalog.DataFile, 0)
	b.must(err)
	defer in.Close()
	out, err := os.Create(path)
	b.must(err)
	defer out.Close()
	_, err = io.Copy(out, in)
	b.must(err)
	b.must(out.Sync())
}

// restoreByHand is what the operator types without us. start is the part from the start of etcd on.
func restoreByHand(b *bench, s *settings, packed string) (total, start time.Duration) {
	h := b.newByHand(3)
	etcdutl := servers.Binary(b, "etcdutl-3.6")
	db := filepath.Join(b.TempDir(), "snapshot.db")
	syscall.Sync()
	from := time.Now()
	b.command(packed, db, "gunzip")
	restore := func(m *handMember) {
		b.command("", "", etcdutl, "snapshot", "restore", db, "--name="+m.name, "--data-dir="+m.dir,
			"--initial-cluster="+h.initialCluster(), "--initial-cluster-token=by-hand",
			"--initial-advertise-peer-urls="+m.peerURL, "--bump-revision=1000000000", "--mark-compacted")
	}
	var wg sync.WaitGroup
	for _, m := range slices.Clone(h.members) {
		if s.parallelByHand {
			wg.Go(func() { restore(m) })
		} else {
			restore(m)
		}
	}
	wg.Wait()
	staged := time.Now()
	h.startAll()
	served := b.firstAnswer(h.tls(), h.urls(), read, 10*time.Minute)
	return served.Sub(from), served.Sub(staged)
}
