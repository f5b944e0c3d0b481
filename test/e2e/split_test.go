package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

// writer writes keys of its own through one member, again and again, and remembers which writes were acknowledged.
type writer struct {
	m      *master
	acked  atomic.Int64 // how many
	cancel context.CancelFunc
	done   chan struct{}

	mu   sync.Mutex
	keys []string
}

// startWriter writes several times a second until stop. It writes where it can: a member that isn't there is tried again.
func (w *world) startWriter(m *master) *writer {
	ctx, cancel := context.WithCancel(context.Background())
	wr := &writer{m: m, cancel: cancel, done: make(chan struct{})}
	c := w.client(w.t, m)
	w.t.Cleanup(cancel)
	go func() {
		defer close(wr.done)
		for i := 0; ctx.Err() == nil; i++ {
			key := fmt.Sprintf("acked/%s/%06d", m.name, i)
			put, stop := context.WithTimeout(ctx, 2*time.Second)
			_, err := c.Put(put, key, key)
			stop()
			if err == nil {
				wr.mu.Lock()
				wr.keys = append(wr.keys, key)
				wr.mu.Unlock()
				wr.acked.Add(1)
			}
			select {
			case <-ctx.Done():
			case <-time.After(150 * time.Millisecond):
			}
		}
	}()
	return wr
}

func (w *world) startWriters() []*writer {
	var list []*writer
	for _, m := range w.masters {
		list = append(list, w.startWriter(m))
	}
	return list
}

// checkWriters ends the writers and reads back through every member that serves all that was acknowledged.
func (w *world) checkWriters(writers []*writer) {
	t := w.t
	t.Helper()
	total := 0
	for _, wr := range writers {
		wr.cancel()
		<-wr.done
		total += len(wr.keys)
	}
	for _, m := range w.masters {
		if v, err := m.status(); err != nil || !v.Etcd.Healthy {
			continue
		}
		r, err := get(t, w.client(t, m), "acked/", clientv3.WithPrefix(), clientv3.WithKeysOnly())
		if err != nil {
			t.Fatalf("read back from %s: %v", m.name, err)
		}
		have := map[string]bool{}
		for _, kv := range r.Kvs {
			have[string(kv.Key)] = true
		}
		for _, wr := range writers {
			lost := slices.DeleteFunc(slices.Clone(wr.keys), func(k string) bool { return have[k] })
			if len(lost) > 0 {
				t.Errorf("%s has lost %d of %d acknowledged writes through %s, the first is %s", m.name, len(lost),
					len(wr.keys), wr.m.name, lost[0])
			}
		}
	}
	t.Logf("%d writes were acknowledged, and all of them are there", total)
	if total == 0 {
		t.Errorf("no write was ever acknowledged")
	}
}

func acked(writers []*writer, masters []*master) (n int64) {
	for _, wr := range writers {
		if slices.Contains(masters, wr.m) {
			n += wr.acked.Load()
		}
	}
	return n
}

// cut runs the cutting tool in a master's network.
func (m *master) cut(verb string, addresses ...string) {
	m.w.t.Helper()
	mustDocker(m.w.t, append([]string{"exec", m.pod, "/cut", verb}, addresses...)...)
}

// split parts the masters: nobody of one side reaches the other. Those in noStore don't reach the store either.
func (w *world) split(sides [2][]*master, noStore []*master) {
	w.t.Helper()
	w.heal()
	each(w.masters, func(m *master) {
		other := sides[0]
		if slices.Contains(sides[0], m) {
			other = sides[1]
		}
		var block []string
		for _, o := range other {
			block = append(block, o.address)
		}
		if slices.Contains(noStore, m) {
			block = append(block, w.store.address)
		}
		m.cut("block", block...)
	})
	w.t.Logf("the network is split: %s | %s; without the store: %s", names(sides[0]), names(sides[1]), names(noStore))
}

// heal ends every split.
func (w *world) heal() {
	w.t.Helper()
	each(w.masters, func(m *master) {
		open := []string{w.store.address}
		for _, o := range w.masters {
			if o != m {
				open = append(open, o.address)
			}
		}
		m.cut("open", open...)
	})
}

