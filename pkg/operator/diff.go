package operator

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/kube"
)

// DiffRequest says which two states are compared.
type DiffRequest struct {
	// A is the state before, B the one after.
	A, B PointRequest
	// Values has the values of both states looked up. Then the backup of one of them is always fetched.
	Values bool
	// MostBytes, if not 0, bounds how much is read from the store; what would take more is a *CostlyError.
	MostBytes int64
	VerifyOptions
}

// DiffKind says how a key differs.
type DiffKind string

// The kinds of differences.
const (
	Added   DiffKind = "added"
	Changed DiffKind = "changed"
	Removed DiffKind = "removed"
)

// DiffValue is what a key was at one of the states.
type DiffValue struct {
	// Revision is the one that wrote it last, Created the one that created it.
	Revision, Created int64
	Lease             int64
	// Value is nil unless values were asked for.
	Value []byte
}

// DiffEntry is a key that differs.
type DiffEntry struct {
	Key  []byte
	Kind DiffKind
	// Old is nil for a key that was added, and if only the changes between were read; New for one that was removed.
	Old, New *DiffValue
	// SameValue is true if it was written again with the value that it had, as far as values were compared.
	SameValue bool
}

// DiffCount counts differences. A key that was written again is changed, also if its value is the same.
type DiffCount struct {
	Added   int64 `json:"added"`
	Changed int64 `json:"changed"`
	Removed int64 `json:"removed"`
}

func (c *DiffCount) count(k DiffKind) {
	switch k {
	case Added:
		c.Added++
	case Changed:
		c.Changed++
	case Removed:
		c.Removed++
	}
}

// Total is the sum.
func (c DiffCount) Total() int64 { return c.Added + c.Changed + c.Removed }

// DiffGroup is what differs of one kind of object in one namespace, or below one prefix.
type DiffGroup struct {
	// Kind and Namespace are those of Kubernetes' objects; of other keys there is a Prefix.
	Kind      string `json:"kind,omitempty"`
	Namespace string `json:"namespace,omitempty"`
	Prefix    string `json:"prefix,omitempty"`
	DiffCount
}

// Name names a group in words.
func (g DiffGroup) Name() string {
	switch {
	case g.Namespace != "":
		return g.Kind + " in " + g.Namespace
	case g.Kind != "":
		return g.Kind
	case g.Prefix == "":
		return "keys without a slash"
	}
	return g.Prefix
}

// DiffSide is one of the two states.
type DiffSide struct {
	Point *Point
	// Plan is nil for a backup of another tool.
	Plan *changelog.Plan
	// Revision is 0 if it isn't known.
	Revision int64
	// AtMost is higher if the snapshot may be ahead of Revision: the comparison is with Revision.
	AtMost int64
}

func (s *DiffSide) life() catalog.Incarnation {
	if s.Plan == nil {
		return ""
	}
	return s.Plan.Incarnation
}

// Time is when the state began to hold; zero if that isn't known.
func (s *DiffSide) Time() time.Time {
	switch {
	case s.Plan == nil:
		return time.Time{}
	case s.Point.Plan == nil:
		return s.Plan.Manifest.Started
	}
	return s.Plan.Time
}

// Difference sums up what differs.
type Difference struct {
	A, B DiffSide
	DiffCount
	// Groups are sorted: those with most differences first. There are at most MaxDiffGroups; what is in others counts in the last one, "…".
	Groups []DiffGroup
	// Joined is true if the changes between the two were enough: Segments of Bytes in the store.
	Joined   bool
	Segments int
	Bytes    int64
}

// MaxDiffGroups bounds the groups of a difference.
const MaxDiffGroups = 20_000

// CostlyError says that a comparison would read more than was permitted.
type CostlyError struct {
	// Bytes is how much it would read, as stored.
	Bytes, Most int64
}

func (e *CostlyError) Error() string {
	return fmt.Sprintf("%d MiB would have to be read, at most %d MiB are", (e.Bytes+(1<<20)-1)>>20, e.Most>>20)
}

// Diff compares two states. visit, which may be nil, gets every key that differs, in the order of the keys; what it gets is valid during
// the call only. Where the changes between the two are kept, only these are read; else both states are built. Neither all keys nor all
// differences are held in memory: they are sorted in files in a temporary directory.
func (c *Client) Diff(ctx context.Context, r DiffRequest, visit func(DiffEntry) error) (*Difference, error) {
	d := &Difference{}
	var err error
	if d.A, err = c.side(ctx, r.A); err != nil {
		return d, err
	}
	if d.B, err = c.side(ctx, r.B); err != nil {
		return d, err
	}
	return d, c.compare(ctx, d, r, visit)
}

// side plans one of the states.
func (c *Client) side(ctx context.Context, r PointRequest) (s DiffSide, err error) {
	if s.Point, err = c.PlanPoint(ctx, r); err != nil {
		return s, err
	}
	s.Plan = s.Point.Plan
	if b := s.Point.Backup; s.Plan == nil && b.Manifest != nil {
		if s.Plan, err = c.plan(ctx, Target{Backup: b.Name}); err != nil {
			return s, err
		}
		s.AtMost = max(b.Manifest.Revision, b.Manifest.RevisionAtMost)
	}
	if s.Plan != nil {
		s.Revision = s.Plan.Revision
	}
	s.AtMost = max(s.AtMost, s.Revision)
	return s, nil
}

// grouper counts by groups.
type grouper struct {
	d      *Difference
	groups map[DiffGroup]*DiffCount
}

// groupDepth is how many parts between slashes make a prefix, for keys that aren't Kubernetes'.
const groupDepth = 2

func (g *grouper) add(e DiffEntry) {
	g.d.count(e.Kind)
	name := groupOf(e.Key)
	n := g.groups[name]
	if n == nil {
		if len(g.groups) >= MaxDiffGroups-1 {
			name = DiffGroup{Prefix: "…"}
		}
		if n = g.groups[name]; n == nil {
			n = &DiffCount{}
			g.groups[name] = n
		}
	}
	n.count(e.Kind)
}

func groupOf(key []byte) DiffGroup {
	if o, ok := kube.ObjectOf(string(key)); ok {
		return DiffGroup{Kind: o.Kind, Namespace: o.Namespace}
	}
	return DiffGroup{Prefix: string(prefixOf(key, groupDepth))}
}

func (g *grouper) finish() {
	for name, n := range g.groups {
		name.DiffCount = *n
		g.d.Groups = append(g.d.Groups, name)
	}
	slices.SortFunc(g.d.Groups, func(a, b DiffGroup) int {
		return cmp.Or(cmp.Compare(b.Total(), a.Total()), strings.Compare(a.Kind, b.Kind), strings.Compare(a.Namespace, b.Namespace),
			strings.Compare(a.Prefix, b.Prefix))
	})
}
