package aws

import (
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/volume"
	"github.com/etcd-manager/etcd-manager/test/awsdouble"
)

// vol makes a volume of a member. Where is "" or instance:state.
func vol(id volume.ID, node cluster.NodeID, zone, where string, tags ...string) *volume.Volume {
	v := &volume.Volume{ID: id, Node: node, Zone: zone, State: "available", Tags: map[string]string{}, Created: time.Date(2026, 1,
		len(id), 0, 0, 0, 0, time.UTC)}
	if instance, state, ok := strings.Cut(where, ":"); ok {
		v.State, v.Attachments = "in-use", []volume.Attachment{{Instance: instance, Device: "/dev/xvdu", State: state}}
	}
	for i := 0; i < len(tags); i += 2 {
		v.Tags[tags[i]] = tags[i+1]
	}
	return v
}

// TestTwoOfOneMember: where two volumes could be a member's, neither is taken, whatever machine asks; what
// can't be the member's is no rival.
func TestTwoOfOneMember(t *testing.T) {
	const zone = "us-east-1a"
	dead := vol("vol-4", "etcd-a", zone, "")
	dead.State = "deleting"
	for name, c := range map[string]struct {
		volumes []*volume.Volume
		use     volume.ID
		attach  string
		refused []string
		warn    bool
	}{
		"one": {volumes: []*volume.Volume{vol("vol-1", "etcd-a", zone, "")}, attach: "vol-1"},
		"two free": {volumes: []*volume.Volume{vol("vol-1", "etcd-a", zone, ""), vol("vol-22", "etcd-a", zone, "")},
			refused: []string{"vol-1 (created 2026-01-05", "vol-22 (created 2026-01-06", "etcd-a"}},
		"three": {volumes: []*volume.Volume{vol("vol-1", "etcd-a", zone, ""), vol("vol-2", "etcd-a", zone, ""), vol("vol-3",
			"etcd-a", zone, "")}, refused: []string{"3 volumes", "vol-1", "vol-2", "vol-3"}},
		"another member": {volumes: []*volume.Volume{vol("vol-1", "etcd-a", zone, ""), vol("vol-2", "etcd-a", zone, ""), vol("vol-3",
			"etcd-b", zone, "")}, attach: "vol-3", refused: []string{"vol-1", "vol-2"}},
		"in another zone": {volumes: []*volume.Volume{vol("vol-1", "etcd-a", zone, ""), vol("vol-2", "etcd-a", "us-east-1b", "")},
			refused: []string{"vol-1", "vol-2", "in us-east-1b"}},
		"in another zone, used there": {volumes: []*volume.Volume{vol("vol-1", "etcd-a", zone, ""), vol("vol-2", "etcd-a", "us-east-1b",
			"i-9:attached")},
			refused: []string{"attached to i-9"}},
		"used by another machine": {volumes: []*volume.Volume{vol("vol-1", "etcd-a", zone, "i-9:attached"), vol("vol-2", "etcd-a", zone,
			"")}, refused: []string{"vol-1", "vol-2"}},
		"used here alone": {volumes: []*volume.Volume{vol("vol-1", "etcd-a", zone, "i-1:attached"), vol("vol-2", "etcd-a", zone,
			"")}, use: "vol-1", warn: true},
		"both here": {volumes: []*volume.Volume{vol("vol-1", "etcd-a", zone, "i-1:attached"), vol("vol-2", "etcd-a", zone,
			"i-1:attached")}, refused: []string{"vol-1", "vol-2"}},
		"here and there": {volumes: []*volume.Volume{vol("vol-1", "etcd-a", zone, "i-1:attached"), vol("vol-2", "etcd-a", zone,
			"i-9:attached")}, refused: []string{"vol-1", "vol-2"}},
		"given up": {volumes: []*volume.Volume{vol("vol-1", "etcd-a", zone, "", TagGivenUp, "now", TagReplacedBy, "vol-2"),
			vol("vol-2", "etcd-a", zone, "", TagReplaces, "vol-1")}, attach: "vol-2"},
		"its turn comes": {volumes: []*volume.Volume{vol("vol-1", "etcd-a", zone, ""), vol("vol-2", "etcd-a", zone, "",
			TagReplaces, "vol-1")}, attach: "vol-1"},
		"deleting":       {volumes: []*volume.Volume{vol("vol-1", "etcd-a", zone, ""), dead}, attach: "vol-1"},
		"without a name": {volumes: []*volume.Volume{vol("vol-1", "", zone, ""), vol("vol-2", "", zone, "")}},
	} {
		v := view{self: &Self{Instance: "i-1", Zone: zone, RootDevice: "/dev/xvda"}, cfg: config(), everywhere: c.volumes,
			stuckFor:  func(*volume.Volume, bool) time.Duration { return 0 },
			instances: map[string]Instance{"i-9": {State: "running"}}}
		for _, w := range c.volumes {
			if w.Zone == zone {
				v.volumes = append(v.volumes, w)
			}
		}
		s := choose(v)
		var attach []string
		for _, w := range s.attach {
			attach = append(attach, string(w.ID))
		}
		if got := strings.Join(attach, " "); got != c.attach || (s.use == nil) != (c.use == "") || s.use != nil && s.use.ID != c.use ||
			(s.warn != "") != c.warn {
			t.Errorf("%s: use %v, attach %q, warn %q", name, s.use, got, s.warn)
		}
		if c.use == "" && (s.refused != nil) != (c.refused != nil) {
			t.Errorf("%s: refused: %v", name, s.refused)
		}
		for _, want := range c.refused {
			if s.refused == nil || !strings.Contains(s.refused.Error(), want) {
				t.Errorf("%s: refused: %v; want %q", name, s.refused, want)
			}
		}
	}
}

// TestCopyIsRefused: a copy of a volume with identical tags, in another zone, is taken by no machine, and both are named.
func TestCopyIsRefused(t *testing.T) {
	r, root := newRegion(t)
	r.AddVolume(awsdouble.Volume{ID: "vol-1", Zone: "us-east-1a", Tags: tags("a")})
	one := acquire(t, r.machine("i-1", "us-east-1a", root("i-1")))
	one.gets(t, "vol-1")
	r.AddVolume(awsdouble.Volume{ID: "vol-2", Zone: "us-east-1b", Tags: tags("a")})
	two := acquire(t, r.machine("i-2", "us-east-1b", root("i-2")))
	<-two.done
	if two.err == nil || !strings.Contains(two.err.Error(), "in us-east-1a, attached to i-1) and vol-2 (created ") {
		t.Fatalf("got %v, %v", two.v, two.err)
	}
	if v, _ := r.Volume("vol-2"); v.Attachment != nil {
		t.Errorf("the copy is attached to %s", v.Attachment.Instance)
	}
	// The machine that has the original starts again and goes on, and says so.
	again := acquire(t, r.machine("i-1", "us-east-1a", root("i-1")))
	again.gets(t, "vol-1")
	again.says(t, "this machine goes on with vol-1")
}
