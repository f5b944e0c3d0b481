package status

import (
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

func leaderView(now time.Time) View {
	return View{
		ClusterName: "etcd", Node: "a", Version: "1.0", Leader: "a", Leading: true, Term: 7, Doing: "node c hasn't answered", Alarm: true,
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
		"this node, term 7", "ATTENTION: node c hasn't answered", "healthy, version 3.6.16, revision 42", "etcd leader",
		"doesn't answer: connection refused", "2 healthy, 3 wanted", "1m30s ago (5 in the store)", "FAILED: disk full", "AWAY: timeout",
		"restore of X, until the managers are restarted", "03:04:05", "did something",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("%q is missing in\n%s", want, text)
		}
	}
	if text := Text(View{Node: "b", Etcd: cluster.EtcdStatus{Error: "its data dir is gone"}}, now); !strings.Contains(text, "not running: its data dir is gone") || strings.Contains(text, "newest backup") {
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
