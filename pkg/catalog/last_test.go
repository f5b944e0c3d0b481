package catalog

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
)

// wildBackups is a store of whose backups the clocks were wrong, some have no manifest, and some were proven or found bad.
func wildBackups(t *testing.T, rnd *rand.Rand, n int, now time.Time) *blobtest.Memory {
	m := blobtest.NewMemory()
	for i := range n {
		at := now.Add(-time.Duration(i) * time.Hour)
		switch rnd.IntN(12) {
		case 0:
			at = now.AddDate(1, 0, rnd.IntN(9))
		case 1:
			at = now.AddDate(-30, 0, rnd.IntN(9))
		}
		name := fmt.Sprintf("%s-%06d", at.UTC().Format(time.RFC3339), i)
		files := []string{metaFile, DataFile}
		for file, odds := range map[string]int{manifestFile: 8, provenFile: 1, disprovenFile: 3, pinFile: 2} {
			if rnd.IntN(10) < odds {
				files = append(files, file)
			}
		}
		for _, f := range files {
			put(t, m, name+"/"+f, "x")
		}
	}
	return m
}

// TestLastBackups: however few are held, they are those that are chosen among all.
func TestLastBackups(t *testing.T) {
	now := time.Now().UTC().Truncate(time.Second)
	rnd := rand.New(rand.NewPCG(7, 8))
	ways := map[string]func(BackupList) any{
		"recent": func(l BackupList) any { return l.Recent(now, 4) },
		"recent with a manifest": func(l BackupList) any {
			return BackupList{Backups: slices.DeleteFunc(slices.Clone(l.Backups),
				func(b Backup) bool { return !b.HasManifest })}.Recent(now, 4)
		},
		"recent good ones": func(l BackupList) any {
			return BackupList{Backups: slices.DeleteFunc(slices.Clone(l.Backups),
				func(b Backup) bool { return !b.HasManifest || !b.Sound() })}.Recent(now, 4)
		},
		"last tried":   func(l BackupList) any { b, _ := l.LastTried(now); return b },
		"newest sound": func(l BackupList) any { b, _ := l.NewestSound(now); return b },
		"oldest with a manifest": func(l BackupList) any {
			return l.Backups[slices.IndexFunc(l.Backups, func(b Backup) bool { return b.HasManifest })]
		},
	}
	for range 10 {
		c := New(wildBackups(t, rnd, 300, now))
		all, err := c.Backups(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		few, whole, err := c.lastBackups(t.Context(), now, 4, 60, time.Hour)
		if err != nil || whole || len(few.Backups) >= 60 {
			t.Fatalf("%d backups are held, whole %t: %v", len(few.Backups), whole, err)
		}
		for what, way := range ways {
			if got, want := way(few), way(all); !reflect.DeepEqual(got, want) {
				t.Errorf("%s: got %v; want %v", what, got, want)
			}
		}
		if got, whole, err := c.LastBackups(t.Context(), now, 4); err != nil || !whole || !reflect.DeepEqual(got.Backups, all.Backups) {
			t.Errorf("of a short list not all is there: %d of %d, whole %t, %v", len(got.Backups), len(all.Backups), whole, err)
		}
	}
}

// TestBackupsAround: those around a time are found without the whole list.
func TestBackupsAround(t *testing.T) {
	now := time.Now().UTC().Truncate(time.Second)
	rnd := rand.New(rand.NewPCG(9, 10))
	m := wildBackups(t, rnd, 200, now)
	put(t, m, "imported/"+DataFile, "x")
	put(t, m, "imported/"+metaFile, "x")
	c := New(m)
	all, err := c.Backups(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := func(b Backup) bool { return b.HasManifest }
	for range 100 {
		at := now.Add(time.Duration(rnd.IntN(400)-300) * time.Hour / 2)
		n := 1 + rnd.IntN(12)
		var before, behind []Backup
		for _, b := range all.Backups {
			switch {
			case !want(b) || b.Time.IsZero():
			case b.Time.After(at):
				behind = append(behind, b)
			default:
				before = append(before, b)
				if !b.Time.Before(at) {
					behind = append(behind, b)
				}
			}
		}
		if got, err := c.BackupsUntil(t.Context(), at, n, want); err != nil || !slices.Equal(got, before[max(0, len(before)-n):]) {
			t.Fatalf("the last %d until %s: got %v, %v; want %v", n, at, got, err, before)
		}
		if got, err := c.BackupsFrom(t.Context(), at, n, want); err != nil || !slices.Equal(got, behind[:min(n, len(behind))]) {
			t.Fatalf("the first %d from %s: got %v, %v; want %v", n, at, got, err, behind)
		}
	}
	for _, b := range all.Backups {
		if got, err := c.BackupNamed(t.Context(), b.Name); err != nil || got != b {
			t.Fatalf("got %v, %v; want %v", got, err, b)
		}
	}
	for _, name := range []string{"2026", "import", "not-there"} {
		if _, err := c.BackupNamed(t.Context(), name); !errors.Is(err, ErrNotFound) {
			t.Errorf("there is a backup %q: %v", name, err)
		}
	}
}
