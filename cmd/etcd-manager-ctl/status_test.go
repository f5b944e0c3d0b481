package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/blob/connect"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
	"github.com/etcd-manager/etcd-manager/pkg/operator/health"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// dated is a store whose objects are as old as the test's clock says, and that counts requests.
type dated struct {
	blob.Store
	now func() time.Time

	mu       sync.Mutex
	at       map[string]time.Time
	requests int
}

func newDated(now func() time.Time) *dated {
	return &dated{Store: blobtest.NewMemory(), now: now, at: map[string]time.Time{}}
}

func (d *dated) Put(ctx context.Context, key string, body io.Reader, o blob.PutOptions) (blob.Info, error) {
	i, err := d.Store.Put(ctx, key, body, o)
	d.mu.Lock()
	defer d.mu.Unlock()
	d.at[key] = d.now()
	return i, err
}

func (d *dated) Get(ctx context.Context, key string, r blob.Range) (io.ReadCloser, blob.Info, error) {
	d.count(1)
	return d.Store.Get(ctx, key, r)
}

func (d *dated) count(n int) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.requests += n
}

func (d *dated) List(ctx context.Context, prefix string, o blob.ListOptions) iter.Seq2[blob.Entry, error] {
	return func(yield func(blob.Entry, error) bool) {
		n := 0
		for e, err := range d.Store.List(ctx, prefix, o) {
			if n%1000 == 0 {
				d.count(1)
			}
			n++
			d.mu.Lock()
			e.Modified = d.at[e.Key]
			d.mu.Unlock()
			if !yield(e, err) {
				return
			}
		}
		if n == 0 {
			d.count(1)
		}
	}
}

// scene is a cluster as it stands in a store.
type scene struct {
	*world
	status catalog.Status
	hold   *catalog.Hold
}

const statusBackup = "2026-02-01T11:53:00Z-000000"

func newScene(t *testing.T) *scene {
	w := newWorld(t)
	w.store = newDated(func() time.Time { return w.now })
	return &scene{world: w}
}

// healthy is a cluster of three members that is as it should be.
func (s *scene) healthy() {
	t, ctx, c := s.t, s.t.Context(), s.catalog()
	t.Helper()
	end := s.now
	s.now = end.Add(-20 * time.Minute)
	s.world.spec(3, "3.6.16")
	_, err := c.CreateMarker(ctx, catalog.Marker{Phase: catalog.PhaseFormed, Token: "t", Time: s.now.Add(-48 * time.Hour)})
	must(t, err)
	const id = catalog.Incarnation("00000000000000aa")
	must(t, c.CreateIncarnation(ctx, catalog.IncarnationRecord{ID: id, Began: s.now.Add(-48 * time.Hour)}))
	must(t, c.PutServing(ctx, catalog.Serving{Incarnation: id, Token: "t", Node: "b", Term: 4}))
	s.goodBackup("2026-02-01T11:38:00Z-000000", "etcd", 100, "periodic")
	for i := range 6 {
		previous := catalog.NoSegment
		if i > 0 {
			previous = catalog.SegmentSum(fmt.Sprintf("%016x", i))
		}
		s.now = end.Add(time.Duration(i-6)*3*time.Minute - time.Minute)
		must(t, c.PutSegment(ctx, id, catalog.SegmentName{First: int64(101 + 10*i), Last: int64(110 + 10*i), Ended: s.now.Add(time.Minute),
			Previous: previous, Sum: catalog.SegmentSum(fmt.Sprintf("%016x", i+1))}, []byte("x")))
	}
	s.now = end.Add(-6 * time.Minute)
	s.goodBackup(statusBackup, "etcd", 120, "periodic")
	must(t, c.PutProof(ctx, statusBackup, catalog.Proof{At: s.now, Outcome: catalog.Proven}))
	s.now = end.Add(-30 * time.Second)
	s.status = catalog.Status{At: s.now, ClusterName: "etcd", Node: "b", Manager: "1.2.3", Leading: true, Leader: "b", Term: 4,
		Doing: "3 of 3 members are healthy", Since: end.Add(-47 * time.Hour), Wanted: 3,
		Backups: &catalog.BackupReport{Newest: catalog.BackupTime(statusBackup), Stored: 193, IntervalSeconds: 900, VerifySeconds: 86400},
		Proof:   &catalog.ProofReport{Backup: statusBackup, At: end.Add(-6 * time.Minute)},
		Changes: &catalog.ChangesReport{Incarnation: id, Seen: 160, Archived: 160, Until: end.Add(-35 * time.Second)}}
	for i, n := range []cluster.NodeID{"a", "b", "c"} {
		role := catalog.RoleFollower
		if n == "b" {
			role = catalog.RoleLeader
		}
		s.status.Nodes = append(s.status.Nodes, catalog.NodeReport{Node: n, Manager: "1.2.3", Member: fmt.Sprint(i + 1), Role: role,
			Version: "3.6.16", Running: true, Healthy: true, Revision: 160, RaftIndex: 9000, DBSize: 12 << 20, DBInUse: 9 << 20, DBQuota: 2 << 30,
			DiskFree: 15 << 30, DiskTotal: 20 << 30, Endings: []cluster.Ending{
				{What: "CA etcd-clients-ca", At: end.Add(3650*24*time.Hour + time.Hour)},
				{What: "certificate etcd client", At: end.Add(700*24*time.Hour + time.Duration(i)*time.Hour), Renewed: true}}})
	}
	s.lead()
	s.now = end
}

