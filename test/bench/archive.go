package main

import (
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob/connect"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/prune"
	"github.com/etcd-manager/etcd-manager/pkg/retention"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

const (
	archiveBackups  = 1000
	archiveSegments = 100_000
	archiveCluster  = 0xabc
)

// benchArchive puts 1,000 backups and 100,000 segments of changes into a store, as two weeks leave
// them behind, and counts what it takes to list them, to plan with them and to prune them.
func benchArchive(b *bench, _ *settings, r *report) {
	srv := servers.StartVersityGW(b, servers.InMemory())
	var mu sync.Mutex
	counts := map[string]int{}
	store, err := connect.Open(b.ctx, srv.URL("main"), srv.Getenv, connect.OnRequest(func(op string) {
		mu.Lock()
		defer mu.Unlock()
		counts[op]++
	}))
	b.must(err)
	end := time.Now().UTC().Truncate(time.Second)
	fillArchive(b, srv, end)
	c := catalog.New(store)
	// measure runs something and reports its requests and its time.
	measure := func(what string, most float64, f func()) {
		mu.Lock()
		clear(counts)
		mu.Unlock()
		from := time.Now()
		f()
		took := time.Since(from)
		mu.Lock()
		defer mu.Unlock()
		sum := 0
		var ops []string
		for _, op := range slices.Sorted(maps.Keys(counts)) {
			sum += counts[op]
			ops = append(ops, fmt.Sprintf("%s %d", op, counts[op]))
		}
		r.addMost(fmt.Sprintf("%d backups, %d segments: requests to %s", archiveBackups, archiveSegments, what), "%.0f",
			[]float64{float64(sum)}, nil, most)
		r.note("To %s took %s: %s.", what, round(took), strings.Join(ops, ", "))
	}
	measure("list the backups", 10, func() {
		l, err := c.Backups(b.ctx)
		b.must(err)
		if len(l.Backups) != archiveBackups {
			b.Fatalf("%d backups are listed", len(l.Backups))
		}
	})
	measure("list what a target behind a backup needs", 10, func() {
		n := 0
		for s, err := range c.Segments(b.ctx, catalog.IncarnationOf(archiveCluster), 500_000) {
			b.must(err)
			if n++; s.First > 510_000 {
				break
			}
		}
	})
	p := prune.New(c, prune.Policy{Backups: retention.Default(), Changes: retention.DefaultChanges})
	run := func(clock time.Time) prune.Result {
		res, err := p.Run(b.ctx, clock, prune.Exempt{})
		b.must(err)
		return res
	}
	measure("prune in one large run", 700, func() {
		if res := run(end); res.Segments < 1000 || res.Backups < 100 {
			b.Fatalf("the run did %+v", res)
		}
	})
	for run(end).More {
	}
	measure("prune when nothing is due", 20, func() { run(end) })
}

// fillArchive writes a backup each twenty minutes and a segment of ten changes each twelve seconds,
// up to end: versitygw's objects are files.
func fillArchive(b *bench, srv *servers.S3, end time.Time) {
	put := func(key string, data []byte) {
		path := filepath.Join(srv.DataDir, srv.Bucket, "main", key)
		b.must(os.MkdirAll(filepath.Dir(path), 0o755))
		b.must(os.WriteFile(path, data, 0o644))
	}
	sum := fmt.Sprintf("%x", sha256.Sum256(nil))
	begin := end.Add(-archiveSegments * 12 * time.Second)
	for i := range archiveBackups {
		at := begin.Add(time.Duration(i) * 20 * time.Minute)
		name := catalog.NewBackupName(at, nil)
		manifest, err := json.Marshal(map[string]any{"version": 1, "backup": name, "clusterId": "abc",
			"revision": int64(i)*1000 + 1, "started": at,
			"raw": map[string]any{"size": 1, "sha256": sum}, "stored": map[string]any{"size": 1, "sha256": sum}})
		b.must(err)
		put(name+"/"+catalog.DataFile, []byte("x"))
		put(name+"/_etcd_manager_manifest.json", manifest)
		put(name+"/_etcd_backup.meta", []byte("{}"))
	}
	previous := catalog.NoSegment
	for i := range archiveSegments {
		h := sha256.Sum256(fmt.Appendf(nil, "%d", i))
		s := catalog.Segment{Incarnation: catalog.IncarnationOf(archiveCluster),
			SegmentName: catalog.SegmentName{First: int64(i)*10 + 2, Last: int64(i)*10 + 11,
				Ended: begin.Add(time.Duration(i+1) * 12 * time.Second), Previous: previous, Sum: catalog.NewSegmentSum(h[:])}}
		previous = s.Sum
		put(s.Key(), []byte("x"))
	}
}
