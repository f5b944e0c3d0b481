// Package status shows how the daemon and its cluster are: Prometheus metrics, a health answer for probes and a status page, as
// text for people and as JSON for tools.
//
// It gathers nothing itself and must never ask etcd or the store anything: what it shows is handed to it by a
// function that returns at once, so that a hanging store can't hang the page that would tell of it.
package status

import (
	"fmt"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// View is everything that is shown. What is about the whole cluster comes from the leader, on whichever node it is shown; on a node that
// no leader tells anything it is what that node sees by itself.
type View struct {
	ClusterName string         `json:"clusterName"`
	Node        cluster.NodeID `json:"node"`
	Version     string         `json:"version"`
	// Leader is the leading manager, empty if none is known. Leading is true if it is this one.
	Leader  cluster.NodeID `json:"leader"`
	Leading bool           `json:"leading"`
	Term    cluster.Term   `json:"term"`
	// Doing is what is done or waited for, in words, and DoingSince since when; Alarm is true if a person is needed.
	Doing      string    `json:"doing,omitempty"`
	DoingSince time.Time `json:"doingSince,omitzero"`
	Alarm      bool      `json:"alarm"`
	// Attention lists what a person is needed for.
	Attention []cluster.Attention `json:"attention"`
	// Source is the node that says what is shown of the whole cluster, empty if nothing is known of it; SourceAge is how old that is.
	Source    cluster.NodeID `json:"source,omitempty"`
	SourceAge time.Duration  `json:"sourceAgeNanoseconds,omitempty"`
	// Recent are this manager's last decisions as a leader, and what it saw when it didn't lead, oldest first.
	Recent []Event `json:"recent,omitempty"`
	// Peers are the other managers and whether they answer.
	Peers []Peer `json:"peers"`
	// Etcd is this node's own etcd.
	Etcd cluster.EtcdStatus `json:"etcd"`
	// Disk is that of this node's data dir; zero if nothing is known of it.
	Disk Disk `json:"disk,omitzero"`
	// Wanted is the number of members in the spec, 0 if not known here; Healthy those that are healthy.
	Wanted  int `json:"wantedMembers,omitempty"`
	Healthy int `json:"healthyMembers,omitempty"`
	// StoreError is empty if the backup store answers.
	StoreError string `json:"storeError,omitempty"`
	// NewestBackup is zero if there is none, or none is known of.
	NewestBackup time.Time `json:"newestBackup,omitzero"`
	Backups      int       `json:"backups,omitempty"`
	BackupError  string    `json:"backupError,omitempty"`
	// PruneDenied says why the store lets nothing old be deleted; PruneLocked is how many old objects it has under lock.
	PruneDenied string `json:"pruneDenied,omitempty"`
	PruneLocked int    `json:"pruneLocked,omitempty"`
	// Changes is nil if this node keeps no changes.
	Changes *Changes `json:"changes,omitempty"`
	// Standby is nil unless this node follows another cluster.
	Standby *Standby `json:"standby,omitempty"`
	// Copies are how the copies of the store do, as the leader knows it.
	Copies []catalog.CopyReport `json:"copies,omitempty"`
	// Proof is the last proof of a backup, as the leader knows it.
	Proof *Proof `json:"proof,omitempty"`
	// Waiting are queued restores in words; Restore is the one under way.
	Waiting []string `json:"waiting,omitempty"`
	Restore string   `json:"restore,omitempty"`
	// Certificates tell when the next one expires.
	CertificateExpiry time.Time `json:"certificateExpiry,omitzero"`
	// StoreRequests counts requests to the store since start, by operation.
	StoreRequests map[string]int64 `json:"storeRequests,omitempty"`
	// Webhooks are what became of events since the start, by the order of --webhook-url.
	Webhooks []Webhook `json:"webhooks,omitempty"`
}

// Webhook is what became of the events for the URL with that number and host.
type Webhook struct {
	Number    int    `json:"number"`
	Host      string `json:"host"`
	Delivered int64  `json:"delivered"`
	Dropped   int64  `json:"dropped"`
	Waiting   int    `json:"waiting"`
}

// Disk is the file system on which this node's etcd has its data.
type Disk struct {
	TotalBytes int64 `json:"totalBytes"`
	FreeBytes  int64 `json:"freeBytes"`
	// Full is true if so little is free that etcd can't go on.
	Full bool `json:"full,omitempty"`
}

func (d Disk) text() string {
	text := fmt.Sprintf("%d of %d MiB are free", d.FreeBytes>>20, d.TotalBytes>>20)
	if d.Full {
		text = "FULL: " + text + "; free some space or enlarge it, then etcd continues automatically"
	}
	return text
}

// Proof is what was found when a backup was last restored for trial and compared with what its changes say it must be.
type Proof struct {
	// Backup is empty if none was proven yet.
	Backup  string    `json:"backup,omitempty"`
	At      time.Time `json:"at,omitzero"`
	Seconds float64   `json:"seconds,omitempty"`
	// Bad says why the backup is bad, ChainProblem why it could not be reached from the one before
	// it, Postponed why the proof that is due waits.
	Bad          string `json:"bad,omitempty"`
	ChainProblem string `json:"chainProblem,omitempty"`
	Postponed    string `json:"postponed,omitempty"`
}

func (p *Proof) text(now time.Time) string {
	text := "no backup was verified yet"
	if p.Backup != "" {
		text = fmt.Sprintf("%s is verified, %s ago", p.Backup, now.Sub(p.At).Round(time.Second))
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
		text += "; on their way: " + cluster.Count(int(c.Seen-c.Archived), "revision")
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
