package operator

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/operator/database"
)

// Preview is what a restore would change of what the store has last. Of its Difference, what is Added was made since and would be removed,
// and what is Removed would be brought back.
type Preview struct {
	// Difference is nil if it was left out; LeftOut says why then.
	Difference *Difference
	LeftOut    string
	// Costly is true if it was left out because it would take too long, and Diff can find it out.
	Costly bool
	// Revision is the point's; 0 if it isn't known.
	Revision int64
}

// previewBytes is how much a preview reads at most, as stored.
const previewBytes = 32 << 20

// Preview compares the point of a plan with the last state that the store has, if that is cheap: if only changes have to be read, and not
// many, and if it takes no longer than limit. It never fails a restore: what can't be found out is left out.
func (c *Client) Preview(ctx context.Context, p *RestorePlan, limit time.Duration) Preview {
	tctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	d, revision, err := c.preview(tctx, p)
	out := previewOf(d, err)
	if err != nil && tctx.Err() != nil && ctx.Err() == nil {
		out = Preview{LeftOut: fmt.Sprintf("it took longer than %s", limit), Costly: true}
	}
	out.Revision = revision
	return out
}

func previewOf(d *Difference, err error) Preview {
	var costly *CostlyError
	var no *changelog.UnreachableError
	var undecided *UndecidedError
	switch {
	case err == nil:
		return Preview{Difference: d}
	case errors.As(err, &costly):
		return Preview{LeftOut: mib(costly.Bytes) + " of changes lie between it and the last state", Costly: true}
	case errors.As(err, &no), errors.As(err, &undecided):
		return Preview{LeftOut: "the changes of the incarnation that serves aren't all kept"}
	}
	return Preview{LeftOut: err.Error()}
}

func mib(n int64) string { return fmt.Sprintf("%d MiB", (n+(1<<20)-1)>>20) }

// errNotJoined means that more than changes would have to be read.
var errNotJoined = errors.New("no kept changes lead from it to the last state")

func (c *Client) preview(ctx context.Context, p *RestorePlan) (*Difference, int64, error) {
	path := p.Path
	if path == nil && p.Backup != nil && p.Backup.Manifest != nil {
		var err error
		if path, err = c.path(ctx, p.target); err != nil {
			return nil, 0, err
		}
	}
	switch {
	case path == nil || path.Incarnation == "":
		return nil, 0, errors.New("it isn't known which changes follow this backup")
	case path.Serving != "" && path.Serving != path.Incarnation:
		return nil, path.Revision, errors.New("it is of another incarnation than the one that serves")
	}
	last, err := c.plan(ctx, Target{Latest: true})
	if err != nil {
		return nil, path.Revision, err
	}
	d := &Difference{A: plannedSide(path.Plan), B: plannedSide(last)}
	if last.Incarnation != path.Incarnation {
		return nil, path.Revision, errNotJoined
	}
	from, to := min(path.Revision, last.Revision), max(path.Revision, last.Revision)
	_, ok, err := c.archive.Between(ctx, last.Incarnation, from, to)
	if err == nil && !ok {
		err = errNotJoined
	}
	if err == nil {
		err = c.compare(ctx, d, DiffRequest{MostBytes: previewBytes}, nil)
	}
	var space *database.NoSpaceError
	if errors.As(err, &space) {
		err = errors.New("the directory for temporary files has too little space")
	}
	return d, path.Revision, err
}

func plannedSide(p *changelog.Plan) DiffSide {
	return DiffSide{Point: &Point{Plan: p}, Plan: p, Revision: p.Revision, AtMost: p.Revision}
}
