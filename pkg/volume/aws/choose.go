package aws

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/volume"
)

// step is what to do next on the way to a volume.
type step struct {
	// use is attached here.
	use *volume.Volume
	// attach can be tried, in this order.
	attach []*volume.Volume
	// release is attached here and was given up for another one.
	release *volume.Volume
	// force is to be detached by force from the machine where it is stuck, for the reason given.
	force  *volume.Volume
	reason string
	// waiting says why there is nothing to do, one reason for each volume.
	waiting []string
	// warn is what an operator should know of what is used.
	warn string
	// refused is why a volume that would do can't be used, ever.
	refused error
}

// view is what choose looks at: a moment of the cluster's volumes.
type view struct {
	self *Self
	cfg  Config
	// volumes are those of the machine's zone, everywhere those of all zones: a machine in another zone may take a copy there.
	volumes, everywhere []*volume.Volume
	// instances are those that hold a volume.
	instances  map[string]Instance
	encryption volume.Encryption
	forceAfter time.Duration
	// stuckFor is told whether a volume is stuck on a machine, and says for how long it has been seen to be without a break.
	stuckFor func(v *volume.Volume, stuck bool) time.Duration
}

// choose decides, and does nothing. A volume that is attached here comes first, then those that are
// free; what is attached elsewhere is waited for.
func choose(v view) step {
	var s step
	if len(v.volumes) == 0 {
		s.waiting = []string{fmt.Sprintf("no volume in zone %s has the tags %s", v.self.Zone, strings.Join(v.cfg.Tags, ", "))}
		return s
	}
	byID := map[volume.ID]*volume.Volume{}
	for _, w := range v.volumes {
		byID[w.ID] = w
	}
	var free []*volume.Volume
	rivals := v.rivals()
	for _, w := range v.volumes {
		a := attachment(w)
		here := a != nil && a.Instance == v.self.Instance
		wait := func(format string, args ...any) {
			s.waiting = append(s.waiting, fmt.Sprintf("volume %s ", w)+fmt.Sprintf(format, args...))
		}
		switch {
		case here && a.Device == v.self.RootDevice:
			wait("is this machine's root volume and is never used; remove its tags")
		case w.Node == "":
			wait("has no member's name in its tag %s", cmp.Or(v.cfg.NameTag, "Name"))
		case here && a.State == "attached" && w.Tags[TagGivenUp] != "":
			s.release = w
		case w.Tags[TagGivenUp] != "":
			wait("was released for %s", w.Tags[TagReplacedBy])
		case waitsForTurn(w, byID) != "":
			wait("%s", waitsForTurn(w, byID))
		case rivals[w.Node] != nil && !v.onlyUsed(w, rivals[w.Node]):
			s.refused = cmpErr(s.refused, twoOfOne(w.Node, rivals[w.Node], v.cfg))
			wait("is not the only one of its member")
		case v.encryption.Check(w) != nil && (here || a == nil):
			s.refused = cmpErr(s.refused, v.encryption.Check(w))
			wait("is not encrypted as required")
		case here && a.State == "attached":
			if s.use == nil {
				s.use = w
				if others := rivals[w.Node]; others != nil {
					s.warn = twoOfOne(w.Node, others, v.cfg).Error() + "; this machine goes on with " + string(w.ID) + ", which it has"
				}
			}
		case here:
			wait("is %s here", a.State)
		case a != nil:
			v.held(&s, w, a, wait)
		case w.State == "available":
			free = append(free, w)
		default:
			wait("is in the state %q", w.State)
		}
	}
	s.attach = free
	return s
}

// rivals are the volumes that could each be a member's data, by member, where a member has more than one. A copy has its original's tags.
func (v *view) rivals() map[cluster.NodeID][]*volume.Volume {
	byID := map[volume.ID]*volume.Volume{}
	for _, w := range v.everywhere {
		byID[w.ID] = w
	}
	all := map[cluster.NodeID][]*volume.Volume{}
	for _, w := range v.everywhere {
		a := attachment(w)
		root := a != nil && a.Instance == v.self.Instance && a.Device == v.self.RootDevice
		gone := w.State == "deleting" || w.State == "deleted"
		if w.Node == "" || root || gone || w.Tags[TagGivenUp] != "" || waitsForTurn(w, byID) != "" {
			continue
		}
		all[w.Node] = append(all[w.Node], w)
	}
	maps.DeleteFunc(all, func(_ cluster.NodeID, list []*volume.Volume) bool { return len(list) < 2 })
	return all
}

