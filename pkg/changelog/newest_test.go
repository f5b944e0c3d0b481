package changelog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
)

// shelf is a store with backups and changes that no etcd has written: what is asked is only which of them are meant.
type shelf struct {
	t       *testing.T
	store   blob.Store
	catalog *catalog.Catalog
	archive *Archive
	now     time.Time
	prev    map[catalog.Incarnation][]byte
}

func newShelf(t *testing.T) *shelf {
	store := blobtest.NewMemory()
	c := catalog.New(store)
	return &shelf{t: t, store: store, catalog: c, archive: &Archive{Catalog: c},
		now: time.Now().UTC().Truncate(time.Second), prev: map[catalog.Incarnation][]byte{}}
}

func (s *shelf) put(key string, content []byte) {
	s.t.Helper()
	_, err := s.store.Put(s.t.Context(), key, bytes.NewReader(content), blob.PutOptions{})
	must(s.t, err)
}

// backup writes one that is dated so long ago. id 0 is an imported one, and revision 0 one of another tool.
func (s *shelf) backup(ago time.Duration, id uint64, revision int64) string {
	s.t.Helper()
	ctx := s.t.Context()
	at := s.now.Add(-ago)
	name := catalog.NewBackupName(at, nil)
	s.put(name+"/etcd.backup.gz", []byte("data"))
	if revision > 0 {
		d := catalog.Digest{Size: 4, SHA256: strings.Repeat("0", 64)}
		must(s.t, s.catalog.PutManifest(ctx, &catalog.Manifest{Backup: name, ClusterName: "test",
			ClusterID: catalog.HexID(id), EtcdVersion: "3.6.16",
			Revision: revision, RevisionAtMost: revision, RevisionAt: at, Raw: d, Stored: d,
			Compression: catalog.CompressionGzip, Started: at, Finished: at}))
	}
	must(s.t, s.catalog.CommitBackup(ctx, name, catalog.BackupInfo{EtcdVersion: "3.6.16", Time: at, Spec: cluster.Spec{MemberCount: 1}}))
	return name
}

// changes stores a segment behind those of the life that were stored before.
func (s *shelf) changes(id uint64, first, last int64, ago time.Duration) {
	s.t.Helper()
	i := catalog.IncarnationOf(id)
	b := newBuilder(first - 1)
	for r := first; r <= last; r++ {
		must(s.t, b.add(client.Transaction{Revision: r}))
	}
	must(s.t, b.mark(s.now.Add(-ago), time.Time{}))
	begins := "a test"
	if s.prev[i] != nil {
		begins = ""
	}
	sealed, err := b.seal(s.t.Context(), origin{incarnation: i}, s.prev[i], begins, nil)
	must(s.t, err)
	must(s.t, s.catalog.PutSegment(s.t.Context(), i, sealed.name, sealed.data))
	s.prev[i] = sealed.sum
}

// began records a life, that came out of a restore if from is not 0.
func (s *shelf) began(id, from uint64, revision int64, ago time.Duration) {
	s.t.Helper()
	r := catalog.IncarnationRecord{ID: catalog.IncarnationOf(id), ClusterID: catalog.HexID(id), Began: s.now.Add(-ago), Revision: revision}
	if from != 0 {
		r.Origin = &catalog.Origin{Operation: fmt.Sprintf("restore-%x", id), Replaced: catalog.IncarnationOf(from)}
	}
	must(s.t, s.catalog.CreateIncarnation(s.t.Context(), r))
}

func (s *shelf) serves(id uint64) {
	s.t.Helper()
	must(s.t, s.catalog.PutServing(s.t.Context(), catalog.Serving{Incarnation: catalog.IncarnationOf(id), ClusterID: catalog.HexID(id)}))
}

const (
	oldLife = 0xa
	newLife = 0xb
	raised  = 1_000_000_000
)

// restored is a store in which an old life was restored: both have a backup and changes.
func restored(t *testing.T) (s *shelf, newest string) {
	s = newShelf(t)
	s.began(oldLife, 0, 1, 5*time.Hour)
	s.backup(4*time.Hour, oldLife, 10)
	s.changes(oldLife, 11, 20, 2*time.Hour)
	s.began(newLife, oldLife, raised+20, 2*time.Hour)
	newest = s.backup(119*time.Minute, newLife, raised+20)
	s.changes(newLife, raised+21, raised+30, time.Minute)
	return s, newest
}

