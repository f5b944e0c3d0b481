package manager

import (
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
)

// TestSafetyPoint: the changes in the store take the place of a full backup only if they lead to all that the cluster has, and an undo by them would
// be quick.
func TestSafetyPoint(t *testing.T) {
	segments := func(n int, size int64) (list []catalog.Segment) {
		for range n {
			list = append(list, catalog.Segment{Size: size})
		}
		return list
	}
	for _, k := range []struct {
		what    string
		reaches int64
		chain   []catalog.Segment
		refused string
	}{
		{"all", 100, segments(3, 1000), ""},
		{"more than was asked for", 103, segments(3, 1000), ""},
		{"one short", 99, segments(3, 1000), "the cluster has revision 100"},
		{"the backup alone", 40, nil, "lead to revision 40"},
		{"large", 100, segments(2, maxSafetyBytes/2), ""},
		{"too large", 100, segments(3, maxSafetyBytes/2), "too many for a quick undo"},
		{"too many", 100, segments(maxSafetySegments+1, 1), "too many for a quick undo"},
	} {
		p := &changelog.Plan{Base: "b", Incarnation: "i", Revision: k.reaches, Chain: changelog.Chain{Base: 40, Segments: k.chain}}
		got, err := pointOf(p, 100)
		if k.refused != "" {
			if got != nil || err == nil || !strings.Contains(err.Error(), k.refused) {
				t.Errorf("%s: %+v, %v; want %q", k.what, got, err, k.refused)
			}
			continue
		}
		if err != nil || got.Backup != "b" || got.Revision != k.reaches || got.BaseRevision != 40 || got.Incarnation != "i" {
			t.Errorf("%s: %+v, %v", k.what, got, err)
		}
	}
}

// TestDoubts: changes that a verification has found wrong take nobody's place.
func TestDoubts(t *testing.T) {
	for _, k := range []struct {
		want  bool
		proof catalog.Proof
	}{
		{false, catalog.Proof{Outcome: catalog.Proven}},
		{false, catalog.Proof{Outcome: catalog.Proven, Base: "a"}},
		{false, catalog.Proof{Outcome: catalog.Proven, Error: "there is no backup before it"}},
		{true, catalog.Proof{Outcome: catalog.Proven, Base: "a", Error: "leases differ"}},
		{true, catalog.Proof{Outcome: catalog.Disproven, Error: "HashKV differs"}},
	} {
		if got := doubts(k.proof); got != k.want {
			t.Errorf("%+v: %t", k.proof, got)
		}
	}
}
