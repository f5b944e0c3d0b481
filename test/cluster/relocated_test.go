package cluster

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// move takes the power of all machines while clients write, and gives each one that network of its address.
func move(c *harness.Cluster, load *harness.Load, network string) {
	before := load.Acked()
	c.WaitFor("writes", 30*time.Second, func() string {
		if n := load.Acked() - before; n < 50 {
			return fmt.Sprintf("%d are acknowledged", n)
		}
		return ""
	})
	for _, n := range c.Nodes {
		n.KillWhole()
	}
	load.Stop()
	for _, n := range c.Nodes {
		n.Address = network + n.Address[strings.LastIndex(n.Address, "."):]
	}
}

// networkOf is what the addresses of a cluster's nodes have in common.
func networkOf(c *harness.Cluster) string {
	address := c.Nodes[0].Address
	return address[:strings.LastIndex(address, ".")]
}

// TestAllAddressesChanged moves all machines of a cluster whose peer URLs are addresses. Nothing is lost, a person is told so, and each of
// the two ways out that are named keeps every write that was acknowledged.
func TestAllAddressesChanged(t *testing.T) {
	testutil.Long(t)
	t.Parallel()
	c := harness.Start(t, harness.Options{})
	home := networkOf(c)
	first := c.StartLoad(harness.LoadOptions{Prefix: "/first/"})
	move(c, first, "127.9.9")
	c.StartAll()
	told := waitMoved(t, c)
	for _, n := range c.Nodes {
		text := fmt.Sprintf("https://%s%s:%d", home, n.Address[strings.LastIndex(n.Address, "."):], c.Ports.Peer)
		if !strings.Contains(told.Text, text) {
			t.Errorf("the former address %s isn't named: %s", text, told.Text)
		}
	}

	// The first way: the former addresses.
	for _, n := range c.Nodes {
		n.KillWhole()
		n.Address = home + n.Address[strings.LastIndex(n.Address, "."):]
	}
	c.StartAll()
	c.WaitHealthy(3)
	first.Verify()

	// The second way: a new cluster at the new ones.
	second := c.StartLoad(harness.LoadOptions{Prefix: "/second/"})
	move(c, second, "127.9.9")
	c.StartAll()
	waitMoved(t, c)
	c.WaitFor("the survivors to be reported", 30*time.Second, func() string {
		out, errOut, code := c.Ctl("recover", "--from-survivor", "--yes")
		if code != 0 {
			return fmt.Sprintf("code %d: %s%s", code, out, errOut)
		}
		return ""
	})
	c.WaitHealthy(3)
	first.Verify()
	second.Verify()
}

// waitMoved waits until the leader says that the members are here under other addresses.
func waitMoved(t *testing.T, c *harness.Cluster) cluster.Attention {
	t.Helper()
	const want = "nothing is lost: 3 of 3 members are here, under other addresses"
	var told cluster.Attention
	c.WaitFor("a node says that nothing is lost", 90*time.Second, func() string {
		why := "nobody leads"
		for _, n := range c.Nodes {
			v, err := n.Status(t.Context())
			if err != nil || !v.Leading {
				continue
			}
			why = v.Doing
			for _, a := range v.Attention {
				if told = a; a.Kind == cluster.AttentionQuorum && strings.Contains(a.Text, want) {
					return ""
				}
			}
		}
		return why
	})
	return told
}

// TestAllAddressesChangedUnderNames does the same to a cluster whose peer URLs have names: the managers make the names lead to the new
// addresses, and etcd goes on by itself.
func TestAllAddressesChangedUnderNames(t *testing.T) {
	testutil.Long(t)
	t.Parallel()
	c := harness.New(t, harness.Options{})
	c.Programs.Manager = ownHosts(t, c)
	for _, n := range c.Nodes {
		must(t, os.WriteFile(n.DataDir+".hosts", []byte("127.0.0.1 localhost\n"), 0o644))
		n.Env = []string{"HOSTS=" + n.DataDir + ".hosts"}
		n.Args = []string{"--dns-suffix=.internal.moved.example.com", fmt.Sprintf("--peer-urls=https://__name__:%d", c.Ports.Peer)}
	}
	c.StartAll()
	c.WaitHealthy(3)
	if s, err := c.Nodes[0].State(); err != nil || !strings.Contains(s.String(), "https://a.internal.moved.example.com:") {
		t.Fatalf("the peer URLs have no names: %v, %v", s, err)
	}
	token := c.OneToken()
	load := c.StartLoad(harness.LoadOptions{})
	move(c, load, "127.9.8")
	began := time.Now()
	c.StartAll()
	c.WaitHealthy(3)
	t.Logf("all members are healthy under their new addresses after %s", time.Since(began).Round(10*time.Millisecond))
	load.Verify()
	if again := c.OneToken(); again != token {
		t.Errorf("the token was %s and is %s", token, again)
	}
}

// ownHosts makes a program that runs the manager, and by it etcd, with the file $HOSTS as the machine's hosts file.
func ownHosts(t *testing.T, c *harness.Cluster) string {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("a hosts file of one's own needs root")
	}
	path := filepath.Join(c.Dir, "with-hosts")
	script := "#!/bin/sh\nexec unshare --mount sh -c 'mount --bind \"$HOSTS\" /etc/hosts && exec " + c.Programs.Manager +
		" \"$@\"' manager \"$@\"\n"
	must(t, os.WriteFile(path, []byte(script), 0o755))
	return path
}

// TestSharedClientName has all members under one name in their client URLs, which leads each machine to its own etcd, as it does for an API
// server beside it. The managers reach each member all the same: the cluster forms, and a node that lost its disk and its name is replaced.
func TestSharedClientName(t *testing.T) {
	testutil.Long(t)
	t.Parallel()
	c := harness.New(t, harness.Options{Args: []string{"--member-unhealthy-deadline=5s"}})
	c.Programs.Manager = ownHosts(t, c)
	for _, n := range c.Nodes {
		must(t, os.WriteFile(n.DataDir+".hosts", []byte(n.Address+" api.internal.shared.example.com\n"), 0o644))
		n.Env = []string{"HOSTS=" + n.DataDir + ".hosts"}
		n.Args = []string{fmt.Sprintf("--client-urls=https://api.internal.shared.example.com:%d", c.Ports.Client)}
	}
	c.StartAll()
	c.WaitHealthy(3)
	load := c.StartLoad(harness.LoadOptions{Any: true})
	lost := c.Nodes[0]
	if leader := c.WaitLeader(); lost == leader {
		lost = c.Nodes[1]
	}
	lost.KillWhole()
	lost.Wipe(false)
	lost.Start()
	c.WaitHealthy(3)
	load.Stop()
	load.Verify()
}
