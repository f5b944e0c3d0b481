package putback

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// PositionPrefix begins the keys in etcd that say how far a put-back is. Each is removed at the end. No plan may name one.
const PositionPrefix = "etcd-manager/put-back/"

var (
	// ErrRefused: it can't be done, and trying again doesn't help. Nothing more is written.
	ErrRefused = fmt.Errorf("refused: %w", cluster.ErrPermanent)
	// ErrCanceled is what May says for a put-back that the operator has ended. The rest is skipped.
	ErrCanceled = errors.New("the operator has ended it")
	// ErrMoved: another leader goes on with it, or somebody has touched the position.
	ErrMoved = errors.New("its position in etcd was moved by somebody else")
)

// Store has the parts.
type Store interface {
	PutBackSet(ctx context.Context, set string) (catalog.PutBackSet, error)
	PutBackPart(ctx context.Context, set string, kind catalog.PutBackKind, n int) ([]byte, error)
	PutPutBackPart(ctx context.Context, set string, kind catalog.PutBackKind, n int, data []byte) error
}

// Runner carries out one put-back. All fields are needed. It is for one run.
type Runner struct {
	// Etcd is the cluster, reached through one member.
	Etcd  *clientv3.Client
	Store Store
	// Name is the command's.
	Name string
	Plan catalog.PutBack
	// May is asked right before each transaction. An error ends the run; ErrCanceled ends the put-back.
	May func() error
	// Show is told what was done so far, after each transaction.
	Show func(catalog.PutBackCounts)

	pos      position
	counts   catalog.PutBackCounts
	leases   map[int64]bool
	canceled bool
}

// position is how far it is, as it stands in etcd. Its own modification revision is that of the last transaction.
type position struct {
	// Part is the part whose transactions are being made, Batch how many of them were made.
	Part  int `json:"part"`
	Batch int `json:"batch"`
	// Revisions are those of the part's transactions but the last.
	Revisions []int64 `json:"revisions,omitempty"`
	mod       int64
}

// made are the revisions of the transactions that were made of a part.
func (p position) made(part int) []int64 {
	if p.Part != part || p.Batch == 0 {
		return nil
	}
	return append(append([]int64{}, p.Revisions...), p.mod)
}

func (r *Runner) key() string { return PositionPrefix + r.Name }

// requestTime bounds one request to etcd, in which a quorum writes at most batchBytes.
const requestTime = 15 * time.Second

// Run goes on where the last run was, and returns what was done in all. A nil error means that all is done. ErrCanceled means that it was
// ended; what was done is recorded. After ErrRefused nothing more will be done. After any other error another Run goes on.
func (r *Runner) Run(ctx context.Context) (catalog.PutBackCounts, error) {
	set, err := r.Store.PutBackSet(ctx, r.Plan.Set)
	if err != nil {
		return r.counts, err
	}
	for n := 1; n <= r.Plan.Parts; n++ {
		if !set[catalog.PutBackPlan][n] {
			return r.counts, fmt.Errorf("part %d of its plan %s isn't in the store: %w", n, r.Plan.Set, ErrRefused)
		}
	}
	next := 1
	for ; set[catalog.PutBackResult][next]; next++ {
		if err := r.countDone(ctx, next); err != nil {
			return r.counts, err
		}
	}
	if err := r.locate(ctx, set, next); err != nil {
		return r.counts, err
	}
	for ; next <= r.Plan.Parts && !r.canceled; next++ {
		if err := r.part(ctx, next, set[catalog.PutBackBefore][next]); err != nil {
			return r.counts, err
		}
	}
	if err := r.forget(ctx); err != nil {
		return r.counts, err
	}
	if r.canceled {
		return r.counts, ErrCanceled
	}
	return r.counts, nil
}

// countDone adds what an earlier run has recorded.
func (r *Runner) countDone(ctx context.Context, n int) error {
	results, err := load[Result](ctx, r.Store, r.Plan.Set, catalog.PutBackResult, n)
	if err != nil {
		return err
	}
	r.count(results)
	return nil
}

// load reads a part.
func load[T Entry | Before | Result](ctx context.Context, s Store, set string, kind catalog.PutBackKind, n int) ([]T, error) {
	data, err := s.PutBackPart(ctx, set, kind, n)
	if err != nil {
		return nil, err
	}
	items, err := Decode[T](data)
	if err != nil {
		return nil, fmt.Errorf("part %s-%06d of %s: %w: %w", kind, n, set, err, ErrRefused)
	}
	return items, nil
}

// ReadPart reads a part of a put-back that has ended: what was planned, what was there before, and what became of it.
func ReadPart(ctx context.Context, s Store, set string, n int) (entries []Entry, before []Before, results []Result, err error) {
	if entries, err = load[Entry](ctx, s, set, catalog.PutBackPlan, n); err != nil {
		return nil, nil, nil, err
	}
	if before, err = load[Before](ctx, s, set, catalog.PutBackBefore, n); err != nil {
		return nil, nil, nil, err
	}
	results, err = load[Result](ctx, s, set, catalog.PutBackResult, n)
	return entries, before, results, err
}

