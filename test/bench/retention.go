package main

import (
	"bytes"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/connect"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/retention"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// benchRetention thins 2,000 backups, one each hour, by the default policy, and counts the requests.
func benchRetention(b *bench, _ *settings, r *report) {
	const backups = 2000
	srv := servers.StartVersityGW(b, servers.InMemory())
	var mu sync.Mutex
	counts := map[string]int{}
	store, err := connect.Open(b.ctx, srv.URL("main"), srv.Getenv, connect.OnRequest(func(op string) {
		mu.Lock()
		defer mu.Unlock()
		counts[op]++
	}))
	b.must(err)
	now := time.Date(2026, 6, 1, 12, 30, 0, 0, time.UTC)
	names := make(chan string)
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for name := range names {
				for _, file := range []string{catalog.DataFile, "_etcd_manager_manifest.json", "_etcd_backup.meta"} {
					if _, err := store.Put(b.ctx, name+"/"+file, bytes.NewReader([]byte("{}")), blob.PutOptions{}); err != nil {
						b.Errorf("%v", err)
					}
				}
			}
		})
	}
	for i := range backups {
		names <- catalog.NewBackupName(now.Add(-30*time.Minute-time.Duration(i)*time.Hour), nil)
	}
	close(names)
	wg.Wait()
	mu.Lock()
	clear(counts)
	mu.Unlock()
	from := time.Now()
	c := catalog.New(store)
	list, err := c.Backups(b.ctx)
	b.must(err)
	var stored []retention.Backup
	for _, x := range list.Backups {
		stored = append(stored, retention.Backup{Name: x.Name, Time: x.Time, Complete: true})
	}
	var expired []string
	for _, d := range retention.Decide(now, stored, retention.Default()) {
		if !d.Keep {
			expired = append(expired, d.Name)
		}
	}
	_, err = c.DeleteBackups(b.ctx, expired...)
	b.must(err)
	took := time.Since(from)
	mu.Lock()
	sum := 0
	var ops []string
	for _, op := range slices.Sorted(maps.Keys(counts)) {
		sum += counts[op]
		ops = append(ops, fmt.Sprintf("%s %d", op, counts[op]))
	}
	mu.Unlock()
	left, err := c.Backups(b.ctx)
	b.must(err)
	if len(list.Backups) != backups || len(left.Backups) == 0 || len(left.Backups) > 250 {
		b.Fatalf("of %d backups %d are left", len(list.Backups), len(left.Backups))
	}
	r.addMost(fmt.Sprintf("Retention: requests to thin %d backups to %d (S3)", backups, len(left.Backups)), "%.0f",
		[]float64{float64(sum)}, nil, 20)
	r.note("Retention took %s: %s.", round(took), strings.Join(ops, ", "))
}
