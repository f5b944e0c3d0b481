package catalog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// OperationKind says what is being done.
type OperationKind string

// KindRestore replaces the cluster's data by a backup's.
const KindRestore OperationKind = "restore"

// KindBackup is a backup that an operator asked for. Its record is written when it has ended.
const KindBackup OperationKind = "backup"

// KindPutBack has put keys back, or taken that back, while the cluster served. Its record is written when it has ended.
const KindPutBack OperationKind = "put-back"

// OperationState says how far it is.
type OperationState string

// The states of an operation, in their order. Before StateStopping nothing that runs is touched.
const (
	StateSalvaging OperationState = "salvaging"
	StateProving   OperationState = "proving"
	StateStaging   OperationState = "staging"
	StateSaving    OperationState = "saving"
	StateStopping  OperationState = "stopping"
	StateSwitching OperationState = "switching"
	StateVerifying OperationState = "verifying"
	StateReverting OperationState = "rolling-back"
	// The rest are final.
	StateDone       OperationState = "done"
	StateFailed     OperationState = "failed"
	StateRolledBack OperationState = "rolled-back"
	StateSuperseded OperationState = "superseded"
)

// Committing tells that etcd may be stopped for the operation.
func (s OperationState) Committing() bool {
	return s == StateStopping || s == StateSwitching || s == StateVerifying || s == StateReverting
}

// Final tells that nothing more will happen.
func (s OperationState) Final() bool {
	return s == StateDone || s == StateFailed || s == StateRolledBack || s == StateSuperseded
}

func (s OperationState) known() bool {
	switch s {
	case StateSalvaging, StateProving, StateStaging, StateSaving, StateStopping, StateSwitching, StateVerifying, StateReverting:
		return true
	}
	return s.Final()
}

