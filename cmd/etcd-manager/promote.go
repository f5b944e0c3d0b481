package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/atomicfile"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/envelope/awskms"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

const (
	// promotionLook is how often a standby looks whether it is to become a cluster.
	promotionLook = 3 * time.Second
	// promotionRest is how long a copy may be brought forward if nobody knows how far the other cluster got.
	promotionRest = 30 * time.Second
	// promotionOffers is how long the copies of other nodes are waited for then, and promotionOvertime how long the node with the best one.
	promotionOffers   = 15 * time.Second
	promotionOvertime = time.Minute
)

// errPromoted ends a standby: from now on its node runs a cluster.
var errPromoted = errors.New("this standby was promoted")

// promotion is what a standby remembers of its promotion.
type promotion struct {
	*standbyNode
	// seen is when it was first seen, or what it asks for has changed; offered when this node has offered its copy since.
	seen, offered time.Time
	// revision is what it asked for then.
	revision int64
}

// keepPromotion looks whether this standby is to become a cluster, and does this node's part. It ends with errPromoted.
func (s *standbyNode) keepPromotion(ctx context.Context) error {
	p := &promotion{standbyNode: s}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(promotionLook):
		}
		err := p.step(ctx)
		if errors.Is(err, errPromoted) {
			return err
		}
		if err != nil && ctx.Err() == nil {
			s.said.Warningf("promote", "promoting this standby: %v; it is tried again", err)
		}
	}
}

// step does what is to be done now.
func (p *promotion) step(ctx context.Context) error {
	rctx, cancel := context.WithTimeout(ctx, standbyRequest)
	defer cancel()
	rec, err := p.catalog.Promotion(rctx)
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		return nil
	case err != nil:
		return err
	case rec.Backup != "":
		return p.promoted(rec)
	case !sameStore(rec.Of, p.o.standbyOf):
		return fmt.Errorf("the promotion is of a standby of %s, this one follows %s; nothing is done", cluster.Shown(rec.Of, 300), p.o.standbyOf)
	}
	if p.seen.IsZero() || p.revision != rec.Revision {
		p.seen, p.offered, p.revision = time.Now(), time.Time{}, rec.Revision
		klog.Infof("this standby is to become a cluster of %d, at revision %d", rec.Spec.MemberCount, rec.Revision)
	}
	switch {
	case rec.Chosen == p.id:
		return p.make(ctx, rec)
	case rec.Chosen != "":
		p.tell("node " + string(rec.Chosen) + " makes a cluster of its copy")
		return nil
	}
	return p.offer(rctx, rec)
}

// offer says what this node's copy has, once it has what it must, and has it chosen if it is the best.
func (p *promotion) offer(ctx context.Context, rec catalog.Promotion) error {
	r := p.follower.Report()
	known := rec.Revision > 0
	switch {
	case r.Revision == 0, known && r.Revision < rec.Revision, known && rec.Incarnation != "" && r.Incarnation != rec.Incarnation:
		p.tell(fmt.Sprintf("to be promoted: the copy has revision %d, and needs %d", r.Revision, rec.Revision))
		return nil
	case !known && (r.Error != "" || r.Revision < r.Known) && time.Since(p.seen) < promotionRest:
		p.tell(fmt.Sprintf("to be promoted: the copy has revision %d, and takes what the archive still has", r.Revision))
		return nil
	}
	_, err := p.catalog.ChangePromotion(ctx, func(x *catalog.Promotion) error {
		if x.Chosen != "" || x.Backup != "" {
			return nil
		}
		x.Copies[p.id] = catalog.OfferedCopy{Revision: r.Revision, Time: time.Now().UTC()}
		all := len(x.Copies) >= x.Spec.MemberCount || !p.offered.IsZero() && time.Since(p.offered) >= promotionOffers
		late := !p.offered.IsZero() && time.Since(p.offered) >= promotionOvertime
		if known || late || all && best(x.Copies) == p.id {
			x.Chosen = p.id
		}
		return nil
	})
	if err == nil && p.offered.IsZero() {
		p.offered = time.Now()
	}
	return err
}

// best is the node whose copy is farthest; of several the first by name.
func best(copies map[cluster.NodeID]catalog.OfferedCopy) cluster.NodeID {
	var id cluster.NodeID
	for n, c := range copies {
		if id == "" || c.Revision > copies[id].Revision || c.Revision == copies[id].Revision && n < id {
			id = n
		}
	}
	return id
}

// errNotChosen: the operator has given this node up, and another one is chosen.
var errNotChosen = errors.New("this node isn't chosen any more: another one makes a cluster of its copy")

// make makes a backup of this node's copy in the own store, and queues its restore, which is what the managers begin with. This node alone
// does it, also after a restart: what it has queued is found again.
func (p *promotion) make(ctx context.Context, rec catalog.Promotion) error {
	p.tell("makes a cluster of its copy")
	p.endFollowing()
	backup, command, err := p.queued(ctx, rec)
	if err == nil && command == "" {
		backup, command, err = p.queue(ctx, rec)
	}
	rctx, cancel := context.WithTimeout(ctx, standbyRequest)
	defer cancel()
	_, cerr := p.catalog.ChangePromotion(rctx, func(x *catalog.Promotion) error {
		if x.Chosen != p.id {
			return errNotChosen
		}
		x.Problem = ""
		if err != nil {
			x.Problem = fmt.Sprintf("%.500s", err.Error())
			return nil
		}
		x.Backup, x.Command = backup, command
		return nil
	})
	return errors.Join(err, cerr)
}

