package harness

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// waitLong is how long the usual waits may take; a machine that is busy with other tests is slow.
const waitLong = 90 * time.Second

// WaitFor waits until f returns "", and fails the test with what f said last if that takes longer.
func (c *Cluster) WaitFor(what string, within time.Duration, f func() string) {
	c.t.Helper()
	deadline := time.Now().Add(within)
	for {
		why := f()
		if why == "" {
			return
		}
		if time.Now().After(deadline) {
			c.t.Fatalf("%s: not within %s: %s", what, within, why)
		}
		time.Sleep(50 * time.Millisecond)
	}
}

// WaitHealthy waits until exactly n members serve clients, all of them voters of one cluster that agree on the members, and the
// managers have one leader.
func (c *Cluster) WaitHealthy(n int) {
	c.t.Helper()
	c.WaitFor(fmt.Sprintf("%d healthy members", n), waitLong, func() string { return c.unhealthy(n) })
}

// unhealthy says why WaitHealthy waits.
func (c *Cluster) unhealthy(want int) string {
	var bad []string
	healthy, leaders := 0, 0
	clusters := map[string]bool{}
	for _, n := range c.Nodes {
		if !n.Running() {
			continue
		}
		v, err := n.Status(c.t.Context())
		if err != nil {
			bad = append(bad, n.Name+": "+err.Error())
			continue
		}
		if v.Leading {
			leaders++
			if v.Doing != "" {
				bad = append(bad, fmt.Sprintf("%s leads: %s", n.Name, v.Doing))
			}
		}
		e := v.Etcd
		s, err := n.State()
		switch {
		case err != nil:
			bad = append(bad, n.Name+": "+err.Error())
		case !e.Running && s == nil:
			continue // it is no member
		case !e.Running || !e.Healthy || e.Learner || e.Quarantined:
			bad = append(bad, fmt.Sprintf("%s: running %t, healthy %t, learner %t, quarantined %t %s", n.Name,
				e.Running, e.Healthy, e.Learner, e.Quarantined, e.Error))
		case len(e.Members) != want:
			bad = append(bad, fmt.Sprintf("%s: knows %d members", n.Name, len(e.Members)))
		default:
			ok := true
			for _, m := range e.Members {
				ok = ok && m.Name != "" && !m.Learner
			}
			if !ok {
				bad = append(bad, n.Name+": a member is a learner or hasn't started")
				continue
			}
			healthy++
			clusters[s.GetCluster().GetClusterToken()] = true
		}
	}
	if healthy == want && leaders == 1 && len(clusters) == 1 {
		return ""
	}
	return fmt.Sprintf("%d healthy, %d leading, tokens %v; %s", healthy, leaders, clusters, strings.Join(bad, "; "))
}

// Leader returns the node that leads, nil if none says so.
func (c *Cluster) Leader() *Node {
	for _, n := range c.Nodes {
		if v, err := n.Status(c.t.Context()); err == nil && v.Leading {
			return n
		}
	}
	return nil
}

// WaitLeader waits for a leader.
func (c *Cluster) WaitLeader() *Node {
	c.t.Helper()
	var leader *Node
	c.WaitFor("a leader", waitLong, func() string {
		if leader = c.Leader(); leader == nil {
			return "nobody leads"
		}
		return ""
	})
	return leader
}

// WaitLog waits until one of the nodes has said text since its last start, and returns that node.
func (c *Cluster) WaitLog(within time.Duration, text string, nodes ...*Node) *Node {
	c.t.Helper()
	if len(nodes) == 0 {
		nodes = c.Nodes
	}
	var found *Node
	c.WaitFor(fmt.Sprintf("%q in a log", text), within, func() string {
		for _, n := range nodes {
			if strings.Contains(n.LogText(), text) {
				found = n
				return ""
			}
		}
		return "nobody says so"
	})
	return found
}

// Backups lists the backups, oldest first.
func (c *Cluster) Backups() []catalog.Backup {
	c.t.Helper()
	l, err := c.Catalog.Backups(c.t.Context())
	must(c.t, err)
	return l.Backups
}

// WaitBackups waits until there are at least n backups and returns them, oldest first.
func (c *Cluster) WaitBackups(n int) []catalog.Backup {
	c.t.Helper()
	var list []catalog.Backup
	c.WaitFor(fmt.Sprintf("%d backups", n), waitLong, func() string {
		if list = c.Backups(); len(list) < n {
			return fmt.Sprintf("there are %d", len(list))
		}
		return ""
	})
	return list
}

// WaitOperation waits until the operation of that id (the command's name) has ended and returns its record.
func (c *Cluster) WaitOperation(id string, within time.Duration) catalog.Operation {
	c.t.Helper()
	var op catalog.Operation
	c.WaitFor("the end of operation "+id, within, func() string {
		var err error
		op, _, err = c.Catalog.Operation(c.t.Context(), id)
		switch {
		case errors.Is(err, catalog.ErrNotFound):
			return "it has not begun"
		case err != nil:
			return err.Error()
		case op.Finished.IsZero():
			return "it is " + string(op.State) + " " + op.Reason
		}
		return ""
	})
	return op
}
