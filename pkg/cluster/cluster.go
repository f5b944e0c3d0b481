// Package cluster holds the nouns of etcd-manager, its sentinel errors and quorum arithmetic.
//
// It imports nothing and does nothing. One noun, one type: ids are never converted into each other.
package cluster

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// NodeID names a node (a master that runs the daemon). It is stable over restarts: it comes from the volume or from the file myid.
type NodeID string

// MemberID is etcd's id of a member.
type MemberID uint64

// String prints the id as etcd's own tools do: in hexadecimal.
func (m MemberID) String() string { return fmt.Sprintf("%x", uint64(m)) }

// Term is the number of a leadership among the managers. It only grows. It has nothing to do with etcd's raft term.
type Term uint64

const (
	// MaxTermJump is the furthest that one term may be above another that was seen before. An election takes more than a second, so
	// half a year of elections without a pause doesn't get further.
	MaxTermJump = 1 << 24
	// MaxTerm is a term that no real history reaches.
	MaxTerm Term = 1 << 48
)

// Reaches tells whether a real history can lead from this term to the other. If not, the other one is corrupt, whoever says it:
// to believe it would leave no terms for those who come after.
func (t Term) Reaches(other Term) bool {
	return other <= MaxTerm && (other <= t || other-t <= MaxTermJump)
}

// TakesOver is Reaches for a term that only the store tells of. It is stricter, so that those who still are in this term
// believe the one who goes on from the store's.
func (t Term) TakesOver(stored Term) bool {
	return t.Reaches(stored) && (stored <= t || stored-t <= MaxTermJump/2)
}

// Token is an etcd cluster's token; it also names the cluster's data dir on every node.
type Token string

// Spec is what the operator wants. The zero value of a field means "not said".
type Spec struct {
	// MemberCount is the wanted number of members; odd, 1 to 9.
	MemberCount int
	// EtcdVersion is the wanted version, for example "3.6.16", without "v". Empty means: what runs, else the compiled-in version.
	EtcdVersion string
}

// EtcdNode is one etcd member as it stands in a node's state file and in the created marker.
type EtcdNode struct {
	// Name is the member's name, and the id of the node that it lives on.
	Name                  string
	PeerURLs              []string
	ClientURLs            []string
	QuarantinedClientURLs []string
	// TLS is true if etcd speaks TLS.
	TLS bool
}

// EtcdState is what a node's state file says: which etcd is to run here. Its format is fixed (docs/format.md).
type EtcdState struct {
	// NewCluster is true while etcd is started as a founder.
	NewCluster  bool
	DesiredSize int
	Token       Token
	Nodes       []EtcdNode
	EtcdVersion string
	// Quarantined is true while etcd listens on the quarantined client URLs only, where no API server finds it.
	Quarantined bool
}

// Node returns the entry with that name, or nil.
func (s *EtcdState) Node(name string) *EtcdNode {
	if s == nil {
		return nil
	}
	for i := range s.Nodes {
		if s.Nodes[i].Name == name {
			return &s.Nodes[i]
		}
	}
	return nil
}

// Clone returns a deep copy.
func (s *EtcdState) Clone() *EtcdState {
	if s == nil {
		return nil
	}
	c := *s
	c.Nodes = make([]EtcdNode, len(s.Nodes))
	for i, n := range s.Nodes {
		c.Nodes[i] = n.Clone()
	}
	return &c
}

// Clone returns a deep copy.
func (n EtcdNode) Clone() EtcdNode {
	n.PeerURLs = slices.Clone(n.PeerURLs)
	n.ClientURLs = slices.Clone(n.ClientURLs)
	n.QuarantinedClientURLs = slices.Clone(n.QuarantinedClientURLs)
	return n
}

// Member is one row of etcd's own member list.
type Member struct {
	ID MemberID
	// Name is empty for a member that was added but has never started.
	Name       string
	PeerURLs   []string
	ClientURLs []string
	Learner    bool
}

// AlarmType is a kind of alarm of etcd's.
type AlarmType string

// The alarms that etcd knows.
const (
	AlarmNoSpace AlarmType = "NOSPACE"
	AlarmCorrupt AlarmType = "CORRUPT"
)

// SupersededMember is no member: CORRUPT of this id is the alarm by which managers end all writes, of a cluster whose place another one
// takes. It has etcd refuse every change on all members from one entry of the log on, and no real member gets this id.
const SupersededMember MemberID = 0x7375706572736564