// Operation is the record of something long. It is written before its first step, so that whoever leads next goes on from it.
type Operation struct {
	// ID is the name of the command that is executed.
	ID    string         `json:"id"`
	Kind  OperationKind  `json:"kind"`
	State OperationState `json:"state"`
	// Reason says why it is in this state, in words for the operator; never empty for a failure.
	Reason string `json:"reason,omitempty"`
	// Waiting says what it waits for in this state; unlike with Reason nothing has failed. Empty if it goes on.
	Waiting string `json:"waiting,omitempty"`
	// Command is the queued command's name, Backup what is restored, and Options what was asked for.
	Command string         `json:"command"`
	Backup  string         `json:"backup"`
	Options RestoreOptions `json:"options,omitzero"`
	// Spec and Members are the cluster that is being made.
	Spec    cluster.Spec       `json:"-"`
	Members []cluster.EtcdNode `json:"-"`
	// NewToken names the new cluster's data dirs, OldToken those of the cluster that it replaces (empty if there was none).
	NewToken cluster.Token `json:"newToken,omitempty"`
	OldToken cluster.Token `json:"oldToken,omitempty"`
	// Term, Leader and Instance are the leadership that wrote the record.
	Term     cluster.Term   `json:"term"`
	Leader   cluster.NodeID `json:"leader"`
	Instance string         `json:"instance,omitempty"`
	// Reached is the revision of the restored data before it was raised, as the proof has read it; 0 if that isn't known.
	Reached int64 `json:"reached,omitempty"`
	// UnknownLeases says of which leases of the restored data nobody knows the TTL, so that they
	// have ten years: how many, and the ids of some.
	UnknownLeases string `json:"unknownLeases,omitempty"`
	// LeasesToldBy are the nodes that said so. One whose manager is older doesn't look.
	LeasesToldBy []cluster.NodeID `json:"leasesToldBy,omitempty"`
	// RevisionBefore is the highest revision known of the old cluster, RevisionAfter the first one of the new.
	RevisionBefore int64 `json:"revisionBefore,omitempty"`
	RevisionAfter  int64 `json:"revisionAfter,omitempty"`
	// BumpRevision is by how much the backup's revision is raised.
	BumpRevision int64 `json:"bumpRevision,omitempty"`
	// Source is the data dir that Backup was made of, if the command named one.
	Source *Source `json:"source,omitempty"`
	// Target is the point to which the backup is brought by the changes behind it; nil if it is the backup itself.
	Target *PointInTime `json:"target,omitempty"`
	// LeftOut is how many revisions after Target, which is the newest one, the old cluster had when it was last seen before etcd was
	// stopped: they were acknowledged while the restore was prepared, and aren't in it. 0 for every other kind of restore.
	LeftOut int64 `json:"leftOut,omitempty"`
	// Proven are the nodes that have fetched and proven the backup.
	Proven []cluster.NodeID `json:"proven,omitempty"`
	// StagedBytes is the size of the staged database.
	StagedBytes int64 `json:"stagedBytes,omitempty"`
	// SalvageName is the name of the backup that is made of Source.
	SalvageName string `json:"salvageName,omitempty"`
	// Unwritten is true once it is known that no client has written to the restored data: the old ones come back.
	Unwritten bool `json:"unwritten,omitempty"`
	// Written is true once clients are known to have written to the restored data: there is no way back then.
	Written bool `json:"written,omitempty"`
	// Verified are the nodes whose running etcd has been compared with StagedHash.
	Verified []cluster.NodeID `json:"verified,omitempty"`
	// StagedRevision and StagedHash (etcd's HashKV) are of the staged data, the same on every node.
	StagedRevision int64  `json:"stagedRevision,omitempty"`
	StagedHash     uint32 `json:"stagedHash,omitempty"`
	// StateSince is when State was reached, by the leader's clock.
	StateSince time.Time `json:"stateSince,omitzero"`
	// SafetyTried is true once nothing more can be done about a backup of the old cluster.
	SafetyTried bool `json:"safetyTried,omitempty"`
	// SafetyBackup is the last backup of the old cluster, from which the restore can be undone.
	SafetyBackup string `json:"safetyBackup,omitempty"`
	// SafetyPoint is the old cluster's last state if the changes that the store has lead to it. There is no SafetyBackup then.
	SafetyPoint *SafetyPoint `json:"safetyPoint,omitempty"`
	// Created, Updated and Finished are by the leader's clock.
	Created  time.Time `json:"created"`
	Updated  time.Time `json:"updated"`
	Finished time.Time `json:"finished,omitzero"`
	// Outage is how long no client was served, measured by the leader; in the record in nanoseconds. RestartOutage is the part of it
	// before the commit: the restart of the managers for which the restore has waited left no quorum.
	Outage        time.Duration `json:"outageNanos,omitempty"`
	RestartOutage time.Duration `json:"restartOutageNanos,omitempty"`
	// PutBack says what a put-back has done; nil for all others.
	PutBack *PutBackRecord `json:"putBack,omitempty"`
	// Steps are in the order in which they were begun.
	Steps []Step `json:"steps,omitempty"`
	// Progress is what each node is doing now.
	Progress map[cluster.NodeID]Progress `json:"progress,omitempty"`
}

// PointInTime is a revision that is reached from a backup.
type PointInTime struct {
	Incarnation Incarnation `json:"incarnation"`
	// BaseRevision is the backup's, Revision the one to reach. Head is the last segment that is
	// needed, empty if none is: it names those before.
	BaseRevision int64  `json:"baseRevision"`
	Revision     int64  `json:"revision"`
	Head         string `json:"head,omitempty"`
	// Time is when its state began to hold; zero if that isn't known.
	Time time.Time `json:"time,omitzero"`
}

// SafetyPoint is a state from which a restore can be undone: a backup that the store had already, brought to a revision by the
// changes after it.
type SafetyPoint struct {
	Backup string `json:"backup"`
	PointInTime
}

// Saved names the backup from which the state before can be had, and the revision to which its changes are needed: 0 if it has all itself.
// The name is empty if there is none.
func (o *Operation) Saved() (backup string, revision int64) {
	if o.SafetyPoint != nil {
		return o.SafetyPoint.Backup, o.SafetyPoint.Revision
	}
	return o.SafetyBackup, 0
}

// StepOutcome says how a step ended; empty while it runs.
type StepOutcome string

// The outcomes of a step.
const (
	StepDone   StepOutcome = "done"
	StepFailed StepOutcome = "failed"
)

