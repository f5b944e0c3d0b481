package changelog

import (
	"hash/maphash"
	"maps"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

const (
	// maxLeases bounds how many leases a recorder remembers.
	maxLeases = 1 << 16
	// maxOwed bounds how many unknown leases a segment's header names.
	maxOwed = 1 << 14
)

// leaseBook knows for which leases the TTL is known. etcd tells a lease's TTL only when it is asked, later than the changes come, and an id
// can be granted again after its end. So an answer holds for one grant only: from the first attachment that was seen until the witness, the
// key that was attached last, is gone. A lease can't end while a key is attached to it, so no other grant can hide behind a witness.
type leaseBook struct {
	seed      maphash.Seed
	grants    map[int64]*grant
	witnesses map[uint64]int64 // from the hash of a key to the lease that it is attached to
	// open are grants with an attachment whose TTL isn't known, wanted those among them that are to be asked for.
	open, wanted map[int64]bool
	// told is what the segment that isn't stored yet says.
	told []*protosv1.Lease
}

// grant is what is known of one lease id.
type grant struct {
	// from is the revision of the first attachment that was seen in the newest grant, open that of
	// the oldest one whose TTL isn't known; 0 if all are.
	from, open int64
	// ttl is that of the newest grant; 0 if unknown.
	ttl int64
	// witness is the hash of the key that was attached last; 0 if none is known.
	witness uint64
	ended   bool
	// unknown is true if the segments say that the TTL from open on is unknown.
	unknown bool
}

func newLeaseBook() *leaseBook {
	return &leaseBook{seed: maphash.MakeSeed(), grants: map[int64]*grant{}, witnesses: map[uint64]int64{},
		open: map[int64]bool{}, wanted: map[int64]bool{}}
}

// see takes over what a transaction says of leases.
func (b *leaseBook) see(t client.Transaction) {
	for _, e := range t.Events {
		id := e.Kv.Lease
		if e.Type == mvccpb.DELETE {
			id = 0
		}
		if id == 0 && len(b.witnesses) == 0 {
			continue
		}
		key := maphash.Bytes(b.seed, e.Kv.Key) | 1
		if had, ok := b.witnesses[key]; ok && had != id {
			b.grants[had].ended, b.grants[had].witness = true, 0
			delete(b.witnesses, key)
		}
		if id != 0 {
			b.attach(id, t.Revision, key)
		}
	}
}

func (b *leaseBook) attach(id, revision int64, key uint64) {
	g := b.grants[id]
	if g == nil {
		b.makeRoom()
		g = &grant{}
		b.grants[id] = g
	}
	if g.witness == 0 || g.ended {
		g.from, g.ttl, g.ended = revision, 0, false
		if g.open == 0 {
			g.open, g.unknown = revision, false
		}
		b.open[id], b.wanted[id] = true, true
	}
	if g.witness != key {
		delete(b.witnesses, g.witness)
		g.witness, b.witnesses[key] = key, id
	}
}

// makeRoom forgets the leases that are known: they are asked for again. Only if that isn't enough are unknown ones given up.
func (b *leaseBook) makeRoom() {
	if len(b.grants) < maxLeases {
		return
	}
	for id, g := range b.grants {
		if g.open == 0 || len(b.open) >= maxLeases/2 {
			b.forget(id)
		}
	}
}

func (b *leaseBook) forget(id int64) {
	delete(b.witnesses, b.grants[id].witness)
	delete(b.grants, id)
	delete(b.open, id)
	delete(b.wanted, id)
}

// question is what etcd is asked of a lease.
type question struct {
	id int64
	// from is the grant's when the question was made.
	from int64
}

// questions are up to n of those that are to be asked. They count as asked.
func (b *leaseBook) questions(n int) []question {
	var list []question
	for id := range b.wanted {
		if len(list) == n {
			break
		}
		list = append(list, question{id: id, from: b.grants[id].from})
		delete(b.wanted, id)
	}
	return list
}

// again has a question asked once more, as it has no answer.
func (b *leaseBook) again(q question) {
	if b.open[q.id] {
		b.wanted[q.id] = true
	}
}

// answer takes over for how many seconds a lease was granted, 0 if it is gone. seen is the newest revision that was seen; all changes
// that were made until etcd answered must have been seen. An answer is of the grant that there was when etcd gave it: what it is not
// surely of stays unknown, since an id that is granted again with the TTL of before may have had another one between.
func (b *leaseBook) answer(q question, ttl, seen int64) {
	g := b.grants[q.id]
	switch {
	case g == nil || g.open == 0:
	case ttl <= 0 && g.from == q.from && g.witness == 0:
		g.ended = true
		b.say(q.id, 0, g.open)
		delete(b.open, q.id)
		g.open = 0
	case ttl > 0 && g.from == q.from && g.ended:
		// It is this grant, which has other keys than the witness, or one after it that has none yet: it holds from now on.
		b.say(q.id, 0, g.open)
		b.know(q.id, ttl, seen)
	case ttl > 0 && g.from == q.from:
		if g.open < g.from { // the grants before this one had ended before they could be asked for
			b.say(q.id, 0, g.open)
		}
		b.know(q.id, ttl, g.from)
	case ttl > 0: // the answer may be of a grant before or after
		b.say(q.id, 0, g.open)
		g.open, g.unknown = g.from, false
		b.wanted[q.id] = true
	default: // a lease that has run out, and isn't revoked yet, can be prolonged by a new leader of etcd
		b.wanted[q.id] = true
	}
}

// know says the TTL of a lease's newest grant, which holds from a revision on.
func (b *leaseBook) know(id, ttl, from int64) {
	b.say(id, ttl, from)
	b.grants[id].ttl, b.grants[id].open = ttl, 0
	delete(b.open, id)
}

func (b *leaseBook) say(id, ttl, from int64) {
	b.told = append(b.told, &protosv1.Lease{Id: id, GrantedTtlSeconds: ttl, FromRevision: from})
}

// entries is what the next segment has to say of leases, the unknown ones included.
func (b *leaseBook) entries() []*protosv1.Lease {
	for _, id := range slices.Sorted(maps.Keys(b.open)) {
		if g := b.grants[id]; !g.unknown {
			b.say(id, 0, g.open)
			g.unknown = true
		}
	}
	return b.told
}

// owed are the leases whose TTL is still to be learned, for the header of a segment: the next leader goes on asking for them.
func (b *leaseBook) owed() []*protosv1.Lease {
	var list []*protosv1.Lease
	for _, id := range slices.Sorted(maps.Keys(b.open)) {
		if len(list) == maxOwed {
			break
		}
		list = append(list, &protosv1.Lease{Id: id, FromRevision: b.grants[id].open})
	}
	return list
}

// resume takes over what the segment before owes.
func (b *leaseBook) resume(owed []*protosv1.Lease) {
	for _, l := range owed {
		if len(b.grants) < maxOwed && l.GetFromRevision() > 0 && l.GetId() != 0 {
			b.grants[l.GetId()] = &grant{from: l.GetFromRevision(), open: l.GetFromRevision(), unknown: true}
			b.open[l.GetId()], b.wanted[l.GetId()] = true, true
		}
	}
}

// stored says that what entries has returned is in a segment that is handed on.
func (b *leaseBook) stored() { b.told = nil }

// lost says that the segment that began with a revision wasn't handed on: its changes come again, and what it said is asked for again.
func (b *leaseBook) lost(first int64) {
	for _, l := range b.told {
		if g := b.grants[l.GetId()]; g != nil && l.GetFromRevision() < first && (g.open == 0 || l.GetFromRevision() < g.open) {
			g.open, g.ttl, g.unknown = l.GetFromRevision(), 0, false
			b.open[l.GetId()], b.wanted[l.GetId()] = true, true
		}
	}
	for id, g := range b.grants {
		switch {
		case g.open >= first || g.open == 0 && g.from >= first:
			b.forget(id)
		case g.from >= first:
			delete(b.witnesses, g.witness)
			g.from, g.witness, g.ttl = g.open, 0, 0
		}
	}
	b.told = nil
}
