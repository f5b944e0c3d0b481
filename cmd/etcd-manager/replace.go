package main

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/node"
	"github.com/etcd-manager/etcd-manager/pkg/volume"
	ebs "github.com/etcd-manager/etcd-manager/pkg/volume/aws"
)

// How this node's volume is replaced by another one is written in docs/aws.md. The operator's tool tags the old volume; the node sees that with the
// look at EC2 by which it finds the others, waits until it can be spared, and gives the volume up.

// spareTimeout bounds the question whether this member can be spared.
const spareTimeout = 15 * time.Second

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

// watchReplacement says in the store how this node's volume does, and whether it is to be given up now.
func (d *daemon) watchReplacement(ctx context.Context) bool {
	v := d.volume
	record := catalog.VolumeRecord{Node: d.id, Volume: string(v.volume.ID), Instance: v.self.Instance}
	s := d.agent.LastStatus()
	record.Serving = s.Running && s.Votes() && !s.Quarantined
	giveUp := false
	if own := v.seen.find(v.volume.ID); own == nil || own.Tags[ebs.TagReplacedBy] == "" {
		d.endTurn(ctx, record.Serving)
	} else {
		if err := d.spared(ctx, own); err != nil {
			record.Waiting = err.Error()
			klog.V(2).Infof("volume %s is to be replaced by %s: not yet: %v", own.ID, own.Tags[ebs.TagReplacedBy], err)
		} else {
			klog.Infof("volume %s is to be replaced by %s, and every member is well: this node gives it up", own.ID, own.Tags[ebs.TagReplacedBy])
			giveUp = true
		}
	}
	d.publishVolume(ctx, record)
	return giveUp
}

// endTurn lets others have their volumes replaced, once this node serves.
func (d *daemon) endTurn(ctx context.Context, serving bool) {
	if !serving || d.volume.turnEnded {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, spareTimeout)
	defer cancel()
	if err := d.catalog.EndTurn(ctx, d.id); err != nil {
		klog.V(2).Infof("let others have their volumes replaced: %v", err)
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
	ctx, cancel := context.WithTimeout(ctx, spareTimeout)
	defer cancel()
	if err := d.catalog.PutVolume(ctx, written); err != nil {
		klog.V(2).Infof("say which volume this node has: %v", err)
		return
	}
	d.volume.published = r
}

// spared returns nil if the others serve without this member, and everything is ready for it to come back on the new volume.
func (d *daemon) spared(ctx context.Context, own *volume.Volume) error {
	ctx, cancel := context.WithTimeout(ctx, spareTimeout)
	defer cancel()
	next, err := d.volume.ebs.Volume(ctx, volume.ID(own.Tags[ebs.TagReplacedBy]))
	switch {
	case err != nil:
		return err
	case next.Tags[ebs.TagReplaces] != string(own.ID):
		return fmt.Errorf("volume %s isn't tagged %s=%s", next.ID, ebs.TagReplaces, own.ID)
	case next.State != "available" || next.Zone != own.Zone || next.Node != own.Node:
		return fmt.Errorf("volume %s is %s in zone %s for node %s, not available in zone %s for %s", next.ID, next.State, next.Zone, next.Node, own.Zone, own.Node)
	}
	if err := d.o.encryptedOnly.Check(next); err != nil {
		return err
	}
	if err := d.volume.ebs.MayGiveUp(ctx, own.ID, d.volume.self); err != nil {
		return err
	}
	// Whatever the tags say and however often the tool was started: the store lets one node at a time be without its data. Only who has the turn
	// looks at the others, so that what it sees isn't changed by a replacement.
	d.volume.turnEnded = false
	if err := d.catalog.TakeTurn(ctx, catalog.Turn{Node: d.id, Volume: string(own.ID), Since: time.Now().UTC().Truncate(time.Second)}); err != nil {
		return err
	}
	return d.othersAreWell(ctx)
}

// othersAreWell asks every member. All have to be healthy voters, as many as are wanted, so that a majority is left without this one.
func (d *daemon) othersAreWell(ctx context.Context) error {
	status := d.agent.Status(ctx)
	switch {
	case status.Operation != "" || status.Holding:
		return fmt.Errorf("a restore is under way (%s)", status.Operation)
	case !status.Etcd.Votes():
		return fmt.Errorf("the member on this node is not a healthy voter: %s", status.Etcd.Error)
	case status.Busy != "":
		return fmt.Errorf("this node is busy with %s", status.Busy)
	}
	own, err := d.dialMember(d.id, d.self.ClientURLs)
	if err != nil {
		return err
	}
	defer own.Close()
	members, err := own.Members(ctx, true)
	if err != nil {
		return err
	}
	if len(members) < 3 || len(members) < status.State.DesiredSize {
		return fmt.Errorf("there are %d members; at least 3, and all %d that are wanted, are needed, so that the data stay when this one is rebuilt", len(members), status.State.DesiredSize)
	}
	var errs []error
	for _, m := range members {
		if err := d.memberIsWell(ctx, m); err != nil {
			errs = append(errs, fmt.Errorf("member %s (%s): %w", m.Name, m.ID, err))
		}
	}
	return errors.Join(errs...)
}

func (d *daemon) memberIsWell(ctx context.Context, m cluster.Member) error {
	if m.Learner || m.Name == "" || len(m.ClientURLs) == 0 {
		return errors.New("it is no voter yet")
	}
	c, err := d.dialMember(cluster.NodeID(m.Name), m.ClientURLs)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.IsMember(ctx, m.ID); err != nil {
		return err
	}
	if h := c.Health(ctx); !h.Healthy {
		return errors.New(h.Reason)
	}
	return nil
}

// dialMember connects to the member of a node, and not to one with which it shares a name.
func (d *daemon) dialMember(id cluster.NodeID, urls []string) (*etcd.Client, error) {
	endpoints := etcd.MemberEndpoints(urls, d.peers.Addresses(id))
	if d.keeper == nil || d.o.etcdInsecure || strings.HasPrefix(urls[0], "http:") {
		return etcd.Dial(endpoints, nil)
	}
	var hosts []string
	for _, s := range urls {
		if u, err := url.Parse(s); err == nil {
			hosts = append(hosts, u.Hostname())
		}
	}
	return etcd.Dial(endpoints, d.keeper.EtcdClient(hosts...))
}

// giveUpVolume is done when etcd was stopped in order and nothing uses the volume any more. The tag is the point of no return. It returns what
// this node has promised in elections, which goes with it to the next volume: it must not vote twice in a term.
func (d *daemon) giveUpVolume(ctx context.Context) (node.Vote, error) {
	v := d.volume
	vote, err := node.Votes(d.o.dataDir).Load()
	if err != nil {
		return vote, err
	}
	if err := v.unmount(); err != nil {
		return vote, fmt.Errorf("give volume %s up: %w", v.volume, err)
	}
	if err := v.ebs.Tag(ctx, v.volume.ID, map[string]string{ebs.TagGivenUp: time.Now().UTC().Format(time.RFC3339)}); err != nil {
		return vote, fmt.Errorf("give volume %s up: %w", v.volume, err)
	}
	klog.Infof("volume %s is given up; it is kept as it is", v.volume)
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
