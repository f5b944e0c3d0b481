package changelog

import (
	"context"
	"errors"
	"fmt"
	"io"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
)

// ahead is how many segments are fetched before they are needed.
const ahead = 4

// Replay brings the snapshot file at path, which is that of the chain's base, to a revision. selfExe is the manager's executable: a process of its own writes to
// the file. A bad segment is an *Error; where the snapshot is ahead of the revision already, or not as far as the chain begins, it is an *UnreachableError. progress, which may be nil, gets the stored bytes of
// the segments that were replayed.
func (a *Archive) Replay(ctx context.Context, selfExe, path string, c Chain, revision int64, progress func(bytes int64)) (etcd.ReplayResult, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	f := a.feed(ctx, c, revision, progress)
	res, err := etcd.Replay(ctx, selfExe, path, f.next)
	cancel()
	f.wait()
	if err != nil {
		return res, fmt.Errorf("replay changes: %w", err)
	}
	if res.Revision != revision {
		return res, fmt.Errorf("replay changes: %w", unreachable(Target{Revision: revision}, "the backup has revision %d and its changes lead to %d", res.From, res.Revision))
	}
	return res, nil
}

// feed yields the steps of a replay, and fetches ahead.
type feed struct {
	steps chan etcd.Replayed
	// err is read only after steps is closed.
	err error
}

func (f *feed) next() (etcd.Replayed, error) {
	x, ok := <-f.steps
	if ok {
		return x, nil
	}
	if f.err != nil {
		return etcd.Replayed{}, f.err
	}
	return etcd.Replayed{}, io.EOF
}

// wait ends everything; the context has ended.
func (f *feed) wait() {
	for range f.steps { // the last step may be on its way
	}
}

type fetched struct {
	content *Content
	err     error
}

func (a *Archive) feed(ctx context.Context, c Chain, revision int64, progress func(bytes int64)) *feed {
	f := &feed{steps: make(chan etcd.Replayed, 256)}
	segments := c.Segments
	// Each segment has a place of its own, so that they come in their order however fast each one is.
	places := make([]chan fetched, len(segments))
	for i := range places {
		places[i] = make(chan fetched, 1)
	}
	slots := make(chan struct{}, ahead)
	go func() {
		for i, s := range segments {
			select {
			case slots <- struct{}{}:
			case <-ctx.Done():
				places[i] <- fetched{err: context.Cause(ctx)}
				return
			}
			go func() {
				content, err := a.read(ctx, s)
				places[i] <- fetched{content, err}
			}()
		}
	}()
	go func() {
		defer close(f.steps)
		var done int64
		for i := range segments {
			var x fetched
			select {
			case x = <-places[i]:
			case <-ctx.Done():
				f.err = context.Cause(ctx)
				return
			}
			<-slots
			if x.err == nil {
				x.err = a.pour(ctx, f.steps, x.content, revision)
			}
			var bad *Error
			if errors.As(x.err, &bad) && !hasChanges(segments[i], revision) {
				klog.Warningf("changes: what it says of leases isn't known: %v", x.err)
				x.err = nil
			}
			if x.err != nil {
				f.err = x.err
				return
			}
			done += segments[i].Size
			if progress != nil {
				progress(done)
			}
		}
	}()
	return f
}

// pour hands the steps of a segment on, once all of it was found right: what was replayed can't be taken back.
func (a *Archive) pour(ctx context.Context, to chan<- etcd.Replayed, c *Content, revision int64) error {
	var steps []etcd.Replayed
	err := c.Walk(ctx, a.Catalog.Opener(), func(e Entry) error {
		x, ok, err := e.replayed()
		if err != nil {
			return &Error{Segment: c.Segment.Key(), Kind: cluster.ErrCorrupt, Err: err, Good: c.Segment.First - 1}
		}
		if ok && x.Revision <= revision && x.LeaseFrom <= revision {
			steps = append(steps, x)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for _, x := range steps {
		select {
		case to <- x:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
	return nil
}
