package manager

import (
	"context"
	"errors"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// leaderRecord is whose the store is: the term that this leadership has written there, or who else
// holds it. Only the loop uses it.
type leaderRecord struct {
	*shared
	store *storeView

	// hold is what the term was taken with, nil without; beat is when it was last shown that this
	// leadership lives.
	hold *catalog.Hold
	beat time.Time
	// wrote is true if the record was written since it was last looked at.
	wrote bool
	// holder is who the record names, unchanged since then, and holderError why it can't be told.
	holder      model.Holder
	holderError string
	since       time.Time
}

// takeTerm writes the term into the store.
func (lr *leaderRecord) takeTerm(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, quickAction)
	defer cancel()
	take := lr.m.cfg.Catalog.TakeTerm
	if fences, _ := lr.m.probed(); !fences {
		take = lr.m.cfg.Catalog.TakeTermUnfenced
	}
	h, err := take(ctx, lr.term, lr.m.cfg.Self, lr.m.cfg.Instance)
	if err != nil {
		return err
	}
	lr.hold, lr.beat, lr.wrote = h, time.Now(), true
	lr.holder = model.Holder{Term: lr.term, Node: lr.m.cfg.Self}
	return nil
}

func (lr *leaderRecord) readHolder(ctx context.Context, obj catalog.Object) error {
	r, _, err := lr.m.cfg.Catalog.Leader(ctx)
	if errors.Is(err, catalog.ErrNotFound) {
		err = nil
	}
	if err == nil {
		err = r.CheckTerm(lr.term)
	}
	lr.holderError = ""
	switch {
	case err != nil && objectProblem(err):
		// Nobody can tell whether another leader lives, so none counts as gone.
		lr.holder, lr.holderError, lr.since = model.Holder{}, err.Error(), time.Time{}
		return nil
	case err != nil:
		return err
	}
	lr.holder = model.Holder{Term: r.Term, Node: r.Node}
	lr.since = lr.m.holderSince(obj.Stamp, func() time.Duration { return lr.recordAge(ctx, obj) })
	if lr.hold != nil && (r.Term != lr.term || r.Node != lr.m.cfg.Self || r.Instance != lr.m.cfg.Instance) {
		klog.Warningf("the store's leader record is of node %s, term %d now; stepping down", r.Node, r.Term)
		lr.hold = nil
		lr.m.cfg.Peers.Exceed(r.Term)
	}
	if lr.hold == nil && r.Term >= lr.term && (r.Node != lr.m.cfg.Self || r.Instance != lr.m.cfg.Instance) {
		// The store wouldn't take this term, and for how long nodes haven't answered is counted in each
		// leadership anew: better now than after that wait.
		klog.Infof("the store knows term %d of node %s; this node leads with a higher one", r.Term, r.Node)
		lr.m.cfg.Peers.Exceed(r.Term)
	}
	return nil
}

// recordAge is how old the leader record was, by the store's own clock, when this process published
// where it is found. No clock of another machine is involved. 0 if it can't be told.
func (lr *leaderRecord) recordAge(ctx context.Context, record catalog.Object) time.Duration {
	if !record.Exists() || lr.hold != nil {
		return 0
	}
	published, err := lr.m.cfg.Catalog.PeerModified(ctx, lr.m.cfg.Self)
	if err != nil {
		return 0
	}
	return max(0, published.Sub(record.Modified))
}

// wroteRecord tells whether a change of the leader record is this leadership's own; asking is
// forgetting. A rival's is found by the next heartbeat or fenced step at the latest, which compare
// and swap.
func (lr *leaderRecord) wroteRecord() bool {
	own := lr.hold != nil && lr.wrote
	lr.wrote = false
	return own
}

// fence makes sure, right before a step that can't be taken back, that the store still knows no
// higher term.
func (lr *leaderRecord) fence(ctx context.Context) error {
	if lr.hold == nil {
		return errors.New("the leader's term isn't in the store")
	}
	lr.beat, lr.wrote = time.Now(), true
	err := lr.hold.Heartbeat(ctx)
	if err == nil {
		lr.m.setShown(time.Now())
	}
	return err
}

// fenceCommit is fence for the steps of a commit. While the store is away plan and its safety check
// have made sure that everyone who could act otherwise obeys this leader.
func (lr *leaderRecord) fenceCommit(ctx context.Context, committing bool) error {
	if !committing {
		return lr.fence(ctx)
	}
	if lr.store.away() {
		return nil
	}
	tctx, cancel := context.WithTimeout(ctx, commitPatience)
	defer cancel()
	err := lr.fence(tctx)
	var fenced *catalog.FencedError
	if err != nil && lr.hold != nil && !errors.As(err, &fenced) && ctx.Err() == nil {
		lr.store.fail(err)
	}
	return err
}

// heartbeat shows in the store that this leadership lives, for leaders that can't see the members.
func (lr *leaderRecord) heartbeat(ctx context.Context) {
	if lr.hold == nil || time.Since(lr.beat) < time.Minute {
		return
	}
	lr.beatNow(ctx)
}

// beatNow is the heartbeat, with what the leader shows.
func (lr *leaderRecord) beatNow(ctx context.Context) {
	err := inTime(ctx, lr.fence)
	var fenced *catalog.FencedError
	if errors.As(err, &fenced) {
		klog.Warningf("the store knows term %d of node %s; stepping down", fenced.Stored.Term, fenced.Stored.Node)
		lr.hold = nil
		lr.m.cfg.Peers.Exceed(fenced.Stored.Term)
	}
}

// observe fills in whose the store's leader record is.
func (lr *leaderRecord) observe(s *model.Store) {
	s.Holder, s.HolderError = lr.holder, lr.holderError
	s.Holder.Mine = lr.hold != nil
	if !lr.since.IsZero() {
		s.Holder.UnchangedFor = time.Since(lr.since)
	}
}

// held tells whether the leader record is this leadership's.
func (lr *leaderRecord) held() bool { return lr.hold != nil }
