package main

import (
	"context"
	"fmt"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/node"
	"github.com/etcd-manager/etcd-manager/pkg/volume"
	ebs "github.com/etcd-manager/etcd-manager/pkg/volume/aws"
)

// How this node's volume is replaced by another one is written in docs/aws.md. The operator's tool
// tags the old volume; the node sees that with the look at EC2 by which it finds the others. It
// finds out whether all is ready for the new volume and says so in its status. The leader decides
// whether the member can be spared (plan, safety.MayRelease), and tells it to give the volume up.

const (
	// volumeTimeout bounds what is asked of EC2 and of the store for one look.
	volumeTimeout = 15 * time.Second
	// leaderPatience is how long a leader may take to say something, before the node says that it waits for it.
	leaderPatience = 15 * time.Second
)

// seen is what discovery saw last.
type seen struct {
	mu      sync.Mutex
	volumes []*volume.Volume
}

func (s *seen) put(v []*volume.Volume) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.volumes = v
}

// find returns a volume as it was seen last, or nil.
func (s *seen) find(id volume.ID) *volume.Volume {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, v := range s.volumes {
		if v.ID == id {
			return v
		}
	}
	return nil
}

// watchReplacement says in the store how this node's volume does, and tells the leader whether it is ready to be given up.
func (d *daemon) watchReplacement(ctx context.Context) {
	v := d.volume
	record := catalog.VolumeRecord{Node: d.id, Volume: string(v.volume.ID), Instance: v.self.Instance}
	s := d.agent.LastStatus()
	record.Serving = s.Running && s.Votes() && !s.Quarantined
	own := v.seen.find(v.volume.ID)
	if own == nil || own.Tags[ebs.TagReplacedBy] == "" {
		d.setRelease(nil)
		select {
		case <-d.giveUp: // it has begun, so the turn is still needed; after setRelease it can't begin any more
			return
		default:
		}
		d.endTurn(ctx, record.Serving)
	} else if err := d.readyToRelease(ctx, own); err != nil {
		d.setRelease(nil)
		record.Waiting = err.Error()
	} else {
		d.setRelease(&cluster.VolumeRelease{Volume: string(own.ID), Replacement: own.Tags[ebs.TagReplacedBy]})
		record.Waiting = d.leaderWaits()
	}
	if record.Waiting != "" {
		klog.V(2).Infof("volume %s is to be replaced by %s: not yet: %v", own.ID, own.Tags[ebs.TagReplacedBy], record.Waiting)
	}
	d.publishVolume(ctx, record)
}

// setRelease tells the leader, with this node's status, which volume it is ready to give up.
func (d *daemon) setRelease(r *cluster.VolumeRelease) {
	switch {
	case r == nil:
		d.volume.readySince = time.Time{}
	case d.volume.readySince.IsZero():
		d.volume.readySince = time.Now()
	}
	d.agent.SetRelease(r)
}

// leaderWaits says why the leader has not yet told this node to give its volume up, or is "".
func (d *daemon) leaderWaits() string {
	leader, _ := d.peers.Leader()
	return leaderWaits(leader, d.manager.Outlook().Releases[d.id], time.Since(d.volume.readySince))
}

// leaderWaits is what a node that is ready for so long waits for: told is what the leader says. A
// leader that says nothing, and doesn't act either, has a manager that doesn't know of this: the
// node waits for one that does, and never decides by itself.
func leaderWaits(leader cluster.NodeID, told string, ready time.Duration) string {
	switch {
	case told != "":
		return told
	case ready < leaderPatience:
		return ""
	case leader == "":
		return "no manager leads, so nobody can decide whether the cluster can do without this member"
	}
	return fmt.Sprintf("node %s leads and has not decided whether the cluster can do without this member; if its manager is older than this one, upgrade it", leader)
}

// release is called when the leader has told this node to give its volume up. run stops everything then.
func (d *daemon) release(cluster.VolumeRelease) error {
	close(d.giveUp)
	return nil
}