// SupersededOperation is the operation for which the etcd of such a cluster is held.
const SupersededOperation OperationID = "superseded"

// Alarm is raised by a member, or about it, and stays until it is disarmed.
type Alarm struct {
	Member MemberID
	Type   AlarmType
}

// EtcdStatus is what a node knows of its own etcd process.
type EtcdStatus struct {
	// Running is true if the process exists.
	Running bool
	// Healthy is true if etcd answered a linearizable read within the last check, be it with a refusal.
	Healthy bool
	// Denied is true if etcd has users (auth enable) and refuses the manager. It checks permission after it has read from a
	// quorum, so it is healthy; but ids, members and how far it is may be unknown.
	Denied bool
	// HealthySince and UnhealthySince are by the node's own clock; the zero value means never.
	UnhealthyFor time.Duration
	// UpFor is how long the process has been running, AnsweringFor how long ago it first answered since its start; 0 if it hasn't.
	UpFor        time.Duration
	AnsweringFor time.Duration
	// Reading is true if the process has read from the disk in the last seconds.
	Reading bool
	// Version is the running server's version.
	Version string
	// Quarantined tells which client URLs the running process listens on.
	Quarantined bool
	MemberID    MemberID
	// LeaderID is 0 when there is no etcd leader.
	LeaderID MemberID
	Learner  bool
	Revision int64
	RaftTerm uint64
	// RaftIndex and AppliedIndex say how far this member is.
	RaftIndex    uint64
	AppliedIndex uint64
	// DBSize and DBSizeInUse are in bytes. While etcd doesn't answer DBSize is the size of the file.
	DBSize      int64
	DBSizeInUse int64
	// DBQuota bounds DBSize, in bytes; 0 if it isn't known.
	DBQuota int64
	// ClusterVersion is the minor version that all members keep to, for example "3.5.0"; StorageVersion that of this member's data. Empty
	// if it isn't known; versions before 3.6 don't tell the second.
	ClusterVersion string
	StorageVersion string
	// DowngradeTarget is the version for which etcd's own downgrade is enabled, or empty.
	DowngradeTarget string
	// Alarms are raised somewhere in the cluster, as this member knows it.
	Alarms []Alarm
	// Outdated is true if the process runs with other settings than it would be started with now.
	Outdated bool
	// Members is the member list as this member knows it; nil if it couldn't be read.
	Members []Member
	// LogWritten is when its write-ahead log was last written to; zero while it is healthy. RaftTerm, RaftIndex and Revision are then read
	// from its data if it doesn't answer.
	LogWritten time.Time
	// Error says why it is not healthy, or why it refuses the manager, in words for the operator.
	Error string
	// Restarts counts how often the process ended unasked since it was last healthy.
	Restarts int
}

// Votes tells whether this is a healthy voter. Only a voter can know that there is a quorum: a learner keeps the last
// leader that it has heard of, and is called healthy for as long as it runs.
func (s EtcdStatus) Votes() bool { return s.Healthy && !s.Learner && (s.LeaderID != 0 || s.Denied) }

// EtcdUser is the common name of a node's client certificate for etcd. Where etcd has users that is the manager's.
func EtcdUser(id NodeID) string { return EtcdUserPrefix + string(id) }

// EtcdUserPrefix is what the common name of a manager's client certificate has before the node's id.
const EtcdUserPrefix = "etcd-manager-client-"

// StagedDir is a data dir that was built and proven and waits to be switched to.
type StagedDir struct {
	Operation string
	Token     Token
	Revision  int64
	// Hash is etcd's HashKV over the staged data at Revision.
	Hash uint32
	// SizeBytes is the size of the database.
	SizeBytes int64
	// Switched is true once it is the node's current data dir; Halted while etcd is stopped on it to go back.
	Switched bool
	Halted   bool
	// Written is true if its log, read when it was halted, has a client's write.
	Written bool
}

// TrashEntry is a data dir that was set aside.
type TrashEntry struct {
	Token Token
	// SizeBytes is what it takes on disk, Since when it was set aside.
	SizeBytes int64
	Since     time.Time
	// RaftTerm and RaftIndex are of the last entry of its log; 0 if it can't be read.
	RaftTerm  uint64
	RaftIndex uint64
	// Members is how many members the cluster had when a restore replaced it; 0 if it was set aside
	// for another reason, or that isn't known.
	Members int
}

// BusyDefragment is what NodeStatus.Busy says while a node rewrites its database: the name of that action in the protocol.
const BusyDefragment = "defragment"

