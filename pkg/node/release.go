package node

import (
	"errors"
	"fmt"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// busyReleasing is what a node is busy with from the leader's word on: nothing else is begun that could stop another member.
const busyReleasing = "release_volume"

var errReleased = errors.New("this node is giving its data volume up; nothing else is changed on it")

// volumeRelease is the data volume that the node is ready to give up, or nil, and whether that has begun.
type volumeRelease struct {
	ready *cluster.VolumeRelease
	begun bool
}

// SetRelease says which data volume this node is ready to give up; nil if it is to keep the one that it has. The leader hears of a change at
// once and decides. Once it has decided, nothing changes that any more.
func (a *Agent) SetRelease(r *cluster.VolumeRelease) {
	a.mu.Lock()
	defer a.mu.Unlock()
	same := r == nil && a.volume.ready == nil || r != nil && a.volume.ready != nil && *r == *a.volume.ready
	if same || a.volume.begun {
		return
	}
	if r != nil {
		own := *r
		r = &own
	}
	a.volume.ready = r
	a.bump()
}

// releasing is what the node is busy with if its volume is being given up. mu is held.
func (a *Agent) releasing() string {
	if a.volume.begun {
		return busyReleasing
	}
	return ""
}

// releaseVolume begins to give the data volume up, as the leader says. The leader names both volumes, since what this node is ready for may
// have changed after the leader has looked.
func (a *Agent) releaseVolume(req *protosv1.ReleaseVolume) error {
	asked := cluster.VolumeRelease{Volume: req.GetVolume(), Replacement: req.GetReplacement()}
	a.mu.Lock()
	defer a.mu.Unlock()
	switch {
	case a.cfg.Release == nil:
		return fmt.Errorf("this node has no data volume that could be given up: %w", cluster.ErrPermanent)
	case a.volume.ready == nil:
		return fmt.Errorf("this node isn't ready to give volume %s up", asked.Volume)
	case *a.volume.ready != asked:
		return fmt.Errorf("this node is ready to give volume %s up for %s, not %s for %s", a.volume.ready.Volume, a.volume.ready.Replacement, asked.Volume, asked.Replacement)
	case a.volume.begun:
		return nil
	}
	if err := a.cfg.Release(asked); err != nil {
		return err
	}
	klog.Infof("volume %s is to be replaced by %s, and the leader says that every member is well: this node gives it up", asked.Volume, asked.Replacement)
	a.volume.begun = true
	a.bump()
	return nil
}
