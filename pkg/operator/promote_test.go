package operator

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

const otherStore = "mem://other/main"

// promoteBench is a standby's store, whose nodes follow a cluster of three in another one.
func promoteBench(t *testing.T, nodes ...cluster.NodeID) (b *bench, own *Client, other *catalog.Catalog) {
	t.Helper()
	b = newBench(t)
	b.now = time.Now().UTC()
	old := blobtest.NewMemory()
	other = catalog.New(old)
	_, err := other.CreateSpec(t.Context(), cluster.Spec{MemberCount: 3, EtcdVersion: "3.5.21"})
	must(t, err)
	_, err = other.CreateMarker(t.Context(), catalog.Marker{Phase: catalog.PhaseFormed, Token: "T1"})
	must(t, err)
	for _, id := range nodes {
		must(t, b.catalog().PutStatus(t.Context(), catalog.Status{At: b.now, Node: id, ClusterName: "main",
			Standby: &catalog.StandbyReport{Of: otherStore, Revision: 90, Until: b.now}}))
	}
	own, err = Open(t.Context(), Config{Store: "mem://bucket/main", Now: b.clock, AllowEmpty: true,
		Open: func(_ context.Context, url string) (blob.Store, error) {
			if url == otherStore {
				return old, nil
			}
			return b.store, nil
		}})
	must(t, err)
	return b, own, other
}

// TestPromoteRefusesBeforeTheOtherEnds: what can't form a cluster, or would begin with something else, is refused before the other cluster
// is told to end.
func TestPromoteRefusesBeforeTheOtherEnds(t *testing.T) {
	for _, c := range []struct {
		name, want string
		nodes      []cluster.NodeID
		r          PromoteRequest
		queued     bool
	}{
		{"too few nodes for the other's size", "--member-count=1", []cluster.NodeID{"a"}, PromoteRequest{}, false},
		{"also with force", "--member-count=1", []cluster.NodeID{"a"}, PromoteRequest{Force: true}, false},
		{"too few for what is asked for", "--member-count=3", []cluster.NodeID{"a", "b"}, PromoteRequest{MemberCount: 5}, false},
		{"no size that there is", "member", []cluster.NodeID{"a", "b"}, PromoteRequest{MemberCount: 2}, false},
		{"a restore is queued", "delete-command", []cluster.NodeID{"a", "b"}, PromoteRequest{}, true},
	} {
		b, own, other := promoteBench(t, c.nodes...)
		if c.queued {
			b.backup(backup1, "main", 5)
			b.queue(backup1)
		}
		c.r.Within = time.Millisecond
		if _, err := own.Promote(t.Context(), c.r); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		if _, err := other.Superseded(t.Context()); !errors.Is(err, catalog.ErrNotFound) {
			t.Errorf("%s: the other cluster was told to end: %v", c.name, err)
		}
		if _, err := b.catalog().Promotion(t.Context()); !errors.Is(err, catalog.ErrNotFound) {
			t.Errorf("%s: the standby was told to begin: %v", c.name, err)
		}
	}
}

// TestForceAPromotionThatWaits: what a promotion waits for can be lost after it was asked for: the other store with the last changes, and
// the node that was chosen.
func TestForceAPromotionThatWaits(t *testing.T) {
	b, own, _ := promoteBench(t, "a", "b")
	cat := b.catalog()
	asked := Promotion{Of: otherStore, Spec: cluster.Spec{MemberCount: 3}, Revision: 100, Incarnation: "i"}
	_, err := cat.PutPromotion(t.Context(), asked)
	must(t, err)
	promote := func(force bool) error {
		_, err := own.Promote(t.Context(), PromoteRequest{Force: force})
		return err
	}
	change := func(f func(*Promotion)) {
		t.Helper()
		_, err := cat.ChangePromotion(t.Context(), func(x *Promotion) error { f(x); return nil })
		must(t, err)
	}
	is := func(when string, err, want error, chosen cluster.NodeID, revision int64) {
		t.Helper()
		p, perr := cat.Promotion(t.Context())
		must(t, perr)
		if !errors.Is(err, want) || p.Chosen != chosen || p.Revision != revision {
			t.Errorf("%s: %v, %+v", when, err, p)
		}
	}
	is("without force", promote(false), catalog.ErrConflict, "", 100)

	// The node that is chosen is lost. Another one must have as much as before.
	change(func(x *Promotion) {
		x.Chosen, x.Copies["a"], x.Copies["b"] = "a", catalog.OfferedCopy{Revision: 100}, catalog.OfferedCopy{Revision: 90}
	})
	var no *RefusedError
	if err := promote(true); !errors.As(err, &no) || no.Forceable {
		t.Errorf("the node that is chosen answers: %v", err)
	}
	is("it answers", nil, nil, "a", 100)
	b.now = b.now.Add(standbyFresh + time.Minute)
	is("it is silent", promote(true), nil, "", 100)
	if p, err := cat.Promotion(t.Context()); err != nil || len(p.Copies) != 1 {
		t.Errorf("its copy is waited for: %+v, %v", p, err)
	}

	// Asked again while the other store is there, nothing is given up: the copies get what they lack.
	is("the changes still come", promote(true), catalog.ErrConflict, "", 100)

	// The other store is lost before any copy has the last changes.
	open := own.config.Open
	own.config.Open = func(ctx context.Context, url string) (blob.Store, error) {
		if url == otherStore {
			return nil, errors.New("lost")
		}
		return open(ctx, url)
	}
	is("no copy has them", promote(true), nil, "", 0)
	is("nothing is left to be forced", promote(true), catalog.ErrConflict, "", 0)

	// A backup is there: the cluster begins, and nobody else is chosen.
	change(func(x *Promotion) { x.Chosen, x.Backup, x.Command = "b", backup1, backup1 })
	is("it begins", promote(true), catalog.ErrConflict, "b", 0)
}
