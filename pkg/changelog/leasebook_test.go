package changelog

import (
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
)

// bookOf is a book that sees puts with a lease (0 for none) and deletions.
type bookOf struct{ *leaseBook }

func (b bookOf) put(revision int64, key string, lease int64) {
	b.see(client.Transaction{Revision: revision, Events: []*mvccpb.Event{{Type: mvccpb.PUT,
		Kv: &mvccpb.KeyValue{Key: []byte(key), ModRevision: revision, Lease: lease}}}})
}

func (b bookOf) del(revision int64, key string) {
	b.see(client.Transaction{Revision: revision, Events: []*mvccpb.Event{{Type: mvccpb.DELETE,
		Kv: &mvccpb.KeyValue{Key: []byte(key), ModRevision: revision}}}})
}

// ask is the one question that there is.
func (b bookOf) ask(t *testing.T) question {
	t.Helper()
	list := b.questions(10)
	if len(list) != 1 {
		t.Fatalf("questions: %+v", list)
	}
	return list[0]
}

// at is the TTL of a lease at a revision, as what was said gives it: 0 if it is unknown.
func (b bookOf) at(id, revision int64) (ttl int64) {
	for _, l := range b.told {
		if l.GetId() == id && l.GetFromRevision() <= revision {
			ttl = l.GetGrantedTtlSeconds()
		}
	}
	return ttl
}

// TestLeaseBookBetweenTheSame: an id is granted for 5 s, then for years, then for 5 s again. That
// two answers are the same says nothing of what was between.
func TestLeaseBookBetweenTheSame(t *testing.T) {
	const id, years = 7, 82_255_057
	for name, between := range map[string]func(t *testing.T, b bookOf){
		"nobody asks": func(t *testing.T, b bookOf) {
			b.put(12, "/b", id)
			b.del(13, "/b")
			b.put(14, "/c", id)
		},
		"asked, and answered of the one after": func(t *testing.T, b bookOf) {
			b.put(12, "/b", id)
			q := b.ask(t)
			b.del(13, "/b")
			b.put(14, "/c", id)
			b.answer(q, 5, 14)
		},
		"answered of the one before, then of the one after": func(t *testing.T, b bookOf) {
			q := question{id: id, from: 10}
			b.put(12, "/b", id)
			b.answer(q, 5, 12)
			q = b.ask(t)
			b.del(13, "/b")
			b.put(14, "/c", id)
			b.answer(q, 5, 14)
		},
	} {
		t.Run(name, func(t *testing.T) {
			b := bookOf{newLeaseBook()}
			b.put(10, "/a", id)
			b.answer(b.ask(t), 5, 10)
			b.del(11, "/a")
			between(t, b)
			b.answer(b.ask(t), 5, 14)
			for revision, want := range map[int64]int64{10: 5, 12: 0, 14: 5} {
				if got := b.at(id, revision); got != want {
					t.Errorf("revision %d: %d s, want %d (it was granted for %d s at 12)", revision, got, want, years)
				}
			}
			if len(b.open) > 0 {
				t.Error("the last grant isn't known")
			}
		})
	}
}

// TestLeaseBookOtherKeys: the key that was attached last is gone, and the lease lives on with
// another one. Its TTL holds from when it is known.
func TestLeaseBookOtherKeys(t *testing.T) {
	b := bookOf{newLeaseBook()}
	b.put(10, "/a", 7)
	b.put(11, "/b", 7)
	q := b.ask(t)
	b.del(12, "/b")
	b.answer(q, 100, 13)
	if before, now := b.at(7, 12), b.at(7, 13); before != 0 || now != 100 || len(b.open) > 0 {
		t.Errorf("%d s before it was known, %d s from then on", before, now)
	}
}
