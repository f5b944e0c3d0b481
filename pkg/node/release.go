package node

import (
	"errors"
	"fmt"
	"sync"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// errNotNow refuses to give a volume up while something else changes the node: the leader decides again later, on what it sees then.
var errNotNow = errors.New("this node is busy, and gives its data volume up only at once")

var errReleased = errors.New("this node is giving its data volume up; nothing else is changed on it")

// volumeRelease is the data volume that the node is ready to give up. It may be used concurrently.
type volumeRelease struct {
	cfg     *Config
	changes *changes

	mu    sync.Mutex // guards what follows
	ready *cluster.VolumeRelease
	begun bool
}

// SetRelease says which data volume this node is ready to give up; nil if it is to keep the one that it has. The leader hears of a change at
// once and decides. Once it has decided, nothing changes that any more.
func (a *Agent) SetRelease(r *cluster.VolumeRelease) { a.volume.set(r) }

func (v *volumeRelease) set(r *cluster.VolumeRelease) {
	v.mu.Lock()
	defer v.mu.Unlock()
	same := r == nil && v.ready == nil || r != nil && v.ready != nil && *r == *v.ready
	if same || v.begun {
		return
	}
	if r != nil {
		own := *r
		r = &own
	}
	v.ready = r
	v.changes.note()
}

// status is what the node is ready for, and what it is busy with if that has begun.
func (v *volumeRelease) status() (ready *cluster.VolumeRelease, busy string) {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.begun {
		busy = cluster.BusyReleasing
	}
	return v.ready, busy
}

// begin begins to give the data volume up, as the leader says. The leader names both volumes, since what this node is ready for may
// have changed after the leader has looked.
func (v *volumeRelease) begin(req *protosv1.ReleaseVolume) error {
	asked := cluster.VolumeRelease{Volume: req.GetVolume(), Replacement: req.GetReplacement()}
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.cfg.Release == nil:
		return fmt.Errorf("this node has no data volume that could be given up: %w", cluster.ErrPermanent)
	case v.ready == nil:
		return fmt.Errorf("this node isn't ready to give volume %s up", asked.Volume)
	case *v.ready != asked:
		return fmt.Errorf("this node is ready to give volume %s up for %s, not %s for %s", v.ready.Volume, v.ready.Replacement, asked.Volume, asked.Replacement)
	case v.begun:
		return nil
	}
	if err := v.cfg.Release(asked); err != nil {
		return err
	}
	klog.Infof("volume %s is to be replaced by %s, and the leader says that every member is healthy: this node releases it", asked.Volume, asked.Replacement)
	v.begun = true
	v.changes.note()
	return nil
}
