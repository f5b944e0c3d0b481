package status

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

func leaderView(now time.Time) View {
	return View{
		ClusterName: "etcd", Node: "a", Version: "1.0", Leader: "a", Leading: true, Term: 7,
		Doing: "node c hasn't answered", DoingSince: now.Add(-time.Minute),
		Alarm: true, Source: "a", Attention: []cluster.Attention{
			{Kind: cluster.AttentionDisk, Node: "c", Since: now.Add(-time.Hour), Text: "The disk is full.", NoCommand: "make room"},
			{Kind: cluster.AttentionQuorum, Text: "etcd has no quorum", Command: "etcd-manager-ctl recover"},
		},
		Peers:  []Peer{{ID: "b", Connected: true}, {ID: "c", Problem: "connection refused"}},
		Etcd:   cluster.EtcdStatus{Running: true, Healthy: true, Version: "3.6.16", Revision: 42, MemberID: 1, LeaderID: 1},
		Wanted: 3, Healthy: 2, NewestBackup: now.Add(-90 * time.Second), Backups: 5, BackupError: "disk full", StoreError: "timeout",
		Waiting: []string{"restore of X, until the managers are restarted"}, StoreRequests: map[string]int64{"PutObject": 3},
		Recent: []Event{{At: now, Text: "did something"}},
	}
}