// lead writes the leader record with the status, half a minute ago.
func (s *scene) lead() {
	s.t.Helper()
	now := s.now
	if s.hold == nil {
		h, err := s.catalog().TakeTerm(s.t.Context(), s.status.Term, s.status.Node, "i")
		must(s.t, err)
		s.hold = h
	}
	data, err := catalog.EncodeStatus(s.status)
	must(s.t, err)
	s.hold.Show(data)
	must(s.t, s.hold.Heartbeat(s.t.Context()))
	s.now = now
}

// changed is a healthy cluster but for what change does to what the leader says.
func (s *scene) changed(change func(st *catalog.Status)) {
	s.healthy()
	end := s.now
	s.now = end.Add(-30 * time.Second)
	change(&s.status)
	s.lead()
	s.now = end
}

// down is a node that doesn't answer.
func down(st *catalog.Status, id cluster.NodeID) {
	for i, n := range st.Nodes {
		if n.Node == id {
			st.Nodes = append(st.Nodes[:i:i], st.Nodes[i+1:]...)
			break
		}
	}
	st.Missing = append(st.Missing, catalog.MissingNode{Node: id, Seconds: 200})
}

// situations are what an operator may meet, with the verdict.
var situations = []struct {
	name    string
	verdict health.Verdict
	make    func(s *scene)
}{
	{"healthy", health.Healthy, (*scene).healthy},
	{"one member down", health.Degraded, func(s *scene) { s.changed(func(st *catalog.Status) { down(st, "c") }) }},
	{"etcd can't start on one node", health.NeedsYou, func(s *scene) {
		s.changed(func(st *catalog.Status) {
			n := &st.Nodes[2]
			n.Running, n.Healthy, n.UnhealthySeconds, n.Role, n.Error = false, false, 400, catalog.RoleMember,
				"exited with code 1: no space left on device"
			n.DiskFree = 20 << 20
			st.Attention = []cluster.Attention{(cluster.Attention{Kind: cluster.AttentionDisk, Node: "c", Since: st.At.Add(-5 * time.Minute),
				Text: "The disk of node c is full: 20 of 20480 MiB are free."}).Ended()}
		})
	}},
	{"quorum lost", health.NeedsYou, func(s *scene) {
		s.changed(func(st *catalog.Status) {
			down(st, "a")
			down(st, "b")
			st.Node, st.Leader = "c", "c"
			st.Nodes[0].Healthy, st.Nodes[0].Role, st.Nodes[0].UnhealthySeconds, st.Nodes[0].Error = false, catalog.RoleMember, 240, "no leader"
			st.Attention = []cluster.Attention{{Kind: cluster.AttentionQuorum, Since: st.At.Add(-4 * time.Minute),
				Text:    "Etcd has no quorum: 1 of 3 members answers. Bring the other masters back, then nothing is lost.",
				Command: "etcd-manager-ctl --backup-store=URL recover --from-survivor"}}
		})
	}},
	{"no leader", health.NeedsYou, func(s *scene) {
		s.healthy()
		s.pass(4 * time.Minute)
		st := s.status
		st.Node, st.Leading, st.Leader, st.At, st.Nodes = "c", false, "", s.now, st.Nodes[2:]
		st.Nodes[0].Healthy, st.Nodes[0].Role, st.Nodes[0].UnhealthySeconds, st.Nodes[0].Error = false, catalog.RoleMember, 200, "no leader"
		st.Doing = "no manager leads: 1 of 3 known managers answer, 2 are needed; silent: a (no answer yet), b (no answer yet)"
		st.Missing = []catalog.MissingNode{{Node: "a", Problem: "connection refused"}, {Node: "b", Problem: "connection refused"}}
		st.Attention = []cluster.Attention{(cluster.Attention{Kind: cluster.AttentionNoLeader, Node: "c", Text: st.Doing}).Ended(),
			{Kind: cluster.AttentionQuorum, Node: "c", Text: "The etcd of this node runs, but has no quorum, and no manager leads.",
				NoCommand: "bring the other masters back, then nothing is lost"}}
		must(s.t, s.catalog().PutStatus(s.t.Context(), st))
	}},
	{"no manager writes", health.NeedsYou, func(s *scene) { s.healthy(); s.pass(2 * time.Hour) }},
	{"an older manager leads", health.Unknown, func(s *scene) {
		s.healthy()
		s.put("control/leader", `{"version":1,"term":9,"node":"a","instance":"x","timestamp":"2026-02-01T12:00:00Z"}`)
	}},
	{"store away", health.Unknown, func(s *scene) {
		s.store = broken{Store: s.store, err: &blob.Error{Op: "list", Key: "mem://bucket/main", Kind: blob.ErrTransient,
			Err: errors.New("connection refused")}}
	}},
	{"wrong prefix", health.Unknown, func(s *scene) { s.put("elsewhere/x", "y") }},
	{"before the first cluster", health.NeedsYou, func(s *scene) { s.put("discovery/a", `{"nodeId":"a"}`); s.put("control/probe/x", "y") }},
	{"no manager yet", health.NeedsYou, func(s *scene) { s.world.spec(3, "3.6.16") }},
	{"forming", health.Degraded, func(s *scene) {
		s.world.spec(3, "3.6.16")
		_, err := s.catalog().CreateMarker(s.t.Context(), catalog.Marker{Phase: catalog.PhaseForming, Token: "t",
			Founders: []cluster.EtcdNode{{Name: "a"}, {Name: "b"}, {Name: "c"}}})
		must(s.t, err)
		s.status = catalog.Status{At: s.now, ClusterName: "etcd", Node: "a", Leading: true, Leader: "a", Term: 1, Wanted: 3,
			Doing: "etcd starts on a, b, c",
			Nodes: []catalog.NodeReport{{Node: "a", Role: catalog.RoleFollower, Version: "3.6.16", Running: true, Healthy: true, Quarantined: true}}}
		s.lead()
	}},
	{"restore waits", health.Healthy, func(s *scene) { s.healthy(); s.queue(statusBackup, catalog.RestoreOptions{}) }},
	{"restore runs", health.Degraded, func(s *scene) {
		s.healthy()
		l := s.begin(s.queue(statusBackup, catalog.RestoreOptions{Now: true}), catalog.StateStaging)
		l.op.Progress = map[cluster.NodeID]catalog.Progress{"a": {Phase: "stage", Done: 40, Total: 100},
			"b": {Phase: "stage", Done: 60, Total: 100}}
		l.save()
	}},
	{"restore failed", health.Degraded, func(s *scene) {
		s.healthy()
		l := s.begin(s.queue(statusBackup, catalog.RestoreOptions{Now: true}), catalog.StateProving)
		l.op.State, l.op.Reason, l.op.Finished = catalog.StateFailed, "node b: not enough disk space", s.now
		l.save()
		must(s.t, s.catalog().RemoveCommand(s.t.Context(), l.op.Command))
	}},
	{"restore rolled back", health.Degraded, func(s *scene) {
		s.healthy()
		l := s.begin(s.queue(statusBackup, catalog.RestoreOptions{Now: true}), catalog.StateProving)
		l.op.State, l.op.Reason, l.op.Finished = catalog.StateRolledBack, "node b did not start", s.now
		l.save()
		must(s.t, s.catalog().RemoveCommand(s.t.Context(), l.op.Command))
	}},
	{"archive lagging", health.Degraded, func(s *scene) {
		s.changed(func(st *catalog.Status) {
			st.Changes.Until, st.Changes.SpilledBytes, st.Changes.Error = st.At.Add(-20*time.Minute), 70<<20, "the store refuses: 503 slow down"
		})
	}},
	{"a gap", health.Degraded, func(s *scene) {
		s.healthy()
		end := s.now
		s.now = end.Add(-time.Minute)
		must(s.t, s.catalog().PutSegment(s.t.Context(), "00000000000000aa", catalog.SegmentName{First: 201, Last: 210, Ended: s.now,
			Previous: catalog.NoSegment, Sum: "00000000000000ff"}, []byte("x")))
		s.now = end
	}},
	{"a bad backup", health.NeedsYou, func(s *scene) {
		s.changed(func(st *catalog.Status) {
			st.Proof.Bad = "the HashKV at revision 120 differs from that of the changes"
			must(s.t, s.catalog().PutProof(s.t.Context(), statusBackup,
				catalog.Proof{At: s.now, Outcome: catalog.Disproven, Error: st.Proof.Bad}))
		})
	}},
	{"no backup for long", health.NeedsYou, func(s *scene) {
		s.changed(func(*catalog.Status) {})
		s.pass(3 * time.Hour)
		end := s.now
		s.now = end.Add(-20 * time.Second)
		s.status.At, s.status.Backups.Error = s.now, "node a: write: access denied"
		s.status.Changes.Until = s.now.Add(-10 * time.Second)
		s.lead()
		s.now = end
	}},
	{"CAs near their end", health.NeedsYou, func(s *scene) {
		s.changed(func(st *catalog.Status) {
			for i := range st.Nodes {
				st.Nodes[i].Endings[0].At = st.At.Add(5 * 24 * time.Hour)
			}
			st.Attention = []cluster.Attention{(cluster.Attention{Kind: cluster.AttentionCertificate, Node: "b",
				Text: "CA /pki/etcd-clients-ca.crt ends in 5 days, at 2026-02-06T11:59:30Z"}).Ended()}
		})
	}},
	{"NOSPACE", health.NeedsYou, func(s *scene) {
		s.changed(func(st *catalog.Status) {
			st.Nodes[1].Alarms, st.Nodes[1].DBSize = []string{"NOSPACE"}, 2<<30
			st.Attention = []cluster.Attention{{Kind: cluster.AttentionDatabase, Text: "Etcd's database is full, and nothing more can be freed.",
				Command: "etcd-manager-ctl --backup-store=URL configure-cluster --set=quota-backend-bytes=4294967296"}}
		})
	}},
	{"mixed versions", health.Degraded, func(s *scene) {
		s.changed(func(st *catalog.Status) { st.Nodes[0].Version, st.Nodes[2].Role = "3.5.26", catalog.RoleLearner })
	}},
	{"damaged objects", health.Degraded, func(s *scene) {
		s.healthy()
		s.put("control/status/c.json", "damaged")
		s.put("control/etcd-cluster-settings.json", "")
	}},
}

