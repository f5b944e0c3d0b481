package node

import (
	"net"
	"strings"
	"testing"
	"time"
)

// TestRestartsInAMinute: an etcd that ends at once is started at most 20 times in a minute.
func TestRestartsInAMinute(t *testing.T) {
	starts, delay := 1, time.Duration(0)
	for at := time.Duration(0); ; starts++ {
		delay = nextDelay(delay)
		if at += delay; at > time.Minute {
			break
		}
	}
	if starts > 20 || delay != 5*time.Second {
		t.Errorf("%d starts, %s apart in the end", starts, delay)
	}
}

// TestEtcdThatNeverStarts: a real etcd that ends at once, again and again, of another version than the one that is wanted. It is started
// again no sooner than the delays say, and the same thing isn't said twice within ten seconds.
func TestEtcdThatNeverStarts(t *testing.T) {
	n := newNode(t, "a")
	l, err := net.Listen("tcp", strings.TrimPrefix(n.s.Self.PeerURLs[0], "http://"))
	must(t, err)
	defer l.Close()
	s := n.state("NEVER", n)
	s.EtcdVersion = "3.6.1"
	begun := time.Now()
	_, _, _ = n.try(startAction(s)) // it starts, and ends
	const restarts = 4
	eventually(t, "it was started several times", func() bool { return n.status().Etcd.Restarts >= restarts })
	took := time.Since(begun)
	var least, delay time.Duration
	for range n.status().Etcd.Restarts - 1 {
		delay = nextDelay(delay)
		least += delay
	}
	if took < least {
		t.Errorf("%d starts within %s, at least %s were to be", restarts, took, least)
	}
	most := 1 + int(took/(10*time.Second))
	for what, most := range map[string]int{"started etcd": most, "runs in place of": most, "starting it again": 2 * most} {
		if k := strings.Count(n.logged(), what); k < 1 || k > most {
			t.Errorf("%q was said %d times within %s, want 1 to %d:\n%s", what, k, took, most, n.logged())
		}
	}
}
