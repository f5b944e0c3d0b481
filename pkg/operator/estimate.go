package operator

import (
	"context"
	"slices"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// What a restore takes, roughly, where none was done before: it was measured on two cores that three masters shared.
const (
	secondsPerMiB     = 0.02
	outagePerMiB      = 0.006
	secondsAtLeast    = 2
	outageAtLeast     = 1
	revisionsASecond  = 50_000
	bytesOfARevision  = 1024
	segmentsPerSecond = 40
	// saysEnough is how many MiB a restore must have had so that it tells what each of them takes.
	saysEnough = 64
)

// path finds out how a point is reached, what is lost, and how long it will take.
func (c *Client) path(ctx context.Context, t Target) (*Path, error) {
	plan, err := c.plan(ctx, t)
	if err != nil {
		return nil, err
	}
	ctx, cancel := c.limit(ctx)
	defer cancel()
	p := &Path{Plan: plan, Target: t}
	if p.Lost, err = c.archive.LostWith(ctx, plan); err != nil {
		return nil, err
	}
	ops, _, err := c.catalog.Operations(ctx)
	if err != nil {
		return nil, err
	}
	p.Estimate = p.estimate(ops)
	return p, nil
}

// estimate says how long a restore will take, from the last one that was done if there is one.
func (p *Path) estimate(ops []catalog.Operation) Estimate {
	changes := p.Revision - p.Manifest.Revision
	mib := float64(p.Manifest.Raw.Size+changes*bytesOfARevision) / (1 << 20)
	replay := max(float64(changes)/revisionsASecond, float64(len(p.Chain.Segments))/segmentsPerSecond)
	for _, op := range slices.Backward(ops) {
		if op.State != catalog.StateDone || op.Kind != catalog.KindRestore || op.StagedBytes == 0 || op.Finished.IsZero() {
			continue
		}
		staged := float64(op.StagedBytes) / (1 << 20)
		return Estimate{seconds(like(op.Finished.Sub(op.Created), staged, mib, secondsAtLeast, secondsPerMiB) + replay),
			seconds(like(op.Outage-op.RestartOutage, staged, mib, outageAtLeast, outagePerMiB)), &op}
	}
	return Estimate{Total: seconds(secondsAtLeast + mib*secondsPerMiB + replay), Outage: seconds(outageAtLeast + mib*outagePerMiB)}
}

// like is how many seconds something takes for so many MiB if it took so long for staged ones. It has a part that is the same for any size.
// What few MiB took is nearly all of that part, and says nothing of what each further MiB takes.
func like(took time.Duration, staged, mib, fixed, each float64) float64 {
	s := max(took.Seconds(), 0)
	if staged >= saysEnough {
		return s * (fixed + mib*each) / (fixed + staged*each)
	}
	return s + max(mib-staged, 0)*each
}

func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
