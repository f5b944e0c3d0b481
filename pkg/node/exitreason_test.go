package node

import (
	"net"
	"strings"
	"testing"
)

// TestWhyEtcdEnded: an etcd that ends right after its start, again and again, says why in the node's status and in the manager's log, also
// after the manager was started anew.
func TestWhyEtcdEnded(t *testing.T) {
	n := newNode(t, "a")
	l, err := net.Listen("tcp", strings.TrimPrefix(n.s.Self.PeerURLs[0], "http://"))
	must(t, err)
	defer l.Close()
	_, _, _ = n.try(startAction(n.state("WHY", n))) // it starts, and ends
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
}
