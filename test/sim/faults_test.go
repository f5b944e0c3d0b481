package sim

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// quietLimit is how long something may keep a node out of sight while its etcd could serve: less than the leader's lease in the store,
// after which members that can't be seen count as gone, by design.
const quietLimit = 150 * time.Second

func (w *world) hit(what string, args ...any) {
	w.did["fault: "+what]++
	w.log(what, args...)
}

// upTo is how long something lasts.
func (w *world) upTo(d time.Duration) time.Duration { return time.Duration(w.rng.Int64N(int64(d))) + 1 }

// later does something after a while, unless the world has ended or was mended meanwhile.
func (w *world) later(d time.Duration, f func()) {
	time.AfterFunc(d, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if !w.closing && w.faulty {
			f()
		}
	})
}

func (w *world) restartSoon(n *node) {
	time.AfterFunc(w.drawn(40*time.Second, "restart", string(n.id)), func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		if !w.closing {
			n.begin()
		}
	})
}

// victim is a node: often the one that leads.
func (w *world) victim() *node {
	if w.rng.IntN(2) == 0 {
		for _, n := range w.nodes {
			if n.proc != nil && n.proc.granted != 0 {
				return n
			}
		}
	}
	return w.nodes[w.rng.IntN(len(w.nodes))]
}

// fault breaks something. mu is held.
func (w *world) fault() {
	n := w.victim()
	switch w.rng.IntN(23) {
	case 22:
		if s := n.disk.state; s != nil && w.spare(n) && n.disk.op == nil {
			w.hit("data dir lost")
			w.log("%s: data dir lost", n.id)
			delete(n.disk.dirs, s.Token)
			if n.etcd != nil {
				w.exit(n, "its data are gone")
			}
			n.wiped = time.Now()
		}
	case 0:
		if n.proc != nil {
			w.did["fault: kill"]++
			n.kill("killed")
			w.restartSoon(n)
		}
	case 1, 2, 3:
		if n.proc != nil && n.proc.killIn == 0 {
			w.hit("kill within steps")
			n.proc.killIn = 1 + w.rng.IntN(60)
			w.later(20*time.Second, func() { n.begin() })
			w.later(60*time.Second, func() { n.begin() })
		}
	case 4, 5:
		if n.up {
			w.hit("power cut")
			w.log("%s: power cut", n.id)
			w.off(n)
			w.later(w.upTo(70*time.Second), func() { w.on(n) })
		}
	case 6:
		if w.spare(n) {
			w.hit("disk lost")
			w.log("%s: disk lost", n.id)
			w.off(n)
			w.truth.forget(n)
			n.disk = disk{dirs: map[cluster.Token]*dir{}}
			n.wiped = time.Now()
			w.later(w.upTo(10*time.Second), func() { w.on(n) })
		}
	case 7, 8:
		w.hit("partition")
		side := map[cluster.NodeID]int{}
		for _, x := range w.nodes {
			side[x.id] = w.rng.IntN(2)
		}
		for _, a := range w.nodes {
			for _, b := range w.nodes {
				w.cut[[2]cluster.NodeID{a.id, b.id}] = side[a.id] != side[b.id]
			}
		}
		w.cleared(w.upTo(60 * time.Second))
	case 9:
		to := w.nodes[w.rng.IntN(len(w.nodes))]
		if to != n {
			w.hit("one-way link")
			w.log("nothing gets from %s to %s", n.id, to.id)
			w.cut[[2]cluster.NodeID{n.id, to.id}] = true
			w.cleared(w.upTo(60 * time.Second))
		}
	case 10, 11, 12:
		if n.proc != nil {
			w.hit("pause")
			d := w.upTo(25 * time.Second)
			w.log("%s: manager stands still for %s", n.id, d)
			n.proc.paused = time.Now().Add(d)
		}
	case 13:
		w.hit("store away")
		w.away = true
		w.later(w.upTo(70*time.Second), func() { w.away = false })
	case 14:
		w.hit("store away for one")
		w.log("store away for %s", n.id)
		n.cutOff = true
		w.later(w.upTo(70*time.Second), func() { n.cutOff = false })
	case 15:
		w.hit("slow links")
		w.slow = w.upTo(8 * time.Second)
		w.later(w.upTo(60*time.Second), func() { w.slow = 0 })
	case 16:
		if n.etcd != nil {
			w.hit("etcd killed")
			w.log("%s: etcd killed", n.id)
			w.exit(n, "killed")
		}
	case 17:
		w.hit("all managers restart")
		for _, x := range w.nodes {
			if x.proc != nil {
				x.kill("restart of all")
			}
			x.begin()
		}
	default:
		w.operator()
	}
	w.limit()
}

func (w *world) cleared(d time.Duration) {
	w.others(nil)
	w.later(d, func() {
		w.cut = map[[2]cluster.NodeID]bool{}
		w.others(nil)
	})
}

// off is a power cut.
func (w *world) off(n *node) {
	n.kill("power cut")
	n.up, n.etcd, n.lastExit = false, nil, "power cut"
	w.others(n)
}

func (w *world) on(n *node) {
	if !n.up {
		n.up, n.exitAt = true, time.Time{}
		n.wellAt = time.Now()
	}
	n.begin()
}

// limit mends everything if it has kept a node out of sight for too long.
func (w *world) limit() {
	whole := !w.away && w.slow == 0 && !slices.ContainsFunc(w.nodes, func(x *node) bool { return x.cutOff }) && len(w.cut) == 0
	for _, x := range w.nodes {
		if x.proc != nil && whole {
			x.seenAt = time.Now()
		}
	}
	for _, x := range w.nodes {
		if time.Since(x.seenAt) > quietLimit {
			w.log("everything is mended for a while")
			w.mend()
			return
		}
	}
}

