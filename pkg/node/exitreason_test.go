package node

import (
	"net"
	"strings"
	"testing"

	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// TestWhyEtcdEnded: an etcd that ends right after its start, again and again, says why in the node's status and in the manager's log, and when
// the cause is gone it serves and nothing is said any more.
func TestWhyEtcdEnded(t *testing.T) {
	n := newNode(t, "a")
	s := n.state("WHY", n)
	s.NewCluster = true
	n.do(startAction(s))
	n.healthy()
	n.do(&protosv1.PerformRequest{Action: &protosv1.PerformRequest_StopMember{StopMember: &protosv1.StopMember{Reason: "test"}}})
	l, err := net.Listen("tcp", strings.TrimPrefix(n.s.Self.PeerURLs[0], "http://"))
	must(t, err)
	defer l.Close()
	_, _, _ = n.try(startAction(s)) // it starts, and ends
	const why = "address already in use"
	eventually(t, "the status says why", func() bool { return strings.Contains(n.status().Etcd.Error, why) })
	eventually(t, "the log says why", func() bool {
		for line := range strings.Lines(n.logged()) {
			if strings.Contains(line, why) && strings.Contains(line, "starting it again") {
				return true
			}
		}
		return false
	})
	// The manager is started anew meanwhile: it says so again.
	n.restart()
	eventually(t, "the next manager says why", func() bool { return strings.Contains(n.status().Etcd.Error, why) })
	must(t, l.Close())
	n.healthy()
	if e := n.status().Etcd.Error; strings.Contains(e, why) {
		t.Errorf("a healthy etcd still says %q", e)
	}
}
