package node

import (
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// end asks the manager to end, as SIGTERM does; it stops its etcd.
func (n *node) end() {
	n.t.Helper()
	must(n.t, n.stdin.Close())
	must(n.t, n.cmd.Wait())
	_ = n.conn.Close()
	n.cmd = nil
}

// TestStopIsRemembered: the next manager says when the end of the one before stopped etcd and when that served again, and the one after it, which was
// killed while etcd went on, says nothing. A manager that is killed stops nothing.
func TestStopIsRemembered(t *testing.T) {
	n := newNode(t, "a")
	found("STOP", n)
	n.healthy()
	if s := n.status().Stopped; s != nil {
		t.Errorf("before any stop: %+v", s)
	}
	n.restart()
	n.healthy()
	if s := n.status().Stopped; s != nil {
		t.Errorf("a manager was killed, and etcd went on: %+v", s)
	}
	before := time.Now()
	n.end()
	ended := time.Now()
	n.start()
	n.healthy()
	var s *cluster.Stop
	eventually(t, "the end of the stop", func() bool { s = n.status().Stopped; return s != nil && !s.Served.IsZero() })
	if s.At.Before(before) || s.At.After(ended) || s.Served.Before(ended) || s.Served.After(time.Now()) {
		t.Errorf("asked to end at %s, ended at %s: %+v", before, ended, s)
	}
	// A stop that nobody has seen the end of is told by the next one, and its beginning stays.
	n.end()
	n.journalled(func(j *journal) { j.Stopped = &cluster.Stop{At: before} })
	n.start()
	n.healthy()
	eventually(t, "the end of the stop", func() bool { s = n.status().Stopped; return s != nil && !s.Served.IsZero() })
	if !s.At.Equal(before) {
		t.Errorf("it was stopped at %s: %+v", before, s)
	}
	n.restart()
	n.healthy()
	if s := n.status().Stopped; s != nil {
		t.Errorf("after a manager has seen the end of it: %+v", s)
	}
}
