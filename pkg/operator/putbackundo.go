package operator

import (
	"context"
	"errors"
	"fmt"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/putback"
)

// PutBackUndoRequest says which put-back is taken back.
type PutBackUndoRequest struct {
	// Operation is its name; empty means the newest one that has written something and takes none back itself.
	Operation string
	// Rate is how many keys are written in a second; 0 means catalog.DefaultPutBackRate.
	Rate   int
	Reason string
}

// PlanUndoPutBack makes the plan that takes a put-back back: what it has created is removed, what it has replaced or removed has its
// earlier value again. What somebody has changed since stays as it is. It changes nothing. PutBack carries the plan out, and
// that can be undone too.
func (c *Client) PlanUndoPutBack(ctx context.Context, r PutBackUndoRequest) (*PutBackPlan, error) {
	if r.Rate < 0 || r.Rate > catalog.MaxPutBackRate {
		return nil, invalidf("the rate must be 1 to %d keys a second, not %d", catalog.MaxPutBackRate, r.Rate)
	}
	op, err := c.putBackToUndo(ctx, r.Operation)
	if err != nil {
		return nil, err
	}
	rec := op.PutBack
	p := &PutBackPlan{
		Request: PutBackRequest{Rate: r.Rate, Reason: r.Reason}, What: "undo of " + op.ID + " (" + rec.What + ")", Undoes: op,
		clusterID: rec.ClusterID, at: "right before it", strict: true,
	}
	set, err := c.catalog.PutBackSet(ctx, rec.Set)
	if err != nil {
		return nil, err
	}
	done := len(set[catalog.PutBackResult])
	if done == 0 {
		return nil, fmt.Errorf("%s can't be undone: what it has written over is kept for %d days after its end, and is gone: %w", op.ID,
			int(catalog.PutBackKept.Hours()/24), ErrNotFound)
	}
	for n := done; n >= 1; n-- {
		if err := c.addUndo(ctx, p, rec.Set, n); err != nil {
			return nil, fmt.Errorf("undo %s: %w", op.ID, err)
		}
	}
	b, _, err := c.backup(ctx, Latest)
	if err != nil {
		return nil, err
	}
	if p.manifest = b.Manifest; p.manifest != nil && p.manifest.ClusterID != 0 && p.manifest.ClusterID != rec.ClusterID {
		return nil, fmt.Errorf("%s can't be undone: the cluster was restored since, so revisions mean something else", op.ID)
	}
	return p, nil
}

// addUndo adds what takes one part back.
func (c *Client) addUndo(ctx context.Context, p *PutBackPlan, set string, n int) error {
	entries, before, results, err := putback.ReadPart(ctx, c.catalog, set, n)
	if err != nil {
		return err
	}
	undo, err := putback.Undo(entries, before, results)
	if err != nil {
		return fmt.Errorf("part %d of %s: %w", n, set, err)
	}
	for _, e := range undo {
		p.Bytes += int64(len(e.Key) + len(e.Value))
	}
	p.Entries = append(p.Entries, undo...)
	return nil
}

// putBackToUndo finds the record.
func (c *Client) putBackToUndo(ctx context.Context, name string) (*catalog.Operation, error) {
	list, err := c.Commands(ctx)
	if err != nil {
		return nil, err
	}
	var newest *catalog.Operation
	undone := map[string]bool{}
	for _, e := range list {
		if !e.PutsBack() {
			if name != "" && e.Name == name {
				return nil, invalidf("%s is no put-back: undo-restore takes restores back", name)
			}
			continue
		}
		op := e.Operation
		switch {
		case op == nil && (name == "" || e.Name == name):
			return nil, invalidf("%s isn't done yet: follow it, or end it with delete-command, then undo it", e.Name)
		case op == nil:
		case op.ID == name:
			if op.PutBack.Written() == 0 {
				return nil, invalidf("%s has written nothing: there is nothing to undo", name)
			}
			return op, nil
		case op.PutBack.Undoes != "":
			undone[op.PutBack.Undoes] = op.PutBack.Written() > 0
		}
		if op != nil && op.PutBack.Written() > 0 && op.PutBack.Undoes == "" && (newest == nil || op.Created.After(newest.Created)) {
			newest = op
		}
	}
	switch {
	case name != "":
		return nil, fmt.Errorf("there is no put-back %q in the history: %w", name, ErrNotFound)
	case newest == nil:
		return nil, fmt.Errorf("the store has no record of a put-back that has written anything: %w", ErrNotFound)
	case undone[newest.ID]:
		return nil, invalidf("the newest put-back, %s, was undone already; to undo an earlier one, or the undo, name it", newest.ID)
	}
	return newest, nil
}

// PutBackLeft is a key that a put-back has left alone.
type PutBackLeft struct {
	Key string `json:"key"`
	Why string `json:"why"`
}

// MaxPutBackLeft bounds how many such keys PutBackLeft returns.
const MaxPutBackLeft = 1000

// PutBackLeft lists what a put-back that has ended has left alone, and why: at most MaxPutBackLeft keys. It is ErrNotFound if its parts
// aren't kept any more.
func (c *Client) PutBackLeft(ctx context.Context, op *catalog.Operation) ([]PutBackLeft, error) {
	var left []PutBackLeft
	if op.PutBack == nil || op.PutBack.Left == 0 {
		return nil, nil
	}
	for n := 1; n <= op.PutBack.Parts && len(left) < MaxPutBackLeft; n++ {
		data, err := c.catalog.PutBackPart(ctx, op.PutBack.Set, catalog.PutBackResult, n)
		if errors.Is(err, ErrNotFound) && n > 1 {
			return left, nil // it was ended before
		}
		if err != nil {
			return left, err
		}
		results, err := putback.Decode[putback.Result](data)
		if err != nil {
			return left, fmt.Errorf("part %d of %s: %w", n, op.PutBack.Set, err)
		}
		for _, x := range results {
			switch x.Outcome {
			case putback.Created, putback.Replaced, putback.Removed, putback.Same:
			default:
				left = append(left, PutBackLeft{string(x.Key), x.Outcome.Words()})
			}
		}
	}
	return left[:min(len(left), MaxPutBackLeft)], nil
}
