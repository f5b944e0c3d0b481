package catalog

import (
	"context"
	"fmt"
	"math/rand/v2"
	"reflect"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
)

// TestBackupScanGoesOn: a scan that breaks off again and again reads the same list, whatever the names are.
func TestBackupScanGoesOn(t *testing.T) {
	ctx, m := context.Background(), blobtest.NewMemory()
	rnd := rand.New(rand.NewPCG(1, 2))
	files := []string{DataFile, metaFile, manifestFile, pinFile, provenFile, "stranger"}
	for i := range 60 {
		name := fmt.Sprintf("2026-01-%02dT01:02:03Z-000000", 1+i%28)
		switch i % 5 {
		case 1:
			name += "/deeper"
		case 2:
			name = fmt.Sprintf("imported-%d", i)
		case 3:
			name = "a/b/c"[:1+rnd.IntN(3)*2]
		}
		for _, f := range files {
			if rnd.IntN(3) > 0 {
				put(t, m, name+"/"+f, "x")
			}
		}
	}
	for i := range 30 {
		put(t, m, fmt.Sprintf("changes/x/%d", i), "x")
	}
	want, err := New(m).Backups(ctx)
	if err != nil || len(want.Backups) == 0 || len(want.Leftovers) == 0 {
		t.Fatal(want, err)
	}
	f := blobtest.NewFaulty(m)
	f.Add(blobtest.Fault{Op: "list", AfterEntries: 3, Err: blobtest.Transient("list", "")})
	var got BackupList
	s := New(f).ScanBackups(got.addBackup, got.addLeftover)
	tries := 0
	for err = s.Run(ctx); err != nil; err = s.Run(ctx) {
		if tries++; tries > 1000 {
			t.Fatalf("it never comes to an end: %v", err)
		}
		if tries == 100 {
			f.Heal()
		}
	}
	got.sort()
	if tries < 10 || !reflect.DeepEqual(got, want) {
		t.Errorf("after %d interruptions: got %+v; want %+v", tries, got, want)
	}
}

// TestRecentBackups: the newest backup, and a free name, are found without going through the list, however long it is.
func TestRecentBackups(t *testing.T) {
	ctx := context.Background()
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	for name, x := range map[string]struct {
		newest time.Duration // before now
		lists  int
	}{"just now": {time.Minute, 1}, "dated ahead": {-time.Hour, 1}, "days ago": {5 * 24 * time.Hour, 3},
		"years ago": {3 * 365 * 24 * time.Hour, 7}} {
		t.Run(name, func(t *testing.T) {
			m := blobtest.NewMemory()
			at := now.Add(-x.newest)
			for range 400 {
				addBackup(t, m, at.UTC().Format(time.RFC3339)+"-000000")
				at = at.Add(-time.Hour)
			}
			put(t, m, "changes/x/1", "x")
			put(t, m, "control/leader", "x")
			f := blobtest.NewFaulty(m)
			c := New(f)
			all, err := New(m).Backups(ctx)
			if err != nil {
				t.Fatal(err)
			}
			l, err := c.RecentBackups(ctx, now)
			if err != nil || len(l.Backups) == 0 || l.Backups[len(l.Backups)-1] != all.Backups[len(all.Backups)-1] {
				t.Fatalf("got %+v, %v", l, err)
			}
			if n := len(f.Calls()); n != x.lists {
				t.Errorf("it took %d listings, want %d", n, x.lists)
			}
			second := now.Add(-x.newest)
			if got, err := c.NextBackupName(ctx, second); err != nil || got != second.UTC().Format(time.RFC3339)+"-000001" {
				t.Errorf("the next name is %s, %v", got, err)
			}
		})
	}
	if l, err := New(blobtest.NewMemory()).RecentBackups(ctx, now); err != nil || len(l.Backups) != 0 {
		t.Errorf("an empty store has %+v, %v", l, err)
	}
}

func addBackup(t *testing.T, s blob.Store, name string) {
	t.Helper()
	for _, f := range []string{DataFile, metaFile} {
		put(t, s, name+"/"+f, "x")
	}
}