func names(masters []*master) string {
	var list []string
	for _, m := range masters {
		list = append(list, m.name)
	}
	return strings.Join(list, ",")
}

// pick returns the masters of these names.
func (w *world) pick(list string) []*master {
	var masters []*master
	for _, m := range w.masters {
		if strings.Contains(list, m.name) {
			masters = append(masters, m)
		}
	}
	return masters
}

func (w *world) sides(a, b string) [2][]*master { return [2][]*master{w.pick(a), w.pick(b)} }

// fence follows the store's leader record, whose term must only rise and belong to one instance,
// and the marker, of which there is only one.
type fence struct {
	cancel context.CancelFunc
	done   chan struct{}
}

func (w *world) watchFence() *fence {
	ctx, cancel := context.WithCancel(context.Background())
	f := &fence{cancel, make(chan struct{})}
	w.t.Cleanup(f.stop)
	go func() {
		defer close(f.done)
		var last leaderRecord
		var formed string
		for ctx.Err() == nil {
			select {
			case <-ctx.Done():
				return
			case <-time.After(300 * time.Millisecond):
			}
			var r leaderRecord
			var mark marker
			if !w.peek("control/leader", &r) || !w.peek("control/etcd-cluster-created", &mark) {
				continue
			}
			if r.Term < last.Term || r.Term == last.Term && r != last && last.Term != 0 {
				w.t.Errorf("the store's leader record went from %+v to %+v", last, r)
			}
			if r != last {
				w.t.Logf("the store's leader is now %s, term %d", r.Node, r.Term)
			}
			last = r
			if mark.Phase == "formed" && formed == "" {
				formed = mark.Token
			}
			if formed != "" && mark.Token != formed {
				w.t.Errorf("the marker went from token %s to %+v", formed, mark)
			}
		}
	}()
	return f
}

// peek reads an object if that is possible at the moment.
func (w *world) peek(key string, into any) bool {
	data, err := w.store.read(w.t, key)
	return err == nil && json.Unmarshal(data, into) == nil
}

func (f *fence) stop() {
	f.cancel()
	<-f.done
}

// fiveMasters adds five masters that wait little before they act, for a cluster of three.
func (w *world) fiveMasters(formGrace string) {
	w.configure("")
	for _, name := range []string{"a", "b", "c", "d", "e"} {
		w.addMaster(name, masterOptions{pod: true, args: []string{"--member-unhealthy-deadline=10s", "--form-grace=" + formGrace}})
	}
}

// serves says why not: a member on this side serves clients, as they noticed.
func serves(writers []*writer, side []*master, since, want int64) string {
	if n := acked(writers, side) - since; n < want {
		return fmt.Sprintf("%d writes through %s were acknowledged, want %d", n, names(side), want)
	}
	return ""
}

// TestSplitBeforeForming starts five managers for a cluster of three in a network that is split already.
func TestSplitBeforeForming(t *testing.T) {
	testutil.Long(t)
	needDocker(t)
	t.Parallel()
	for _, v := range []struct{ name, a, b, noStore, grace string }{
		// Both sides have a majority of the three that are wanted, reach the store, and don't wait for anybody.
		{"2-3", "ab", "cde", "", "0s"},
		// The larger side can't know whether a cluster was ever formed.
		{"3-2-store-on-the-smaller-side", "abc", "de", "abc", "5s"},
	} {
		t.Run(v.name, func(t *testing.T) {
			t.Parallel()
			w := newWorld(t)
			w.startS3("split")
			w.fiveMasters(v.grace)
			w.split(w.sides(v.a, v.b), w.pick(v.noStore))
			f, writers := w.watchFence(), w.startWriters()
			each(w.masters, (*master).start)
			waitFor(t, "one side has formed a cluster and serves", 2*time.Minute,
				func() string { return serves(writers, w.masters, 0, 20) })
			left, right := acked(writers, w.pick(v.a)), acked(writers, w.pick(v.b))
			if left > 0 && right > 0 {
				t.Errorf("both sides have served clients: %d writes on one, %d on the other", left, right)
			}
			if v.noStore != "" && acked(writers, w.pick(v.noStore)) > 0 {
				t.Errorf("a side that doesn't reach the store has formed a cluster")
			}
			token := w.marker().Token
			w.heal()
			t.Logf("the network is whole again; cluster %s was formed", token)
			w.waitServing(2 * time.Minute)
			f.stop()
			w.checkWriters(writers)
			if got := w.oneCluster(2); got != token {
				t.Errorf("the cluster's token is %s, the marker's was %s", got, token)
			}
		})
	}
}

