package disaster

import (
	"context"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/test/harness"
)

// regionFlag is for "make region": a cluster moves three times, which takes minutes.
var regionFlag = flag.Bool("region", false, "TestRegionLost, which takes minutes")

const (
	regionPage = "region-lost.md"
	// regionInterval is --change-log-interval of both regions.
	regionInterval = time.Second
)

// moves is a cluster that moves between two regions. All nodes are of one harness.Cluster, so that one client knows all of them, and asks
// whoever serves.
type moves struct {
	t *testing.T
	c *harness.Cluster
	d *desk
	p *page
	// here serves, and there follows it.
	here, there region
	stores      int
	w           *writing
}

type region struct {
	nodes []*harness.Node
	store string
}

// newMoves starts three masters that serve and three that follow them.
func newMoves(t *testing.T) *moves {
	t.Helper()
	args := []string{"--change-log-interval=" + regionInterval.String(), "--queue-poll-interval=1s"}
	c := harness.New(t, harness.Options{Args: args})
	m := &moves{t: t, c: c, p: readPage(t, regionPage)}
	m.here = region{c.Nodes, c.StoreURL}
	c.StartAll()
	c.WaitHealthy(3)
	c.WaitBackups(1)
	for _, name := range []string{"d", "e", "f"} {
		c.AddNode(name)
	}
	m.there = region{c.Nodes[3:], m.newStore()}
	m.d = newDesk(t, c)
	for _, n := range m.there.nodes {
		data, err := os.ReadFile(unitFile(n))
		must(t, err)
		text := strings.Replace(string(data), "--backup-store="+m.here.store, "--backup-store="+m.there.store+" --standby-of="+m.here.store, 1)
		must(t, os.WriteFile(unitFile(n), []byte(text), 0o600))
		m.d.start(n)
	}
	m.follows()
	m.w = startWriting(t, c.Client())
	return m
}

// newStore is an empty one.
func (m *moves) newStore() string {
	m.t.Helper()
	m.stores++
	dir := filepath.Join(m.c.Dir, fmt.Sprintf("store-%d", m.stores))
	must(m.t, os.MkdirAll(dir, 0o700))
	return dir
}

// follows waits until every node of the standby has a copy.
func (m *moves) follows() {
	m.t.Helper()
	for _, n := range m.there.nodes {
		m.c.WaitFor("a copy on node "+n.Name, 90*time.Second, func() string {
			switch v, err := n.Status(m.t.Context()); {
			case err != nil:
				return err.Error()
			case v.Standby == nil:
				return "it is no standby"
			case v.Standby.Revision == 0 || v.Standby.BehindSeconds > 10:
				return fmt.Sprintf("%+v", *v.Standby)
			}
			return ""
		})
	}
	m.c.WaitFor("the standby is in its own store", time.Minute, func() string {
		if out, errOut, code := m.c.Ctl("status", "--backup-store="+m.there.store); code != 0 || !strings.Contains(out, "3 nodes follow") {
			return out + errOut
		}
		return ""
	})
}

// move follows the page's way, and then what it says for both.
func (m *moves) move(way string) {
	m.t.Helper()
	d := m.d
	d.values["STORE"], d.values["ETCDCTL_ENDPOINTS"] = m.there.store, m.there.nodes[0].ClientURL()
	d.groups["old-masters"], d.groups["new-masters"] = m.here.nodes, m.there.nodes
	d.follow(m.p, m.p.in("You see"))
	d.follow(m.p, m.p.in(way))
	d.follow(m.p, m.p.in("In both cases"))
	for _, n := range m.here.nodes {
		if n.EtcdPID() != 0 {
			m.t.Errorf("etcd still runs on the old master %s", n.Name)
		}
	}
	m.here, m.there = m.there, m.here
}

// back makes the old masters the standby.
func (m *moves) back() {
	m.t.Helper()
	m.there.store = m.newStore()
	m.d.values["STORE"], m.d.values["BACK_STORE"] = m.here.store, m.there.store
	m.d.follow(m.p, m.p.in("Go back"))
	m.c.WaitHealthy(3)
	m.follows()
}

// TestRegionLost moves a cluster to another region as planned, back again, and over once more after a loss, while a client writes all the
// time.
func TestRegionLost(t *testing.T) {
	if !*regionFlag {
		t.Skip("it takes minutes: only with -region")
	}
	t.Parallel()
	m := newMoves(t)
	defer m.w.stop()
	want := objects(fill(t, m.c, "shop", 20))

	m.writes(200)
	m.move("Planned")
	m.lost("planned", time.Time{})
	m.back()
	m.writes(200)
	m.move("Planned")
	m.lost("back", time.Time{})
	m.back()

	m.writes(200)
	killed := m.kill()
	m.move("Unplanned")
	m.lost("unplanned", killed)
	leased(t, m.c, "shop")
	if got := objects(read(m.c)); !maps.Equal(got, want) {
		t.Errorf("after three moves there are %d objects, before %d: %v", len(got), len(want), got)
	}

	// The new masters start with the flags that the page has left them, and an old one that comes back doesn't serve.
	m.d.stop(m.here.nodes[0])
	m.d.start(m.here.nodes[0])
	n := m.there.nodes[0]
	m.d.start(n)
	if code := n.WaitExit(30 * time.Second); code != 1 || n.EtcdPID() != 0 || !strings.Contains(n.LogText(), "this cluster was superseded by") {
		t.Errorf("exit code %d, etcd %d\n%s", code, n.EtcdPID(), n.LogTail(20))
	}
	agree(t, m.c, 3)
}

