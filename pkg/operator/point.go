package operator

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/operator/database"
)

// PointRequest names a state of the cluster's data. Backup, Target or Before has to be set; Target or Before with Backup begins with
// that backup.
type PointRequest struct {
	// Backup is a name, or Latest.
	Backup string
	// Target is a point behind a backup; zero for the backup itself. Its Backup and Life are not used.
	Target Target
	// Before, if not empty, is a key: the target is the state right before its last deletion, or
	// before that of what is below it if it ends with a slash.
	Before string
}

// Point is a state of the cluster's data, and how it is reached.
type Point struct {
	Request PointRequest
	// Notes say which backup Latest means, and what was passed over.
	Notes []string
	// Before is the deletion before which it is; nil if none was asked for.
	Before *Deletion
	// Backup is the one that was named; nil if the plan has chosen one itself.
	Backup *Backup
	// Plan is how the point is reached; nil for a backup itself.
	Plan *changelog.Plan
}

// Base is the name of the backup from which the state is built.
func (p *Point) Base() string {
	if p.Plan != nil {
		return p.Plan.Base
	}
	return p.Backup.Name
}

// String names the point in words.
func (p *Point) String() string {
	if p.Plan == nil {
		return "backup " + p.Base()
	}
	return fmt.Sprintf("revision %d", p.Plan.Revision)
}

// PlanPoint finds out how a point is reached, and fetches nothing. One that can't be reached is an *UnreachableError, which names the
// nearest that can. What was found out before an error is returned beside it.
func (c *Client) PlanPoint(ctx context.Context, r PointRequest) (*Point, error) {
	p := &Point{Request: r}
	if r.Backup != "" {
		if err := catalog.ValidBackupName(r.Backup); err != nil {
			return p, &InvalidError{err}
		}
	} else if r.Target.IsZero() && r.Before == "" {
		return p, invalidf("a backup or a point is needed")
	}
	l, err := c.locate(ctx, r)
	p.Notes, p.Before, p.Backup = l.notes, l.before, l.backup
	if err != nil || l.target.IsZero() {
		return p, err
	}
	p.Plan, err = c.plan(ctx, l.target)
	return p, err
}

// located is what a request names, before the way to it is planned.
type located struct {
	notes  []string
	before *Deletion
	backup *Backup
	// target is zero for the backup itself.
	target Target
}

// locate looks for the deletion and the backup that a request names.
func (c *Client) locate(ctx context.Context, r PointRequest) (l located, err error) {
	l.target = r.Target
	l.target.Backup, l.target.Life = "", ""
	if r.Before != "" {
		if l.before, err = c.Before(ctx, BeforeRequest{Key: r.Before}); err != nil {
			return l, err
		}
		l.target.Revision = l.before.Revision
	}
	if r.Backup == "" {
		return l, nil
	}
	b, notes, err := c.backup(ctx, r.Backup)
	l.notes = notes
	if err != nil {
		return l, err
	}
	l.backup = &b
	if !l.target.IsZero() {
		l.target.Backup = b.Name
	}
	return l, nil
}

// UnreachableError says that a point can't be reached, and names the nearest that can.
type UnreachableError struct {
	*changelog.UnreachableError
	// Later is the first backup behind the point; empty if there is none.
	Later         string
	LaterRevision int64
}

func (e *UnreachableError) Error() string {
	s := e.UnreachableError.Error()
	if e.Later != "" {
		s += fmt.Sprintf("; the first point after it is backup %s, of revision %d", e.Later, e.LaterRevision)
	}
	return s
}

// Unwrap gives what the archive says.
func (e *UnreachableError) Unwrap() error { return e.UnreachableError }

// plan is the archive's, within the time for a few small requests.
func (c *Client) plan(ctx context.Context, t Target) (*changelog.Plan, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	p, err := c.archive.Plan(ctx, t)
	var no *changelog.UnreachableError
	if err == nil || !errors.As(err, &no) {
		return p, err
	}
	out := &UnreachableError{UnreachableError: no}
	// It only helps: where the store fails now, the first reason is what counts.
	if k, kerr := c.archive.After(ctx, t); kerr == nil && k != nil {
		out.Later, out.LaterRevision = k.Name, k.Manifest.Revision
	}
	return nil, out
}

// built is a snapshot file of a point.
type built struct {
	// size is in bytes, with etcd's SHA-256 at its end.
	size int64
	// sha256 is of the whole file; empty if it was changed after it was fetched.
	sha256 string
}

// changesGrow is by how much stored changes grow when they are decompressed and written to a database, at most by experience.
const changesGrow = 10

// build writes the snapshot file of a point to a path at which nothing stands yet: the backup, brought forward by the changes behind it.
func (c *Client) build(ctx context.Context, p *Point, path string, t Transfers) (out built, err error) {
	b := p.Backup
	if b == nil || b.Name != p.Base() {
		found, _, err := c.backup(ctx, p.Base())
		if err != nil {
			return out, err
		}
		b = &found
	}
	need, changes := int64(0), int64(0)
	if b.Manifest != nil {
		need = b.Manifest.Raw.Size
	}
	if p.Plan != nil {
		changes = changesGrow * p.Plan.Chain.Size()
	}
	if err := database.CheckSpace(filepath.Dir(path), need+changes); err != nil {
		return out, err
	}
	res, err := c.fetchFile(ctx, *b, path, t)
	if err != nil || p.Plan == nil {
		return built{res.Raw.Size, res.Raw.SHA256}, err
	}
	return built{}, c.replay(ctx, p.Plan, path, t)
}

// replay brings a fetched backup to the point of a plan.
func (c *Client) replay(ctx context.Context, p *changelog.Plan, path string, t Transfers) error {
	exe, err := executable()
	if err != nil {
		return err
	}
	progress, over := t.begin("replay", fmt.Sprintf("changes up to revision %d", p.Revision))
	defer over()
	total := p.Chain.Size()
	_, err = c.archive.Replay(ctx, exe, path, p.Chain, p.Revision, func(done int64) { progress(done, total) })
	return database.Judged(path, err)
}
