package model

import (
	"fmt"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Action is one step. Carrying it out twice does no more than once.
type Action interface {
	fmt.Stringer
	// Fence says how the step is fenced. Every kind of action says it once, and planner, check and manager ask here.
	Fence() Fence
	// subject names the kind of action and whom it concerns.
	subject() string
}

// Fence is what keeps two leaders from doing a step at once.
type Fence int

// The kinds of fences. All but FenceNone are for steps that can't be taken back: the leader must hold the store's leader record.
const (
	// FenceNone is for steps that etcd's raft, or the node by the term, puts in order.
	FenceNone Fence = iota
	// FenceHeld is for steps before which it is enough that the record was the leader's when it last looked.
	FenceHeld
	// FenceWritten is for steps right before which the leader writes the record again, so that one who has lost it finds out.
	FenceWritten
	// FenceCommit is FenceWritten, but in the middle of a commit the store may be away: then all
	// who could obey another leader obey this one.
	FenceCommit
)

// TakeTerm writes the leader's term into the store, where it fences every lower one.
type TakeTerm struct{}

// CreateMarker creates etcd-cluster-created in phase forming, if it is absent.
type CreateMarker struct {
	Token    cluster.Token
	Founders []cluster.EtcdNode
	Version  string
}

// ReplaceMarker starts forming over with other founders, by compare-and-swap on a marker that is still forming.
type ReplaceMarker struct {
	Token    cluster.Token
	Founders []cluster.EtcdNode
	Version  string
}

// StartEtcd writes the node's state and makes its etcd run so. It ends a hold. A running etcd is only restarted if Restart is set.
type StartEtcd struct {
	Node  cluster.NodeID
	State cluster.EtcdState
	// MayBeEmpty is true for founders and joining members.
	MayBeEmpty bool
	// Restart is true if a running etcd is to be restarted; else only the state file is written for one that runs.
	Restart bool
}

// StartAll does several StartEtcd at once.
type StartAll struct{ Starts []StartEtcd }

// MarkFormed sets the marker's phase to formed, by compare-and-swap on a marker that is forming with this token.
type MarkFormed struct {
	Token cluster.Token
	// Create is true if the store has no marker although the cluster serves: it is created, if absent, as formed.
	Create bool
	// Founders and Version are what goes into a created marker.
	Founders []cluster.EtcdNode
	Version  string
}

// TakeBackup has a node stream a snapshot into the store. It goes on beside other actions.
type TakeBackup struct {
	Node   cluster.NodeID
	Reason string
	// Command is the queued command that asks for it; empty if none does.
	Command string
}

// PutBack carries out a queued put-back, from where it is. It goes on beside other actions.
type PutBack struct {
	// Node is the member through which the keys are written.
	Node    cluster.NodeID
	Command string
}

// AddLearner adds a node's peer URLs to the member list, as a learner.
type AddLearner struct {
	Node     cluster.NodeID
	PeerURLs []string
}

// Promote makes a learner a voter.
type Promote struct {
	Member cluster.MemberID
	Name   string
}

// UpdateMember tells etcd the peer URLs under which a member is reached now.
type UpdateMember struct {
	Member   cluster.MemberID
	Name     string
	PeerURLs []string
}

// RemoveMember removes a member.
type RemoveMember struct {
	Member cluster.MemberID
	Name   string
	// Failed is the node that the member was added for and that failed to join, Why the reason; empty if it is removed for another one.
	Failed cluster.NodeID
	Why    string
}

// RestartMember restarts a member that runs, in another version or with other settings. What it is to run is proven on the node before.
type RestartMember struct {
	Node  cluster.NodeID
	State cluster.EtcdState
	// Settings go with it; nil leaves the node's as they are.
	Settings cluster.Settings
	Why      RestartCause
}

// RestartCause is why a member is restarted.
type RestartCause string

// The causes. After RestartFallBack the version that the member left is not tried again under this leader.
const (
	RestartVersion  RestartCause = "version"
	RestartSettings RestartCause = "settings"
	RestartFallBack RestartCause = "fall-back"
)

// StopMember stops a member whose data are wrong, at once and until it is set aside.
type StopMember struct {
	Node   cluster.NodeID
	Reason string
}

// ReleaseVolume has a node give its data volume up for another one. The node stops etcd in order and comes back without data, so the others
// have to serve without it and fill it again.
type ReleaseVolume struct {
	Node cluster.NodeID
	// Volume and Replacement are the provider's ids, as the node has named them.
	Volume, Replacement string
}

// EnableDowngrade begins etcd's own downgrade: from then on all members keep to that version, and the older etcd can take their data.
type EnableDowngrade struct{ Version string }

// CancelDowngrade ends etcd's own downgrade.
type CancelDowngrade struct{}

// Compact drops the history before a revision.
type Compact struct{ Revision int64 }

// Defragment rewrites a member's database; it answers nobody meanwhile.
type Defragment struct{ Node cluster.NodeID }

// Disarm takes an alarm of etcd's back.
type Disarm struct{ Alarm cluster.Alarm }

// SetAside moves a node's state and data into its trash can, and ends a hold.
type SetAside struct {
	Node   cluster.NodeID
	Token  cluster.Token
	Reason string
	// NeverServed says that no client was ever let into that cluster, so the data may go before there is a backup.
	NeverServed bool
}

// BeginRestore records the operation for a command, with the nodes of the new cluster.
type BeginRestore struct {
	Command string
	Op      Operation
}

// SalvageData has a node make a backup in the store out of a data dir without a quorum; the operation's record gets its name.
type SalvageData struct {
	Op   Operation
	Node cluster.NodeID
}

// ProveBackup has the nodes fetch and prove the operation's backup.
type ProveBackup struct {
	Op    Operation
	Nodes []cluster.NodeID
}

// StageBackup has the nodes build the new data dir.
type StageBackup struct {
	Op     Operation
	Starts []StartEtcd
}

// SafetyBackup copies the old cluster before it is stopped.
type SafetyBackup struct {
	Op   Operation
	Node cluster.NodeID
}

// StopAll stops etcd on the nodes and keeps it stopped.
type StopAll struct {
	Op    Operation
	Nodes []cluster.NodeID
}

// SwitchAll makes the staged data dirs current and starts etcd, open to clients. Where it was halted it is started again.
type SwitchAll struct {
	Op     Operation
	Starts []StartEtcd
}

// HaltAll stops the restored etcd on the nodes and has them read from its log whether clients have written.
type HaltAll struct {
	Op    Operation
	Nodes []cluster.NodeID
}

// VerifyAll has the nodes compare what their running etcd holds with what was staged. What they find goes into the record.
type VerifyAll struct {
	Op    Operation
	Nodes []cluster.NodeID
}

// RollbackAll brings the old data back. A node whose log has a client's write refuses.
type RollbackAll struct {
	Op    Operation
	Nodes []cluster.NodeID
}

// Advance records that the operation has reached a state, or knows more in the same one: Op's Backup, Revision, Hash, Bytes, Written and
// Unwritten go into the record.
type Advance struct {
	Op     Operation
	To     OperationState
	Reason string
}

// FinishRestore ends the operation: marker, command, and the record last, so that a crash in between has it done again.
type FinishRestore struct {
	Op     Operation
	To     OperationState
	Reason string
}

// FailCommand marks a command failed that can't succeed.
type FailCommand struct {
	Command, Backup, Reason string
	// SupersededBy is the command that wins over this one; empty if this one can't succeed by itself.
	SupersededBy string
}

// Fence implements Action.
func (TakeTerm) Fence() Fence { return FenceNone }

// Fence implements Action.
func (CreateMarker) Fence() Fence { return FenceWritten }

// Fence implements Action.
func (ReplaceMarker) Fence() Fence { return FenceWritten }

// Fence implements Action.
func (StartEtcd) Fence() Fence { return FenceNone }

// Fence implements Action.
func (StartAll) Fence() Fence { return FenceHeld }

// Fence implements Action.
func (MarkFormed) Fence() Fence { return FenceHeld }

// Fence implements Action.
func (TakeBackup) Fence() Fence { return FenceNone }

// Fence implements Action.
// The transactions fence each other in etcd; the record keeps a leader that was replaced from beginning.
func (PutBack) Fence() Fence { return FenceWritten }

// Fence implements Action.
func (AddLearner) Fence() Fence { return FenceNone }

// Fence implements Action.
func (Promote) Fence() Fence { return FenceNone }

// Fence implements Action.
func (UpdateMember) Fence() Fence { return FenceNone }

// Fence implements Action.
func (RemoveMember) Fence() Fence { return FenceNone }

// Fence implements Action.
func (SetAside) Fence() Fence { return FenceNone }

// Fence implements Action.
// Two leaders at once must not restart two members: each would leave the other one's out of account.
func (RestartMember) Fence() Fence { return FenceWritten }

// Fence implements Action.
func (StopMember) Fence() Fence { return FenceWritten }

// Fence implements Action.
// Two leaders at once must not have two nodes give their data up.
func (ReleaseVolume) Fence() Fence { return FenceWritten }

// Fence implements Action.
func (EnableDowngrade) Fence() Fence { return FenceWritten }

// Fence implements Action.
func (CancelDowngrade) Fence() Fence { return FenceWritten }

// Fence implements Action.
func (Compact) Fence() Fence { return FenceWritten }

// Fence implements Action.
func (Defragment) Fence() Fence { return FenceWritten }

// Fence implements Action.
func (Disarm) Fence() Fence { return FenceWritten }

// Fence implements Action.
func (BeginRestore) Fence() Fence { return FenceWritten }

// Fence implements Action.
func (SalvageData) Fence() Fence { return FenceHeld }

// Fence implements Action.
func (ProveBackup) Fence() Fence { return FenceHeld }

// Fence implements Action.
func (StageBackup) Fence() Fence { return FenceHeld }

// Fence implements Action.
func (SafetyBackup) Fence() Fence { return FenceHeld }

// Fence implements Action.
func (StopAll) Fence() Fence { return FenceCommit }

// Fence implements Action.
func (SwitchAll) Fence() Fence { return FenceCommit }

// Fence implements Action.
func (HaltAll) Fence() Fence { return FenceHeld }

// Fence implements Action.
func (VerifyAll) Fence() Fence { return FenceNone }

// Fence implements Action.
func (RollbackAll) Fence() Fence { return FenceHeld }

// Fence implements Action.
func (Advance) Fence() Fence { return FenceCommit }

// Fence implements Action.
func (FinishRestore) Fence() Fence { return FenceHeld }

// Fence implements Action.
func (FailCommand) Fence() Fence { return FenceHeld }

func (TakeTerm) String() string { return "take-term" }
func (a CreateMarker) String() string {
	return fmt.Sprintf("create-marker token=%s founders=%s version=%s", a.Token, names(a.Founders), a.Version)
}
func (a ReplaceMarker) String() string {
	return fmt.Sprintf("replace-marker token=%s founders=%s version=%s", a.Token, names(a.Founders), a.Version)
}
func (a StartEtcd) String() string {
	s := fmt.Sprintf("start-etcd node=%s token=%s version=%s", a.Node, a.State.Token, a.State.EtcdVersion)
	if a.State.NewCluster {
		s += " founder"
	}
	if a.State.Quarantined {
		s += " quarantined"
	}
	if a.Restart {
		s += " restart"
	}
	return s
}
func (a StartAll) String() string {
	return "start-all " + join(a.Starts, func(s StartEtcd) string { return "[" + s.String() + "]" }, " ")
}
func (a MarkFormed) String() string {
	s := fmt.Sprintf("mark-formed token=%s", a.Token)
	if a.Create {
		s += " create"
	}
	return s
}
func (a TakeBackup) String() string {
	s := fmt.Sprintf("take-backup node=%s reason=%s", a.Node, a.Reason)
	if a.Command != "" {
		s += " command=" + a.Command
	}
	return s
}
func (a PutBack) String() string {
	return fmt.Sprintf("put-back node=%s command=%s", a.Node, a.Command)
}
func (a AddLearner) String() string {
	return fmt.Sprintf("add-learner node=%s urls=%s", a.Node, strings.Join(a.PeerURLs, ","))
}
func (a Promote) String() string { return fmt.Sprintf("promote member=%s name=%s", a.Member, a.Name) }
func (a UpdateMember) String() string {
	return fmt.Sprintf("update-member member=%s name=%s urls=%s", a.Member, a.Name, strings.Join(a.PeerURLs, ","))
}
func (a RemoveMember) String() string {
	return fmt.Sprintf("remove-member member=%s name=%s", a.Member, a.Name)
}
func (a RestartMember) String() string {
	s := fmt.Sprintf("restart-member node=%s version=%s for=%s", a.Node, a.State.EtcdVersion, a.Why)
	if len(a.Settings) > 0 {
		s += " settings=[" + a.Settings.String() + "]"
	}
	return s
}
func (a StopMember) String() string { return fmt.Sprintf("stop-member node=%s", a.Node) }
func (a ReleaseVolume) String() string {
	return fmt.Sprintf("release-volume node=%s volume=%s replacement=%s", a.Node, a.Volume, a.Replacement)
}
func (a EnableDowngrade) String() string { return "enable-downgrade version=" + a.Version }
func (CancelDowngrade) String() string   { return "cancel-downgrade" }
func (a Compact) String() string         { return fmt.Sprintf("compact revision=%d", a.Revision) }
func (a Defragment) String() string      { return fmt.Sprintf("defragment node=%s", a.Node) }
func (a Disarm) String() string {
	return fmt.Sprintf("disarm alarm=%s member=%s", a.Alarm.Type, a.Alarm.Member)
}
func (a SetAside) String() string {
	s := fmt.Sprintf("set-aside node=%s token=%s", a.Node, a.Token)
	if a.NeverServed {
		s += " never-served"
	}
	return s
}
func (a BeginRestore) String() string {
	return fmt.Sprintf("begin-restore command=%s backup=%s token=%s nodes=%s version=%s", a.Command, a.Op.Backup,
		a.Op.Token, names(a.Op.Nodes), a.Op.Version)
}
func (a SalvageData) String() string {
	return fmt.Sprintf("salvage-data op=%s node=%s", a.Op.ID, a.Node)
}
func (a ProveBackup) String() string {
	return fmt.Sprintf("prove-backup op=%s nodes=%s", a.Op.ID, ids(a.Nodes))
}
func (a StageBackup) String() string {
	return fmt.Sprintf("stage-backup op=%s nodes=%s", a.Op.ID, startIDs(a.Starts))
}
func (a SafetyBackup) String() string {
	return fmt.Sprintf("safety-backup op=%s node=%s", a.Op.ID, a.Node)
}
func (a StopAll) String() string {
	return fmt.Sprintf("stop-all op=%s nodes=%s", a.Op.ID, ids(a.Nodes))
}
func (a SwitchAll) String() string {
	return fmt.Sprintf("switch-all op=%s nodes=%s", a.Op.ID, startIDs(a.Starts))
}
func (a HaltAll) String() string {
	return fmt.Sprintf("halt-all op=%s nodes=%s", a.Op.ID, ids(a.Nodes))
}
func (a VerifyAll) String() string {
	return fmt.Sprintf("verify-all op=%s nodes=%s", a.Op.ID, ids(a.Nodes))
}
func (a RollbackAll) String() string {
	return fmt.Sprintf("rollback-all op=%s nodes=%s", a.Op.ID, ids(a.Nodes))
}
func (a Advance) String() string { return fmt.Sprintf("advance op=%s to=%s", a.Op.ID, a.To) }
func (a FinishRestore) String() string {
	return fmt.Sprintf("finish-restore op=%s as=%s", a.Op.ID, a.To)
}
func (a FailCommand) String() string {
	return fmt.Sprintf("fail-command command=%s backup=%s", a.Command, a.Backup)
}

func join[T any](list []T, f func(T) string, sep string) string {
	parts := make([]string, len(list))
	for i, x := range list {
		parts[i] = f(x)
	}
	return strings.Join(parts, sep)
}

func names(nodes []cluster.EtcdNode) string {
	return join(nodes, func(n cluster.EtcdNode) string { return n.Name }, ",")
}

func ids(nodes []cluster.NodeID) string {
	return join(nodes, func(n cluster.NodeID) string { return string(n) }, ",")
}

func startIDs(starts []StartEtcd) string {
	return join(starts, func(s StartEtcd) string { return string(s.Node) }, ",")
}