// Step is one step of an operation, on one node or (with Node empty) by the leader.
type Step struct {
	Name     string         `json:"name"`
	Node     cluster.NodeID `json:"node,omitempty"`
	Started  time.Time      `json:"started"`
	Finished time.Time      `json:"finished,omitzero"`
	Outcome  StepOutcome    `json:"outcome,omitempty"`
	// Detail is for the operator: what was found, or why it failed.
	Detail string `json:"detail,omitempty"`
}

// Progress is how far a node is with what it does, in bytes. Total is 0 if unknown.
type Progress struct {
	Phase string `json:"phase"`
	Done  int64  `json:"bytesDone"`
	Total int64  `json:"bytesTotal,omitempty"`
}

// Clone returns a deep copy.
func (o Operation) Clone() Operation {
	members := make([]cluster.EtcdNode, 0, len(o.Members))
	for _, m := range o.Members {
		members = append(members, m.Clone())
	}
	o.Members = members
	o.Steps = slices.Clone(o.Steps)
	o.Proven = slices.Clone(o.Proven)
	o.Verified = slices.Clone(o.Verified)
	o.Progress = maps.Clone(o.Progress)
	o.Options.DropPrefixes = slices.Clone(o.Options.DropPrefixes)
	return o
}

// A record whose backup needs changes has a version of its own: a manager that doesn't know them would restore the backup without.
const (
	operationVersion        = 2
	operationVersionWithout = 1
	operationWay            = "if no restore is running, delete the object; the command it belongs to is then tried again"
)

type operationJSON struct {
	Version int `json:"version"`
	Operation
	Spec    specJSON   `json:"spec"`
	Members []nodeJSON `json:"members,omitempty"`
}

// PutOperation writes a record: with version "" it is created and fails with ErrConflict if it exists, otherwise
// it replaces the one with that version and fails with ErrConflict if there is another. Updated is set to now.
// What the same leadership has stored, without hearing of it, is no conflict: only one writer at a time has a leadership.
func (c *Catalog) PutOperation(ctx context.Context, op Operation, version string) (newVersion string, err error) {
	if err := validName("operation", op.ID); err != nil {
		return "", err
	}
	if !op.State.known() {
		return "", invalidf("write operation %s: state %q is not known", op.ID, op.State)
	}
	op.Updated = c.now().UTC()
	data, err := EncodeOperation(op)
	if err != nil {
		return "", err
	}
	opts := blob.PutOptions{IfAbsent: version == "", IfVersion: version}
	return c.writeOwn(ctx, operationKey(op.ID), data, opts, func(stored []byte) bool {
		o, err := DecodeOperation(operationKey(op.ID), stored)
		return err == nil && o.ID == op.ID && o.Term == op.Term && o.Leader == op.Leader && o.Instance == op.Instance && o.Instance != "" &&
			(op.State.Final() || !o.State.Final())
	})
}

// EncodeOperation is the form in which a record is stored.
func EncodeOperation(op Operation) ([]byte, error) {
	version := operationVersionWithout
	if op.State == StateSalvaging && op.Source != nil && op.Source.OrRevision > 0 {
		version = operationVersion
	}
	return encodeOwn(operationJSON{Version: version, Operation: op,
		Spec: specJSON{op.Spec.MemberCount, op.Spec.EtcdVersion}, Members: nodesToJSON(op.Members)})
}

// DecodeOperation reads that form; where says for messages where it stood. The error wraps cluster.ErrCorrupt or cluster.ErrFuture.
func DecodeOperation(where string, data []byte) (Operation, error) {
	var j operationJSON
	if err := decodeOwn(where, operationWay, data, operationVersion, &j); err != nil {
		return Operation{}, err
	}
	op := j.Operation
	op.Spec = cluster.Spec{MemberCount: j.Spec.MemberCount, EtcdVersion: j.Spec.EtcdVersion}
	op.Members = nodesFromJSON(j.Members)
	if _, err := cluster.ParseOperationID(op.ID); err != nil {
		return Operation{}, corrupt(where, operationWay, err)
	}
	if err := checkMembers(op.Members); err != nil {
		return Operation{}, corrupt(where, operationWay, err)
	}
	if !op.State.known() {
		return Operation{}, &ObjectError{Object: where, Kind: cluster.ErrFuture,
			Err: fmt.Errorf("state %q is not known", op.State), Way: futureWay}
	}
	return op, nil
}

