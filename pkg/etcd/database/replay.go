package database

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/server/v3/lease/leasepb"
	"go.etcd.io/etcd/server/v3/storage/schema"

	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/child"
)

// ReplaySubcommand is the name of the hidden subcommand that ends in [ReplayMain].
const ReplaySubcommand = "replay-db"

// Replayed is a step of a replay: a transaction or a part of one, or a lease that a later one refers to.
type Replayed struct {
	// Revision is the transaction's; 0 for a lease.
	Revision int64
	Records  []Record
	// Sub is how many records of the transaction came in the steps before: a large one comes in parts, so that nobody has to hold it.
	Sub int
	// LeaseID and LeaseTTL are a lease and for how many seconds it was granted; 0 if nobody knows.
	LeaseID, LeaseTTL int64
	// LeaseFrom is the first revision with a key that was attached in this grant of the id: ids can be granted again. 0 if that isn't known:
	// then it is the first grant of the id, and what the database has is not changed.
	LeaseFrom int64
}

// Record is what a transaction wrote under one key: etcd's KeyValue in its binary form, which of a deleted key has nothing but the key.
type Record struct {
	Deleted bool
	KV      []byte
}

// NewRecord makes the record of a change, as etcd itself writes it.
func NewRecord(kv *mvccpb.KeyValue, deleted bool) (Record, error) {
	if deleted {
		kv = &mvccpb.KeyValue{Key: kv.Key}
	}
	b, err := kv.Marshal()
	if err != nil {
		return Record{}, fmt.Errorf("encode key: %w", err)
	}
	return Record{Deleted: deleted, KV: b}, nil
}

// ReplayResult says what a replay has done.
type ReplayResult struct {
	// From and Revision are the newest revisions before and after.
	From     int64 `json:"from"`
	Revision int64 `json:"revision"`
	// Transactions were applied; those that the database had already don't count.
	Transactions int64 `json:"transactions"`
}

// UnknownLeaseTTL is what a lease gets, in seconds, when nobody knows for how long it was granted. It is ten years, as a lease that
// ends too
// early takes its keys along. The seconds above that mark it: etcd keeps them, so that such leases can be found later.
const UnknownLeaseTTL = 10*365*24*3600 + 4711

// A transaction of bbolt has at most so many steps, or bytes.
const (
	replaySteps = 2000
	replayBytes = 4 << 20
)

// ReplayFile brings a database file forward: it writes the records of every transaction that it doesn't have yet, as etcd's own store
// would have
// written them, so that revisions and HashKV come out the same. The file is a snapshot in the end, with its SHA-256 behind it. next
// returns io.EOF at the
// end. A transaction that doesn't follow on the one before is an error that wraps ErrGap. The file is of use only after a success.
func ReplayFile(ctx context.Context, path string, next func() (Replayed, error)) (res ReplayResult, err error) {
	if err := openForReplay(path); err != nil {
		return res, fmt.Errorf("replay on %s: %w", path, err)
	}
	err = etcd.Guard("replay", func() error {
		db, err := bolt.Open(path, 0o600, &bolt.Options{
			NoSync: true, NoFreelistSync: true, FreelistType: bolt.FreelistMapType, Timeout: 5 * time.Second,
		})
		if err != nil {
			return badDB("bbolt can't open it: %v", err)
		}
		r := replay{db: db, leases: map[int64]told{}}
		err = r.run(ctx, next)
		res = r.ReplayResult
		return errors.Join(err, db.Close())
	})
	if err == nil {
		err = appendHash(ctx, path)
	}
	if err != nil {
		return ReplayResult{}, fmt.Errorf("replay on %s: %w", path, err)
	}
	return res, nil
}

// FollowFile brings a database file forward again and again: each call goes on from the revision that the last one has reached, which
// is from. In contrast to
// ReplayFile a crash or a failure at any instruction leaves the file of use: what is in it behind from is written once more, with the
// same result. It
// has no hash behind it, and what is told of leases is remembered beside it. So a call costs what the new changes cost, not what the
// file does.
func FollowFile(ctx context.Context, path string, from int64, next func() (Replayed, error)) (res ReplayResult, err error) {
	if err := openForReplay(path); err != nil {
		return res, fmt.Errorf("replay on %s: %w", path, err)
	}
	err = etcd.Guard("replay", func() error {
		leases, err := readTold(LeasesFile(path))
		if err != nil {
			return err
		}
		db, err := bolt.Open(path, 0o600, &bolt.Options{FreelistType: bolt.FreelistMapType, Timeout: 5 * time.Second})
		if err != nil {
			return badDB("bbolt can't open it: %v", err)
		}
		r := replay{db: db, leases: leases, from: from}
		err = r.run(ctx, next)
		res = r.ReplayResult
		if err = errors.Join(err, db.Close()); err == nil {
			err = writeTold(LeasesFile(path), r.leases)
		}
		return err
	})
	if err != nil {
		return ReplayResult{}, fmt.Errorf("replay on %s: %w", path, err)
	}
	return res, nil
}