// objects are those of fill.
func objects(c content) map[string]string {
	maps.DeleteFunc(c.keys, func(k, _ string) bool { return !strings.HasPrefix(k, "/registry/") })
	return c.keys
}

// kill ends all managers and etcds that serve, as a power cut does, and returns when.
func (m *moves) kill() time.Time {
	m.t.Helper()
	killed := time.Now()
	for _, n := range m.here.nodes {
		n.Signal(syscall.SIGKILL)
		n.KillEtcd()
	}
	for _, n := range m.here.nodes {
		n.KillWhole()
	}
	return killed
}

// writes waits until that many more writes were acknowledged.
func (m *moves) writes(more int) {
	m.t.Helper()
	before, _ := m.w.count()
	m.c.WaitFor(fmt.Sprintf("%d writes", more), 60*time.Second, func() string {
		if n, err := m.w.count(); n < before+more {
			return fmt.Sprintf("%d writes; the last one's error: %v", n-before, err)
		}
		return ""
	})
}

// lost fails if an acknowledged write is gone that mustn't be: after a kill those of the last moments may be, and nothing else.
func (m *moves) lost(move string, killed time.Time) {
	m.t.Helper()
	m.writes(50)
	acked, gap := m.w.take()
	got, _ := m.c.ReadAll(m.w.prefix)
	var gone []string
	for key := range acked {
		if got[key] == "" {
			gone = append(gone, key)
		}
	}
	slices.SortFunc(gone, func(a, b string) int { return acked[a].Compare(acked[b]) })
	m.w.forget(gone)
	oldest := ""
	last := time.Duration(0)
	if len(gone) > 0 && !killed.IsZero() {
		last = killed.Sub(acked[gone[0]])
		oldest = fmt.Sprintf(", the oldest %s before the kill", last.Round(time.Millisecond))
	}
	m.t.Logf("%s: of %d acknowledged writes %d are lost%s; no write was acknowledged for %s", move, len(acked), len(gone), oldest,
		gap.Round(100*time.Millisecond))
	switch {
	case len(gone) == 0:
	case killed.IsZero():
		m.t.Errorf("%s: acknowledged writes are lost: %s", move, gone[:min(len(gone), 10)])
	case last > regionInterval+2*time.Second:
		m.t.Errorf("%s: writes of the last %s are lost", move, last)
	case acked[gone[len(gone)-1]].After(killed.Add(time.Second)):
		m.t.Errorf("%s: the new cluster has lost %s", move, gone[len(gone)-1])
	}
	for key, at := range acked {
		if len(gone) > 0 && got[key] != "" && at.After(acked[gone[0]]) && at.Before(killed) {
			m.t.Errorf("%s: %s is there, and %s, which was acknowledged before it, isn't", move, key, gone[0])
		}
	}
}

// writing is a client that writes one key after another to whoever serves, and remembers what was acknowledged.
type writing struct {
	prefix string
	stop   func()

	mu    sync.Mutex
	acked map[string]time.Time
	last  time.Time
	gap   time.Duration
	// err is that of the last write.
	err error
}

func startWriting(t *testing.T, client *clientv3.Client) *writing {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan struct{})
	w := &writing{prefix: "/w/", acked: map[string]time.Time{}, last: time.Now(), stop: func() { cancel(); <-ended }}
	go func() {
		defer close(ended)
		for n := 0; ctx.Err() == nil; n++ {
			key := fmt.Sprintf("%s%08d", w.prefix, n)
			rctx, done := context.WithTimeout(ctx, time.Second)
			_, err := client.Put(rctx, key, "x")
			w.note(key, err)
			done()
			select {
			case <-ctx.Done():
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	return w
}

func (w *writing) note(key string, err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.err = err; err != nil {
		return
	}
	now := time.Now()
	w.acked[key] = now
	w.gap = max(w.gap, now.Sub(w.last))
	w.last = now
}

// count is how many writes were acknowledged, with the last one's error.
func (w *writing) count() (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(w.acked), w.err
}

// take returns what was acknowledged, and the longest time without since the last call. That time is longer than etcd's own outage: the
// client asks masters that didn't answer for a while at longer and longer intervals.
func (w *writing) take() (map[string]time.Time, time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	gap := w.gap
	w.gap = 0
	return maps.Clone(w.acked), gap
}

func (w *writing) forget(keys []string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, k := range keys {
		delete(w.acked, k)
	}
}
