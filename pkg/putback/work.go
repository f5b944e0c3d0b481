package putback

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// Bounds of one transaction. etcd takes 128 operations and 1.5 MiB unless it is told otherwise.
const (
	batchKeys  = 24
	batchBytes = 512 << 10
	// readKeys is how many keys are read at once.
	readKeys = 32
	// maxOld bounds the values of one part that are written over, which are kept in memory and stored. A part that was planned by what
	// is there has PartBytes, or one value.
	maxOld = 32 << 20
)

// prepare looks at what is there and decides about each entry.
func (r *Runner) prepare(ctx context.Context, entries []Entry) ([]Before, error) {
	list := make([]Before, 0, len(entries))
	size := 0
	for begin := 0; begin < len(entries); begin += readKeys {
		some := entries[begin:min(begin+readKeys, len(entries))]
		there, err := r.read(ctx, some, 0)
		if err != nil {
			return nil, err
		}
		for i := range some {
			b := decide(&some[i], there[i], r.Plan.Overwrite)
			if err := r.lease(ctx, &some[i], &b); err != nil {
				return nil, err
			}
			list = append(list, b)
			size += len(b.Value)
		}
		if size > maxOld {
			return nil, fmt.Errorf("the values that would be written over have more than %d bytes in one part of the plan; plan it again: %w", maxOld, ErrRefused)
		}
	}
	return list, nil
}

// read reads the keys of entries, at a revision or (0) as they are now; nil for a key that isn't there.
func (r *Runner) read(ctx context.Context, entries []Entry, revision int64) ([]*mvccpb.KeyValue, error) {
	ops := make([]clientv3.Op, len(entries))
	for i := range entries {
		ops[i] = clientv3.OpGet(string(entries[i].Key), clientv3.WithRev(revision))
	}
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	resp, err := r.Etcd.Txn(ctx).Then(ops...).Commit()
	if err != nil {
		return nil, fmt.Errorf("read %d keys: %w", len(entries), err)
	}
	there := make([]*mvccpb.KeyValue, len(entries))
	for i := range entries {
		if kvs := resp.Responses[i].GetResponseRange().Kvs; len(kvs) == 1 {
			there[i] = kvs[0]
		}
	}
	return there, nil
}

// decide says what to do with an entry. there is nil if there is no such key. It is pure.
func decide(e *Entry, there *mvccpb.KeyValue, overwrite bool) Before {
	switch {
	case there == nil && e.Delete:
		return Before{Outcome: Same}
	case there == nil && e.Seen != 0: // somebody has removed it since
		return Before{Outcome: Changed}
	case there == nil:
		return Before{Outcome: Created}
	}
	b := Before{Mod: there.ModRevision, Value: there.Value, OldLease: there.Lease}
	switch {
	case e.Delete && there.ModRevision == e.Seen:
		b.Outcome = Removed
		return b
	case e.Delete:
		return Before{Outcome: Changed}
	case bytes.Equal(there.Value, e.Value) && there.Lease == e.Lease:
		return Before{Outcome: Same}
	case !overwrite:
		return Before{Outcome: Exists}
	case e.Seen == 0 || there.ModRevision != e.Seen:
		return Before{Outcome: Changed}
	}
	b.Outcome = Replaced
	return b
}

// lease says to which lease a key is attached again. Of a strict plan, a key whose lease has ended would have ended with it.
func (r *Runner) lease(ctx context.Context, e *Entry, b *Before) error {
	if e.Lease == 0 || b.Outcome != Created && b.Outcome != Replaced {
		return nil
	}
	alive, err := r.alive(ctx, e.Lease)
	switch {
	case err != nil:
		return err
	case alive:
		b.Lease = e.Lease
	case r.Plan.Strict:
		*b = Before{Outcome: Expired}
	}
	return nil
}

// alive tells whether a lease is granted.
func (r *Runner) alive(ctx context.Context, id int64) (bool, error) {
	if id == 0 {
		return false, nil
	}
	if alive, known := r.leases[id]; known {
		return alive, nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	resp, err := r.Etcd.TimeToLive(ctx, clientv3.LeaseID(id))
	if err != nil && !errors.Is(err, rpctypes.ErrLeaseNotFound) {
		return false, fmt.Errorf("ask etcd for lease %x: %w", id, err)
	}
	if r.leases == nil {
		r.leases = map[int64]bool{}
	}
	r.leases[id] = err == nil && resp.TTL > 0
	return r.leases[id], nil
}

// work is one part while it is done. Its batches follow from what is stored alone, so that every run has the same.
type work struct {
	entries []Entry
	before  []Before
	results []Result
	batches [][]int
}

func newWork(entries []Entry, before []Before) *work {
	w := &work{entries: entries, before: before, results: make([]Result, len(entries))}
	var batch []int
	size := 0
	for i := range entries {
		w.results[i].Key = entries[i].Key
		if !before[i].Outcome.writes() {
			w.results[i].Outcome = before[i].Outcome
			continue
		}
		n := entries[i].size()
		if len(batch) > 0 && (len(batch) >= batchKeys || size+n > batchBytes) {
			w.batches = append(w.batches, batch)
			batch, size = nil, 0
		}
		batch, size = append(batch, i), size+n
	}
	if len(batch) > 0 {
		w.batches = append(w.batches, batch)
	}
	return w
}

// op is the guarded change of one entry.
func (w *work) op(i int) clientv3.Op {
	key, b := string(w.entries[i].Key), w.before[i]
	change := clientv3.OpPut(key, string(w.entries[i].Value), clientv3.WithLease(clientv3.LeaseID(b.Lease)))
	if b.Outcome == Removed {
		change = clientv3.OpDelete(key)
	}
	return clientv3.OpTxn([]clientv3.Cmp{clientv3.Compare(clientv3.ModRevision(key), "=", b.Mod)}, []clientv3.Op{change}, nil)
}

// settle notes what has become of an entry.
func (w *work) settle(i int, done bool, revision int64) {
	if !done {
		w.results[i].Outcome = Changed
		return
	}
	w.results[i].Outcome, w.results[i].Revision = w.before[i].Outcome, revision
}

// settled are the results that are known.
func (w *work) settled() []Result {
	var out []Result
	for _, x := range w.results {
		if x.Outcome != "" {
			out = append(out, x)
		}
	}
	return out
}

// skipRest ends what was not begun.
func (w *work) skipRest() {
	for i := range w.results {
		if w.results[i].Outcome == "" {
			w.results[i].Outcome = Skipped
		}
	}
}

// infer finds out what a transaction has done whose answer was lost, or which another leader has made. Its revision is known, so the
// keys tell. If etcd has dropped that history, what is there now tells: a key that somebody has changed since counts as
// left alone, as it isn't this put-back's any more.
func (r *Runner) infer(ctx context.Context, w *work, batch []int, revision int64) error {
	entries := make([]Entry, len(batch))
	for at, i := range batch {
		entries[at] = w.entries[i]
	}
	earlier, err := r.read(ctx, entries, revision-1)
	var after []*mvccpb.KeyValue
	if err == nil {
		after, err = r.read(ctx, entries, revision)
	}
	if errors.Is(err, rpctypes.ErrCompacted) {
		earlier = nil
		after, err = r.read(ctx, entries, 0)
	}
	if err != nil {
		return err
	}
	for at, i := range batch {
		done := after[at] != nil && after[at].ModRevision == revision
		if w.before[i].Outcome == Removed {
			done = after[at] == nil && (earlier == nil || earlier[at] != nil && earlier[at].ModRevision == w.before[i].Mod)
		}
		w.settle(i, done, revision)
	}
	return nil
}