func (w *world) mend() {
	w.away, w.slow, w.cut = false, 0, map[[2]cluster.NodeID]bool{}
	for _, n := range w.nodes {
		n.cutOff = false
		n.seenAt = time.Now()
		w.on(n)
	}
	w.others(nil)
}

// spare tells whether everybody can do without a node's disk: a quorum of those that have all that was committed stays.
func (w *world) spare(n *node) bool {
	for t, r := range w.rafts {
		if n.disk.dirs[t] == nil || t != w.truth.legit && t != w.truth.marker.Token && (w.truth.op == nil || t != w.truth.op.NewToken) {
			continue
		}
		full := 0
		var members []cluster.Member
		for _, x := range w.nodes {
			if d := x.disk.dirs[t]; d != nil && len(d.log) >= r.commit && (members == nil || len(d.members()) > 0) {
				members = d.members()
			}
		}
		for _, x := range w.nodes {
			d := x.disk.dirs[t]
			if x == n || d == nil || len(d.log) < r.commit {
				continue
			}
			if m := memberOf(members, d.member); m != nil && !m.Learner {
				full++
			}
		}
		if full < cluster.Quorum(voters(members)) {
			return false
		}
	}
	if op := w.truth.op; op != nil && op.State.Committing() {
		return false
	}
	return true
}

// operator asks for something.
func (w *world) operator() {
	ctx := context.Background()
	if w.away {
		return
	}
	spec, ver, err := w.catalog.Spec(ctx)
	if err != nil {
		w.fail("the spec: %v", err)
		return
	}
	switch w.rng.IntN(6) {
	case 0, 1:
		w.queueRestore(spec, w.rng.IntN(2) == 0)
	case 2:
		w.hit("command: backup")
		_, err = w.catalog.QueueCreateBackup(ctx, catalog.CreateBackup{})
	case 3:
		if next := w.someSize(); next != spec.MemberCount {
			w.hit("command: resize")
			w.log("wanted: %d members", next)
			w.truth.strict = false
			spec.MemberCount = next
			_, err = w.catalog.ReplaceSpec(ctx, spec, ver)
		}
	case 4:
		if spec.EtcdVersion != versions[1] {
			w.hit("command: upgrade")
			spec.EtcdVersion = versions[1]
			_, err = w.catalog.ReplaceSpec(ctx, spec, ver)
		}
	case 5:
		cmds, _, cerr := w.catalog.Commands(ctx)
		if err = cerr; err == nil && len(cmds) > 0 && w.rng.IntN(2) == 0 {
			w.hit("command: withdrawn")
			err = w.catalog.RemoveCommand(ctx, cmds[0].Name)
		}
	}
	if err != nil {
		w.fail("the operator: %v", err)
	}
}

func (w *world) queueRestore(spec cluster.Spec, now bool) {
	ctx := context.Background()
	list, err := w.catalog.Backups(ctx)
	if err != nil {
		w.fail("the operator: %v", err)
		return
	}
	if len(list.Backups) == 0 {
		return
	}
	b := list.Backups[w.rng.IntN(len(list.Backups))].Name
	if w.rng.IntN(8) == 0 {
		b = "2000-01-01T00:00:00Z-000009" // which isn't there
	}
	w.hit("command: restore")
	c, err := w.catalog.QueueRestore(ctx, b, spec, catalog.RestoreOptions{Now: now})
	if err != nil {
		w.fail("the operator: %v", err)
	}
	w.log("restore %s of %s is asked for, now=%v", w.name("R", c.Name), b, now)
}

// someSize is a member count for which there are enough nodes.
func (w *world) someSize() int {
	fit := []int{1}
	for _, n := range []int{3, 3, 5, 5} {
		if n <= len(w.nodes) {
			fit = append(fit, n)
		}
	}
	return fit[w.rng.IntN(len(fit))]
}

// settled says what is still missing to the cluster that is wanted, or nothing. mu is held.
func (w *world) settled() string {
	ctx := context.Background()
	spec, _, err := w.catalog.Spec(ctx)
	if err != nil {
		return err.Error()
	}
	if cmds, _, _ := w.catalog.Commands(ctx); len(cmds) > 0 {
		return fmt.Sprintf("%d commands are queued", len(cmds))
	}
	if op := w.truth.op; op != nil && !op.State.Final() {
		return "restore " + op.ID + " is " + string(op.State)
	}
	if m := w.truth.marker; m.Phase != catalog.PhaseFormed || m.Token != w.truth.legit {
		return "the marker says something else"
	}
	members := 0
	for _, n := range w.nodes {
		s := n.disk.state
		if s == nil {
			continue
		}
		members++
		switch {
		case !w.healthy(n):
			return "etcd isn't healthy on " + string(n.id)
		case s.Token != w.truth.legit || n.etcd.token != s.Token:
			return string(n.id) + " has another cluster"
		case s.Quarantined || n.etcd.quarantined:
			return string(n.id) + " is quarantined"
		case memberOf(n.dir().members(), n.dir().member).Learner:
			return string(n.id) + " is a learner"
		case len(n.dir().members()) != spec.MemberCount || len(s.Nodes) != spec.MemberCount:
			return fmt.Sprintf("%s knows %d members", n.id, len(n.dir().members()))
		case spec.EtcdVersion != "" && n.etcd.version != spec.EtcdVersion:
			return string(n.id) + " runs etcd " + n.etcd.version
		}
	}
	if members != spec.MemberCount {
		return fmt.Sprintf("%d members", members)
	}
	return ""
}

var _ blob.Store = (*store)(nil)