// Operation reads one record and its version.
func (c *Catalog) Operation(ctx context.Context, id string) (Operation, string, error) {
	if err := validName("operation", id); err != nil {
		return Operation{}, "", err
	}
	key := operationKey(id)
	data, info, err := c.read(ctx, key, operationWay)
	if err != nil {
		return Operation{}, info.Version, err
	}
	op, err := DecodeOperation(key, data)
	if err != nil {
		return Operation{}, info.Version, err
	}
	if op.ID != id {
		return Operation{}, info.Version, corrupt(key, operationWay, fmt.Errorf("it is the record of operation %q", op.ID))
	}
	return op, info.Version, nil
}

// Operations returns all records, oldest first, and by id what can't be read.
func (c *Catalog) Operations(ctx context.Context) ([]Operation, []Problem, error) {
	var ops []Operation
	var problems []Problem
	for e, err := range c.store.List(ctx, operationsPrefix, blob.ListOptions{}) {
		if err != nil {
			return nil, nil, fmt.Errorf("list %s: %w", operationsPrefix, err)
		}
		id, ok := strings.CutSuffix(strings.TrimPrefix(e.Key, operationsPrefix), ".json")
		if !ok || validName("operation", id) != nil {
			continue
		}
		op, _, err := c.Operation(ctx, id)
		switch {
		case errors.Is(err, ErrNotFound):
		case unreadable(err):
			problems = append(problems, Problem{Name: id, Object: e.Key, Err: err})
		case err != nil:
			return nil, nil, err
		default:
			ops = append(ops, op)
		}
	}
	slices.SortFunc(ops, func(a, b Operation) int {
		return cmp.Or(a.Created.Compare(b.Created), strings.Compare(a.ID, b.ID))
	})
	return ops, problems, nil
}

// OperationHistory is how many finished operations are worth keeping.
const OperationHistory = 50

// UndoKept is how long a restore can be undone by what the store has, at least: as long what it needs is kept, and its record.
const UndoKept = 7 * 24 * time.Hour

// pruneReads bounds how many records one PruneOperations looks at.
const pruneReads = 500

// PruneOperations deletes finished records beyond the newest keep ones by name, which begins with the time, and returns how many.
// Unfinished ones, records that can't be read, and those of restores that can be undone (UndoKept) stay. Only records that may go are read.
func (c *Catalog) PruneOperations(ctx context.Context, keep int) (int, error) {
	l, err := c.ControlListing(ctx)
	if err != nil {
		return 0, err
	}
	if len(l.Operations) <= keep {
		return 0, nil
	}
	old := l.Operations[:len(l.Operations)-keep]
	remove := make(map[string]bool)
	for _, o := range old[:min(len(old), pruneReads)] {
		op, _, err := c.Operation(ctx, o.Name)
		switch {
		case errors.Is(err, ErrNotFound), unreadable(err):
		case err != nil:
			return 0, err
		case op.State == StateDone && c.undoable(op):
		case op.State.Final():
			remove[operationKey(o.Name)] = true
		}
	}
	if len(remove) == 0 {
		return 0, nil
	}
	n, err := c.remove(ctx, operationsPrefix, func(key string) bool { return remove[key] })
	if err != nil {
		return n, fmt.Errorf("prune operations: %w", err)
	}
	return n, nil
}

// undoable tells whether a restore can still be undone by what the store has of the state before.
func (c *Catalog) undoable(op Operation) bool {
	saved, _ := op.Saved()
	return saved != "" && c.now().Sub(op.Finished) < UndoKept
}

// RemoveOperation deletes the record of an operation that has ended. Removing one that is gone is a success.
func (c *Catalog) RemoveOperation(ctx context.Context, id string) error {
	op, _, err := c.Operation(ctx, id)
	switch {
	case errors.Is(err, ErrNotFound):
		return nil
	case err != nil:
		return err
	case !op.State.Final():
		return invalidf("operation %s is %s; only the record of one that has ended is removed", id, op.State)
	}
	return c.removeFile(ctx, operationKey(id))
}

func operationKey(id string) string { return operationsPrefix + id + ".json" }
