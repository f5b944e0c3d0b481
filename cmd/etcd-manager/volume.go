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

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/volume"
	ebs "github.com/etcd-manager/etcd-manager/pkg/volume/aws"
	"github.com/etcd-manager/etcd-manager/pkg/volume/external"
)

const (
	// volumeCheck is how often it is made sure that the volume is still mounted, growCheck how often whether it has grown.
	volumeCheck = 5 * time.Second
	growCheck   = time.Minute
	// machineRoot and machineProc are where a container sees its machine (--containerized).
	machineRoot = "/rootfs"
	machineProc = "/proc"
)

// dataVolume is the volume that the data dir lies on.
type dataVolume struct {
	// check returns an error that wraps volume.ErrNotMounted if it is gone.
	check func() error
	// grow is nil where somebody else looks after the file system.
	grow func(context.Context) error
	// What follows is nil if the provider isn't aws.
	ebs    *ebs.Client
	self   *ebs.Self
	volume *volume.Volume
	// unmount takes it away for good, seen is what EC2 said of all volumes, published what was said in the store.
	unmount   func() error
	seen      seen
	published catalog.VolumeRecord
	// turnEnded is true once it is known that this node doesn't have the turn to be without its data.
	turnEnded bool
	// readySince is when this node became ready to give the volume up; zero if it isn't.
	readySince time.Time
}

// host is the machine on which volumes are mounted.
func (o *options) host() volume.Host {
	if o.containerized {
		return volume.InHost{Proc: machineProc, Root: machineRoot}
	}
	return volume.Direct{}
}

// openEBS finds, attaches and mounts this machine's volume. Node id, address and data dir come from it.
func (d *daemon) openEBS(ctx context.Context) error {
	o := d.o
	client, self, err := d.openEC2(ctx)
	if err != nil {
		return fmt.Errorf("--volume-provider=aws: %w", err)
	}
	m := &volume.Mounter{Host: o.host(), Say: klog.Infof}
	a := &ebs.Acquirer{
		Client: client, Self: self, Host: m.Host, DeviceRoot: "/", Encryption: o.encryptedOnly,
		ForceDetachAfter: o.forceDetach, Say: klog.Infof,
		Unmount: func(_ context.Context, v *volume.Volume) error {
			point, err := m.PointFor(v.ID)
			if err != nil || !o.containerized {
				return errors.Join(err, m.Unmount(point))
			}
			return m.Unmount(point, filepath.Join(machineRoot, point))
		},
	}
	v, device, err := a.Acquire(ctx)
	if err != nil {
		return fmt.Errorf("--volume-provider=aws: %w", err)
	}
	point, err := m.PointFor(v.ID)
	if err != nil {
		return err
	}
	mounted, err := m.Mount(ctx, device, point)
	if err != nil {
		return fmt.Errorf("volume %s: %w", v, err)
	}
	d.id, o.dataDir, o.address = v.Node, mounted.Dir, self.Address
	if !o.etcdAddressGiven && strings.Contains(self.Address, ":") {
		o.etcdAddress = "::"
	}
	d.volume = &dataVolume{check: mounted.Check, grow: mounted.Grow, ebs: client, self: self, volume: v, unmount: mounted.Unmount}
	klog.Infof("this machine is %s in zone %s, its volume %s, mounted at %s: it is node %s at %s", self.Instance,
		self.Zone, v.ID, mounted.Dir, d.id, o.address)
	if err := d.claim(v.ID); err != nil {
		return err
	}
	return d.keepPromise()
}

