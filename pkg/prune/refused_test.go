package prune

import (
	"context"
	"errors"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// goes is the first backup that retention gives up now, and how many do.
func (w *world) goes(p *Pruner) (string, int) {
	w.t.Helper()
	pl, err := p.Plan(w.t.Context(), w.now, Exempt{})
	if err != nil || len(pl.backups) < 3 {
		w.t.Fatalf("too few backups go: %v, %v", pl, err)
	}
	return pl.backups[0], len(pl.backups)
}

// refusing has the store refuse to delete what begins with a prefix.
func (w *world) refusing(prefix string, kind error) {
	w.store.tried = map[string]int{}
	w.store.refuse = func(key string) error {
		if !strings.HasPrefix(key, prefix) {
			return nil
		}
		return &blob.Error{Op: "purge", Key: key, Kind: kind, Keys: []string{key}, Err: errors.New("no")}
	}
}

// TestOneRefused: an object that can't be deleted holds up its own backup and nothing else, and what went is counted.
func TestOneRefused(t *testing.T) {
	for _, kind := range []error{blob.ErrDenied, blob.ErrTransient, nil} {
		w := newWorld(t, "2026-03-01T00:00:00Z")
		w.run(30)
		p := w.pruner()
		stuck, n := w.goes(p)
		w.refusing(stuck+"/", kind)
		r, err := p.Run(t.Context(), w.now, Exempt{})
		if err != nil || r.Backups != n-1 || r.Segments == 0 || r.Denied != "" || r.Refused != 3 || r.Waiting != 1 ||
			!strings.Contains(r.Hold(), stuck) {
			t.Fatalf("%v: of %d backups: %+v, %v", kind, n, r, err)
		}
		clock, waits := w.now, []int{1, 2, 4, 8, 16, 24, 24}
		for i, wait := range waits {
			before := w.store.tried[stuck+"/"+catalog.DataFile]
			due := clock.Add(time.Duration(wait) * time.Hour)
			if r, err = p.Run(t.Context(), due.Add(-time.Second), Exempt{}); err != nil || r.Waiting != 1 || r.Denied != "" {
				t.Fatalf("%v: %+v, %v", kind, r, err)
			}
			if now := w.store.tried[stuck+"/"+catalog.DataFile]; now != before {
				t.Fatalf("%v: it is tried too early, after wait %d", kind, i)
			}
			if _, err = p.Run(t.Context(), due, Exempt{}); err != nil || w.store.tried[stuck+"/"+catalog.DataFile] != before+1 {
				t.Fatalf("%v: it isn't tried again after wait %d: %v", kind, i, err)
			}
			clock = due
		}
		if r, err = w.pruner().Run(t.Context(), w.now, Exempt{}); err != nil || r.Waiting != 1 || r.Denied != "" || r.Objects != 0 {
			t.Errorf("%v: with nothing else to delete: %+v, %v", kind, r, err)
		}
		w.store.refuse = nil
		if r, err = p.Run(t.Context(), clock.Add(25*time.Hour), Exempt{}); err != nil || r.Waiting != 0 || r.Hold() != "" {
			t.Errorf("%v: when it can be deleted: %+v, %v", kind, r, err)
		}
	}
}

// TestOneSegmentRefused: the same of a segment.
func TestOneSegmentRefused(t *testing.T) {
	w := newWorld(t, "2026-03-01T00:00:00Z")
	w.run(30)
	p := w.pruner()
	stuck := w.segments()[0].Key()
	w.refusing(stuck, blob.ErrDenied)
	r, err := p.Run(t.Context(), w.now, Exempt{})
	if err != nil || r.Segments < 100 || r.Waiting != 1 || r.Denied != "" {
		t.Fatalf("%+v, %v", r, err)
	}
	if first := w.segments()[0].Key(); first != stuck {
		t.Errorf("the first segment is %s", first)
	}
	if r, err = p.Run(t.Context(), w.now.Add(time.Minute), Exempt{}); err != nil || w.store.tried[stuck] != 1 {
		t.Errorf("it was tried %d times: %+v, %v", w.store.tried[stuck], r, err)
	}
}

// TestAllRefusedOneByOne: a store that refuses every object by itself denies, as one that refuses the request.
func TestAllRefusedOneByOne(t *testing.T) {
	w := newWorld(t, "2026-03-01T00:00:00Z")
	w.run(30)
	w.store.refuse = func(key string) error {
		return &blob.Error{Op: "purge", Key: key, Kind: blob.ErrDenied, Keys: []string{key}}
	}
	p := w.pruner()
	r, err := p.Run(t.Context(), w.now, Exempt{})
	if err != nil || r.Denied == "" || !r.News || r.Backups != 0 || r.RetryAt.Sub(w.now) != firstWait {
		t.Fatalf("%+v, %v", r, err)
	}
	r, err = p.Run(t.Context(), r.RetryAt, Exempt{})
	if err != nil || r.Denied == "" || r.News || r.RetryAt.Sub(w.now) != 3*firstWait {
		t.Fatalf("again: %+v, %v", r, err)
	}
	w.store.refuse = nil
	if r, err = p.Run(t.Context(), r.RetryAt, Exempt{}); err != nil || r.Backups == 0 || r.Hold() != "" {
		t.Errorf("after the permission came: %+v, %v", r, err)
	}
}

// breaking deletes some, and then the request fails as a whole.
type breaking struct{ blob.Store }

func (b breaking) Purge(ctx context.Context, prefix string, match func(string) bool) (int, error) {
	dirs := map[string]bool{}
	n, err := b.Store.Purge(ctx, prefix, func(key string) bool {
		if !match(key) || len(dirs) == 2 && !dirs[filepath.Dir(key)] {
			return false
		}
		dirs[filepath.Dir(key)] = true
		return true
	})
	return n, errors.Join(err, &blob.Error{Op: "purge", Key: prefix, Kind: blob.ErrDenied})
}

// TestCountedAfterFailure: of a request that breaks off, what went is counted.
func TestCountedAfterFailure(t *testing.T) {
	w := newWorld(t, "2026-03-01T00:00:00Z")
	w.run(30)
	p := New(catalog.New(breaking{w.store}), w.pruner().policy)
	r, err := p.Run(t.Context(), w.now, Exempt{})
	if err != nil || r.Backups != 2 || r.Objects < 4 || r.Denied == "" {
		t.Errorf("%+v, %v", r, err)
	}
}

// TestDamagedProof: a proof that can't be read stops nothing but itself.
func TestDamagedProof(t *testing.T) {
	w := newWorld(t, "2026-03-01T00:00:00Z")
	w.run(30)
	name := w.backup()
	if _, err := w.store.Put(t.Context(), name+"/_etcd_manager_proven.json", strings.NewReader("{damaged"), blob.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	list, err := w.c.Backups(t.Context())
	if err != nil || !list.Backups[len(list.Backups)-1].Proven {
		t.Fatalf("the newest backup doesn't count as proven: %v", err)
	}
	if r, err := w.pruner().Run(t.Context(), w.now, Exempt{}); err != nil || r.Backups == 0 || r.Segments == 0 {
		t.Errorf("%+v, %v", r, err)
	}
}
