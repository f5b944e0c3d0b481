package operator

import (
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

func survivor(node cluster.NodeID, token cluster.Token, revision int64, term, index uint64) catalog.Survivor {
	return catalog.Survivor{Node: node, Token: token, Revision: revision, RaftTerm: term, RaftIndex: index}
}

// TestPickSurvivor: data of different clusters can't be compared.
func TestPickSurvivor(t *testing.T) {
	old, a, b := survivor("z", "old", 9, 99, 99999), survivor("a", "tok", 5, 5, 50), survivor("b", "tok", 5, 5, 51)
	for _, c := range []struct {
		nodes   []catalog.Survivor
		name    cluster.NodeID
		current cluster.Token
		want    cluster.NodeID
	}{
		{[]catalog.Survivor{a, b}, "", "", "b"},
		{[]catalog.Survivor{b, a}, "", "other", "b"},
		{[]catalog.Survivor{old, a, b}, "", "tok", "b"},
		{[]catalog.Survivor{old, a, b}, "", "", ""},
		{[]catalog.Survivor{old, a, b}, "z", "tok", "z"},
		{[]catalog.Survivor{a, b}, "nobody", "tok", ""},
		{nil, "", "tok", ""},
	} {
		got, err := pickSurvivor(c.nodes, c.name, c.current)
		if got.Node != c.want || (err == nil) != (c.want != "") {
			t.Errorf("%v %q %q: %q, %v; want %q", c.nodes, c.name, c.current, got.Node, err, c.want)
		}
	}
}
