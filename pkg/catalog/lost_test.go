package catalog

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
)

// lose has the answers to writes be lost, n of them or with 0 all. If away, nothing can be read meanwhile.
func lose(f *blobtest.Faulty, n int, away bool) (end func()) {
	put := f.Add(blobtest.Fault{Op: "put", After: true, Times: n, Err: blobtest.Transient("put", "")})
	if !away {
		return put
	}
	get := f.Add(blobtest.Fault{Op: "get", Err: blobtest.Transient("get", "")})
	return func() { put(); get() }
}

// TestLostAnswersOfALeader: a term that was taken, and a heartbeat that was written, are the leader's own though the answer was lost. A
// rival's term is told from them, also if it is behind a lost answer.
func TestLostAnswersOfALeader(t *testing.T) {
	ctx := context.Background()
	for name, away := range map[string]bool{"the store can be read": false, "the store is away": true} {
		t.Run(name, func(t *testing.T) {
			m := blobtest.NewMemory()
			f := blobtest.NewFaulty(m)
			now := newClock("2026-01-30T01:02:05Z")
			c, rival := New(f, WithClock(now.now)), New(m, WithClock(now.now))
			attempt := func(what string, do func() error) {
				t.Helper()
				end := lose(f, 1, away)
				if err := do(); (err == nil) == away {
					t.Errorf("%s, while the answer is lost: %v", what, err)
				}
				end()
				now.add(10 * time.Second)
				if err := do(); err != nil {
					t.Errorf("%s, again: %v", what, err)
				}
			}
			var h *Hold
			attempt("the first term", func() (err error) {
				h, err = c.TakeTerm(ctx, 4, "a", "i")
				return err
			})
			for range 3 {
				attempt("a heartbeat", func() error { return h.Heartbeat(ctx) })
			}
			if stored, _, err := c.Leader(ctx); err != nil || !stored.Time.Equal(h.Record().Time) || !same(stored, h.Record()) {
				t.Errorf("stored %+v, held %+v: %v", stored, h.Record(), err)
			}
			if _, err := rival.TakeTerm(ctx, 5, "b", "x"); err != nil {
				t.Fatal(err)
			}
			wantIs(t, h.Heartbeat(ctx), ErrFenced)

			attempt("a higher term", func() (err error) {
				h, err = c.TakeTerm(ctx, 6, "a", "i")
				return err
			})
			end := lose(f, 1, true)
			wantIs(t, h.Heartbeat(ctx), ErrTransient)
			end()
			if _, err := rival.TakeTerm(ctx, 7, "b", "x"); err != nil {
				t.Fatal(err)
			}
			wantIs(t, h.Heartbeat(ctx), ErrFenced)
			_, err := c.TakeTerm(ctx, 6, "a", "i")
			wantIs(t, err, ErrFenced)
		})
	}
}

