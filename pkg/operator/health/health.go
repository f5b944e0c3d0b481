// Package health says how a cluster does, and what a person has to do, from what was read of its store.
//
// Facts are what was read, Judge makes a Report of them. It reads nothing, asks no clock and prints nothing, so that a tool, a page and a
// table of many clusters say the same. It must never take what it doesn't know for good.
package health

import (
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// SchemaVersion is the version of Report as JSON (docs/ctl/status.md). It is raised when a reader
// that doesn't know what is new would go wrong.
const SchemaVersion = 1

// Verdict is the one word for a cluster.
type Verdict string

// The verdicts. NeedsYou is the worst, then Unknown.
const (
	Healthy  Verdict = "healthy"
	Degraded Verdict = "degraded"
	NeedsYou Verdict = "needs-you"
	Unknown  Verdict = "unknown"
)

// ExitCode is the exit code of a tool for a verdict.
func (v Verdict) ExitCode() int {
	switch v {
	case Healthy:
		return 0
	case Degraded:
		return 1
	case NeedsYou:
		return 2
	}
	return 3
}

// Trouble orders verdicts: the more, the worse.
func (v Verdict) Trouble() int {
	switch v {
	case Healthy:
		return 0
	case Degraded:
		return 1
	case NeedsYou:
		return 3
	}
	return 2
}

// Facts are what was read of a store. What is nil or zero isn't there, or wasn't read.
type Facts struct {
	// Store is the URL, and Now the moment of the reading by the reader's clock.
	Store string
	Now   time.Time
	Spec  *cluster.Spec
	// Settings are the operator's settings of etcd.
	Settings cluster.Settings
	Marker   *catalog.Marker
	// Superseded says that another cluster has taken the place of this one.
	Superseded *catalog.Superseded
	// Ending is what the managers say of the cluster's end for that.
	Ending *catalog.Ended
	// Leader is the leader record, LeaderAt when it was last written by the store's clock, and Status what stands in it.
	Leader   *catalog.LeaderRecord
	LeaderAt time.Time
	Status   *catalog.Status
	// Own are the statuses of nodes that no leader speaks for.
	Own []OwnStatus
	// Copy is the record of a store that is a copy.
	Copy *catalog.CopyRecord
	// Survivors are written while there is no quorum.
	Survivors *catalog.Survivors
	// Running is the operation under way, Ended the one that ended last, Waiting what is queued.
	Running, Ended *catalog.Operation
	Waiting        []Command
	// Backups are the newest ones by name; BackupsRead is false if they could not be listed.
	Backups     catalog.BackupList
	BackupsRead bool
	// Taken are those of the last day, for Marks alone; empty if they were not looked at.
	Taken []catalog.Backup
	// Coverage is what can be restored, as far as it was looked at; CoverageNote says why that isn't known.
	Coverage     *changelog.Coverage
	CoverageNote string
	// Problems are objects that can't be used, in words.
	Problems []string
}

// Blank tells whether nothing of a cluster was found in the store.
func (f Facts) Blank() bool {
	return f.Spec == nil && f.Marker == nil && f.Leader == nil && f.Copy == nil && len(f.Own) == 0 && len(f.Backups.Backups) == 0
}

// OwnStatus is the status of a node, and when it was written by the store's clock.
type OwnStatus struct {
	catalog.Status
	Written time.Time
}

// Report is how a cluster does. Ages and lags are in seconds.
type Report struct {
	Version int       `json:"version"`
	At      time.Time `json:"at"`
	Store   string    `json:"store"`
	// ClusterName is empty if nobody has written it.
	ClusterName string  `json:"clusterName,omitempty"`
	Verdict     Verdict `json:"verdict"`
	// Summary is the reason of the verdict in one sentence.
	Summary string `json:"summary"`
	// Findings are all that isn't as it should be, the worst first.
	Findings []Finding `json:"findings"`
	// Commands are what to do, to be copied, in the order of the findings.
	Commands []string `json:"commands"`
	Spec     *Spec    `json:"spec,omitempty"`
	// Formed is "no", "forming" or "yes": whether the store's cluster was ever formed.
	Formed string `json:"formed"`
	// MembersKnown is false if nobody has said lately how the members do: what is shown of nodes is old then.
	MembersKnown bool `json:"membersKnown"`
	// MembersHealthy counts healthy voting members, MembersWanted is what the spec asks for, and Versions are those that run.
	MembersHealthy int      `json:"membersHealthy"`
	MembersWanted  int      `json:"membersWanted,omitempty"`
	Versions       []string `json:"etcdVersions,omitempty"`
	Leader         *Leader  `json:"leader,omitempty"`
	// Doing is what the managers do or wait for, since DoingSince.
	Doing      string    `json:"doing,omitempty"`
	DoingSince time.Time `json:"doingSince,omitzero"`
	Nodes      []Node    `json:"nodes"`
	// Standbys are the nodes that follow another cluster, while no cluster is in this store.
	Standbys []Standby `json:"standbys,omitempty"`
	// Operation is under way, Ended is the last one that isn't.
	Operation    *Operation    `json:"operation,omitempty"`
	Ended        *Operation    `json:"lastOperation,omitempty"`
	Waiting      []Command     `json:"waiting,omitempty"`
	Backup       *Backup       `json:"newestBackup,omitempty"`
	Verification *Verification `json:"verification,omitempty"`
	Archive      *Archive      `json:"archive,omitempty"`
	Window       *Window       `json:"window,omitempty"`
	// CopyOf is the URL of the first store if this one is a copy that nobody has put into use.
	CopyOf string `json:"copyOf,omitempty"`
	// Copies are how the copies of this store do.
	Copies  []Copy   `json:"copies,omitempty"`
	Endings []Ending `json:"endings,omitempty"`
}

// Finding is one thing that isn't as it should be.
type Finding struct {
	Severity Verdict `json:"severity"`
	// Kind is that of an attention (docs/operations.md), or another word that doesn't change.
	Kind  string         `json:"kind"`
	Node  cluster.NodeID `json:"node,omitempty"`
	Since time.Time      `json:"since,omitzero"`
	Text  string         `json:"text"`
	// Command ends it; NoCommand says what does if no command can. Both are empty if nothing has to be done.
	Command   string `json:"command,omitempty"`
	NoCommand string `json:"noCommand,omitempty"`
}

// Copy is how a copy of the store does.
type Copy struct {
	catalog.CopyReport
	// LagSeconds is by how much its changes are behind; absent if that isn't known.
	LagSeconds *int64 `json:"lagSeconds,omitempty"`
}

// Spec is what the operator wants.
type Spec struct {
	MemberCount int              `json:"memberCount"`
	EtcdVersion string           `json:"etcdVersion,omitempty"`
	Settings    cluster.Settings `json:"settings,omitempty"`
}

// Leader is who leads the managers, as the store knows it.
type Leader struct {
	Node cluster.NodeID `json:"node"`
	Term cluster.Term   `json:"term"`
	// AgeSeconds is how long ago it last wrote to the store. Current is false if it doesn't lead any more, as far as can be told.
	AgeSeconds int64 `json:"ageSeconds"`
	Current    bool  `json:"current"`
	// Manager is the version of its manager, empty if it doesn't say.
	Manager string `json:"manager,omitempty"`
}

// Node is a node with its member. What is known of it was seen SeenSeconds ago by node SeenBy; of a node that doesn't answer only Problem
// is known.
type Node struct {
	catalog.NodeReport
	SeenBy      cluster.NodeID `json:"seenBy,omitempty"`
	SeenSeconds int64          `json:"seenSeconds"`
	// Silent is true if it doesn't answer, for SilentSeconds if that is known, because of Problem.
	Silent        bool   `json:"silent,omitempty"`
	SilentSeconds int64  `json:"silentSeconds,omitempty"`
	Problem       string `json:"problem,omitempty"`
	// Lag is by how many entries of the raft log the member is behind the one that is farthest.
	Lag uint64 `json:"lag"`
}

// Standby is a node that follows another cluster, and how far its copy is. That was seen SeenSeconds ago.
type Standby struct {
	Node cluster.NodeID `json:"node"`
	catalog.StandbyReport
	SeenSeconds int64 `json:"seenSeconds"`
	// BehindSeconds is for how long the copy doesn't know what has happened there, by the reader's clock; BehindRevisions is how many
	// revisions it is known to lack.
	BehindSeconds   int64 `json:"behindSeconds"`
	BehindRevisions int64 `json:"behindRevisions"`
}

// Operation is a restore, or a backup on demand.
type Operation struct {
	ID     string                 `json:"id"`
	Kind   catalog.OperationKind  `json:"kind"`
	State  catalog.OperationState `json:"state"`
	Backup string                 `json:"backup,omitempty"`
	// Since is when its state began, or when it ended.
	Since   time.Time `json:"since,omitzero"`
	Percent *int      `json:"progressPercent,omitempty"`
	Waiting string    `json:"waiting,omitempty"`
	Reason  string    `json:"reason,omitempty"`
}

// Command is a queued command.
type Command struct {
	Name string `json:"name"`
	// Kind is "restore", "recover", "backup" or "unknown", Backup what is restored, For what it waits for.
	Kind   string `json:"kind"`
	Backup string `json:"backup,omitempty"`
	For    string `json:"for"`
}

// Backup is the newest one that no verification has found bad.
type Backup struct {
	// Name and SizeBytes are absent if only the leader's word was read.
	Name       string    `json:"name,omitempty"`
	At         time.Time `json:"at"`
	AgeSeconds int64     `json:"ageSeconds"`
	SizeBytes  int64     `json:"sizeBytes,omitempty"`
	Verified   bool      `json:"verified"`
	// Stored is how many there are, 0 if not known; IntervalSeconds how often one is taken.
	Stored          int   `json:"stored,omitempty"`
	IntervalSeconds int64 `json:"intervalSeconds,omitempty"`
}

// Verification is the last one of a backup.
type Verification struct {
	Backup     string    `json:"backup,omitempty"`
	At         time.Time `json:"at,omitzero"`
	AgeSeconds int64     `json:"ageSeconds,omitempty"`
	// Good is false if the backup is bad, for the reason Bad.
	Good         bool   `json:"good"`
	Bad          string `json:"bad,omitempty"`
	ChainProblem string `json:"chainProblem,omitempty"`
	Postponed    string `json:"postponed,omitempty"`
}

// Archive is how the changes between backups are kept.
type Archive struct {
	Incarnation catalog.Incarnation `json:"incarnation,omitempty"`
	// Until is up to when the store has every change, LagSeconds how far that was behind when the leader said so.
	Until        time.Time `json:"until,omitzero"`
	LagSeconds   int64     `json:"lagSeconds"`
	Revision     int64     `json:"revision,omitempty"`
	SpilledBytes int64     `json:"spilledBytes,omitempty"`
	Error        string    `json:"error,omitempty"`
}

// Window is the time of which any second can be restored, but for its gaps.
type Window struct {
	From  time.Time `json:"from"`
	Until time.Time `json:"until"`
	// KeptSince is from when on there are changes; before From nothing was looked at.
	KeptSince time.Time `json:"keptSince"`
	Gaps      []Gap     `json:"gaps"`
	// Note says why it isn't known.
	Note string `json:"note,omitempty"`
}

// Gap is a time in which no second can be restored; Until is absent if nothing behind it can be restored yet.
type Gap struct {
	From  time.Time `json:"from"`
	Until time.Time `json:"until,omitzero"`
}

// Ending is a CA or a certificate, and when it ends.
type Ending struct {
	What  string           `json:"what"`
	Nodes []cluster.NodeID `json:"nodes"`
	At    time.Time        `json:"at"`
	// Days are what is left, negative if it is over.
	Days int `json:"days"`
	// Renewed is true if the managers renew it by themselves; Problem says why that fails.
	Renewed bool   `json:"renewed"`
	Problem string `json:"problem,omitempty"`
}

// CannotTell is the report of a store of which nothing is known, and why.
func CannotTell(store string, now time.Time, kind, why, command string) Report {
	f := Finding{Severity: Unknown, Kind: kind, Text: why, Command: command}
	r := Report{Version: SchemaVersion, At: now.UTC(), Store: store, Verdict: Unknown, Summary: why, Findings: []Finding{f},
		Commands: []string{}, Nodes: []Node{}, Formed: "unknown"}
	if command != "" {
		r.Commands = append(r.Commands, command)
	}
	return r
}
