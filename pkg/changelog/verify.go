package changelog

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
)

// Verified is what a verification has found.
type Verified struct {
	// Backup is what was verified: Facts are what its database says of itself.
	Backup string
	Facts  database.Facts
	// Base is the backup before it from which Segments lead to it; empty if there is none, and ChainProblem says why. With a Base,
	// ChainProblem says what was wrong with it, with the segments or with where they led.
	Base         string
	Incarnation  catalog.Incarnation
	Segments     int
	ChainProblem string
	Took         time.Duration
}

// MismatchError says that backup and changes don't agree. It wraps cluster.ErrCorrupt.
type MismatchError struct {
	Backup, Base string
	Revision     int64
	// Replayed and Stored are the two hashes.
	Replayed, Stored uint32
}

func (e *MismatchError) Error() string {
	return fmt.Sprintf("backup %s has HashKV %d at revision %d, and the changes applied to backup %s give %d: one of them isn't what etcd had", e.Backup, e.Stored, e.Revision, e.Base, e.Replayed)
}

// Unwrap gives the kind.
func (e *MismatchError) Unwrap() error { return cluster.ErrCorrupt }

// Disproves tells whether the error of a verification says that the backup is bad. Any other error
// says nothing of it: it can be tried again.
func Disproves(err error) bool {
	var bad *backup.Error
	var mismatch *MismatchError
	return errors.As(err, &bad) || errors.As(err, &mismatch) || errors.Is(err, etcd.ErrBadDatabase) || errors.Is(err, etcd.ErrBadSnapshot)
}

// VerifyOptions say how a verification works. The zero value is right for tests.
type VerifyOptions struct {
	// Executable is the manager's or the tool's own, Dir a directory that may hold two decompressed backups; what is in it is removed.
	Executable string
	Dir        string
	// KeepFree is how much of the disk stays free, in bytes.
	KeepFree int64
	// Progress may be nil; it gets a word for what is done, and bytes.
	Progress func(phase string, done, total int64)
	// Fetch may be nil; it replaces backup.FetchFile.
	Fetch func(ctx context.Context, name, path string, o backup.FileOptions) error
}

// Verify proves a backup: it is fetched and read to the last page, and then reached a second time,
// from the backup before it by replaying the changes between the two. Both have to have the same
// HashKV and the same leases. A bad backup, and two that don't agree, are an error that wraps
// cluster.ErrCorrupt or one of the kinds of pkg/backup; that there is no chain from an earlier
// backup, or that a segment of it is bad, is told in ChainProblem.
func (a *Archive) Verify(ctx context.Context, name string, o VerifyOptions) (v Verified, err error) {
	began := time.Now()
	v.Backup = name
	if err := os.RemoveAll(o.Dir); err != nil {
		return v, fmt.Errorf("verify backup %s: %w", name, err)
	}
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return v, fmt.Errorf("verify backup %s: %w", name, err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(o.Dir)) }()
	if v.Facts, err = a.fetchAndProve(ctx, name, filepath.Join(o.Dir, "backup.db"), o); err != nil {
		return v, err
	}
	err = a.verifyChain(ctx, &v, o)
	v.Took = time.Since(began)
	return v, err
}

// fetchAndProve returns what a backup's database says of itself; the file is gone afterwards.
func (a *Archive) fetchAndProve(ctx context.Context, name, path string, o VerifyOptions) (database.Facts, error) {
	if err := a.fetch(ctx, name, path, o); err != nil {
		return database.Facts{}, err
	}
	o.report("check", 0, 0)
	f, err := database.Check(ctx, o.Executable, path, database.CheckOptions{SkipHash: true})
	if err != nil {
		return f, fmt.Errorf("backup %s: %w", name, err)
	}
	if err := os.Remove(path); err != nil { // it takes the room that the other one needs
		return f, fmt.Errorf("verify backup %s: %w", name, err)
	}
	return f, nil
}

func (o *VerifyOptions) report(phase string, done, total int64) {
	if o.Progress != nil {
		o.Progress(phase, done, total)
	}
}

func (a *Archive) fetch(ctx context.Context, name, path string, o VerifyOptions) error {
	f := backup.FileOptions{KeepFree: o.KeepFree, Progress: func(p backup.Progress) { o.report("fetch", p.Done, p.Total) }}
	if o.Fetch != nil {
		return o.Fetch(ctx, name, path, f)
	}
	_, err := backup.FetchFile(ctx, a.Catalog, name, path, f)
	return err
}

