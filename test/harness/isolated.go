package harness

import (
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"strings"
)

// Isolated networks: every node has a network namespace of its own on one bridge, so that links can be cut one by one.
const (
	// hostPart and storePart are the last numbers of the test's own addresses on the bridge: its clients', and its store's.
	hostPart, storePart = 254, 253
	// nobody is a hardware address that no machine has: what is sent to it is lost without a sound.
	nobody = "02:00:5e:00:53:01"
)

// isolation is the network of an isolated cluster.
//
// The bridge has a namespace of its own, so that the machine's packet filter, which Docker has drop what is forwarded, isn't asked.
type isolation struct {
	c  *Cluster
	id string
}

// hub is the namespace with the bridge.
func (x *isolation) hub() string { return x.id + "hub" }

// CanIsolate says why isolated clusters can't be had here; "" if they can.
func CanIsolate() string {
	if os.Geteuid() != 0 {
		return "network namespaces need root"
	}
	if _, err := exec.LookPath("ip"); err != nil {
		return "network namespaces need the ip tool (iproute2)"
	}
	return ""
}

// isolate makes the bridge, and the test a machine on it. It picks an address range of its own and sets c.net.
func (c *Cluster) isolate() {
	c.t.Helper()
	if why := CanIsolate(); why != "" {
		c.t.Skip(why)
	}
	for range 100 {
		x := &isolation{c: c, id: fmt.Sprintf("em%06x", rand.IntN(1<<24))}
		c.net = fmt.Sprintf("10.%d.%d", 100+rand.IntN(100), rand.IntN(256))
		if exec.Command("ip", "netns", "add", x.hub()).Run() != nil {
			continue
		}
		c.t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", x.hub()).Run() })
		c.ip("-n", x.hub(), "link", "add", "hub", "type", "bridge")
		c.ip("-n", x.hub(), "link", "set", "hub", "up")
		c.ip("link", "add", x.id, "type", "veth", "peer", "name", "test", "netns", x.hub())
		c.ip("-n", x.hub(), "link", "set", "test", "master", "hub", "up")
		for _, part := range []int{hostPart, storePart} {
			c.ip("addr", "add", fmt.Sprintf("%s.%d/24", c.net, part), "dev", x.id)
		}
		c.ip("link", "set", x.id, "up")
		c.isolation = x
		c.usePorts(firstPort)
		return
	}
	c.t.Fatal("no network namespace can be made")
}

// ip runs the ip tool.
func (c *Cluster) ip(args ...string) {
	c.t.Helper()
	if out, err := exec.Command("ip", args...).CombinedOutput(); err != nil {
		c.t.Fatalf("ip %s: %v\n%s", strings.Join(args, " "), err, out)
	}
}

// StoreAddress is the address at which an isolated cluster's nodes find a server that the test runs for them.
func (c *Cluster) StoreAddress() string { return fmt.Sprintf("%s.%d", c.net, storePart) }

func (x *isolation) namespace(n *Node) string { return x.id + n.Name }

// add gives a node its namespace.
func (x *isolation) add(n *Node) {
	c, ns := x.c, x.namespace(n)
	c.t.Helper()
	c.ip("netns", "add", ns)
	c.t.Cleanup(func() { _ = exec.Command("ip", "netns", "del", ns).Run() })
	c.ip("-n", x.hub(), "link", "add", "name", "node-"+n.Name, "type", "veth", "peer", "name", "eth0", "netns", ns)
	c.ip("-n", x.hub(), "link", "set", "dev", "node-"+n.Name, "master", "hub", "up")
	c.ip("-n", ns, "addr", "add", n.Address+"/24", "dev", "eth0")
	c.ip("-n", ns, "link", "set", "eth0", "up")
	c.ip("-n", ns, "link", "set", "lo", "up")
}

// Lose has everything lost that a node sends to these addresses, without any error, until Deliver. It cuts one direction; connections hang.
func (n *Node) Lose(addresses ...string) {
	n.t.Helper()
	for _, a := range addresses {
		n.c.ip("-n", n.c.isolation.namespace(n), "neigh", "replace", a, "lladdr", nobody, "nud", "permanent", "dev", "eth0")
	}
}

// Deliver ends Lose.
func (n *Node) Deliver(addresses ...string) {
	n.t.Helper()
	for _, a := range addresses {
		_ = exec.Command("ip", "-n", n.c.isolation.namespace(n), "neigh", "del", a, "dev", "eth0").Run() // it may not be lost
	}
}

// Cut separates an isolated cluster's node from the others in both directions. The test's clients still reach it, and it reaches the store.
func (c *Cluster) Cut(n *Node) {
	c.t.Helper()
	for _, other := range c.Nodes {
		if other != n {
			n.Lose(other.Address)
			other.Lose(n.Address)
		}
	}
}

// Join ends Cut.
func (c *Cluster) Join(n *Node) {
	c.t.Helper()
	for _, other := range c.Nodes {
		if other != n {
			n.Deliver(other.Address)
			other.Deliver(n.Address)
		}
	}
}

// CutStore has everything lost that a node sends to the store.
func (n *Node) CutStore() { n.t.Helper(); n.Lose(n.c.StoreAddress()) }

// JoinStore ends CutStore.
func (n *Node) JoinStore() { n.t.Helper(); n.Deliver(n.c.StoreAddress()) }