// openForReplay checks that nobody else writes to the file, and cuts the hash off.
func openForReplay(path string) error {
	f, _, _, err := openDB(path)
	if err != nil {
		return err
	}
	return errors.Join(f.Close(), CutHash(path))
}

// appendHash makes a snapshot of a database: its SHA-256 comes behind it, and all is brought to the disk.
func appendHash(ctx context.Context, path string) (err error) {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	h := sha256.New()
	if err := hashInto(ctx, h, f, fi.Size()); err != nil {
		return err
	}
	if _, err := f.WriteAt(h.Sum(nil), fi.Size()); err != nil {
		return err
	}
	return f.Sync()
}

type replay struct {
	ReplayResult
	db    *bolt.DB
	began bool
	// open is the revision of which more parts may come; 0 if the database had it already.
	open   int64
	leases map[int64]told
	// from, if not 0, is the revision up to which the database is known to be whole; it may have parts of what follows.
	from int64
}

// told is what a replay knows of the lease that it has written under an id.
type told struct {
	// from is that of Replayed.LeaseFrom.
	from    int64
	unknown bool
}

func (r *replay) run(ctx context.Context, next func() (Replayed, error)) error {
	for done := false; !done; {
		if err := ctx.Err(); err != nil {
			return err
		}
		err := r.db.Update(func(tx *bolt.Tx) error {
			w, err := newReplayTx(tx)
			if err != nil {
				return err
			}
			if !r.began {
				r.From, r.began = w.newest(), true
				if r.from > r.From {
					return badDB("it ends at revision %d, and was brought to %d", r.From, r.from)
				}
				if r.from > 0 {
					r.From = r.from
				}
				r.Revision = r.From
			}
			for steps := 0; steps < replaySteps && w.bytes < replayBytes; steps++ {
				x, err := next()
				if err == io.EOF {
					done = true
					return nil
				}
				if err != nil {
					return err
				}
				if err := r.step(w, x); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (r *replay) step(w *replayTx, x Replayed) error {
	switch {
	case x.Revision == 0:
		return r.lease(w, x)
	case x.Sub > 0 && x.Revision == r.open: // goes on
	case x.Revision <= r.Revision:
		r.open = 0
		return nil
	case x.Revision != r.Revision+1 || x.Sub > 0:
		return fmt.Errorf("%w: revision %d is to follow on %d", etcd.ErrGap, x.Revision, r.Revision)
	default:
		r.Revision, r.open = x.Revision, x.Revision
		r.Transactions++
	}
	for i, rec := range x.Records {
		lease, err := w.put(x.Revision, x.Sub+i, rec)
		if err == nil && lease != 0 {
			err = r.attach(w, lease)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// replayTx writes within one transaction of bbolt.
type replayTx struct {
	keys, leases, meta *bolt.Bucket
	bytes              int
	// known leases are there, as far as this transaction has looked.
	known map[int64]bool
}

func newReplayTx(tx *bolt.Tx) (*replayTx, error) {
	w := &replayTx{keys: tx.Bucket(schema.Key.Name()), meta: tx.Bucket(schema.Meta.Name()), known: map[int64]bool{}}
	if w.keys == nil || w.meta == nil {
		return nil, badDB("it has no bucket %q or %q: not etcd's", schema.Key.Name(), schema.Meta.Name())
	}
	var err error
	if w.leases, err = tx.CreateBucketIfNotExists(schema.Lease.Name()); err != nil {
		return nil, err
	}
	w.keys.FillPercent = 0.9 // as etcd has it: revisions only grow
	return w, nil
}

// newest is the revision of the database. After a compaction there may be no record of it.
func (w *replayTx) newest() int64 {
	rev := int64(1) // what an empty etcd has
	if k, _ := w.keys.Cursor().Last(); k != nil {
		if r, err := parseRevKey(k); err == nil {
			rev = r.main
		}
	}
	for _, name := range [][]byte{schema.ScheduledCompactKeyName, schema.FinishedCompactKeyName} {
		if r, err := parseRevKey(w.meta.Get(name)); err == nil {
			rev = max(rev, r.main)
		}
	}
	return rev
}

// put writes a record and returns the lease that its key is attached to.
func (w *replayTx) put(main int64, sub int, rec Record) (lease int64, err error) {
	kv, err := parseKeyValue(rec.KV)
	if err != nil {
		return 0, fmt.Errorf("revision %d: %w", main, err)
	}
	k := binary.BigEndian.AppendUint64(make([]byte, 0, markLen), uint64(main))
	k = binary.BigEndian.AppendUint64(append(k, '_'), uint64(sub))
	if rec.Deleted {
		k = append(k, 't')
	}
	w.bytes += len(k) + len(rec.KV)
	return kv.lease, w.keys.Put(k, rec.KV)
}

func leaseKey(id int64) []byte { return binary.BigEndian.AppendUint64(nil, uint64(id)) }

func (w *replayTx) grant(id, ttl int64) error {
	v, err := (&leasepb.Lease{ID: id, TTL: ttl}).Marshal()
	if err != nil {
		return fmt.Errorf("encode lease: %w", err)
	}
	w.bytes += 8 + len(v)
	return w.leases.Put(leaseKey(id), v)
}

// attach makes sure that there is a lease for a key. One of which nothing is told is unknown until it is.
func (r *replay) attach(w *replayTx, id int64) error {
	if w.known[id] {
		return nil
	}
	w.known[id] = true
	if v := w.leases.Get(leaseKey(id)); v != nil {
		var l leasepb.Lease
		if _, ours := r.leases[id]; r.from > 0 && !ours && l.Unmarshal(v) == nil && l.TTL == UnknownLeaseTTL {
			r.leases[id] = told{unknown: true} // written by a call that was cut before it could remember it
		}
		return nil
	}
	r.leases[id] = told{unknown: true}
	return w.grant(id, UnknownLeaseTTL)
}

// lease takes over what is told of a lease. What is unknown never replaces what is known of the same grant, nor an earlier grant a
// later one.
func (r *replay) lease(w *replayTx, x Replayed) error {
	have, ours := r.leases[x.LeaseID]
	there := w.leases.Get(leaseKey(x.LeaseID)) != nil
	known := there && !(ours && have.unknown)
	switch {
	case x.LeaseFrom < have.from:
		return nil
	case !ours && there && x.LeaseFrom <= r.From: // the database has what was granted before, as etcd itself has written it
		return nil
	case known && x.LeaseFrom == have.from && (x.LeaseFrom == 0 || x.LeaseTTL <= 0):
		return nil
	}
	now := told{from: x.LeaseFrom, unknown: x.LeaseTTL <= 0}
	r.leases[x.LeaseID] = now
	if now.unknown {
		return w.grant(x.LeaseID, UnknownLeaseTTL)
	}
	return w.grant(x.LeaseID, x.LeaseTTL)
}

// replayAnswer is what the child prints.
type replayAnswer struct {
	Result *ReplayResult   `json:"result,omitempty"`
	Error  string          `json:"error,omitempty"`
	Kind   string          `json:"kind,omitempty"`
	Report json.RawMessage `json:"report,omitempty"`
}

// ReplayMain is the whole of a process of its own that brings the database file at path forward by the steps that next yields. It
// prints one line of JSON, with
// what report returns in the end, and returns the exit code, 0 also if the file or the steps are bad: the answer says so. It is
// FollowFile if from is not 0.
func ReplayMain(path string, from int64, next func() (Replayed, error), report func() any) int {
	child.LimitSelf()
	var res ReplayResult
	var err error
	if ctx := context.Background(); from > 0 { // as in checkMain: who wants it to end kills the process
		res, err = FollowFile(ctx, path, from, next)
	} else {
		res, err = ReplayFile(ctx, path, next)
	}
	a := replayAnswer{Result: &res}
	if err != nil {
		a = replayAnswer{Error: err.Error(), Kind: child.KindOf(err)}
	}
	if a.Report, err = json.Marshal(report()); err == nil {
		err = json.NewEncoder(os.Stdout).Encode(a)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// Replay runs the subcommand that is ReplayMain in a process of its own, at the lowest priority, so that neither a file nor changes,
// whatever they hold, can harm
// the caller: args follow on the subcommand and the file's path, and in is the child's standard input, which is read nowhere else. What
// the child reports is decoded into report, also where
// it has failed.
func Replay(ctx context.Context, selfExe, path string, in io.Reader, report any, args ...string) (ReplayResult, error) {
	out, err := child.Run(ctx, in, selfExe, append([]string{ReplaySubcommand, path}, args...)...)
	switch {
	case ctx.Err() != nil:
		return ReplayResult{}, fmt.Errorf("replay on %s: %w", path, context.Cause(ctx))
	case errors.Is(err, child.ErrCrashed):
		return ReplayResult{}, fmt.Errorf("replay on %s: %w", path, badDB("the process that wrote to it %v", err))
	}
	// A child that has found something wrong doesn't read to the end, so that it couldn't be told everything says nothing.
	var a replayAnswer
	if jerr := json.Unmarshal(bytes.TrimSpace(out), &a); jerr != nil {
		return ReplayResult{}, fmt.Errorf("replay on %s: %s %s gave no answer: %w", path, selfExe, ReplaySubcommand, errors.Join(err, jerr))
	}
	if len(a.Report) > 0 {
		if jerr := json.Unmarshal(a.Report, report); jerr != nil {
			return ReplayResult{}, fmt.Errorf("replay on %s: %s %s gave no report: %w", path, selfExe, ReplaySubcommand, jerr)
		}
	}
	if a.Error != "" {
		return ReplayResult{}, child.Told(a.Error, a.Kind)
	}
	if err != nil {
		return ReplayResult{}, fmt.Errorf("replay on %s: %w", path, err)
	}
	if a.Result == nil {
		return ReplayResult{}, fmt.Errorf("replay on %s: %s %s gave no result", path, selfExe, ReplaySubcommand)
	}
	return *a.Result, nil
}
