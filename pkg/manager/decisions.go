package manager

import (
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/plan"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// decisionLog logs what was decided, when it is news. Only the loop uses it.
type decisionLog struct {
	*shared
	lastKey  string
	lastSaid time.Time
}

// say logs a decision when it is a new one; what needs a person is said again from time to time.
// Decisions that take turns are not new each time.
func (dl *decisionLog) say(d plan.Decision) {
	text, key := d.Why, d.Key+" -> "+model.Subject(d.Do)
	if d.Do != nil {
		text += " -> " + d.Do.String()
	}
	same := key == dl.lastKey
	dl.lastKey = key
	if same && (!d.Alarm || time.Since(dl.lastSaid) < repeatAlarm) {
		return
	}
	if _, due := dl.said.Allow(key); !due {
		return
	}
	dl.lastSaid = time.Now()
	if !same {
		dl.m.remember(text)
		dl.m.events.decided(dl.term, d, text)
	}
	if d.Alarm {
		klog.Warningf("%s", text)
		return
	}
	klog.Infof("%s", text)
}

// sayDisks names the nodes on whose disks etcd can't go on, again and again.
func (dl *decisionLog) sayDisks(o *model.Observation) {
	for i := range o.Nodes {
		if n := &o.Nodes[i]; plan.DiskFull(n) {
			dl.said.Warningf("disk "+string(n.ID), "The disk of node %s is full (%d of %d MiB are free). Make room on it, or enlarge it; etcd goes on by itself then",
				n.ID, n.DiskFree>>20, n.DiskTotal>>20)
		}
	}
}