// BusyReleasing is what NodeStatus.Busy says from the moment in which a node gives up its volume until its manager ends.
const BusyReleasing = "release_volume"

// NodeStatus is what one node says of itself. It is plain data, as fresh as the moment it was asked for.
type NodeStatus struct {
	ID NodeID
	// Instance changes whenever the manager process starts.
	Instance string
	// Self is how this node would appear as a member.
	Self EtcdNode
	// Term is the highest term that the node has obeyed.
	Term Term
	// State is nil if the node has no state file, which means that it belongs to no etcd cluster.
	State *EtcdState
	// StateError says that there is a state file or data dir that can't be used, and why.
	StateError string
	// DataPresent is true if the data dir of State.Token holds a log of etcd's.
	DataPresent bool
	Etcd        EtcdStatus
	// Versions lists the etcd versions that this node can run, ascending.
	Versions []string
	Staged   []StagedDir
	// NameProblem says that members' names resolve to other addresses on this node than those at which the members are; else empty.
	NameProblem string
	// Operation is the restore that this node's journal knows as begun here and not yet finished, or empty.
	Operation string
	// Holding is true while the node keeps its etcd stopped on the leader's order (between stop and switch, or halted).
	Holding bool
	// OperationRecord is the leader's record of the operation for which etcd is held or was switched: JSON, or nil.
	OperationRecord []byte
	// Trash are the data dirs that were set aside, newest first.
	Trash []TrashEntry
	// DiskFree is the free space of the data dir's file system, in bytes.
	DiskFree int64
	// DiskTotal is the size of that file system; 0 if it isn't known.
	DiskTotal int64
	// Settings are etcd's settings as the leader last gave them to this node.
	Settings Settings
	// Busy names the action that is being performed, or is empty.
	Busy string
	// Release is the data volume that the node is ready to give up; nil if it is to keep it.
	Release *VolumeRelease
	// Manager is the manager's version.
	Manager string
	// Clock is the node's wall clock when it answered; only shown, never compared for decisions.
	Clock time.Time
	// Stopped is when the end of the manager before this one stopped etcd; nil if it didn't. It is for reports, not for decisions.
	Stopped *Stop
	// Endings are CAs and certificates of this node, and when they end. They are only shown.
	Endings []Ending
}

// Ending is a CA or a certificate, and when it ends.
type Ending struct {
	// What is "CA NAME" or "certificate NAME".
	What string    `json:"what"`
	At   time.Time `json:"at"`
	// Renewed is true if the manager renews it before that; Problem says why this fails at present.
	Renewed bool   `json:"renewed,omitempty"`
	Problem string `json:"problem,omitempty"`
}

// Stop is a time in which a node's etcd was stopped because its manager was asked to end, by the node's clock.
type Stop struct {
	At time.Time `json:"at"`
	// Served is when that etcd first served clients again, which takes a quorum; zero if it hasn't.
	Served time.Time `json:"served,omitzero"`
}

// VolumeRelease names a data volume that gives way to another one. The node that has it does all
// that can be done beforehand, and then waits for the leader, as it comes back without data.
type VolumeRelease struct {
	// Volume and Replacement are the provider's ids.
	Volume, Replacement string
}

// Sentinel errors.
var (
	// ErrLowerTerm: the request came from a leadership that is over.
	ErrLowerTerm = errors.New("request of a lower term")
	// ErrOtherCluster: the request names another cluster.
	ErrOtherCluster = errors.New("request is for another cluster")
	// ErrCorrupt: something exists but can't be read as what it should be. It is never taken for absent.
	ErrCorrupt = errors.New("corrupt")
	// ErrFuture: something was written by a newer version of this software.
	ErrFuture = errors.New("written by a newer version")
	// ErrPermanent: trying again can't help; the operator has to act.
	ErrPermanent = errors.New("cannot succeed")
)

// Quorum is the number of voters, out of n, that etcd needs to accept a write.
func Quorum(n int) int { return n/2 + 1 }

// MemberCountFor is the member count to advise where so many members run: theirs, the next one that is possible, or 3 if none runs.
func MemberCountFor(running int) int {
	switch {
	case running <= 0:
		return 3
	case ValidMemberCount(running):
		return running
	}
	return min(running|1, 9)
}

// ValidMemberCount tells whether n is a cluster size that etcd-manager forms: odd, from 1 to 9.
func ValidMemberCount(n int) bool { return n >= 1 && n <= 9 && n%2 == 1 }