// TestSplitAfterForming splits a running cluster of three with two spare managers twice: so that
// the members' majority is on the smaller side of the managers, and so that it is on the larger
// one, which can then replace the member that is away.
func TestSplitAfterForming(t *testing.T) {
	testutil.Long(t)
	needDocker(t)
	t.Parallel()
	w := newWorld(t)
	w.startS3("split")
	w.fiveMasters("5s")
	each(w.masters, (*master).start)
	w.waitServing(2 * time.Minute)
	token := w.oneCluster(2)
	f, writers := w.watchFence(), w.startWriters()
	members := func() (in, out []*master) {
		for _, m := range w.masters {
			if v, err := m.status(); err == nil && v.Etcd.Running {
				in = append(in, m)
			} else {
				out = append(out, m)
			}
		}
		return in, out
	}

	in, out := members()
	small, large := in[:2], append([]*master{in[2]}, out...)
	w.splitAndCheck(writers, small, large, func() string { return "" })

	in, out = members()
	large, small = append(slices.Clone(in[:2]), out[0]), []*master{in[2], out[1]}
	w.splitAndCheck(writers, large, small, func() string {
		if v, err := out[0].status(); err != nil || !v.Etcd.Healthy || v.Etcd.Learner {
			return fmt.Sprintf("%s has not taken the place of %s", out[0].name, in[2].name)
		}
		return ""
	})

	f.stop()
	w.checkWriters(writers)
	if got := w.oneCluster(2); got != token {
		t.Errorf("the cluster's token was %s and is %s", token, got)
	}
}

// splitAndCheck parts the masters for longer than a member's deadline. Clients must go on on the side with a majority of the
// members, and get nothing done on the other. until says what has to happen before the network is whole again.
func (w *world) splitAndCheck(writers []*writer, majority, minority []*master, until func() string) {
	t := w.t
	t.Helper()
	w.split([2][]*master{majority, minority}, nil)
	// What was on its way when the network was split may still be acknowledged, and a write is given up after 2 s; then nothing more.
	began := time.Now()
	start := acked(writers, majority)
	waitFor(t, "the side with a majority of the members serves", time.Minute, func() string {
		if d := time.Since(began); d < 3*time.Second {
			return fmt.Sprintf("the split has lasted %s", d)
		}
		return serves(writers, majority, start, 20)
	})
	there, here := acked(writers, minority), acked(writers, majority)
	waitFor(t, "the split has lasted longer than a member may be away", 3*time.Minute, func() string {
		if d := time.Since(began); d < 18*time.Second {
			return fmt.Sprintf("it has lasted %s", d)
		}
		if why := serves(writers, majority, here, 50); why != "" {
			return why
		}
		return until()
	})
	if n := acked(writers, minority) - there; n > 0 {
		t.Errorf("%d writes were acknowledged on the side %s, which has no majority", n, names(minority))
	}
	for _, m := range w.masters {
		if v, err := m.status(); err == nil && v.Leading {
			t.Logf("during the split %s leads in term %d and says: %s", m.name, v.Term, v.Doing)
		}
	}
	w.heal()
	t.Logf("the network is whole again")
	w.waitServing(2 * time.Minute)
	if l, _ := w.leader(w.masters); l != nil {
		if r := w.leaderRecord(); uint64(l.Term) < r.Term {
			t.Errorf("%s leads in term %d, but the store knows term %d of %s", l.Node, l.Term, r.Term, r.Node)
		}
	}
}