// onlyUsed tells that a volume is attached here and its rivals are nowhere: it was chosen before they
// appeared, and no other machine has one.
func (v *view) onlyUsed(w *volume.Volume, rivals []*volume.Volume) bool {
	a := attachment(w)
	return a != nil && a.Instance == v.self.Instance && a.State == "attached" &&
		!slices.ContainsFunc(rivals, func(o *volume.Volume) bool { return o.ID != w.ID && attachment(o) != nil })
}

// twoOfOne names all volumes that could be one member's.
func twoOfOne(node cluster.NodeID, rivals []*volume.Volume, cfg Config) error {
	var list []string
	for _, w := range rivals {
		where := "attached nowhere"
		if a := attachment(w); a != nil {
			where = a.State + " to " + a.Instance
		}
		list = append(list, fmt.Sprintf("%s (created %s, in %s, %s)", w.ID, w.Created.UTC().Format(time.RFC3339), w.Zone, where))
	}
	return fmt.Errorf("%d volumes have the tags of member %s: %s; one may be a copy that lacks acknowledged writes, so none is used: "+
		"remove the tag %s from all but the member's own (a copy was created later than its original)",
		len(list), node, strings.Join(list, " and "), cmp.Or(cfg.NameTag, "Name"))
}

// held says what a volume waits for that is attached to another machine. Only where no running
// machine can lose it, and only if the operator has said so, it is taken away by force.
func (v *view) held(s *step, w *volume.Volume, a *volume.Attachment, wait func(string, ...any)) {
	i, known := v.instances[a.Instance]
	state := cmp.Or(i.State, "unknown to EC2")
	if !known {
		state = "unknown to EC2"
	}
	stuck := a.State == "detaching" || state != "running" && state != "pending"
	held := v.stuckFor(w, stuck)
	if !stuck {
		wait("is %s to %s, which is %s", a.State, a.Instance, state)
		return
	}
	where := fmt.Sprintf("still %s to %s (%s)", a.State, a.Instance, state)
	if a.State == "detaching" {
		where = fmt.Sprintf("detaching from %s (%s)", a.Instance, state)
	}
	switch {
	case v.forceAfter <= 0:
		wait("is %s; waiting until EC2 has detached it, which is never forced without --force-detach-after", where)
	case held < v.forceAfter:
		wait("is %s, for %s; it is detached by force after %s", where, held.Round(time.Second), v.forceAfter)
	default:
		s.force, s.reason = w, fmt.Sprintf("it has been %s for %s, longer than --force-detach-after=%s", where,
			held.Round(time.Second), v.forceAfter)
	}
}

// waitsForTurn says why a volume that was made to take another one's place may not be used, or "".
// Only the one that the other names takes it: an earlier attempt may have left one behind.
func waitsForTurn(w *volume.Volume, byID map[volume.ID]*volume.Volume) string {
	id := volume.ID(w.Tags[TagReplaces])
	if id == "" {
		return ""
	}
	switch old := byID[id]; {
	case old == nil:
		return fmt.Sprintf("was created to replace %s, which doesn't have this member's tags (any more): if this is the member's volume, remove its tag %s, else delete it", id, TagReplaces)
	case old.Tags[TagReplacedBy] != "" && old.Tags[TagReplacedBy] != string(w.ID):
		return fmt.Sprintf("was created to replace %s, but that is replaced by %s; delete it", id, old.Tags[TagReplacedBy])
	case old.Tags[TagReplacedBy] == "" || old.Tags[TagGivenUp] == "" || attachment(old) != nil:
		return fmt.Sprintf("replaces %s when that is released", id)
	}
	return ""
}

// attachment is where a volume is, or nil.
func attachment(w *volume.Volume) *volume.Attachment {
	i := slices.IndexFunc(w.Attachments, func(a volume.Attachment) bool { return a.State != "detached" })
	if i < 0 {
		return nil
	}
	return &w.Attachments[i]
}

func cmpErr(a, b error) error {
	if a != nil {
		return a
	}
	return b
}
