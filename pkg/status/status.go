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
	"slices"
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
	// Doing is the leader's last decision in words, or what a node waits for that has no leader; Alarm is true if a person is needed.
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
	// PruneDenied says why the store lets nothing old be deleted; PruneLocked is how many old objects it has under lock.
	PruneDenied string `json:"pruneDenied,omitempty"`
	PruneLocked int    `json:"pruneLocked,omitempty"`
	// Changes is nil if this node keeps no changes.
	Changes *Changes `json:"changes,omitempty"`
	// Proof is the last proof of a backup, as the leader knows it.
	Proof *Proof `json:"proof,omitempty"`
	// Waiting are queued restores in words; Restore is the one under way.
	Waiting []string `json:"waiting,omitempty"`
	Restore string   `json:"restore,omitempty"`
	// Certificates tell when the next one expires.
	CertificateExpiry time.Time `json:"certificateExpiry,omitzero"`
	// StoreRequests counts requests to the store since start, by operation.
	StoreRequests map[string]int64 `json:"storeRequests,omitempty"`
}

// Proof is what was found when a backup was last restored for trial and compared with what its changes say it must be.
type Proof struct {
	// Backup is empty if none was proven yet.
	Backup  string    `json:"backup,omitempty"`
	At      time.Time `json:"at,omitzero"`
	Seconds float64   `json:"seconds,omitempty"`
	// Bad says why the backup is bad, ChainProblem why it could not be reached from the one before it, Postponed why the proof that is due waits.
	Bad          string `json:"bad,omitempty"`
	ChainProblem string `json:"chainProblem,omitempty"`
	Postponed    string `json:"postponed,omitempty"`
}

func (p *Proof) text(now time.Time) string {
	text := "no backup was proven yet"
	if p.Backup != "" {
		text = fmt.Sprintf("%s is proven, %s ago", p.Backup, now.Sub(p.At).Round(time.Second))
	}
	switch {
	case p.Bad != "":
		text = fmt.Sprintf("%s is BAD: %s", p.Backup, p.Bad)
	case p.ChainProblem != "":
		text += "; it can't be reached from the one before it: " + p.ChainProblem
	}
	if p.Postponed != "" {
		text += "; " + p.Postponed
	}
	return text
}

// Changes says how the changes between backups are kept.
type Changes struct {
	// Seen is the newest revision that came from etcd, Archived the newest in the store, Until up to when nothing is lacking there.
	Seen     int64     `json:"seenRevision"`
	Archived int64     `json:"archivedRevision"`
	Until    time.Time `json:"archivedUntil,omitzero"`
	// Waiting segments are not in the store yet; SpilledBytes of them wait on the disk.
	Waiting      int   `json:"waitingSegments,omitempty"`
	SpilledBytes int64 `json:"spilledBytes,omitempty"`
	// Segments and Bytes were stored, and Gaps found, since this manager leads.
	Segments int64  `json:"segments"`
	Bytes    int64  `json:"bytes"`
	Gaps     int    `json:"gaps,omitempty"`
	LastGap  string `json:"lastGap,omitempty"`
	Error    string `json:"error,omitempty"`
}