// TestNewestIsOfTheLifeThatServes has backups of a life that was replaced which come later by their names.
func TestNewestIsOfTheLifeThatServes(t *testing.T) {
	for what, later := range map[string]struct {
		ago    time.Duration
		record bool
	}{
		"dated an hour ahead":                        {-time.Hour, true},
		"dated a year ahead":                         {-365 * 24 * time.Hour, true},
		"a salvaged data dir":                        {10 * time.Second, true},
		"dated ahead, in a store without the record": {-time.Hour, false},
		"salvaged, in a store without the record":    {10 * time.Second, false},
	} {
		t.Run(what, func(t *testing.T) {
			s, newest := restored(t)
			if later.record {
				s.serves(newLife)
			}
			old := s.backup(later.ago, oldLife, 15)
			p, err := s.archive.Plan(t.Context(), Target{Latest: true})
			must(t, err)
			if p.Base != newest || p.Revision != raised+30 || p.Serving != catalog.IncarnationOf(newLife) {
				t.Errorf("--latest begins with %s and reaches %d; %s serves", p.Base, p.Revision, p.Serving)
			}
			list, err := s.catalog.Backups(t.Context())
			must(t, err)
			n, err := s.archive.NewestGood(t.Context(), list, s.now)
			must(t, err)
			if n.Name != newest {
				t.Errorf("latest is %s", n.Name)
			}
			if later.ago < 0 != strings.Contains(strings.Join(n.Notes, " "), old) {
				t.Errorf("notes: %q", n.Notes)
			}
			named, err := s.archive.Plan(t.Context(), Target{Latest: true, Backup: old})
			must(t, err)
			lost, err := s.archive.LostWith(t.Context(), named)
			must(t, err)
			if named.Revision != 20 || lost == nil || lost.Reach != raised+30 || lost.Backup != newest {
				t.Errorf("the old life by name reaches %d and loses %+v", named.Revision, lost)
			}
			prove, err := s.archive.ToProve(t.Context(), list, s.now)
			must(t, err)
			if prove != newest {
				t.Errorf("%s is to be proven", prove)
			}
		})
	}
}

// TestNoBackupOfTheLifeThatServes: its changes are in the store and can't be put on anything, so nothing else is taken in its place.
func TestNoBackupOfTheLifeThatServes(t *testing.T) {
	for _, record := range []bool{true, false} {
		s := newShelf(t)
		s.began(oldLife, 0, 1, 5*time.Hour)
		old := s.backup(time.Hour, oldLife, 10)
		s.began(newLife, oldLife, raised+10, 50*time.Minute)
		s.changes(newLife, raised+11, raised+30, time.Minute)
		if record {
			s.serves(newLife)
		}
		p, err := s.archive.Plan(t.Context(), Target{Latest: true})
		if !errors.Is(err, cluster.ErrPermanent) || !strings.Contains(err.Error(), old) || !strings.Contains(err.Error(), "create-backup") {
			t.Errorf("record %t: %+v, %v", record, p, err)
		}
		list, err := s.catalog.Backups(t.Context())
		must(t, err)
		var open *UndecidedError
		if n, err := s.archive.NewestGood(t.Context(), list, s.now); !errors.As(err, &open) ||
			len(open.Candidates) != 1 || open.Candidates[0].Name != old {
			t.Errorf("record %t: latest is %s, %v", record, n.Name, err)
		}
	}
}

