package status

import (
	"slices"
	"strconv"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// collector turns a View into metrics at the moment of the scrape. Every node has every series that an alert reads, also while nothing is
// known: an alert can't tell a series that is gone from one that is well, and a counter that begins with 1 has not been seen to grow.
type collector struct {
	view func() View

	mu sync.Mutex
	// database is the last status of this node's etcd that told the size of its database.
	database cluster.EtcdStatus
}

// databaseOf is what was last known of the database of this node's etcd.
func (c *collector) databaseOf(v *View) cluster.EtcdStatus {
	c.mu.Lock()
	defer c.mu.Unlock()
	if v.Etcd.Healthy && v.Etcd.DBSize > 0 {
		c.database = v.Etcd
	}
	return c.database
}

var metrics = struct {
	leader, term, alarm, attention, known, age, healthy, wanted, etcdHealthy, quarantined, backupTime, backups,
	backupFailing, pruneDenied, pruneLocked, storeUp, waiting, restoring, peers, expiry, requests *prometheus.Desc

	version, dbSize, dbInUse, dbQuota, etcdAlarm, outdated *prometheus.Desc

	diskSize, diskFree, diskFull *prometheus.Desc

	seen, archived, until, spilled, segments, bytes, gaps, recording *prometheus.Desc

	proofTime, proofBad, proofTook *prometheus.Desc

	standbyRevision, standbyBehind, standbyUntil, standbyBytes, standbyFailing, standbyDiffers *prometheus.Desc
	webhookDelivered, webhookDropped, webhookWaiting                                           *prometheus.Desc
	copyFailing, copyUntil, copyBackup, copyCompared, copyMissing, copyBytes                   *prometheus.Desc
}{
	leader:    desc("leader", "1 if this manager leads."),
	term:      desc("term", "Highest leadership term known."),
	alarm:     desc("attention_needed", "1 if a person is needed, as far as this node knows; /status says for what."),
	attention: desc("attention", "1 if a person is needed for this kind of attention.", "kind"),
	known:     desc("leader_known", "1 if this node knows who leads."),
	age:       desc("summary_age_seconds", "Age of the leader's summary that this node shows; the node's own view has age 0."),
	healthy: desc("members_healthy", "Healthy etcd members, from the leader's summary; without a leader 1 if this node's etcd "+
		"is healthy."),
	wanted:      desc("members_wanted", "Members that the spec asks for."),
	etcdHealthy: desc("etcd_healthy", "1 if this node's etcd answers linearizable reads."),
	quarantined: desc("etcd_quarantined", "1 if this node's etcd listens on its quarantine URLs only."),
	version: desc("etcd_info", "1; this node's etcd runs that version, and its cluster keeps to that one.",
		"version", "cluster_version"),
	dbSize:    desc("etcd_db_size_bytes", "Size of the database of this node's etcd, as last known; 0 if it isn't."),
	dbInUse:   desc("etcd_db_in_use_bytes", "Part of the database that contains data, as last known; a defragmentation frees the rest."),
	dbQuota:   desc("etcd_db_quota_bytes", "Size of the database at which etcd refuses writes, as last known; 0 if it isn't."),
	diskSize:  desc("disk_size_bytes", "Size of the file system of this node's data dir; 0 if it isn't known."),
	diskFree:  desc("disk_free_bytes", "Free space on the file system of this node's data dir."),
	diskFull:  desc("disk_full", "1 if so little is free on the disk of this node's data dir that etcd can't go on."),
	etcdAlarm: desc("etcd_alarm", "1 while etcd has that alarm, as this node's etcd knows it.", "type"),
	outdated: desc("etcd_outdated", "1 if this node's etcd runs with other settings, or trusts other CAs, than it would if "+
		"it were started now."),
	backupTime:      desc("last_backup_timestamp_seconds", "When the newest backup was taken; 0 if there is none, or none is known."),
	backups:         desc("backups", "Backups in the store."),
	backupFailing:   desc("backup_failing", "1 if the last attempt at a backup failed."),
	pruneDenied:     desc("retention_denied", "1 if the store refuses to delete old objects."),
	pruneLocked:     desc("retention_locked_objects", "Old objects that the store has under lock."),
	storeUp:         desc("store_up", "1 if the backup store answers."),
	waiting:         desc("commands_waiting", "Queued restores that have not begun."),
	restoring:       desc("restore_in_progress", "1 while a restore is running."),
	peers:           desc("peer_connected", "1 if the other manager answers.", "peer"),
	expiry:          desc("certificate_expiry_timestamp_seconds", "When the first certificate expires."),
	requests:        desc("store_requests_total", "Requests to the backup store.", "operation"),
	seen:            desc("changelog_seen_revision", "Newest revision that was received from etcd; 0 if none is known."),
	archived:        desc("changelog_archived_revision", "Newest revision whose changes are in the store; 0 if none is known."),
	until:           desc("changelog_archived_timestamp_seconds", "Time up to which the store has every change; 0 if none is known."),
	spilled:         desc("changelog_spilled_bytes", "Changes that wait on the disk because the store doesn't accept them."),
	segments:        desc("changelog_segments_total", "Segments stored since this manager leads; 0 if it doesn't."),
	bytes:           desc("changelog_bytes_total", "Bytes of segments stored since this manager leads; 0 if it doesn't."),
	gaps:            desc("changelog_gaps_total", "Times that changes were lost before they could be kept; a full backup is taken then."),
	proofTime:       desc("backup_proof_timestamp_seconds", "When a backup was last verified; 0 if none was."),
	proofBad:        desc("backup_proof_failing", "1 if the last verification found that a backup, or the changes before it, are bad."),
	proofTook:       desc("backup_proof_duration_seconds", "How long the last verification took."),
	standbyRevision: desc("standby_revision", "Revision of the copy of another cluster's data on this node; 0 if there is none yet."),
	standbyBehind:   desc("standby_behind_revisions", "Revisions that the copy is known to lack."),
	standbyUntil: desc("standby_until_timestamp_seconds",
		"Time up to which the copy has every change; 0 if there is none. An idle cluster sends a heartbeat every two minutes."),
	standbyBytes:   desc("standby_bytes", "Size of the copy."),
	standbyFailing: desc("standby_failing", "1 if the copy gets no changes at the moment; /status says why."),
	standbyDiffers: desc("standby_differs", "1 if the last comparison with a full backup found a difference."),
	recording:      desc("changelog_failing", "1 if changes can't be kept at the moment; /status says why."),
	copyFailing:    desc("copy_failing", "1 if the copy of the store can't be kept up to date; /status says why.", "copy"),
	copyUntil: desc("copy_archived_timestamp_seconds", "Time up to which the copy of the store has every change; 0 if that isn't known.",
		"copy"),
	copyBackup: desc("copy_last_backup_timestamp_seconds",
		"When the newest backup in the copy of the store was taken; 0 if none is known.", "copy"),
	copyCompared:     desc("copy_compared_timestamp_seconds", "When all of the store and its copy was last compared; 0 if it wasn't yet.", "copy"),
	copyMissing:      desc("copy_missing_backups", "Backups that have to be copied still, as far as it is known.", "copy"),
	webhookDelivered: desc("webhook_delivered_total", "Events that a webhook has received.", "webhook", "host"),
	webhookDropped: desc("webhook_dropped_total",
		"Events that a webhook has refused, or that could not be delivered to it in time; etcd-manager-ctl events shows them.", "webhook", "host"),
	webhookWaiting: desc("webhook_waiting", "Events that wait for their delivery to a webhook.", "webhook", "host"),
	copyBytes:      desc("copy_bytes_total", "Bytes of backups and segments copied since this manager leads; 0 if it doesn't.", "copy"),
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
		gauge(metrics.outdated, number(v.Etcd.Outdated))
		for _, t := range []cluster.AlarmType{cluster.AlarmNoSpace, cluster.AlarmCorrupt} {
			raised := slices.ContainsFunc(v.Etcd.Alarms, func(a cluster.Alarm) bool { return a.Type == t })
			gauge(metrics.etcdAlarm, number(raised), string(t))
		}
	}
	db := c.databaseOf(&v)
	gauge(metrics.dbSize, float64(db.DBSize))
	gauge(metrics.dbInUse, float64(db.DBSizeInUse))
	gauge(metrics.dbQuota, float64(db.DBQuota))
	gauge(metrics.diskSize, float64(v.Disk.TotalBytes))
	gauge(metrics.diskFree, float64(v.Disk.FreeBytes))
	gauge(metrics.diskFull, number(v.Disk.Full))
	for _, p := range v.Peers {
		gauge(metrics.peers, number(p.Connected), string(p.ID))
	}
	for op, n := range v.StoreRequests {
		out <- prometheus.MustNewConstMetric(metrics.requests, prometheus.CounterValue, float64(n), op)
	}
	for _, w := range v.Webhooks {
		number := strconv.Itoa(w.Number)
		gauge(metrics.webhookWaiting, float64(w.Waiting), number, w.Host)
		out <- prometheus.MustNewConstMetric(metrics.webhookDelivered, prometheus.CounterValue, float64(w.Delivered), number, w.Host)
		out <- prometheus.MustNewConstMetric(metrics.webhookDropped, prometheus.CounterValue, float64(w.Dropped), number, w.Host)
	}
	if s := v.Standby; s != nil {
		gauge(metrics.standbyRevision, float64(s.Revision))
		gauge(metrics.standbyBehind, float64(s.BehindRevisions))
		gauge(metrics.standbyUntil, unix(s.Until))
		gauge(metrics.standbyBytes, float64(s.Bytes))
		gauge(metrics.standbyFailing, number(s.Error != ""))
		gauge(metrics.standbyDiffers, number(s.Differs != ""))
	}
	if !v.CertificateExpiry.IsZero() {
		gauge(metrics.expiry, float64(v.CertificateExpiry.Unix()))
	}
	gauge(metrics.known, number(v.Leader != ""))
	gauge(metrics.alarm, number(v.Alarm || len(v.Attention) > 0))
	for _, k := range cluster.AttentionKinds() {
		raised := slices.ContainsFunc(v.Attention, func(a cluster.Attention) bool { return a.Kind == k })
		gauge(metrics.attention, number(raised), string(k))
	}
	if v.Source == "" {
		return
	}
	c.cluster(&v, out)
}