func TestStatus(t *testing.T) {
	all := newWorld(t)
	for _, c := range situations {
		s := newScene(t)
		c.make(s)
		fmt.Fprintf(&all.log, "# %s\n", c.name)
		s.do("status")
		all.log.WriteString(s.log.String())
		code, out, errOut := s.exec("--backup-store=mem://bucket/main", "status", "-o", "json")
		var r health.Report
		if err := json.Unmarshal([]byte(out), &r); err != nil {
			t.Fatalf("%s: %v: %s%s", c.name, err, out, errOut)
		}
		if r.Verdict != c.verdict || code != c.verdict.ExitCode() || r.Version != health.SchemaVersion {
			t.Errorf("%s: %s, exit code %d: %s", c.name, r.Verdict, code, r.Summary)
		}
		if r.Verdict != health.Healthy && len(r.Findings) == 0 {
			t.Errorf("%s: no finding", c.name)
		}
	}
	all.golden("status")
}

// TestStatusFormats: JSON and YAML say the same, the store can come from the environment, and what can't be is refused.
func TestStatusFormats(t *testing.T) {
	s := newScene(t)
	s.healthy()
	s.do("status", "-o", "yaml")
	s.do("status", "-o", "wide")
	s.do("status", "--watch", "-o", "json")
	s.do("status", "--watch")
	s.do("status", "now")
	s.golden("status-formats")
	var out, errOut strings.Builder
	code := run(t.Context(), deps{args: []string{"status"}, out: &out, errOut: &errOut, now: func() time.Time { return s.now },
		env: func(name string) string {
			if name == storeVariable {
				return "mem://bucket/main"
			}
			return ""
		},
		open: func(context.Context, string) (blob.Store, error) { return s.store, nil }})
	if code != 0 || !strings.Contains(out.String(), "mem://bucket/main: healthy") {
		t.Errorf("by the variable: %d, %s%s", code, out.String(), errOut.String())
	}
}