// promoteReason is the reason of the backup and of the restore that a promotion makes.
const promoteReason = "promote"

// queued is the restore that was queued for this promotion already, by this node or by one that the operator has given up. Managers would
// begin with any other one, too, so that is an error.
func (p *promotion) queued(ctx context.Context, rec catalog.Promotion) (backup, command string, err error) {
	ctx, cancel := context.WithTimeout(ctx, standbyRequest)
	defer cancel()
	l, err := p.catalog.ControlListing(ctx)
	if err != nil {
		return "", "", err
	}
	for _, o := range l.Commands {
		c, err := p.catalog.Command(ctx, o.Name)
		switch {
		case errors.Is(err, catalog.ErrNotFound):
			continue
		case err != nil:
			return "", "", err
		case c.Create != nil || c.PutBack != nil:
			continue
		}
		m := &catalog.Manifest{}
		if c.Backup != "" {
			m, err = p.catalog.Manifest(ctx, c.Backup)
			if err != nil && !errors.Is(err, catalog.ErrNotFound) {
				return "", "", err
			}
		}
		if c.Options.Reason != promoteReason || c.Backup == "" || err != nil || m.Revision < rec.Revision {
			return "", "", fmt.Errorf("the command %s is queued here, and isn't this promotion's: the managers would begin with it. "+
				"Remove it: etcd-manager-ctl delete-command %[1]s", c.Name)
		}
		return c.Backup, c.Name, nil
	}
	return "", "", nil
}

func (p *promotion) queue(ctx context.Context, rec catalog.Promotion) (backup, command string, err error) {
	c, err := operator.Open(ctx, operator.Config{Store: p.o.backupStore, AllowEmpty: true, Program: "etcd-manager " + build().Version,
		Identities: p.o.identities, Encryption: p.o.encryption, KMS: awskms.New(awskms.Config{Endpoint: p.o.env["KMS_ENDPOINT"]}),
		Open: func(context.Context, string) (blob.Store, error) { return p.store, nil }})
	if err != nil {
		return "", "", err
	}
	r := p.follower.Report()
	klog.Infof("a backup is made of the copy %s, which has revision %d", r.File, r.Revision)
	made, err := c.Import(ctx, operator.ImportRequest{File: r.File, Reason: promoteReason, SkipHashCheck: true})
	if err != nil {
		return "", "", fmt.Errorf("make a backup of the copy: %w", err)
	}
	if made.Revision < rec.Revision {
		return "", "", fmt.Errorf("the copy has revision %d, and must have %d", made.Revision, rec.Revision)
	}
	if _, err := p.catalog.CreateSpec(ctx, rec.Spec); err != nil && !errors.Is(err, catalog.ErrConflict) {
		return "", "", err
	}
	plan, err := c.PlanRestore(ctx, operator.RestoreRequest{Backup: made.Backup, Options: operator.RestoreOptions{Reason: promoteReason}})
	if err != nil {
		return "", "", err
	}
	if now, err := p.catalog.Promotion(ctx); err != nil {
		return "", "", err
	} else if now.Chosen != p.id {
		return "", "", errNotChosen
	}
	q, err := c.Restore(ctx, plan)
	if err != nil {
		return "", "", err
	}
	klog.Infof("the restore of %s is queued: the managers of this standby begin with it", made.Backup)
	return made.Backup, q.Command.Name, nil
}

// promotedFile says, beside the copy, for which store this node runs a cluster, so that it does although its flags still say otherwise.
func promotedFile(o *options) string {
	return filepath.Join(o.dataDir, "etcd-manager", "standby", "promoted")
}

// promoted notes on this node that it isn't a standby any more.
func (s *standbyNode) promoted(rec catalog.Promotion) error {
	s.endFollowing()
	file := promotedFile(s.o)
	if err := os.MkdirAll(filepath.Dir(file), 0o700); err != nil {
		return fmt.Errorf("note that this standby was promoted: %w", err)
	}
	if err := atomicfile.Write(file, []byte(s.o.backupStore+"\n"), 0o600); err != nil {
		return fmt.Errorf("note that this standby was promoted: %w", err)
	}
	klog.Warningf("this standby was promoted: it runs a cluster of its own from now on, and begins with backup %s. Remove --standby-of", rec.Backup)
	return errPromoted
}

// wasPromoted is errPromoted if this node is known not to be a standby any more.
func (s *standbyNode) wasPromoted(ctx context.Context) error {
	if b, err := os.ReadFile(promotedFile(s.o)); err == nil && strings.TrimSpace(string(b)) == s.o.backupStore {
		klog.Warningf("this standby was promoted, so --standby-of=%s isn't obeyed: remove it", s.o.standbyOf)
		return errPromoted
	}
	ctx, cancel := context.WithTimeout(ctx, standbyRequest)
	defer cancel()
	if rec, err := s.catalog.Promotion(ctx); err == nil && rec.Backup != "" {
		return s.promoted(rec)
	}
	return nil
}

// tell shows what this standby does about its promotion.
func (s *standbyNode) tell(what string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.becoming = what
}

// doing says what this node does.
func (s *standbyNode) doing(of string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.becoming != "" {
		return "standby of " + of + "; " + s.becoming
	}
	return "standby of " + of
}
