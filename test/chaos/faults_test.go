package chaos

import (
	"math/rand/v2"
	"syscall"
	"time"

	"github.com/etcd-manager/etcd-manager/test/harness"
)

// fault is something that breaks; it returns what mends it.
type fault struct {
	name string
	do   func(w *world) (mend func())
}

// killManager ends a manager and starts it again, as the kubelet or systemd would.
func killManager(of func(*world) *harness.Node) func(*world) func() {
	return func(w *world) func() {
		n := of(w)
		n.Kill()
		n.Start()
		return func() {}
	}
}

func signalEtcd(pid int, sig syscall.Signal) {
	if pid != 0 {
		_ = syscall.Kill(pid, sig) // it may have ended by itself
	}
}

// pauseEtcd freezes a node's etcd.
func pauseEtcd(of func(*world) *harness.Node) func(*world) func() {
	return func(w *world) func() {
		pid := of(w).EtcdPID()
		signalEtcd(pid, syscall.SIGSTOP)
		return func() { signalEtcd(pid, syscall.SIGCONT) }
	}
}

// both does two things at once.
func both(a, b func(*world) func()) func(*world) func() {
	return func(w *world) func() {
		x, y := a(w), b(w)
		return func() { x(); y() }
	}
}

// faults are every part, killed, frozen and cut off.
func faults() []fault {
	lead, first, second := (*world).leader, follower(0), follower(1)
	cut := func(of func(*world) *harness.Node) func(*world) func() {
		return func(w *world) func() {
			n := of(w)
			w.c.Cut(n)
			return func() { w.c.Join(n) }
		}
	}
	cutStore := func(of func(*world) *harness.Node) func(*world) func() {
		return func(w *world) func() {
			n := of(w)
			n.CutStore()
			return n.JoinStore
		}
	}
	pause := func(of func(*world) *harness.Node) func(*world) func() {
		return func(w *world) func() {
			n := of(w)
			n.Pause()
			return n.Resume
		}
	}
	return []fault{
		{"nothing", func(*world) func() { return func() {} }},
		{"leading manager killed", killManager(lead)},
		{"a following manager killed", killManager(first)},
		{"leading manager frozen", pause(lead)},
		{"a following manager frozen", pause(second)},
		{"etcd beside the leading manager killed", func(w *world) func() { w.leader().KillEtcd(); return func() {} }},
		{"etcd beside a following manager killed", func(w *world) func() { first(w).KillEtcd(); return func() {} }},
		{"etcd beside the leading manager frozen", pauseEtcd(lead)},
		{"etcd beside a following manager frozen", pauseEtcd(first)},
		{"etcd beside another following manager frozen", pauseEtcd(second)},
		{"two etcds frozen: no quorum", both(pauseEtcd(first), pauseEtcd(second))},
		{"machine of the leading manager loses power", func(w *world) func() {
			n := lead(w)
			n.KillWhole()
			return n.Start
		}},
		{"leading manager's machine cut off", cut(lead)},
		{"a following manager's machine cut off", cut(first)},
		{"leading manager cut off from the store", cutStore(lead)},
		{"a following manager cut off from the store", cutStore(second)},
		{"store ends", func(w *world) func() {
			w.c.S3().Stop()
			return w.c.S3().Start
		}},
		{"store hangs", func(w *world) func() {
			w.c.S3().Pause()
			return w.c.S3().Resume
		}},
		{"store hangs and the leading manager is killed", both(func(w *world) func() {
			w.c.S3().Pause()
			return w.c.S3().Resume
		}, killManager(lead))},
	}
}

func (w *world) leader() *harness.Node {
	if n := w.c.Leader(); n != nil {
		return n
	}
	return w.c.Nodes[0]
}

// follower picks one of the nodes whose manager doesn't lead.
func follower(i int) func(*world) *harness.Node {
	return func(w *world) *harness.Node {
		lead, left := w.leader(), i
		for _, n := range w.c.Nodes {
			if n == lead {
				continue
			}
			if left--; left < 0 {
				return n
			}
		}
		return w.c.Nodes[0]
	}
}

// lasting is how long something stays broken before it is mended.
func lasting(r *rand.Rand) time.Duration {
	return time.Duration(1000+r.IntN(7000)) * time.Millisecond
}
