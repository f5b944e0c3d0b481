package changelog

import (
	"fmt"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Target is a point to go to. Exactly one of the first three is set, or none for the backup itself.
type Target struct {
	Revision int64
	Time     time.Time
	Latest   bool
	// Backup, if set, is the backup to begin with; else the newest one that will do is found.
	Backup string
	// Life, if set, is the only life in which the target is looked for. Latest without Backup and Life is of the life that serves.
	Life catalog.Incarnation
}

// String names the target in words.
func (t Target) String() string {
	switch {
	case t.Revision > 0:
		return fmt.Sprintf("revision %d", t.Revision)
	case !t.Time.IsZero():
		return t.Time.UTC().Format("2006-01-02 15:04:05.999Z")
	case t.Latest && t.Backup != "":
		return "the newest change that was kept of the incarnation of backup " + t.Backup
	case t.Latest:
		return "the newest change that was kept of the incarnation that serves"
	}
	return "backup " + t.Backup
}

// IsZero tells that no point beyond a backup is named.
func (t Target) IsZero() bool { return t.Revision == 0 && t.Time.IsZero() && !t.Latest }

// Plan says how a target is reached.
type Plan struct {
	// Base is the backup to begin with, Manifest what it says of itself.
	Base     string
	Manifest *catalog.Manifest
	// Incarnation is whose changes are replayed; Chain has the segments, none if the backup itself is the target.
	Incarnation catalog.Incarnation
	Chain       Chain
	// Revision is what will be reached. Time is when its state began to hold, zero if it is the
	// backup's own; Until when the next change came, or up to when none is known to have come.
	Revision    int64
	Time, Until time.Time
	// Uncertain is from when on the change may have been made, if it was kept late; else zero.
	Uncertain time.Time
	// Reach is the newest revision of this incarnation that was kept, ReachTime when it is known to
	// have been the newest. What is between Revision and Reach would be lost.
	Reach     int64
	ReachTime time.Time
	// More means that what was kept goes on behind Reach; it wasn't all looked at.
	More bool
	// Serving is the life that serves, if that is known: what was written in it is lost too if Incarnation is another one.
	Serving catalog.Incarnation
	// recent are the last backups of all kinds, as they were when it was made.
	recent []Known
}

// Head names the last segment of the plan, empty if there is none: base, head and revision determine what comes out.
func (p *Plan) Head() string {
	if n := len(p.Chain.Segments); n > 0 {
		return p.Chain.Segments[n-1].SegmentName.String()
	}
	return ""
}

// UnreachableError says that a point can't be reached, and which can. It is permanent: cluster.ErrPermanent.
type UnreachableError struct {
	Target Target
	Reason string
	// later means that the backup to begin with is younger than the target.
	later bool
}

func (e *UnreachableError) Error() string {
	return fmt.Sprintf("%s can't be reached: %s", e.Target, e.Reason)
}

// Unwrap gives cluster.ErrPermanent.
func (e *UnreachableError) Unwrap() error { return cluster.ErrPermanent }

func unreachable(t Target, format string, args ...any) error {
	return &UnreachableError{Target: t, Reason: fmt.Sprintf(format, args...)}
}

// Point is the plan as it is recorded, so that everybody who carries it out does the same.
func (p *Plan) Point() *catalog.PointInTime {
	return &catalog.PointInTime{Incarnation: p.Incarnation, BaseRevision: p.Chain.Base, Revision: p.Revision, Head: p.Head(), Time: p.Time}
}
