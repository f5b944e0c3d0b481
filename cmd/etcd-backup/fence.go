package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// How long the record in the store has to stand still, by this instance's own clock, until whoever wrote it is taken for gone.
const (
	// instancePatience is for another instance of this program, which writes it anew each beatInterval.
	instancePatience = 3 * beatInterval
	// managerPatience is for a manager, which writes it each minute if it can.
	managerPatience = 10 * time.Minute
)

// What stands at the beginning of the record's instance, and at its end when its writer has stopped in order.
const (
	instanceKind  = "etcd-backup/"
	instanceEnded = "/ended"
)

// role is what this instance may do now.
type role int

const (
	// standsBy does nothing: another instance acts.
	standsBy role = iota
	// acts backs up, keeps the changes and proves backups.
	acts
	// onlyBacksUp is for one beside the etcd leader whose store a manager works on: that one does the rest.
	onlyBacksUp
)

// fence lets one of several instances act. It is the record that managers lead by too, and its
// number is only ever raised. The one beside the etcd leader takes it from any other one; one
// beside a follower only if nobody has written it for a while.
type fence struct {
	catalog  *catalog.Catalog
	store    blob.Store
	node     cluster.NodeID
	patience time.Duration

	// probed is true when it is known whether the store fences.
	probed, fences bool
	// version is of the record when it was last seen, since when it has been that one.
	version string
	since   time.Time
}

// probe finds out whether the store honors conditional puts. One that doesn't fences nothing, and then the etcd leader alone decides.
func (f *fence) probe(ctx context.Context) error {
	if f.probed {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	r, err := blob.Probe(ctx, f.store, string(f.node))
	if err != nil && !r.Fenced() {
		return fmt.Errorf("the store is not usable as it is (%s), backups will fail until this is repaired: %w", r, err)
	}
	if err != nil {
		klog.Errorf("the store lacks something (%s): %v", r, err)
	}
	f.probed, f.fences = true, r.Fenced()
	if !f.fences {
		klog.Warningf("the store ignores conditional puts, so only the instance beside the etcd leader acts, and no other takes over (%s)",
			r)
	}
	return nil
}

// claim says what this instance may do. With acts comes the hold, which is nil in a store that fences nothing.
func (f *fence) claim(ctx context.Context, member cluster.MemberID, leads bool, now time.Time) (role, *catalog.Hold, string, error) {
	if err := f.probe(ctx); err != nil {
		return standsBy, nil, "", err
	}
	if !f.fences {
		if leads {
			return acts, nil, "", nil
		}
		return standsBy, nil, "the etcd leader's instance acts", nil
	}
	stored, version, err := f.catalog.Leader(ctx)
	if err != nil && !errors.Is(err, catalog.ErrNotFound) {
		return standsBy, nil, "", err
	}
	if version != f.version || f.since.IsZero() {
		f.version, f.since = version, now
	}
	if r, why := f.judge(stored, member, leads, now.Sub(f.since)); r != acts {
		return r, nil, why, nil
	}
	hold, err := f.catalog.TakeTerm(ctx, stored.Term+1, f.node, instanceOf(member))
	if errors.Is(err, catalog.ErrFenced) {
		return standsBy, nil, "another instance was faster", nil
	}
	if err != nil {
		return standsBy, nil, "", err
	}
	return acts, hold, "", nil
}

// judge decides from the record and for how long it has been standing still.
func (f *fence) judge(stored catalog.LeaderRecord, member cluster.MemberID, leads bool, still time.Duration) (role, string) {
	by, mine := strings.CutPrefix(stored.Instance, instanceKind)
	switch {
	case stored.Term != 0 && !mine && still < managerPatience && leads:
		return onlyBacksUp, fmt.Sprintf("the manager on node %s keeps the changes and verifies backups", stored.Node)
	case stored.Term != 0 && !mine && still < managerPatience:
		return standsBy, fmt.Sprintf("the manager on node %s works on this store", stored.Node)
	case stored.Term != 0 && !mine && leads:
		return acts, ""
	case still >= f.patience:
		return acts, ""
	case !leads && stored.Term == 0:
		return standsBy, "the etcd leader's instance should act"
	case !leads:
		return standsBy, fmt.Sprintf("the instance on node %s acts", stored.Node)
	case stored.Term == 0, strings.HasSuffix(by, instanceEnded), !strings.HasPrefix(by, member.String()+"/"):
		return acts, "" // nobody acts, or one that isn't beside the etcd leader
	}
	return standsBy, fmt.Sprintf("another instance beside the same member, on node %s, acts", stored.Node)
}

// release tells the others that they needn't wait. That it fails only makes them wait.
func (f *fence) release(ctx context.Context, h *catalog.Hold) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), releaseTimeout)
	defer cancel()
	r := h.Record()
	if _, err := f.catalog.TakeTerm(ctx, r.Term+1, r.Node, r.Instance+instanceEnded); err != nil && !errors.Is(err, catalog.ErrFenced) {
		klog.Warningf("the other instances don't know that this one has stopped, and wait %s: %v", f.patience, err)
	}
}

// instanceOf names one run of this program beside a member.
func instanceOf(member cluster.MemberID) string {
	return instanceKind + member.String() + "/" + strings.ToLower(rand.Text())
}