// endTurn lets others have their volumes replaced, once this node serves.
func (d *daemon) endTurn(ctx context.Context, serving bool) {
	if !serving || d.volume.turnEnded {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, volumeTimeout)
	defer cancel()
	if err := d.catalog.EndTurn(ctx, d.id); err != nil {
		klog.V(2).Infof("release the lease for replacing volumes: %v", err)
		return
	}
	d.volume.turnEnded = true
}

// publishVolume writes what has changed.
func (d *daemon) publishVolume(ctx context.Context, r catalog.VolumeRecord) {
	if r == d.volume.published {
		return
	}
	written := r
	written.At = time.Now().UTC().Truncate(time.Second)
	ctx, cancel := context.WithTimeout(ctx, volumeTimeout)
	defer cancel()
	if err := d.catalog.PutVolume(ctx, written); err != nil {
		klog.V(2).Infof("report which volume this node has: %v", err)
		return
	}
	d.volume.published = r
}

// readyToRelease returns nil if everything is ready for this node to come back on the new volume.
func (d *daemon) readyToRelease(ctx context.Context, own *volume.Volume) error {
	ctx, cancel := context.WithTimeout(ctx, volumeTimeout)
	defer cancel()
	next, err := d.volume.ebs.Volume(ctx, volume.ID(own.Tags[ebs.TagReplacedBy]))
	switch {
	case err != nil:
		return err
	case next.Tags[ebs.TagReplaces] != string(own.ID):
		return fmt.Errorf("volume %s isn't tagged %s=%s", next.ID, ebs.TagReplaces, own.ID)
	case next.State != "available" || next.Zone != own.Zone || next.Node != own.Node:
		return fmt.Errorf("volume %s is %s in zone %s for node %s, not available in zone %s for %s", next.ID,
			next.State, next.Zone, next.Node, own.Zone, own.Node)
	}
	if err := d.o.encryptedOnly.Check(next); err != nil {
		return err
	}
	if err := ebs.MayGiveUp(ctx, d.volume.ebs, own.ID, d.volume.self); err != nil {
		return err
	}
	// Whatever the tags say and however often the tool was started: the store lets one node at a
	// time be without its data. Only who has the turn is looked at by the leader, so that what it
	// sees isn't changed by a replacement. Older managers keep to the turn too.
	d.volume.turnEnded = false
	return d.catalog.TakeTurn(ctx, catalog.Turn{Node: d.id, Volume: string(own.ID), Since: time.Now().UTC().Truncate(time.Second)})
}

// giveUpVolume is done when etcd was stopped in order and nothing uses the volume any more. The tag
// is the point of no return. It returns what this node has promised in elections, which goes with
// it to the next volume: it must not vote twice in a term.
func (d *daemon) giveUpVolume(ctx context.Context) (node.Vote, error) {
	v := d.volume
	vote, err := node.Votes(d.o.dataDir).Load()
	if err != nil {
		return vote, err
	}
	// The new volume may have been taken away since it was looked at. Then the next start goes on with the old one.
	own := v.seen.find(v.volume.ID)
	if own == nil {
		return vote, fmt.Errorf("release volume %s: it isn't among the cluster's volumes any more; it is kept, and the next start goes on with it", v.volume)
	}
	if err := d.readyToRelease(ctx, own); err != nil {
		return vote, fmt.Errorf("release volume %s: %w; it is kept, and the next start goes on with it", v.volume, err)
	}
	if err := v.unmount(); err != nil {
		return vote, fmt.Errorf("release volume %s: %w", v.volume, err)
	}
	if err := v.ebs.Tag(ctx, v.volume.ID, map[string]string{ebs.TagGivenUp: time.Now().UTC().Format(time.RFC3339)}); err != nil {
		return vote, fmt.Errorf("release volume %s: %w", v.volume, err)
	}
	klog.Infof("volume %s is released; it is kept unchanged", v.volume)
	return vote, nil
}

// keepPromise writes down on a new volume what was promised on the one before.
func (d *daemon) keepPromise() error {
	votes := node.Votes(d.o.dataDir)
	have, err := votes.Load()
	if err != nil || have.Term >= d.promised.Term {
		return err
	}
	return votes.Save(d.promised)
}