// text says it in one line.
func (c *Changes) text(now time.Time) string {
	text := fmt.Sprintf("in the store up to revision %d", c.Archived)
	if !c.Until.IsZero() {
		text += fmt.Sprintf(", %s ago", now.Sub(c.Until).Round(time.Second))
	}
	if c.Seen > c.Archived {
		text += fmt.Sprintf("; %d revisions are on their way", c.Seen-c.Archived)
	}
	if c.SpilledBytes > 0 {
		text += fmt.Sprintf(", %d MiB of them wait on the disk", c.SpilledBytes>>20)
	}
	if c.Error != "" {
		text += "; FAILING: " + c.Error
	}
	return text
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
	// Foreign is true if other software answers there.
	Foreign bool   `json:"foreign,omitempty"`
	Problem string `json:"problem,omitempty"`
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
		switch {
		case p.Foreign:
			state = "other software: " + p.Problem
		case !p.Connected:
			state = "doesn't answer: " + p.Problem
		}
		row("manager "+string(p.ID), "%s", state)
	}
	if v.Leading {
		if v.Wanted > 0 {
			row("members", "%d healthy, %d wanted", v.Healthy, v.Wanted)
		}
		backup := "none"
		if !v.NewestBackup.IsZero() {
			backup = fmt.Sprintf("%s ago (%d in the store)", now.Sub(v.NewestBackup).Round(time.Second), v.Backups)
		}
		row("newest backup", "%s", backup)
		if v.BackupError != "" {
			row("last attempt", "FAILED: %s", v.BackupError)
		}
		if v.Proof != nil {
			row("proof", "%s", v.Proof.text(now))
		}
		if v.PruneDenied != "" {
			row("retention", "DENIED: %s", v.PruneDenied)
		}
		if v.PruneLocked > 0 {
			row("retention", "%d old objects are under lock in the store; they go later", v.PruneLocked)
		}
		if v.Changes != nil {
			row("changes", "%s", v.Changes.text(now))
			if v.Changes.LastGap != "" {
				row("last gap", "%s", v.Changes.LastGap)
			}
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
	if s.DBQuota > 0 {
		text += fmt.Sprintf(" of %d (%d in use)", s.DBQuota>>20, s.DBSizeInUse>>20)
	}
	for _, a := range s.Alarms {
		text += fmt.Sprintf(", ALARM %s of member %s", a.Type, a.Member)
	}
	if s.Outdated {
		text += ", to be restarted as its settings have changed"
	}
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
	leader, term, alarm, healthy, wanted, etcdHealthy, quarantined, backupTime, backups, backupFailing, pruneDenied, pruneLocked, storeUp, waiting, restoring, peers, expiry, requests *prometheus.Desc

	version, dbSize, dbInUse, dbQuota, etcdAlarm, outdated *prometheus.Desc

	seen, archived, until, spilled, segments, bytes, gaps, recording *prometheus.Desc

	proofTime, proofBad, proofTook *prometheus.Desc
}{
	leader:        desc("leader", "1 if this manager leads."),
	term:          desc("term", "Highest leadership term known."),
	alarm:         desc("attention_needed", "1 if the leader waits for a person; /status says for what."),
	healthy:       desc("members_healthy", "Healthy etcd members, as the leader sees them."),
	wanted:        desc("members_wanted", "Members that the spec asks for."),
	etcdHealthy:   desc("etcd_healthy", "1 if this node's etcd answers linearizable reads."),
	quarantined:   desc("etcd_quarantined", "1 if this node's etcd listens on its quarantine URLs only."),
	version:       desc("etcd_info", "1; this node's etcd runs that version, and its cluster keeps to that one.", "version", "cluster_version"),
	dbSize:        desc("etcd_db_size_bytes", "Size of the database of this node's etcd."),
	dbInUse:       desc("etcd_db_in_use_bytes", "How much of that holds data; the rest goes with a defragmentation."),
	dbQuota:       desc("etcd_db_quota_bytes", "What the database may become before etcd refuses writes."),
	etcdAlarm:     desc("etcd_alarm", "1 while etcd has that alarm, as this node's etcd knows it.", "type"),
	outdated:      desc("etcd_outdated", "1 if this node's etcd runs with other settings, or trusts other CAs, than it would if it were started now."),
	backupTime:    desc("last_backup_timestamp_seconds", "When the newest backup was taken."),
	backups:       desc("backups", "Backups in the store."),
	backupFailing: desc("backup_failing", "1 if the last attempt at a backup failed."),
	pruneDenied:   desc("retention_denied", "1 if the store lets nothing old be deleted."),
	pruneLocked:   desc("retention_locked_objects", "Old objects that the store has under lock."),
	storeUp:       desc("store_up", "1 if the backup store answers."),
	waiting:       desc("commands_waiting", "Queued restores that have not begun."),
	restoring:     desc("restore_in_progress", "1 while a restore is under way."),
	peers:         desc("peer_connected", "1 if the other manager answers.", "peer"),
	expiry:        desc("certificate_expiry_timestamp_seconds", "When the certificate that ends first expires."),
	requests:      desc("store_requests_total", "Requests to the backup store.", "operation"),
	seen:          desc("changelog_seen_revision", "Newest revision that came from etcd to be kept."),
	archived:      desc("changelog_archived_revision", "Newest revision whose changes are in the store."),
	until:         desc("changelog_archived_timestamp_seconds", "Up to when no change is lacking in the store."),
	spilled:       desc("changelog_spilled_bytes", "Changes that wait on the disk because the store takes none."),
	segments:      desc("changelog_segments_total", "Segments stored since this manager leads."),
	bytes:         desc("changelog_bytes_total", "Bytes of segments stored since this manager leads."),
	gaps:          desc("changelog_gaps_total", "Times that changes were lost before they could be kept; a full backup is taken then."),
	proofTime:     desc("backup_proof_timestamp_seconds", "When a backup was last proven by restoring it for trial."),
	proofBad:      desc("backup_proof_failing", "1 if the last proof found a backup, or the changes before it, to be bad."),
	proofTook:     desc("backup_proof_duration_seconds", "How long the last proof took."),
	recording:     desc("changelog_failing", "1 if changes can't be kept at the moment; /status says why."),
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
	if v.Etcd.Healthy {
		gauge(metrics.version, 1, v.Etcd.Version, v.Etcd.ClusterVersion)
		gauge(metrics.dbSize, float64(v.Etcd.DBSize))
		gauge(metrics.dbInUse, float64(v.Etcd.DBSizeInUse))
		gauge(metrics.dbQuota, float64(v.Etcd.DBQuota))
		gauge(metrics.outdated, number(v.Etcd.Outdated))
		for _, t := range []cluster.AlarmType{cluster.AlarmNoSpace, cluster.AlarmCorrupt} {
			raised := slices.ContainsFunc(v.Etcd.Alarms, func(a cluster.Alarm) bool { return a.Type == t })
			gauge(metrics.etcdAlarm, number(raised), string(t))
		}
	}
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
	gauge(metrics.pruneDenied, number(v.PruneDenied != ""))
	gauge(metrics.pruneLocked, float64(v.PruneLocked))
	gauge(metrics.storeUp, number(v.StoreError == ""))
	gauge(metrics.waiting, float64(len(v.Waiting)))
	gauge(metrics.restoring, number(v.Restore != ""))
	if p := v.Proof; p != nil && p.Backup != "" {
		gauge(metrics.proofTime, float64(p.At.Unix()))
		gauge(metrics.proofBad, number(p.Bad != "" || p.ChainProblem != ""))
		gauge(metrics.proofTook, p.Seconds)
	}
	if ch := v.Changes; ch != nil {
		gauge(metrics.seen, float64(ch.Seen))
		gauge(metrics.archived, float64(ch.Archived))
		gauge(metrics.spilled, float64(ch.SpilledBytes))
		gauge(metrics.recording, number(ch.Error != ""))
		for d, n := range map[*prometheus.Desc]int64{metrics.segments: ch.Segments, metrics.bytes: ch.Bytes, metrics.gaps: int64(ch.Gaps)} {
			out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n))
		}
		if !ch.Until.IsZero() {
			gauge(metrics.until, float64(ch.Until.Unix()))
		}
	}
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
