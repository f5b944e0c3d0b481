package node

import (
	"strings"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// TestUsers has an etcd with users, which refuses the manager: it lives, and what is to be done is said. That is so while it runs, for a
// manager that comes later, and for an etcd that is started with users.
func TestUsers(t *testing.T) {
	n := newNode(t, "a")
	found("T1", n)
	c := n.client().Raw()
	_, err := c.UserAdd(n.ctx(), "root", "secret")
	must(t, err)
	_, err = c.UserGrantRole(n.ctx(), "root", "root")
	must(t, err)
	_, err = c.AuthEnable(n.ctx())
	must(t, err)
	refuses := func(when string) {
		t.Helper()
		var last cluster.EtcdStatus
		eventually(t, "it is said that etcd has users, "+when, func() bool {
			last = n.status().Etcd
			return last.Denied
		})
		if !last.Votes() || last.Revision == 0 || !strings.Contains(last.Error, "has users (auth enable), and this client is none of them") {
			t.Errorf("%s: %+v", when, last)
		}
	}
	refuses("while it runs")
	n.restart()
	refuses("to another manager")
	n.crash()
	n.killEtcd()
	n.start()
	refuses("after a start")
	root, err := clientv3.New(clientv3.Config{Endpoints: n.s.Self.ClientURLs, Username: "root", Password: "secret"})
	must(t, err)
	defer root.Close()
	_, err = root.AuthDisable(n.ctx())
	must(t, err)
	eventually(t, "etcd permits the manager again", func() bool {
		s := n.status().Etcd
		return s.Votes() && !s.Denied && s.Error == "" && len(s.Members) == 1
	})
}
