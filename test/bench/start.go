package main

import (
	"fmt"
	"time"

	"github.com/etcd-manager/etcd-manager/test/harness"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// benchStart measures from the start of the processes, with an empty store and no data, to the first acknowledged write.
func benchStart(b *bench, s *settings, r *report) {
	for _, x := range []struct {
		what    string
		members int
		s3      bool
		limit   time.Duration
	}{
		{"Cold start of three, file store, until the first write is acknowledged", 3, false, 2 * time.Second},
		{"Cold start of three, S3", 3, true, 2 * time.Second},
		{"Cold start of one, file store", 1, false, time.Second},
	} {
		var ours, hand []time.Duration
		for i := range s.quick {
			b.sub(fmt.Sprintf("ours-%d", i), func(b *bench) { ours = append(ours, coldStart(b, x.members, x.s3)) })
			b.sub(fmt.Sprintf("by-hand-%d", i), func(b *bench) {
				h := b.newByHand(x.members)
				from := time.Now()
				h.startAll()
				hand = append(hand, b.firstAnswer(h.tls(), h.urls(), write, time.Minute).Sub(from))
			})
			b.say("%d members: %s, by hand %s", x.members, round(ours[i]), round(hand[i]))
		}
		r.addMore(x.what, ours, hand, x.limit)
	}
}

func coldStart(b *bench, members int, s3 bool) time.Duration {
	o := harness.Options{Nodes: members}
	if s3 {
		o.S3 = servers.StartVersityGW(b)
	}
	c := harness.New(b, o)
	conf, urls := c.TLS(), c.ClientURLs()
	from := time.Now()
	c.StartAll()
	return b.firstAnswer(conf, urls, write, 2*time.Minute).Sub(from)
}
