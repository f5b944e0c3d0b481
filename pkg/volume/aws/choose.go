package aws

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

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
	// refused is why a volume that would do can't be used, ever.
	refused error
}

// view is what choose looks at: a moment of the zone's volumes.
type view struct {
	self    *Self
	cfg     Config
	volumes []*volume.Volume
	// instances are those that hold a volume.
	instances  map[string]Instance
	encryption volume.Encryption
	forceAfter time.Duration
	// stuckFor is told whether a volume is stuck on a machine, and says for how long it has been seen to be without a break.
	stuckFor func(v *volume.Volume, stuck bool) time.Duration
}

// choose decides, and does nothing. A volume that is attached here comes first, then those that are free; what is attached elsewhere is waited for.
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
	for _, w := range v.volumes {
		a := attachment(w)
		here := a != nil && a.Instance == v.self.Instance
		wait := func(format string, args ...any) {
			s.waiting = append(s.waiting, fmt.Sprintf("volume %s ", w)+fmt.Sprintf(format, args...))
		}
		switch {
		case here && a.Device == v.self.RootDevice:
			wait("is this machine's root volume and is never used; take its tags away")
		case w.Node == "":
			wait("says no member's name in its tag %s", cmp.Or(v.cfg.NameTag, "Name"))
		case here && a.State == "attached" && w.Tags[TagGivenUp] != "":
			s.release = w
		case w.Tags[TagGivenUp] != "":
			wait("was given up for %s", w.Tags[TagReplacedBy])
		case waitsForTurn(w, byID) != "":
			wait("%s", waitsForTurn(w, byID))
		case v.encryption.Check(w) != nil && (here || a == nil):
			s.refused = cmpErr(s.refused, v.encryption.Check(w))
			wait("is not encrypted as required")
		case here && a.State == "attached":
			if s.use == nil {
				s.use = w
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

// held says what a volume waits for that is attached to another machine. Only where no running machine can lose it, and only if the operator has
// said so, it is taken away by force.
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
		s.force, s.reason = w, fmt.Sprintf("it has been %s for %s, longer than --force-detach-after=%s", where, held.Round(time.Second), v.forceAfter)
	}
}

// waitsForTurn says why a volume that was made to take another one's place may not be used, or "". Only the one that the other names takes it: an
// earlier attempt may have left one behind.
func waitsForTurn(w *volume.Volume, byID map[volume.ID]*volume.Volume) string {
	id := volume.ID(w.Tags[TagReplaces])
	if id == "" {
		return ""
	}
	switch old := byID[id]; {
	case old == nil:
		return fmt.Sprintf("was made to take the place of %s, which has not this member's tags (any more): if this is the member's volume, remove its tag %s, else delete it", id, TagReplaces)
	case old.Tags[TagReplacedBy] != "" && old.Tags[TagReplacedBy] != string(w.ID):
		return fmt.Sprintf("was made to take the place of %s, but that is replaced by %s; delete it", id, old.Tags[TagReplacedBy])
	case old.Tags[TagReplacedBy] == "" || old.Tags[TagGivenUp] == "" || attachment(old) != nil:
		return fmt.Sprintf("takes the place of %s once that is given up", id)
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
