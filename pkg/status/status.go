// Package status shows how the daemon and its cluster are: Prometheus metrics, a health answer for probes and a status page, as
// text for people and as JSON for tools.
//
// It gathers nothing itself and must never ask etcd or the store anything: what it shows is handed to it by a
// function that returns at once, so that a hanging store can't hang the page that would tell of it.
package status

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// View is everything that is shown. Fields that only the leader knows are empty on the other nodes.
type View struct {
	ClusterName string         `json:"clusterName"`
	Node        cluster.NodeID `json:"node"`
	Version     string         `json:"version"`
	// Leader is the leading manager, empty if none is known. Leading is true if it is this one.
	Leader  cluster.NodeID `json:"leader"`
	Leading bool           `json:"leading"`
	Term    cluster.Term   `json:"term"`
	// Doing is the leader's last decision in words; Alarm is true if a person is needed.
	Doing string `json:"doing,omitempty"`
	Alarm bool   `json:"alarm"`
	// Recent are this manager's last decisions as a leader, oldest first.
	Recent []Event `json:"recent,omitempty"`
	// Peers are the other managers and whether they answer.
	Peers []Peer `json:"peers"`
	// Etcd is this node's own etcd.
	Etcd cluster.EtcdStatus `json:"etcd"`
	// Wanted is the number of members in the spec, 0 if not known here; Healthy those that are healthy.
	Wanted  int `json:"wantedMembers,omitempty"`
	Healthy int `json:"healthyMembers,omitempty"`
	// StoreError is empty if the backup store answers.
	StoreError string `json:"storeError,omitempty"`
	// NewestBackup is zero if there is none, or if this node doesn't lead.
	NewestBackup time.Time `json:"newestBackup,omitzero"`
	Backups      int       `json:"backups,omitempty"`
	BackupError  string    `json:"backupError,omitempty"`
	// Waiting are queued restores in words; Restore is the one under way.
	Waiting []string `json:"waiting,omitempty"`
	Restore string   `json:"restore,omitempty"`
	// Certificates tell when the next one expires.
	CertificateExpiry time.Time `json:"certificateExpiry,omitzero"`
	// StoreRequests counts requests to the store since start, by operation.
	StoreRequests map[string]int64 `json:"storeRequests,omitempty"`
}

// Event is a decision and when it was made.
type Event struct {
	At   time.Time `json:"at"`
	Text string    `json:"text"`
}

// Peer is another manager.
type Peer struct {
	ID        cluster.NodeID `json:"id"`
	Connected bool           `json:"connected"`
	Problem   string         `json:"problem,omitempty"`
}

// Handler serves /metrics, /healthz, /status (text) and /status.json. view is called for each request.
func Handler(view func() View) http.Handler {
	reg := prometheus.NewRegistry()
	reg.MustRegister(&collector{view: view})
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /status.json", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		e := json.NewEncoder(w)
		e.SetIndent("", "  ")
		_ = e.Encode(view())
	})
	page := func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		_, _ = w.Write([]byte(Text(view(), time.Now())))
	}
	mux.HandleFunc("GET /status", page)
	mux.HandleFunc("GET /{$}", page)
	return mux
}

// Text is the status page.
func Text(v View, now time.Time) string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 4, 2, ' ', 0)
	row := func(name, format string, a ...any) { fmt.Fprintf(w, "%s\t%s\n", name, fmt.Sprintf(format, a...)) }
	row("cluster", "%s (this is node %s, manager %s)", v.ClusterName, v.Node, v.Version)
	switch {
	case v.Leading:
		row("leader", "this node, term %d", v.Term)
	case v.Leader != "":
		row("leader", "%s, term %d", v.Leader, v.Term)
	default:
		row("leader", "none")
	}
	if v.Doing != "" {
		mark := ""
		if v.Alarm {
			mark = "ATTENTION: "
		}
		row("now", "%s%s", mark, v.Doing)
	}
	row("etcd here", "%s", etcdText(v.Etcd))
	for _, p := range v.Peers {
		state := "answers"
		if !p.Connected {
			state = "doesn't answer: " + p.Problem
		}
		row("manager "+string(p.ID), "%s", state)
	}
	if v.Leading {
		row("members", "%d healthy, %d wanted", v.Healthy, v.Wanted)
		backup := "none"
		if !v.NewestBackup.IsZero() {
			backup = fmt.Sprintf("%s ago (%d in the store)", now.Sub(v.NewestBackup).Round(time.Second), v.Backups)
		}
		row("newest backup", "%s", backup)
		if v.BackupError != "" {
			row("last attempt", "FAILED: %s", v.BackupError)
		}
		if v.StoreError != "" {
			row("store", "AWAY: %s", v.StoreError)
		}
	}
	for _, s := range v.Waiting {
		row("waiting", "%s", s)
	}
	if v.Restore != "" {
		row("restore", "%s", v.Restore)
	}
	for _, e := range v.Recent {
		row(e.At.UTC().Format("15:04:05"), "%s", e.Text)
	}
	_ = w.Flush()
	return b.String()
}