// TestStatusRequests: a look costs few requests, whatever is stored.
func TestStatusRequests(t *testing.T) {
	s := newScene(t)
	s.healthy()
	for i := range 300 {
		s.put(fmt.Sprintf("control/operations/op%03d.json", i), `{"version":1}`)
		s.put(fmt.Sprintf("control/status/n%03d.json", i), "{}")
		s.put(fmt.Sprintf("control/c%03d/_command.json", i), "{}")
	}
	d := s.store.(*dated)
	d.requests = 0
	s.exec("--backup-store=mem://bucket/main", "status")
	if d.requests > 65 {
		t.Errorf("%d requests", d.requests)
	}
}

// TestWatch redraws in place until it is interrupted.
func TestWatch(t *testing.T) {
	s := newScene(t)
	s.healthy()
	ctx, end := context.WithCancel(t.Context())
	var out writerFunc = func(p []byte) (int, error) {
		if text := string(p); !strings.HasPrefix(text, "\x1b[2J\x1b[H") || !strings.Contains(text, "healthy\x1b[K\n") {
			t.Errorf("drawn was %q", text)
		}
		end()
		return len(p), nil
	}
	code := run(ctx, deps{args: []string{"--backup-store=mem://x", "status", "--watch"}, out: out, outTerminal: true, errOut: io.Discard,
		now: func() time.Time { return s.now }, open: func(context.Context, string) (blob.Store, error) { return s.store, nil }})
	if code != 0 {
		t.Errorf("exit code %d", code)
	}
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

// TestFleet: many clusters in one table, in layouts of all kinds.
func TestFleet(t *testing.T) {
	s := newScene(t)
	all := newDated(func() time.Time { return s.now })
	place := func(prefix string, make func(s *scene)) {
		c := newScene(t)
		c.store = blob.Below(all, prefix)
		s.now = c.now
		real := all.now
		all.now = func() time.Time { return c.now }
		make(c)
		all.now = real
	}
	for _, c := range situations {
		switch c.name {
		case "healthy", "one member down", "quorum lost", "a bad backup", "an older manager leads", "archive lagging":
			place("flat/"+strings.ReplaceAll(c.name, " ", "-"), c.make)
		}
	}
	place("kops/x.example.com/backups/etcd/main", (*scene).healthy)
	place("kops/x.example.com/backups/etcd/events", (*scene).healthy)
	for _, key := range []string{"kops/x.example.com/pki/private/ca/1.key", "other/deep/er/file", "kops/x.example.com/config"} {
		_, err := all.Put(t.Context(), key, strings.NewReader("x"), blob.PutOptions{})
		must(t, err)
	}
	s.store = all
	s.raw("fleet", "status", "--store=mem://bucket/")
	s.raw("fleet", "status", "--store=mem://bucket/", "--prefix=kops")
	s.raw("fleet", "status", "--store=mem://bucket/", "--prefix=nowhere")
	s.raw("fleet", "status")
	s.golden("fleet")
	_, out, _ := s.exec("--backup-store=mem://bucket/", "fleet", "status", "-o", "json")
	var f operator.FleetHealth
	must(t, json.Unmarshal([]byte(out), &f))
	if len(f.Clusters) != 8 || f.Verdict != health.NeedsYou || f.Clusters[0].Verdict != health.NeedsYou ||
		f.Clusters[7].Prefix != "kops/x.example.com/backups/etcd/main" || f.Version != 1 {
		t.Errorf("as JSON: %s", out)
	}
}

// TestFleetOfThousand bounds the requests and the time for a thousand clusters on a real S3 server.
func TestFleetOfThousand(t *testing.T) {
	testutil.Long(t)
	server := servers.StartVersityGW(t, servers.InMemory())
	one := newScene(t)
	one.now = time.Now().UTC().Truncate(time.Second)
	one.changed(func(st *catalog.Status) {
		st.Backups.Newest, st.Proof.At, st.Changes.Until = st.At, st.At, st.At
	})
	store := one.store.(*dated).Store
	const clusters = 1000
	for e, err := range store.List(t.Context(), "", blob.ListOptions{}) {
		must(t, err)
		data, _, err := blob.ReadAll(t.Context(), store, e.Key, 1<<20)
		must(t, err)
		for i := range clusters {
			path := filepath.Join(server.DataDir, server.Bucket, fmt.Sprintf("c%04d", i), filepath.FromSlash(e.Key))
			must(t, os.MkdirAll(filepath.Dir(path), 0o755))
			must(t, os.WriteFile(path, data, 0o600))
		}
	}
	var requests atomic.Int64
	open := func(ctx context.Context, url string) (blob.Store, error) {
		return connect.Open(ctx, url, server.Getenv, connect.OnRequest(func(string) { requests.Add(1) }))
	}
	began := time.Now()
	f, err := operator.Fleet(t.Context(), operator.Config{Store: server.URL(""), Open: open}, nil)
	took := time.Since(began)
	must(t, err)
	if len(f.Clusters) != clusters || f.Verdict != health.Healthy {
		t.Errorf("%d clusters, the worst is %s: %+v", len(f.Clusters), f.Verdict, f.Clusters[0].Findings)
	}
	if requests.Load() > 5000 || took > 30*time.Second {
		t.Errorf("%d requests in %s", requests.Load(), took)
	}
	t.Logf("%d clusters: %d requests in %s", clusters, requests.Load(), took.Round(time.Millisecond))
}

// TestWhyCommandsWait: without a leader, list-commands and follow say that this is what a command waits for.
func TestWhyCommandsWait(t *testing.T) {
	s := newScene(t)
	s.healthy()
	if out, errOut, code := s.tell("create-backup"); code != exitOK {
		t.Fatalf("queue: code %d: %s%s", code, out, errOut)
	}
	if _, errOut, code := s.tell("list-commands"); code != exitOK || strings.Contains(errOut, "commands wait") {
		t.Errorf("with a leader: code %d: %s", code, errOut)
	}
	s.now = s.now.Add(time.Hour)
	if _, errOut, code := s.tell("list-commands"); code != exitOK || !strings.Contains(errOut, "commands wait: No manager has written") {
		t.Errorf("without a leader: code %d: %s", code, errOut)
	}
}
