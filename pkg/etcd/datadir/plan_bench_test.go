package datadir

import (
	"fmt"
	"io"
	"os"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
)

// BenchmarkPlannedStage measures what a node does with a snapshot that it has fetched: prove it, then make a data dir of it, without a plan
// (everything is checked and hashed twice) and with one. The CPU time is that of this process and its children.
func BenchmarkPlannedStage(b *testing.B) {
	testutil.Long(b) // makes a database of 256 MiB
	dir := b.TempDir()
	src := filepath.Join(dir, "source.db")
	if given := os.Getenv("ETCD_TEST_SNAPSHOT"); given != "" {
		src = given
	} else {
		largeStore(b, src, 256)
	}
	for _, planned := range []bool{false, true} {
		b.Run(fmt.Sprintf("planned=%t", planned), func(b *testing.B) {
			var proveCPU, stageCPU, prove, stage time.Duration
			for b.Loop() {
				b.StopTimer()
				path := filepath.Join(dir, "snapshot.db")
				copyFile(b, src, path)
				cfg := StageConfig{
					SnapshotPath: path, Consume: true, DataDir: filepath.Join(dir, "data"), Name: "a", InitialCluster: []etcd.Peer{{Name: "a", PeerURLs: []string{"http://127.0.0.1:1"}}}, Token: "t",
					BumpRevision: bump, MarkCompacted: true, SelfExe: self(b), DropPrefixes: [][]byte{[]byte("/registry/masterleases/")},
				}
				var o database.CheckOptions
				if planned {
					p := cfg.plan()
					cfg.PlanPath = filepath.Join(dir, "plan.json")
					o = database.CheckOptions{SkipHash: true, Plan: &p, PlanPath: cfg.PlanPath}
				}
				b.StartTimer()
				c0, t0 := cpuTime(b), time.Now()
				_, err := database.Check(b.Context(), self(b), path, o)
				must(b, err)
				c1, t1 := cpuTime(b), time.Now()
				_, err = Stage(b.Context(), cfg)
				must(b, err)
				prove, stage = prove+t1.Sub(t0), stage+time.Since(t1)
				proveCPU, stageCPU = proveCPU+c1-c0, stageCPU+cpuTime(b)-c1
				b.StopTimer()
				must(b, os.RemoveAll(cfg.DataDir))
				b.StartTimer()
			}
			report := func(d time.Duration, unit string) { b.ReportMetric(float64(d.Milliseconds())/float64(b.N), unit) }
			report(prove, "prove-ms")
			report(proveCPU, "prove-cpu-ms")
			report(stage, "stage-ms")
			report(stageCPU, "stage-cpu-ms")
		})
	}
}

func cpuTime(t testing.TB) time.Duration {
	t.Helper()
	var sum time.Duration
	for _, who := range []int{unix.RUSAGE_SELF, unix.RUSAGE_CHILDREN} {
		var r unix.Rusage
		must(t, unix.Getrusage(who, &r))
		sum += time.Duration(r.Utime.Nano() + r.Stime.Nano())
	}
	return sum
}

func copyFile(t testing.TB, from, to string) {
	t.Helper()
	in, err := os.Open(from)
	must(t, err)
	defer in.Close()
	out, err := os.Create(to)
	must(t, err)
	_, err = io.Copy(out, in)
	must(t, err)
	must(t, out.Sync())
	must(t, out.Close())
}