func etcdText(s cluster.EtcdStatus) string {
	switch {
	case !s.Running && s.Error != "":
		return "not running: " + s.Error
	case !s.Running:
		return "not running"
	case !s.Healthy:
		return fmt.Sprintf("NOT healthy for %s: %s", s.UnhealthyFor.Round(time.Second), s.Error)
	}
	text := fmt.Sprintf("healthy, version %s, revision %d, %d MiB", s.Version, s.Revision, s.DBSize>>20)
	if s.MemberID == s.LeaderID {
		text += ", etcd leader"
	}
	if s.Quarantined {
		text += ", quarantined (no client can reach it)"
	}
	return text
}

// collector turns a View into metrics at the moment of the scrape.
type collector struct{ view func() View }

var metrics = struct {
	leader, term, alarm, healthy, wanted, etcdHealthy, quarantined, backupTime, backups, backupFailing, storeUp, waiting, restoring, peers, expiry, requests *prometheus.Desc
}{
	leader:        desc("leader", "1 if this manager leads."),
	term:          desc("term", "Highest leadership term known."),
	alarm:         desc("attention_needed", "1 if the leader waits for a person; /status says for what."),
	healthy:       desc("members_healthy", "Healthy etcd members, as the leader sees them."),
	wanted:        desc("members_wanted", "Members that the spec asks for."),
	etcdHealthy:   desc("etcd_healthy", "1 if this node's etcd answers linearizable reads."),
	quarantined:   desc("etcd_quarantined", "1 if this node's etcd listens on its quarantine URLs only."),
	backupTime:    desc("last_backup_timestamp_seconds", "When the newest backup was taken."),
	backups:       desc("backups", "Backups in the store."),
	backupFailing: desc("backup_failing", "1 if the last attempt at a backup failed."),
	storeUp:       desc("store_up", "1 if the backup store answers."),
	waiting:       desc("commands_waiting", "Queued restores that have not begun."),
	restoring:     desc("restore_in_progress", "1 while a restore is under way."),
	peers:         desc("peer_connected", "1 if the other manager answers.", "peer"),
	expiry:        desc("certificate_expiry_timestamp_seconds", "When the certificate that ends first expires."),
	requests:      desc("store_requests_total", "Requests to the backup store.", "operation"),
}

func desc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("etcd_manager_"+name, help, labels, nil)
}

// Describe sends nothing: which series there are depends on the role.
func (c *collector) Describe(chan<- *prometheus.Desc) {}

// Collect sends the view of this moment.
func (c *collector) Collect(out chan<- prometheus.Metric) {
	v := c.view()
	gauge := func(d *prometheus.Desc, x float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, x, labels...)
	}
	gauge(metrics.leader, number(v.Leading))
	gauge(metrics.term, float64(v.Term))
	gauge(metrics.etcdHealthy, number(v.Etcd.Healthy))
	gauge(metrics.quarantined, number(v.Etcd.Quarantined))
	for _, p := range v.Peers {
		gauge(metrics.peers, number(p.Connected), string(p.ID))
	}
	for op, n := range v.StoreRequests {
		out <- prometheus.MustNewConstMetric(metrics.requests, prometheus.CounterValue, float64(n), op)
	}
	if !v.CertificateExpiry.IsZero() {
		gauge(metrics.expiry, float64(v.CertificateExpiry.Unix()))
	}
	if !v.Leading {
		return
	}
	gauge(metrics.alarm, number(v.Alarm))
	gauge(metrics.healthy, float64(v.Healthy))
	gauge(metrics.wanted, float64(v.Wanted))
	gauge(metrics.backups, float64(v.Backups))
	gauge(metrics.backupFailing, number(v.BackupError != ""))
	gauge(metrics.storeUp, number(v.StoreError == ""))
	gauge(metrics.waiting, float64(len(v.Waiting)))
	gauge(metrics.restoring, number(v.Restore != ""))
	if !v.NewestBackup.IsZero() {
		gauge(metrics.backupTime, float64(v.NewestBackup.Unix()))
	}
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