// TestLostAnswersAreReadAgain: records that are written once, or that each writer reads first. After a lost answer the same call succeeds,
// what is stored is the writer's, and another writer's is a conflict or stays.
func TestLostAnswersAreReadAgain(t *testing.T) {
	ctx := context.Background()
	const backup = "2026-01-30T01:02:03Z-000000"
	manifest := func(revision int64) *Manifest {
		d := Digest{Size: 1, SHA256: strings.Repeat("0", 64)}
		return &Manifest{Backup: backup, ClusterName: "test", EtcdVersion: "3.6.0", Revision: revision, Raw: d, Stored: d,
			Compression: CompressionGzip}
	}
	for name, x := range map[string]struct {
		key string
		put func(c *Catalog) error
		// again is what the second call answers; nil is a success.
		again error
		// rival is another writer, who comes after that; it gets refused.
		rival   func(c *Catalog) error
		refused error
	}{
		"serving": {servingKey,
			func(c *Catalog) error { return c.PutServing(ctx, Serving{Incarnation: "i1", Term: 4, Node: "a"}) }, nil,
			func(c *Catalog) error { return c.PutServing(ctx, Serving{Incarnation: "i2", Term: 3, Node: "b"}) }, ErrFenced},
		"turn": {turnKey,
			func(c *Catalog) error { return c.TakeTurn(ctx, Turn{Node: "a", Volume: "v"}) }, nil,
			func(c *Catalog) error { return c.TakeTurn(ctx, Turn{Node: "b", Volume: "w"}) }, ErrConflict},
		// Whoever writes an incarnation takes one that is there for it, and whoever writes a backup compares.
		"incarnation": {segmentsPrefix("i1") + incarnationFile,
			func(c *Catalog) error { return c.CreateIncarnation(ctx, IncarnationRecord{ID: "i1", Revision: 7}) }, ErrConflict,
			func(c *Catalog) error { return c.CreateIncarnation(ctx, IncarnationRecord{ID: "i1", Revision: 8}) }, ErrConflict},
		"manifest": {backup + "/" + manifestFile,
			func(c *Catalog) error { return c.PutManifest(ctx, manifest(7)) }, ErrConflict,
			func(c *Catalog) error { return c.PutManifest(ctx, manifest(8)) }, ErrConflict},
		"meta": {backup + "/" + metaFile,
			func(c *Catalog) error { return c.CommitBackup(ctx, backup, BackupInfo{EtcdVersion: "3.6.0"}) }, ErrConflict,
			func(c *Catalog) error { return c.CommitBackup(ctx, backup, BackupInfo{EtcdVersion: "3.5.0"}) }, ErrConflict},
	} {
		for how, away := range map[string]bool{"": false, ", and the store is away": true} {
			t.Run(name+how, func(t *testing.T) {
				m := blobtest.NewMemory()
				f := blobtest.NewFaulty(m)
				c := New(f)
				end := lose(f, 1, away)
				if err := x.put(c); err != nil {
					wantIs(t, err, ErrTransient)
				}
				end()
				if _, err := m.Stat(ctx, x.key); err != nil { // whoever reads first has written nothing
					if err := x.put(c); err != nil {
						t.Fatal(err)
					}
				}
				first, err := m.Stat(ctx, x.key)
				if err != nil {
					t.Fatal(err)
				}
				for range 2 {
					if err := x.put(c); x.again == nil && err != nil {
						t.Errorf("what this writer has stored itself is in its way: %v", err)
					} else if x.again != nil {
						wantIs(t, err, x.again)
					}
				}
				wantIs(t, x.rival(New(m)), x.refused)
				if last, err := m.Stat(ctx, x.key); err != nil || last.Version != first.Version {
					t.Errorf("it was written again: %+v, %v", last, err)
				}
			})
		}
	}
}

// TestLostAnswersOfCopies: a copy that was put into use is in use though the answer was lost, and a store with copies has one name.
func TestLostAnswersOfCopies(t *testing.T) {
	ctx := context.Background()
	for how, away := range map[string]bool{"the store can be read": false, "the store is away": true} {
		t.Run(how, func(t *testing.T) {
			m := blobtest.NewMemory()
			f := blobtest.NewFaulty(m)
			c := New(f)
			attempt := func(what string, do func() error) {
				t.Helper()
				end := lose(f, 1, away)
				if err := do(); err != nil {
					wantIs(t, err, ErrTransient)
				}
				end()
				if err := do(); err != nil {
					t.Errorf("%s, again: %v", what, err)
				}
			}
			var names [2]string
			for i, url := range []string{"s3://one", "s3://two"} {
				attempt("a copy is noted", func() (err error) {
					names[i], err = c.NoteCopy(ctx, url, "")
					return err
				})
			}
			own, _, err := New(m).Copies(ctx)
			if err != nil || own.Store == "" || names != [2]string{own.Store, own.Store} || len(own.Begun) != 2 {
				t.Errorf("the store is %q, and counted as %v: %+v, %v", own.Store, names, own, err)
			}
			_, err = New(m).PutCopyRecord(ctx, CopyRecord{Of: "s3://one", ClusterName: "c"}, "")
			if err != nil {
				t.Fatal(err)
			}
			var used CopyRecord
			attempt("a copy is put into use", func() (err error) {
				used, _, err = c.UseCopy(ctx)
				return err
			})
			stored, _, err := New(m).CopyRecord(ctx)
			if err != nil || stored.InUse.IsZero() || !stored.InUse.Equal(used.InUse) {
				t.Errorf("stored %+v, told %+v: %v", stored, used, err)
			}
		})
	}
}