func (r *Runner) count(results []Result) {
	for _, x := range results {
		switch x.Outcome {
		case Created:
			r.counts.Created++
		case Replaced:
			r.counts.Replaced++
		case Removed:
			r.counts.Removed++
		case Same:
			r.counts.Same++
		default:
			r.counts.Left++
		}
	}
}

// locate finds the position, and makes it where nothing was begun yet.
func (r *Runner) locate(ctx context.Context, set catalog.PutBackSet, next int) error {
	resp, err := r.get(ctx, r.key())
	if err != nil {
		return err
	}
	if id := resp.Header.ClusterId; id != uint64(r.Plan.ClusterID) {
		return fmt.Errorf("it was planned for etcd cluster %x, and cluster %x serves: it was restored since, so revisions mean something else; plan it again: %w",
			uint64(r.Plan.ClusterID), id, ErrRefused)
	}
	begun := len(set[catalog.PutBackBefore]) > 0 || len(set[catalog.PutBackResult]) > 0
	switch {
	case len(resp.Kvs) == 1:
		if err := json.Unmarshal(resp.Kvs[0].Value, &r.pos); err != nil {
			return fmt.Errorf("key %s in etcd, which says how far it is, can't be read (%w): %w", r.key(), err, ErrRefused)
		}
		r.pos.mod = resp.Kvs[0].ModRevision
		if r.pos.Part > next && next <= r.Plan.Parts {
			return fmt.Errorf("etcd says that part %d was begun, and the store has no result of part %d: %w", r.pos.Part, next, ErrRefused)
		}
		return nil
	case next > r.Plan.Parts: // all is done, and the position is removed already
		return nil
	case begun:
		return fmt.Errorf("key %s, which says how far it is, is gone from etcd: the data were replaced, or somebody has removed it: %w", r.key(), ErrRefused)
	}
	if err := r.hasRoom(ctx); err != nil {
		return err
	}
	return r.begin(ctx)
}

// hasRoom refuses to begin where etcd takes no writes.
func (r *Runner) hasRoom(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	resp, err := r.Etcd.AlarmList(ctx)
	if err != nil {
		return fmt.Errorf("ask etcd for its alarms: %w", err)
	}
	for _, a := range resp.Alarms {
		if a.Alarm == etcdserverpb.AlarmType_NOSPACE {
			return fmt.Errorf("etcd's database is full (NOSPACE), so that it takes no writes; make room first, then ask for it again: %w", ErrRefused)
		}
	}
	return nil
}

// begin makes the position. One that was made meanwhile is another leader's.
func (r *Runner) begin(ctx context.Context) error {
	if err := r.May(); err != nil {
		if errors.Is(err, ErrCanceled) {
			r.canceled = true
			return nil
		}
		return err
	}
	value, err := json.Marshal(r.pos)
	if err != nil {
		return fmt.Errorf("encode position: %w", err)
	}
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	resp, err := r.Etcd.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision(r.key()), "=", 0)).
		Then(clientv3.OpPut(r.key(), string(value))).Commit()
	switch {
	case err != nil:
		return fmt.Errorf("write %s: %w", r.key(), err)
	case !resp.Succeeded:
		return ErrMoved
	}
	r.pos.mod = resp.Header.Revision
	return nil
}

// forget removes the position, if it is still this one's.
func (r *Runner) forget(ctx context.Context) error {
	if r.pos.mod == 0 {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	resp, err := r.Etcd.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(r.key()), "=", r.pos.mod)).
		Then(clientv3.OpDelete(r.key())).Commit()
	switch {
	case err != nil:
		return fmt.Errorf("remove %s: %w", r.key(), err)
	case !resp.Succeeded:
		return ErrMoved
	}
	return nil
}

func (r *Runner) get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	resp, err := r.Etcd.Get(ctx, key, opts...)
	if err != nil {
		return nil, fmt.Errorf("read %q: %w", key, err)
	}
	return resp, nil
}

