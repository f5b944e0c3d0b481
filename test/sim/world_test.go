package sim

import (
	"encoding/binary"
	"fmt"
	"hash/fnv"
	"math/rand/v2"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// world is one simulated cluster with its store, its operator and its clients. mu guards everything in it, the machines included; it is
// never held while anybody waits.
type world struct {
	t    *testing.T
	seed uint64
	rng  *rand.Rand // of the one goroutine that makes faults
	bug  bug

	mu      sync.Mutex
	start   time.Time
	counts  map[string]uint64
	nodes   []*node
	cut     map[[2]cluster.NodeID]bool // from, to
	mem     *blobtest.Memory
	catalog *catalog.Catalog // on mem, without faults: for checks and for the operator
	away    bool             // the store, for all
	faulty  bool             // while things go wrong
	slow    time.Duration    // the longest way of a message beside the usual one
	rafts   map[cluster.Token]*raft
	n       int
	closing bool

	violation string
	then      string // how everything was at the violation
	trace     []string
	digest    uint64
	names     map[string]string // of tokens and the like, which are random
	did       map[string]int
	checks    int
	steps     int

	truth truth
}

func newWorld(t *testing.T, seed uint64, b bug) *world {
	w := &world{t: t, seed: seed, rng: rand.New(rand.NewPCG(seed, 15)), bug: b, start: time.Now(), counts: map[string]uint64{},
		cut: map[[2]cluster.NodeID]bool{}, mem: blobtest.NewMemory(), rafts: map[cluster.Token]*raft{}, names: map[string]string{},
		did: map[string]int{}, digest: 14695981039346656037, faulty: true}
	w.catalog = catalog.New(w.mem)
	w.truth = newTruth(w)
	return w
}

// draw is a number from 0 to n-1 that depends on the seed, on what it is for, and on how often that was asked before: whoever asks
// first at the same moment changes nothing for others.
func (w *world) draw(n int64, what ...string) int64 {
	key := strings.Join(what, " ")
	h := fnv.New64a()
	var b [16]byte
	binary.LittleEndian.PutUint64(b[:8], w.seed)
	binary.LittleEndian.PutUint64(b[8:], w.counts[key])
	w.counts[key]++
	_, _ = h.Write(b[:])
	_, _ = h.Write([]byte(key))
	x := h.Sum64()
	x ^= x >> 33
	x *= 0xff51afd7ed558ccd
	x ^= x >> 33
	x *= 0xc4ceb9fe1a85ec53
	x ^= x >> 33
	return int64(x % uint64(n))
}

func (w *world) drawn(n time.Duration, what ...string) time.Duration {
	return time.Duration(w.draw(int64(n), what...))
}

func (w *world) count() int { w.n++; return w.n }

func (w *world) now() time.Duration { return time.Since(w.start) }

// name is a name for what has a random one: the same in every run of a seed.
func (w *world) name(kind, random string) string {
	if random == "" {
		return "-"
	}
	if w.names[random] == "" {
		w.names[random] = fmt.Sprintf("%s%d", kind, len(w.names)+1)
	}
	return w.names[random]
}

// traceKept is how many lines of what has happened are shown.
const traceKept = 120

// log notes what has happened. mu is held.
func (w *world) log(format string, args ...any) {
	line := fmt.Sprintf("%9.3f ", w.now().Seconds()) + fmt.Sprintf(format, args...)
	for i := range len(line) {
		w.digest = (w.digest ^ uint64(line[i])) * 1099511628211
	}
	w.trace = append(w.trace, line)
	if len(w.trace) > 2*traceKept && *seedFlag < 0 {
		w.trace = slices.Clone(w.trace[traceKept:])
	}
}

// fail notes the first violation. mu is held.
func (w *world) fail(format string, args ...any) {
	if w.violation != "" || w.closing {
		return
	}
	w.violation = fmt.Sprintf(format, args...)
	w.log("VIOLATION: %s", w.violation)
	w.then = w.picture()
}

// check counts an invariant that was looked at, and fails if it doesn't hold. mu is held.
func (w *world) check(ok bool, format string, args ...any) {
	w.checks++
	if !ok {
		w.fail(format, args...)
	}
}

func (w *world) over() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.violation != ""
}

func (w *world) node(id cluster.NodeID) *node {
	for _, n := range w.nodes {
		if n.id == id {
			return n
		}
	}
	return nil
}

// linked tells whether bytes get from one machine to another. mu is held.
func (w *world) linked(from, to *node) bool {
	return from == to || from.up && to.up && !w.cut[[2]cluster.NodeID{from.id, to.id}]
}

// both tells whether two machines reach each other. mu is held.
func (w *world) both(a, b *node) bool { return w.linked(a, b) && w.linked(b, a) }

// transit is how long a message is on its way. mu is held.
func (w *world) transit(what ...string) time.Duration {
	d := 200*time.Microsecond + w.drawn(5*time.Millisecond, append(what, "transit")...)
	if w.slow > 0 && w.faulty && w.draw(10, append(what, "slow")...) == 0 {
		d += w.drawn(w.slow, append(what, "slower")...)
	}
	return d
}

// picture is how everything is, for who looks for the reason of a violation. mu is held.
func (w *world) picture() string {
	var b strings.Builder
	for _, n := range w.nodes {
		fmt.Fprintf(&b, "%s up=%v store=%v term=%d of %s", n.id, n.up, !n.cutOff, n.disk.term, n.disk.leader)
		if p := n.proc; p != nil {
			fmt.Fprintf(&b, " manager(%v", p.machine.State())
			if r := p.mgr.Report(); r.Leading {
				fmt.Fprintf(&b, ", says %q", r.Why)
			}
			b.WriteString(")")
		}
		if s := n.disk.state; s != nil {
			fmt.Fprintf(&b, " state %s quarantined=%v size=%d etcd %s", w.name("T", string(s.Token)), s.Quarantined, s.DesiredSize, s.EtcdVersion)
		}
		if e := n.etcd; e != nil {
			fmt.Fprintf(&b, " runs %s in %s healthy=%v", e.version, w.name("T", string(e.token)), w.healthy(n))
			if d := n.dir(); d != nil {
				fmt.Fprintf(&b, " member %s log %d", d.member, len(d.log))
			}
		}
		if op := n.disk.op; op != nil {
			fmt.Fprintf(&b, " restore %s phase %s", op.id, op.phase)
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "clients write to %s; cut %v; store away %v\n%s", w.name("T", string(w.truth.legit)), w.cut, w.away, w.mem)
	return b.String()
}