func TestTextSaysWhatAnOperatorNeeds(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	text := Text(leaderView(now), now)
	for _, want := range []string{
		"this node, term 7", "node c hasn't answered (for 1m0s)", "disk-full on node c for 1h0m0s: The disk is full.",
		"make room", "etcd-manager-ctl recover", "healthy, version 3.6.16, revision 42", "etcd leader",
		"doesn't answer: connection refused", "2 healthy, 3 wanted", "1m30s ago (5 in the store)", "FAILED: disk full", "AWAY: timeout",
		"restore of X, until the managers are restarted", "03:04:05", "did something",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	if text := Text(View{Node: "b", Etcd: cluster.EtcdStatus{Error: "its data dir is gone"}},
		now); !strings.Contains(text, "not running: its data dir is gone") || strings.Contains(text, "newest backup") {
		t.Errorf("a follower without etcd:\n%s", text)
	}
}

func TestPages(t *testing.T) {
	srv := httptest.NewServer(Handler(func() View { return leaderView(time.Now()) }))
	defer srv.Close()
	for path, want := range map[string]string{
		"/metrics":     `etcd_manager_store_requests_total{operation="PutObject"} 3`,
		"/metrics?":    `etcd_manager_peer_connected{peer="c"} 0`,
		"/metrics?x":   "etcd_manager_backup_failing 1",
		"/healthz":     "ok",
		"/status":      "ATTENTION",
		"/status.json": `"term": 7`,
	} {
		resp, err := http.Get(srv.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		body, err := io.ReadAll(resp.Body)
		_ = resp.Body.Close()
		if err != nil || resp.StatusCode != http.StatusOK || !strings.Contains(string(body), want) {
			t.Errorf("%s: %s, %v; %q is missing in\n%s", path, resp.Status, err, want, body)
		}
	}
}

// probe asks a page of a node that shows v.
func probe(t *testing.T, v View, path string) (int, string) {
	t.Helper()
	r := httptest.NewRecorder()
	Handler(func() View { return v }).ServeHTTP(r, httptest.NewRequestWithContext(t.Context(), http.MethodGet, path, nil))
	return r.Code, r.Body.String()
}

// TestProbes shows what each of the three paths for probes answers in each state of a node.
func TestProbes(t *testing.T) {
	serving := cluster.EtcdStatus{Running: true, Healthy: true}
	quarantined, learner := serving, serving
	quarantined.Quarantined, learner.Learner = true, true
	for name, c := range map[string]struct {
		view   View
		ready  int
		reason string
	}{
		"serving":    {View{Leader: "a", Etcd: serving}, 200, "[+]etcd: ok"},
		"no leader":  {View{Etcd: serving}, 200, "[!]leader: no manager leads (doesn't count)"},
		"store away": {View{Leader: "a", Etcd: serving, StoreError: "timeout"}, 200, "[!]store: timeout (doesn't count)"},
		"quorum lost": {View{Leader: "a", Etcd: cluster.EtcdStatus{Running: true, Error: "no leader", UnhealthyFor: time.Minute}},
			503, "for 1m0s: no leader"},
		"full disk": {View{Etcd: cluster.EtcdStatus{Error: "no space left on device"}}, 503,
			"[-]etcd: etcd isn't running here: no space left on device"},
		"before it formed": {View{}, 503, "it was not started yet"},
		"quarantined":      {View{Etcd: quarantined}, 503, "quarantined"},
		"learner":          {View{Etcd: learner}, 503, "learner"},
	} {
		t.Run(name, func(t *testing.T) {
			if code, body := probe(t, c.view, "/livez"); code != 200 || body != "ok\n" {
				t.Errorf("/livez: %d %q", code, body)
			}
			if code, body := probe(t, c.view, "/readyz?verbose"); code != c.ready || !strings.Contains(body, c.reason) {
				t.Errorf("/readyz?verbose: %d %q, want %d and %q", code, body, c.ready, c.reason)
			}
			code, body := probe(t, c.view, "/healthz")
			if code != 200 || !strings.HasPrefix(body, "ok\n") || strings.Contains(body, "not ready") != (c.ready != 200) {
				t.Errorf("/healthz: %d %q", code, body)
			}
		})
	}
}

// TestSeriesNeverVanish asks nodes of each kind for the series that alerts are made of: none may lack one, whatever isn't known there yet.
func TestSeriesNeverVanish(t *testing.T) {
	rules, err := os.ReadFile(root + "/contrib/prometheus/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	series := map[string]bool{}
	for _, n := range metricName.FindAllString(string(rules), -1) {
		series[n] = true
	}
	if len(series) < 20 {
		t.Fatalf("the alerts read only %v", series)
	}
	for _, n := range []string{"attention_needed", "store_up", "backups", "commands_waiting", "retention_denied", "summary_age_seconds", "etcd_healthy"} {
		series["etcd_manager_"+n] = true // operations.md names them
	}
	webhooks := []Webhook{{Number: 1, Host: "h"}}
	copies := []catalog.CopyReport{{Name: "s3://copy"}}
	young := leaderView(time.Now())
	young.Etcd, young.Webhooks, young.Copies = cluster.EtcdStatus{}, webhooks, copies
	for name, v := range map[string]View{
		"leader":          fullView(),
		"leader, at once": young,
		"follower": {Node: "b", Leader: "a", Source: "a", SourceAge: 20 * time.Second, Webhooks: webhooks, Copies: copies,
			Changes: &Changes{Seen: 5, Gaps: 1, Segments: 2}, Proof: &Proof{}},
		"without leader": {Node: "b", Source: "b", StoreError: "timeout", Webhooks: webhooks, Copies: copies},
	} {
		_, body := probe(t, v, "/metrics")
		for s := range series {
			if !strings.Contains(body, "\n"+s+" ") && !strings.Contains(body, "\n"+s+"{") {
				t.Errorf("%s: no %s", name, s)
			}
		}
		for _, k := range cluster.AttentionKinds() {
			if !strings.Contains(body, fmt.Sprintf("\netcd_manager_attention{kind=%q} ", k)) {
				t.Errorf("%s: no attention of the kind %s", name, k)
			}
		}
		if !v.Leading && !strings.Contains(body, "\netcd_manager_changelog_gaps_total 0\n") {
			t.Errorf("%s counts what the leader counts:\n%s", name, body)
		}
	}
	_, body := probe(t, View{Node: "b", Source: "b", StoreError: "timeout",
		Attention: []cluster.Attention{{Kind: cluster.AttentionQuorum}}}, "/metrics")
	for _, want := range []string{"attention_needed 1", "store_up 0", `attention{kind="quorum-lost"} 1`, `attention{kind="store-away"} 0`} {
		if !strings.Contains(body, "\netcd_manager_"+want+"\n") {
			t.Errorf("%s is missing in\n%s", want, body)
		}
	}
}

// TestDisk: every node tells of its disk, whoever leads.
func TestDisk(t *testing.T) {
	v := View{Node: "b", Disk: Disk{TotalBytes: 20 << 30, FreeBytes: 3 << 20, Full: true}}
	if text := Text(v, time.Now()); !strings.Contains(text, "FULL: 3 of 20480 MiB are free") {
		t.Errorf("the page says nothing of the full disk:\n%s", text)
	}
	_, body := probe(t, v, "/metrics")
	for _, want := range []string{"etcd_manager_disk_full 1", "etcd_manager_disk_free_bytes 3.145728e+06",
		"etcd_manager_disk_size_bytes 2.147483648e+10"} {
		if !strings.Contains(body, want) {
			t.Errorf("%q is missing among the metrics", want)
		}
	}
}

// TestDatabaseOfAnEtcdThatIsDown: what was last known of the database stays, so that an alert for it doesn't fall silent with etcd.
func TestDatabaseOfAnEtcdThatIsDown(t *testing.T) {
	v := leaderView(time.Now())
	v.Etcd.DBSize, v.Etcd.DBSizeInUse, v.Etcd.DBQuota = 30, 20, 40
	h := Handler(func() View { return v })
	for _, etcd := range []cluster.EtcdStatus{v.Etcd, {Error: "exited"}, {Running: true, Healthy: true, Denied: true}} {
		v.Etcd = etcd
		r := httptest.NewRecorder()
		h.ServeHTTP(r, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
		for _, want := range []string{"etcd_db_size_bytes 30", "etcd_db_in_use_bytes 20", "etcd_db_quota_bytes 40"} {
			if body := r.Body.String(); !strings.Contains(body, "\netcd_manager_"+want+"\n") {
				t.Errorf("%+v: %s is missing in\n%s", etcd, want, body)
			}
		}
	}
}

func TestLine(t *testing.T) {
	person := []cluster.Attention{{Text: "disk full on node c"}, {Text: "x"}}
	for want, v := range map[string]View{
		"etcd serves; node a leads: all is well":                                   {Etcd: cluster.EtcdStatus{Running: true, Healthy: true}, Doing: "node a leads: all is well"},
		"no etcd runs; no manager leads":                                           {Doing: "no manager leads"},
		"etcd isn't healthy; a person is needed: disk full on node c (and 1 more)": {Etcd: cluster.EtcdStatus{Running: true}, Doing: "x", Attention: person},
		"a person is needed: disk full on node c":                                  {Standby: &Standby{}, Attention: person[:1]},
		"etcd serves": {Etcd: cluster.EtcdStatus{Running: true, Healthy: true}},
	} {
		if got := Line(v); got != want {
			t.Errorf("%q; want %q", got, want)
		}
	}
}