// TestLivesThatNothingOrders: another tool has restored without raising the revision, and nobody has written which life serves.
func TestLivesThatNothingOrders(t *testing.T) {
	s := newShelf(t)
	a := s.backup(2*time.Hour, oldLife, 100)
	s.changes(oldLife, 101, 120, 90*time.Minute)
	b := s.backup(time.Hour, newLife, 90)
	s.changes(newLife, 91, 115, time.Minute)
	var open *UndecidedError
	_, err := s.archive.Plan(t.Context(), Target{Latest: true})
	if !errors.As(err, &open) || len(open.Candidates) != 2 || open.Candidates[0].Name != b || open.Candidates[1].Name != a {
		t.Errorf("--latest: %v", err)
	}
	var no *UnreachableError
	if p, err := s.archive.Plan(t.Context(), Target{Revision: 110}); !errors.As(err, &no) ||
		!strings.Contains(err.Error(), "several incarnations") {
		t.Errorf("--to-revision: %+v, %v", p, err)
	}
	s.serves(newLife)
	for _, target := range []Target{{Latest: true}, {Revision: 110}} {
		p, err := s.archive.Plan(t.Context(), target)
		must(t, err)
		if p.Base != b {
			t.Errorf("%s begins with %s", target, p.Base)
		}
	}
	p, err := s.archive.Plan(t.Context(), Target{Revision: 110, Backup: a})
	must(t, err)
	if p.Base != a || p.Incarnation != catalog.IncarnationOf(oldLife) {
		t.Errorf("by name: %s of %s", p.Base, p.Incarnation)
	}
}

// TestNewestOfOneLife orders by revision where names are dated by a clock that was wrong, and passes over what is bad.
func TestNewestOfOneLife(t *testing.T) {
	s := newShelf(t)
	s.backup(-time.Hour, oldLife, 10)
	good := s.backup(2*time.Hour, oldLife, 30)
	bad := s.backup(time.Minute, oldLife, 40)
	must(t, s.catalog.PutProof(t.Context(), bad, catalog.Proof{Outcome: catalog.Disproven}))
	list, err := s.catalog.Backups(t.Context())
	must(t, err)
	n, err := s.archive.NewestGood(t.Context(), list, s.now)
	must(t, err)
	if n.Name != good {
		t.Errorf("latest is %s", n.Name)
	}
	must(t, s.catalog.PutProof(t.Context(), good, catalog.Proof{Outcome: catalog.Proven}))
	list, err = s.catalog.Backups(t.Context())
	must(t, err)
	if name, err := s.archive.ToProve(t.Context(), list, s.now); err != nil || name == good || name == bad {
		t.Errorf("%s is to be proven, %v", name, err)
	}
	m, err := s.archive.CopyOf(t.Context(), "test", oldLife, 40)
	if m != nil || err != nil {
		t.Errorf("a bad backup is a copy of the cluster: %v, %v", m, err)
	}
	if m, err = s.archive.CopyOf(t.Context(), "test", newLife, 30); m != nil || err != nil {
		t.Errorf("a backup of another life is a copy of the cluster: %v, %v", m, err)
	}
	if m, err = s.archive.CopyOf(t.Context(), "test", oldLife, 30); m == nil || err != nil {
		t.Errorf("no copy of the cluster: %v", err)
	}
}

// TestUnknownLives: backups of other tools, and imported ones, beside those whose life is known.
func TestUnknownLives(t *testing.T) {
	ask := func(s *shelf) (Newest, error) {
		list, err := s.catalog.Backups(context.Background())
		must(t, err)
		return s.archive.NewestGood(context.Background(), list, s.now)
	}
	s := newShelf(t)
	s.backup(3*time.Hour, 0, 0)
	young := s.backup(2*time.Hour, 0, 0)
	if n, err := ask(s); err != nil || n.Name != young {
		t.Errorf("other tools' alone: %s, %v", n.Name, err)
	}
	known := s.backup(time.Hour, oldLife, 10)
	if n, err := ask(s); err != nil || n.Name != known {
		t.Errorf("older ones of another tool: %s, %v", n.Name, err)
	}
	imported := s.backup(30*time.Minute, 0, 99)
	if n, err := ask(s); err != nil || n.Name != known || !strings.Contains(strings.Join(n.Notes, " "), imported) {
		t.Errorf("an imported one: %s, %q, %v", n.Name, n.Notes, err)
	}
	foreign := s.backup(time.Minute, 0, 0)
	var open *UndecidedError
	if n, err := ask(s); !errors.As(err, &open) || !strings.Contains(err.Error(), foreign) || !strings.Contains(err.Error(), known) {
		t.Errorf("a younger one of another tool: %s, %v", n.Name, err)
	}
}