// verifyChain reaches the backup's revision from the one before it.
func (a *Archive) verifyChain(ctx context.Context, v *Verified, o VerifyOptions) error {
	p, err := a.planBefore(ctx, v.Backup, v.Facts.Revision)
	if kept := chainProblem(err); kept != "" {
		v.ChainProblem = kept
		return nil
	}
	if err != nil {
		return err
	}
	v.Base, v.Incarnation, v.Segments = p.Base, p.Incarnation, len(p.Chain.Segments)
	path := filepath.Join(o.Dir, "base.db")
	if err := a.fetch(ctx, p.Base, path, o); err != nil {
		var bad *backup.Error
		if errors.As(err, &bad) {
			v.ChainProblem = err.Error()
			return nil
		}
		return err
	}
	total := p.Chain.Size()
	_, err = a.Replay(ctx, o.Executable, path, p.Chain, v.Facts.Revision, func(n int64) { o.report("replay", n, total) })
	var f database.Facts
	if err == nil {
		o.report("compare", 0, 0)
		f, err = database.Check(ctx, o.Executable, path, database.CheckOptions{SkipHash: true, HashCompact: v.Facts.Hash.CompactRevision})
	}
	// The backup itself was found sound: what is wrong with the one before it says nothing against it.
	if kept := chainProblem(err); kept != "" || errors.Is(err, etcd.ErrBadDatabase) || errors.Is(err, etcd.ErrBadSnapshot) {
		v.ChainProblem = fmt.Sprintf("backup %s with the changes after it: %v", p.Base, err)
		return nil
	}
	if err != nil {
		return fmt.Errorf("backup %s with the changes after it: %w", p.Base, err)
	}
	if f.Hash.CompactRevision != v.Facts.Hash.CompactRevision {
		v.ChainProblem = fmt.Sprintf("backup %s is compacted up to revision %d, and %s only up to %d, so they can't be compared",
			p.Base, f.Hash.CompactRevision, v.Backup, v.Facts.Hash.CompactRevision)
		return nil
	}
	if f.Hash != v.Facts.Hash {
		return &MismatchError{Backup: v.Backup, Base: p.Base, Revision: v.Facts.Revision, Replayed: f.Hash.Hash, Stored: v.Facts.Hash.Hash}
	}
	if have, want := f.Leased, v.Facts.Leased; have.Digest != want.Digest {
		v.ChainProblem = leasesDiffer(v.Backup, p.Base, have, want)
	}
	return nil
}

// leasesDiffer says why the leases of a backup aren't what the changes lead to. It says nothing
// against the backup, which etcd itself has written.
func leasesDiffer(name, base string, replayed, stored database.LeaseFacts) string {
	text := fmt.Sprintf("backup %s with the changes after it has the keys of backup %s, but not its leases (%d with keys, %d in the backup): ids, TTLs or keys differ", base, name, replayed.Attached, stored.Attached)
	if replayed.Unknowns > 0 {
		text = fmt.Sprintf("backup %s with the changes after it leads to backup %s, but the TTL of %s", base, name, UnknownLeases(replayed))
	}
	return text
}

// UnknownLeases names the leases of a database whose TTL nobody knows; empty if there are none.
func UnknownLeases(f database.LeaseFacts) string {
	if f.Unknowns == 0 {
		return ""
	}
	names := strings.Join(f.Unknown, ", ")
	if more := f.Unknowns - len(f.Unknown); more > 0 {
		names += fmt.Sprintf(" and %d more", more)
	}
	return fmt.Sprintf("%d leases is unknown and was set to ten years: %s (etcdctl lease timetolive ID --keys shows the keys)",
		f.Unknowns, names)
}

// chainProblem says in words what is wrong with a chain; empty if it is something else, or nothing.
func chainProblem(err error) string {
	var no *UnreachableError
	var bad *Error
	if errors.As(err, &no) || errors.As(err, &bad) || errors.Is(err, etcd.ErrGap) {
		return err.Error()
	}
	return ""
}

// planBefore plans how to reach a backup's revision from an earlier backup.
func (a *Archive) planBefore(ctx context.Context, name string, revision int64) (*Plan, error) {
	t := Target{Revision: revision}
	list, err := a.stored(ctx, t)
	if err != nil {
		return nil, err
	}
	m, err := a.Catalog.Manifest(ctx, name)
	if errors.Is(err, catalog.ErrNotFound) {
		return nil, unreachable(t, "backup %s has no manifest, so it isn't known which changes lead to it", name)
	}
	if err != nil {
		return nil, err
	}
	if m.ClusterID == 0 {
		return nil, unreachable(t, "backup %s was imported, so it isn't known which changes lead to it", name)
	}
	life, err := lifeAt(ctx, a.Catalog, uint64(m.ClusterID), m.Started)
	if err != nil {
		return nil, err
	}
	before, err := a.before(ctx, list, t, life)
	if err != nil {
		return nil, err
	}
	for _, k := range before {
		if k.Name != name {
			return a.planFrom(ctx, k, t)
		}
	}
	return nil, unreachable(t, "there is no earlier backup of this cluster")
}

// before are the good backups of a life that have at most a revision, the highest first.
func (a *Archive) before(ctx context.Context, list stored, t Target, life catalog.Incarnation) ([]Known, error) {
	near, err := a.near(ctx, list.soundWith(), t)
	if err != nil {
		return nil, err
	}
	known, err := a.know(ctx, near)
	if err != nil {
		return nil, err
	}
	known = slices.DeleteFunc(known, func(k Known) bool { return k.Manifest == nil || k.Life != life || k.revision() > t.Revision })
	slices.SortFunc(known, func(x, y Known) int { return compareKnown(y, x) })
	return known, nil
}