// openEC2 asks who this machine is. At boot the answers may take a while; a missing permission doesn't mend itself.
func (d *daemon) openEC2(ctx context.Context) (*ebs.Client, *ebs.Self, error) {
	cfg := ebs.Config{ClusterName: d.o.clusterName, Tags: d.o.volumeTags, NameTag: d.o.volumeNameTag}
	for wait := time.Second; ; wait = min(2*wait, 30*time.Second) {
		client, err := ebs.Open(ctx, cfg)
		var self *ebs.Self
		if err == nil {
			self, err = ebs.FindSelf(ctx, client)
		}
		var denied *ebs.PermissionError
		if err == nil || errors.As(err, &denied) || ctx.Err() != nil {
			return client, self, err
		}
		d.said.Warningf("machine", "waiting for AWS to identify this machine: %v", err)
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
}

// openExternal waits for the volume that somebody else mounts at the data dir.
func (d *daemon) openExternal(ctx context.Context) error {
	if d.o.prepared() {
		return d.openPrepared(ctx)
	}
	p := &external.Provider{Dir: d.o.dataDir, Say: klog.Infof}
	v, err := p.Acquire(ctx)
	if err != nil {
		return err
	}
	d.volume = &dataVolume{check: v.Check}
	if d.id, err = d.externalID(ctx); err != nil {
		return err
	}
	return d.claim("")
}

// openPrepared waits for the directory that somebody has made for this node. Its name is the node's id.
func (d *daemon) openPrepared(ctx context.Context) error {
	o, root := d.o, "/"
	if o.containerized {
		root = machineRoot
	}
	p := &external.Prepared{Root: root, Prefix: o.volumeTags[0], Say: klog.Infof}
	v, err := p.Acquire(ctx)
	if err != nil {
		return err
	}
	if d.id, err = cluster.ParseNodeID(v.Name); err != nil {
		return fmt.Errorf("the directory of the volume, %s, names the node: %w", v.Dir, err)
	}
	if o.static != nil && !o.static.has(d.id) {
		return fmt.Errorf("the volume %s is of node %s, which --static-config doesn't name", v.Dir, d.id)
	}
	if !o.addressGiven {
		if err := o.takeOwnAddress(); err != nil {
			return err
		}
	}
	d.volume, o.dataDir = &dataVolume{check: v.Check}, v.Dir
	klog.Infof("this machine has the volume %s: it is node %s at %s", v.Dir, d.id, o.address)
	return d.claim("")
}

// takeOwnAddress sets the address that others reach this machine at.
func (o *options) takeOwnAddress() error {
	all, err := machineAddresses()
	if err != nil {
		return err
	}
	a, ok := ownAddress(all)
	if !ok {
		return errors.New("this machine has no address but loopback and link-local ones; give the one that the other managers reach with --address")
	}
	o.address = a.String()
	if !o.etcdAddressGiven && a.Is6() {
		o.etcdAddress = "::"
	}
	return nil
}

// externalID is who this node is by the volume. Nothing is written to one that holds data of somebody who isn't named.
func (d *daemon) externalID(ctx context.Context) (cluster.NodeID, error) {
	dir := d.o.dataDir
	if _, err := os.Stat(filepath.Join(dir, "myid")); err == nil || d.o.static != nil {
		return d.o.nodeID(ctx)
	}
	identity, err := volume.ReadIdentity(dir)
	if err != nil {
		return "", err
	}
	if identity != nil {
		return identity.Node, nil
	}
	if _, err := os.Stat(filepath.Join(dir, "state")); err == nil {
		return "", fmt.Errorf("the volume at %s has a state file but no myid, so its owner isn't known: write the node's id there, or empty the volume: %w", dir, volume.ErrForeign)
	}
	return d.o.nodeID(ctx)
}

// claim makes sure that the volume is this node's.
func (d *daemon) claim(id volume.ID) error {
	return volume.Claim(d.o.dataDir, volume.Identity{ClusterName: d.o.clusterName, Node: d.id, Store: d.o.backupStore,
		Volume: id, Created: time.Now().UTC().Truncate(time.Second)})
}

// keepVolume ends the manager when the volume is gone, so that its next start waits for it. It also
// has the file system follow the volume's size.
func (d *daemon) keepVolume(ctx context.Context) error {
	tick := time.NewTicker(volumeCheck)
	defer tick.Stop()
	grown := time.Now()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-d.giveUp:
			<-ctx.Done()
			return nil
		case <-tick.C:
		}
		if err := d.volume.check(); err != nil {
			return fmt.Errorf("%w: %w", err, cluster.ErrPermanent)
		}
		if d.volume.grow != nil && time.Since(grown) >= growCheck {
			grown = time.Now()
			if err := d.volume.grow(ctx); err != nil && ctx.Err() == nil {
				d.said.Warningf("grow", "%v", err)
			}
		}
		if d.volume.ebs != nil {
			d.watchReplacement(ctx)
		}
	}
}
