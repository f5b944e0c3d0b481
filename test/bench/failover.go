package main

import (
	"crypto/tls"
	"fmt"
	"slices"
	"syscall"
	"time"

	"github.com/etcd-manager/etcd-manager/test/harness"
)

// benchFailover kills managers and etcds.
func benchFailover(b *bench, s *settings, r *report) {
	var leads, backsUp []time.Duration
	b.sub("manager", func(b *bench) {
		// With an interval this short a backup is always due, so that it is seen when there is somebody to take it.
		c := harness.Start(b, harness.Options{BackupInterval: time.Second})
		for range s.quick {
			l, u := killLeader(b, c)
			leads, backsUp = append(leads, l), append(backsUp, u)
		}
	})
	r.addTime("Leading manager killed: until another leads", leads, nil, 5*time.Second)
	r.addTime("Leading manager killed: until a backup that was begun afterwards is there", backsUp, nil, 5*time.Second)
	var ours, hand [2][]time.Duration // of an etcd follower, of the etcd leader
	b.sub("etcd", func(b *bench) {
		c := harness.Start(b, harness.Options{})
		h := b.newByHand(3)
		h.startAll()
		b.firstAnswer(h.tls(), h.urls(), write, time.Minute)
		for i := range s.quick {
			for j, leader := range []bool{false, true} {
				ours[j] = append(ours[j], killOurEtcd(b, c, i, leader))
				c.WaitHealthy(3)
				hand[j] = append(hand[j], killHandEtcd(b, h, i, leader))
				b.firstAnswer(h.tls(), h.urls(), write, time.Minute)
				b.say("etcd killed, leader %t: %s, by hand %s", leader, round(ours[j][i]), round(hand[j][i]))
			}
		}
	})
	r.addTime("An etcd follower killed: until the same member answers a linearizable read", ours[0], hand[0], 2*time.Second)
	r.addTime("The etcd leader killed: until the same member answers a linearizable read", ours[1], hand[1], 2*time.Second)
}

// killLeader kills the leading manager, and starts it again afterwards.
func killLeader(b *bench, c *harness.Cluster) (leads, backsUp time.Duration) {
	c.WaitHealthy(len(c.Nodes))
	c.WaitBackups(1)
	leader := c.WaitLeader()
	from := time.Now()
	leader.Kill()
	others := slices.DeleteFunc(slices.Clone(c.Nodes), func(n *harness.Node) bool { return n == leader })
	c.WaitFor("another leader", time.Minute, func() string {
		for _, n := range others {
			if v, err := n.Status(b.ctx); err == nil && v.Leading {
				leads = time.Since(from)
				return ""
			}
		}
		return "nobody leads"
	})
	c.WaitFor("a backup of the other leader", 2*time.Minute, func() string {
		list := c.Backups()
		if len(list) == 0 {
			return "there is none"
		}
		m, err := c.Catalog.Manifest(b.ctx, list[len(list)-1].Name)
		switch {
		case err != nil:
			return err.Error()
		case !m.Started.After(from):
			return "the newest was begun before"
		}
		backsUp = time.Since(from)
		return ""
	})
	b.say("another leads after %s, and has backed up after %s", round(leads), round(backsUp))
	leader.Start()
	return leads, backsUp
}

// pick chooses a member that is the etcd leader, or the i-th of those that are not.
func pick(b *bench, conf *tls.Config, urls []string, i int, leader bool) int {
	var followers []int
	for n, u := range urls {
		c := b.dial(conf, u)
		st, err := c.Status(b.ctx, u)
		c.Close()
		b.must(err)
		if is := st.Leader == st.Header.MemberId; is && leader {
			return n
		} else if !is {
			followers = append(followers, n)
		}
	}
	if leader || len(followers) == 0 {
		b.Fatal("no such etcd member")
	}
	return followers[i%len(followers)]
}

func killOurEtcd(b *bench, c *harness.Cluster, i int, leader bool) time.Duration {
	conf, urls := c.TLS(), c.ClientURLs()
	n := pick(b, conf, urls, i, leader)
	from := time.Now()
	pid := c.Nodes[n].KillEtcd()
	if pid == 0 {
		b.Fatalf("node %s has no etcd", c.Nodes[n].Name)
	}
	for deadline := from.Add(10 * time.Second); syscall.Kill(pid, 0) == nil && time.Now().Before(deadline); {
		time.Sleep(time.Millisecond) // until it has ended, so that none of its answers count; it isn't our child
	}
	return b.firstAnswer(conf, urls[n:n+1], read, time.Minute).Sub(from)
}

func killHandEtcd(b *bench, h *byHand, i int, leader bool) time.Duration {
	conf, urls := h.tls(), h.urls()
	m := h.members[pick(b, conf, urls, i, leader)]
	from := time.Now()
	if err := m.cmd.Process.Kill(); err != nil {
		b.Fatal(fmt.Errorf("kill etcd: %w", err))
	}
	<-m.exited
	h.start(m)
	return b.firstAnswer(conf, []string{m.clientURL}, read, time.Minute).Sub(from)
}