// cluster sends what is known of the whole cluster. Each node that knows anything sends all of it: an alert must not depend on a
// series that only some nodes have.
func (c *collector) cluster(v *View, out chan<- prometheus.Metric) {
	gauge := func(d *prometheus.Desc, x float64, labels ...string) {
		out <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, x, labels...)
	}
	// What is counted is counted where it happens; the other nodes have 0.
	own := func(n float64) float64 { return n * number(v.Leading) }
	gauge(metrics.age, v.SourceAge.Seconds())
	gauge(metrics.healthy, float64(v.Healthy))
	gauge(metrics.wanted, float64(v.Wanted))
	gauge(metrics.backups, float64(v.Backups))
	gauge(metrics.backupFailing, number(v.BackupError != ""))
	gauge(metrics.pruneDenied, number(v.PruneDenied != ""))
	gauge(metrics.pruneLocked, float64(v.PruneLocked))
	gauge(metrics.storeUp, number(v.StoreError == ""))
	gauge(metrics.waiting, float64(len(v.Waiting)))
	gauge(metrics.restoring, number(v.Restore != ""))
	gauge(metrics.backupTime, unix(v.NewestBackup))
	for _, x := range v.Copies {
		gauge(metrics.copyFailing, number(x.Error != ""), x.Name)
		gauge(metrics.copyUntil, unix(x.Until), x.Name)
		gauge(metrics.copyBackup, unix(x.NewestBackup), x.Name)
		gauge(metrics.copyCompared, unix(x.Compared), x.Name)
		gauge(metrics.copyMissing, float64(x.Missing), x.Name)
		out <- prometheus.MustNewConstMetric(metrics.copyBytes, prometheus.CounterValue, own(float64(x.Bytes)), x.Name)
	}
	p := v.Proof
	gauge(metrics.proofBad, number(p != nil && (p.Bad != "" || p.ChainProblem != "")))
	gauge(metrics.recording, number(v.Changes != nil && v.Changes.Error != ""))
	var proven Proof
	if p != nil && p.Backup != "" {
		proven = *p
	}
	gauge(metrics.proofTime, unix(proven.At))
	gauge(metrics.proofTook, proven.Seconds)
	var ch Changes
	if v.Changes != nil {
		ch = *v.Changes
	}
	gauge(metrics.seen, float64(ch.Seen))
	gauge(metrics.archived, float64(ch.Archived))
	gauge(metrics.spilled, float64(ch.SpilledBytes))
	gauge(metrics.until, unix(ch.Until))
	for d, n := range map[*prometheus.Desc]int64{metrics.segments: ch.Segments, metrics.bytes: ch.Bytes, metrics.gaps: int64(ch.Gaps)} {
		out <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, own(float64(n)))
	}
}

func unix(t time.Time) float64 {
	if t.IsZero() {
		return 0
	}
	return float64(t.Unix())
}

func number(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