// part does one part: it reads what is there, stores that, writes, and stores the results.
func (r *Runner) part(ctx context.Context, n int, prepared bool) error {
	if errors.Is(r.May(), ErrCanceled) && len(r.pos.made(n)) == 0 {
		r.canceled = true // nothing of this part was written
		return nil
	}
	entries, err := load[Entry](ctx, r.Store, r.Plan.Set, catalog.PutBackPlan, n)
	if err != nil {
		return err
	}
	before, err := r.before(ctx, n, entries, prepared)
	if err != nil {
		return err
	}
	w := newWork(entries, before)
	for i, rev := range r.pos.made(n) {
		if i >= len(w.batches) {
			return fmt.Errorf("etcd says that %d transactions of part %d were made, and it has %d: %w", r.pos.Batch, n, len(w.batches), ErrRefused)
		}
		if err := r.infer(ctx, w, w.batches[i], rev); err != nil {
			return err
		}
	}
	done := r.counts
	show := func() {
		r.counts = done
		r.count(w.settled())
		r.Show(r.counts)
	}
	for i := len(r.pos.made(n)); i < len(w.batches) && !r.canceled; i++ {
		if err := r.batch(ctx, n, i, w); err != nil {
			return err
		}
		show()
	}
	w.skipRest()
	data, err := Encode(w.results)
	if err != nil {
		return err
	}
	if err := r.Store.PutPutBackPart(ctx, r.Plan.Set, catalog.PutBackResult, n, data); err != nil {
		return err
	}
	show()
	return nil
}

// before is what was there before a part, stored before anything of it is written. What an earlier run has stored counts.
func (r *Runner) before(ctx context.Context, n int, entries []Entry, prepared bool) ([]Before, error) {
	if !prepared {
		list, err := r.prepare(ctx, entries)
		if err != nil {
			return nil, err
		}
		data, err := Encode(list)
		if err != nil {
			return nil, err
		}
		err = r.Store.PutPutBackPart(ctx, r.Plan.Set, catalog.PutBackBefore, n, data)
		if err == nil {
			return list, nil
		}
		if !errors.Is(err, catalog.ErrConflict) {
			return nil, err
		}
	}
	list, err := load[Before](ctx, r.Store, r.Plan.Set, catalog.PutBackBefore, n)
	if err == nil && len(list) != len(entries) {
		err = fmt.Errorf("part %d of %s has %d entries and %d values from before: %w", n, r.Plan.Set, len(entries), len(list), ErrRefused)
	}
	return list, err
}

// batch makes one transaction, which moves the position on: it is made once, whoever tries.
func (r *Runner) batch(ctx context.Context, part, i int, w *work) error {
	if err := r.May(); err != nil {
		if errors.Is(err, ErrCanceled) {
			r.canceled = true
			return nil
		}
		return err
	}
	begun := time.Now()
	next := position{Part: part, Batch: i + 1, Revisions: r.pos.made(part)}
	value, err := json.Marshal(next)
	if err != nil {
		return fmt.Errorf("encode position: %w", err)
	}
	indexes := w.batches[i]
	resp, err := r.commit(ctx, w, indexes, string(value))
	if errors.Is(err, rpctypes.ErrLeaseNotFound) {
		if indexes, err = r.withoutDead(ctx, w, indexes); err != nil {
			return err
		}
		resp, err = r.commit(ctx, w, indexes, string(value))
	}
	switch {
	case errors.Is(err, rpctypes.ErrRequestTooLarge), errors.Is(err, rpctypes.ErrTooManyOps):
		return fmt.Errorf("etcd refuses a transaction with %d keys, the first of which is %q: %w: %w", len(indexes), w.entries[indexes[0]].Key, err, ErrRefused)
	case err != nil:
		return fmt.Errorf("write %d keys: %w", len(indexes), err)
	case !resp.Succeeded:
		return ErrMoved
	}
	next.mod = resp.Header.Revision
	r.pos = next
	for at, k := range indexes {
		w.settle(k, resp.Responses[at].GetResponseTxn().Succeeded, next.mod)
	}
	return r.pace(ctx, begun, len(w.batches[i]))
}

// commit sends the transaction of some entries.
func (r *Runner) commit(ctx context.Context, w *work, indexes []int, value string) (*clientv3.TxnResponse, error) {
	ops := make([]clientv3.Op, 0, len(indexes)+1)
	for _, k := range indexes {
		ops = append(ops, w.op(k))
	}
	ops = append(ops, clientv3.OpPut(r.key(), value))
	ctx, cancel := context.WithTimeout(ctx, requestTime)
	defer cancel()
	return r.Etcd.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(r.key()), "=", r.pos.mod)).Then(ops...).Commit()
}

// withoutDead leaves out of a transaction what belongs to leases that have ended since they were looked at.
func (r *Runner) withoutDead(ctx context.Context, w *work, indexes []int) ([]int, error) {
	r.leases = nil
	var left []int
	for _, k := range indexes {
		lease := w.before[k].Lease
		alive, err := r.alive(ctx, lease)
		if err != nil {
			return nil, err
		}
		if lease != 0 && !alive {
			w.results[k].Outcome = Expired
			continue
		}
		left = append(left, k)
	}
	return left, nil
}

// pace waits as long as the rate asks for n keys.
func (r *Runner) pace(ctx context.Context, begun time.Time, n int) error {
	rate := r.Plan.Rate
	if rate <= 0 {
		rate = catalog.DefaultPutBackRate
	}
	t := time.NewTimer(time.Until(begun.Add(time.Duration(n) * time.Second / time.Duration(rate))))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}
