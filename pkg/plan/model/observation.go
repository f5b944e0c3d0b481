package model

import (
	"cmp"
	"fmt"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Observation is what the leader saw. It is plain data; Nodes, Missing and Store.Commands are sorted.
type Observation struct {
	Now time.Time
	// Self is the leader's own node, Term its leadership.
	Self cluster.NodeID
	Term cluster.Term
	// Nodes are the nodes that answered, ascending by ID.
	Nodes []cluster.NodeStatus
	// Missing are the known nodes that did not answer, ascending by ID.
	Missing []MissingNode
	Store   Store
	// FreshToken is an unused cluster token, for a cluster that would be formed or restored now.
	FreshToken cluster.Token
	// BackupRunning is the reason of the backup that is being taken, or empty.
	BackupRunning string
	// BackupRetryAt is set after a failed backup: none is tried before.
	BackupRetryAt time.Time
	// BackupFailed are the nodes on which a backup has failed lately.
	BackupFailed []cluster.NodeID
	// BackupFailures is how many backups have failed in a row, BackupError why the last of them did.
	BackupFailures int
	BackupError    string
	// BackupWanted says why a full backup is needed at once, whatever the interval: changes are not
	// to be had any more, or there is nothing yet that they can be put on. Else it is empty.
	BackupWanted string
	// PutBackRunning is the command of the put-back that is being carried out, or empty. PutBackRetryAt is set after one has failed.
	PutBackRunning string
	PutBackRetryAt time.Time
	// Restored is true from the end of a restore until the first backup of what was restored.
	Restored bool
	// BackupDoneAt is when this process last finished a backup, by its own clock; zero if it never did.
	BackupDoneAt time.Time
	// BackupBegunAt is when that backup began.
	BackupBegunAt time.Time
	// SettledFor is how long the set of reachable nodes has been as it is; forming with fewer than all waits for it.
	SettledFor time.Duration
	// Alive are members whose etcd answers although their node's manager doesn't; they are not replaced. May be left empty.
	Alive []cluster.MemberID
	// StartFailing tells for how long this leader has asked nodes in vain to start a member that was added for them. May be left empty.
	StartFailing map[cluster.NodeID]time.Duration
	// JoinFailures tells how often, under this leader, nodes have failed to join since they last did. May be left empty.
	JoinFailures map[cluster.NodeID]JoinFailure
	// Postponed are actions that failed, by their subject, also when they may be tried again. May be left empty.
	Postponed map[string]Postponed
	// VersionsFailed are versions with which a member didn't get well under this leader; they are not tried again. May be left empty.
	VersionsFailed []string
	// CompactedTo is the revision up to which this leader has compacted since etcd last ran out of room; 0 if it hasn't.
	CompactedTo int64
	// CompactedAt is when; Rewritten are the nodes whose databases have been rewritten since the first time.
	CompactedAt time.Time
	Rewritten   []cluster.NodeID
	// ProbeErrors are reasons for which a candidate node can't be added now (its peer URLs can't be reached), by node.
	ProbeErrors map[cluster.NodeID]string
}

// MissingNode is a node that is known but did not answer.
type MissingNode struct {
	ID  cluster.NodeID
	For time.Duration
	// EtcdFor is how long its member's etcd hasn't answered either, where it did after the manager had fallen silent; else zero.
	EtcdFor time.Duration
	// Foreign is true if something answers there that is not this software: it is alive, but not ours.
	Foreign bool
}

// JoinFailure says how often a node has failed to join, how long ago the last time was, and why.
type JoinFailure struct {
	Times int
	For   time.Duration
	Why   string
}

// Postponed is an action that has failed, or was done and changed nothing.
type Postponed struct {
	// For is how long it still waits; 0 if it may be tried again.
	For time.Duration
	// Times is how often it was tried in vain, Error why it failed the last time; empty if it didn't.
	Times int
	Error string
}

// MarkerPhase is the state of the created marker.
type MarkerPhase string

// The phases. A marker by another tool has no phase in the store and reads as MarkerFormed.
const (
	MarkerAbsent  MarkerPhase = ""
	MarkerForming MarkerPhase = "forming"
	MarkerFormed  MarkerPhase = "formed"
)

// Store is what the leader knows of the backup store.
type Store struct {
	// Error says why the store can't be read; then nothing else here is current.
	Error string
	// Fences is true if the store honors conditional puts, as far as the leader and all nodes in Apart can tell.
	Fences bool
	// Apart are the nodes, by id, between which and the leader the store doesn't fence. Fences is false if there are any.
	Apart []Apart
	// Unsure says which nodes haven't told yet whether the store fences between them and the leader. What needs it waits for them.
	Unsure string
	// Holder is who holds the store's leader record, as of the last reading.
	Holder Holder
	// HolderError says that there is a leader record that can't be used. Nothing that needs it is done; everything else goes on.
	HolderError string
	Marker      Marker
	// Spec is nil if there is none; SpecError says that there is one that can't be used.
	Spec      *cluster.Spec
	SpecError string
	// Settings are what the operator has chosen of etcd's settings; SettingsError says that there is something that can't be used.
	Settings      cluster.Settings
	SettingsError string
	// Commands are the queued restores, oldest first.
	Commands []Command
	// CreateBackups are the queued backups, oldest first.
	CreateBackups []CreateBackup
	// PutBacks are the queued put-backs, oldest first.
	PutBacks []QueuedPutBack
	// CommandErrors are commands that can't be read, by name and reason.
	CommandErrors []string
	// ObjectErrors are other control objects that exist and can't be read, with the way out of each. What is known from before still
	// counts; what such an object may say is taken for the worst, so nothing is formed.
	ObjectErrors []string
	// FailedRestores are restores that failed, as "NAME: reason". While there are any, an empty cluster isn't formed in their stead.
	FailedRestores []string
	// RolledBack are the latest restores that were taken back: a node that was away then still has to go back. May be left empty.
	RolledBack []Operation
	// Superseded says that another cluster takes the place of this one; nil if none does. SupersededError says that there is such a record
	// which can't be used: nothing is concluded from it.
	Superseded      *Superseded
	SupersededError string
	// Operation is the one that is not finished, or nil.
	Operation *Operation
	// HighestRevision is the highest revision that a backup's manifest or an operation's record names; 0 if none does.
	HighestRevision int64
	// NewestBackup is when the newest backup was taken; zero if there is none.
	NewestBackup time.Time
	// NewestBackupKnown is false until the backups have been listed.
	NewestBackupKnown bool
}

// Superseded is the operator's word that this cluster is over.
type Superseded struct {
	// By names what takes its place.
	By string
	// Reported are the nodes of which the store says that their etcd is stopped, ascending.
	Reported []cluster.NodeID
}

// Apart is a node whose store is another one than the leader's, or which the leader's locks and conditional puts don't reach.
type Apart struct {
	Node cluster.NodeID
	// Why is a clause that names both nodes and the likely cause, Way how it ends.
	Why, Way string
}

// Holder is the content of control/leader.
type Holder struct {
	Term cluster.Term
	Node cluster.NodeID
	// Mine is true if it names this leadership of this process.
	Mine bool
	// UnchangedFor is how long the leader has seen the record unchanged, by its own clock.
	UnchangedFor time.Duration
}

// Marker is the created marker.
type Marker struct {
	Phase    MarkerPhase
	Token    cluster.Token
	Founders []cluster.EtcdNode
	Version  string
}

// Source is a data dir on a node: its current one, if that cluster has no quorum any more, or one in its trash can.
type Source struct {
	Node  cluster.NodeID
	Token cluster.Token
	// OrBackup is restored if the data dir is gone or can't be used; may be empty.
	OrBackup string
	// OrRevision is to what the changes bring OrBackup; 0 means OrBackup itself.
	OrRevision int64
}

// What says in the operator's words what is restored.
func (s Source) What() string {
	switch {
	case s.Token == "":
		return "nothing"
	case s.Node == "":
		return fmt.Sprintf("the data of cluster %s in a trash can", s.Token)
	}
	return fmt.Sprintf("the data of cluster %s on node %s", s.Token, s.Node)
}

// Instead names what is restored if the data dir can't be used.
func (s Source) Instead() string {
	if s.OrRevision > 0 {
		return fmt.Sprintf("backup %s with the changes up to revision %d", s.OrBackup, s.OrRevision)
	}
	return "backup " + s.OrBackup
}

// Command is a queued restore.
type Command struct {
	Name string
	// Backup is empty if the command names a source. A source with a token and no node means any node's trash can.
	Backup string
	Source Source
	Spec   cluster.Spec
	// AcceptLoss goes on though what clients were told of may not all be there.
	AcceptLoss bool
	// Ready is true if it may start: it was queued before the leader's process read the queue for the first time, or asked for now.
	Ready bool
}

// What says in the operator's words what is restored.
func (c Command) What() string { return cmp.Or(c.Backup, c.Source.What()) }

// CreateBackup is a queued backup. It waits for nothing but a cluster that serves.
type CreateBackup struct{ Name string }

// QueuedPutBack is a queued put-back: keys that are written again while the cluster serves.
type QueuedPutBack struct{ Name string }

// OperationState says how far a restore is.
type OperationState string

// The states of a restore, in their order; the last four end it.
const (
	OpSalvaging  OperationState = "salvaging"
	OpProving    OperationState = "proving"
	OpStaging    OperationState = "staging"
	OpSaving     OperationState = "saving"
	OpStopping   OperationState = "stopping"
	OpSwitching  OperationState = "switching"
	OpVerifying  OperationState = "verifying"
	OpReverting  OperationState = "rolling-back"
	OpDone       OperationState = "done"
	OpFailed     OperationState = "failed"
	OpRolledBack OperationState = "rolled-back"
	OpSuperseded OperationState = "superseded"
)

// Ended tells whether nothing is left to do.
func (s OperationState) Ended() bool {
	return s == OpDone || s == OpFailed || s == OpRolledBack || s == OpSuperseded
}

// Operation is a restore that is under way, as it stands in the store.
type Operation struct {
	ID     string
	Backup string
	State  OperationState
	// Reason is why it is being rolled back, Waiting what it waits for while nothing has failed.
	Reason, Waiting string
	// Nodes are the members of the new cluster.
	Nodes    []cluster.EtcdNode
	Token    cluster.Token
	OldToken cluster.Token
	Version  string
	Size     int
	// Source names the data dir from which the backup is made first; its Node is empty if the command named a backup.
	Source Source
	// Withdrawn is true once the command isn't queued any more.
	Withdrawn bool
	// Written is true once clients are known to have written to the restored data: there is no way back then.
	Written bool
	// Unwritten is true once it is known that no client's write on the restored data was acknowledged, and none can be any more:
	// the old data come back, whatever turns up later. The manager stores it, like Written, with an Advance to OpReverting.
	Unwritten bool
	// Verified are the nodes whose running etcd was asked for its HashKV; what it was found to be is for the record only.
	Verified []cluster.NodeID
	// Bytes is the size of the staged database.
	Bytes int64
	// Proven are the nodes that have fetched and proven the backup.
	Proven []cluster.NodeID
	// SafetyBackup is the backup that was taken of the old cluster; SafetyTried is true once nothing more can be done about it.
	SafetyBackup string
	SafetyTried  bool
	// RevisionBefore is the highest revision seen of the old cluster when the restore began; what is staged must be above it.
	RevisionBefore int64
	// Revision and Hash are of the staged data.
	Revision int64
	Hash     uint32
	// StateFor is how long the operation has been in this state.
	StateFor time.Duration
	// RetryAt is set after a step failed for a reason that may pass.
	RetryAt time.Time
}

// What says in the operator's words what is restored.
func (op *Operation) What() string { return cmp.Or(op.Backup, op.Source.What()) }

// Policy is what the operator configured.
type Policy struct {
	BackupInterval time.Duration
	// MemberDeadline is how long a member may be unhealthy before it is replaced.
	MemberDeadline time.Duration
	// FormGrace is how long forming waits for all the wanted nodes once a majority is there.
	FormGrace time.Duration
	// CommitDeadline is how long each step of a commit may take before the old cluster is brought back; what it takes to load a
	// large database comes on top.
	CommitDeadline time.Duration
	// HolderLease is how long an unchanged leader record in the store keeps a leader out that doesn't see the members.
	HolderLease time.Duration
	// AllowUnfenced permits forming and restoring on a store that doesn't fence.
	AllowUnfenced bool
	// DefaultVersion is the etcd version if nothing names one.
	DefaultVersion string
	// DefragThreshold is the part of a member's database that has to be free inside before it is defragmented; 0 means never.
	DefragThreshold float64
	// DefragFrom and DefragUntil are the hours in UTC, from midnight, between which that is done; equal means at any time.
	DefragFrom, DefragUntil time.Duration
	// MayCreate permits forming a new cluster. (A static configuration only does with its file please-create-new-cluster.)
	MayCreate bool
}

// DefaultPolicy returns the policy that the flags' defaults give, for the compiled-in etcd version.
func DefaultPolicy(version string) Policy {
	return Policy{
		BackupInterval: 15 * time.Minute,
		MemberDeadline: time.Minute,
		FormGrace:      20 * time.Second,
		CommitDeadline: 3 * time.Minute,
		HolderLease:    3 * time.Minute,
		DefaultVersion: version,
		MayCreate:      true,
	}
}

// Node returns the status of a node that answered, or nil.
func (o *Observation) Node(id cluster.NodeID) *cluster.NodeStatus {
	for i := range o.Nodes {
		if o.Nodes[i].ID == id {
			return &o.Nodes[i]
		}
	}
	return nil
}
