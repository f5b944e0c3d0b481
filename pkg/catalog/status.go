package catalog

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Status is what a manager knows of its cluster, for an operator who sees only the store. The leader stores it with its leader record,
// so that it costs no request of its own; any other manager in an object of its own while no leader shows one. It is only shown: no
// manager reads it, and one that is damaged stops nothing.
type Status struct {
	// At is by the clock of Node, which says this with version Manager of the program.
	At          time.Time      `json:"at"`
	ClusterName string         `json:"clusterName"`
	Node        cluster.NodeID `json:"node"`
	Manager     string         `json:"manager,omitempty"`
	// Leading is true if Node leads; else Leader is who does as far as it knows, empty if nobody.
	Leading bool           `json:"leading"`
	Leader  cluster.NodeID `json:"leader,omitempty"`
	Term    cluster.Term   `json:"term,omitempty"`
	// Doing is what is done or waited for, and Since since when.
	Doing     string              `json:"doing,omitempty"`
	Since     time.Time           `json:"since,omitzero"`
	Attention []cluster.Attention `json:"attention,omitempty"`
	// Wanted is the number of members that the spec asks for, 0 if not known.
	Wanted int `json:"wantedMembers,omitempty"`
	// Nodes are those that answered, Missing those that are known and didn't. A node that doesn't lead speaks of itself alone, and Missing
	// are then the managers that don't answer it.
	Nodes   []NodeReport  `json:"nodes,omitempty"`
	Missing []MissingNode `json:"missing,omitempty"`
	// StoreError says why the store can't be used from there; empty if it can.
	StoreError string `json:"storeError,omitempty"`
	// Backups are how backups do, Proof the last verification, Changes how the changes between backups are kept; nil if that isn't known.
	Backups *BackupReport  `json:"backups,omitempty"`
	Proof   *ProofReport   `json:"verification,omitempty"`
	Changes *ChangesReport `json:"changes,omitempty"`
	// Copies are how the copies of the store do.
	Copies []CopyReport `json:"copies,omitempty"`
	// Operation is the id of the restore that is under way.
	Operation string `json:"operation,omitempty"`
	// Standby is set by a node that follows another cluster, and belongs to none.
	Standby *StandbyReport `json:"standby,omitempty"`
}

// HasMember tells whether a node that it speaks of has a member.
func (s Status) HasMember() bool {
	return slices.ContainsFunc(s.Nodes, func(n NodeReport) bool { return n.Role != RoleNone })
}

// StandbyReport is how far a node's copy of another cluster's data is.
type StandbyReport struct {
	// Of is the other cluster's store.
	Of          string      `json:"of"`
	Incarnation Incarnation `json:"incarnation,omitempty"`
	// Base is the full backup that the copy began with; empty if there is no copy yet.
	Base string `json:"base,omitempty"`
	// File is the copy's path, Bytes its size.
	File  string `json:"file,omitempty"`
	Bytes int64  `json:"bytes,omitempty"`
	// Revision is what the copy has, Known the newest that the other cluster is known to have, and Until up to when the copy has
	// everything.
	Revision int64     `json:"revision"`
	Known    int64     `json:"knownRevision"`
	Until    time.Time `json:"until,omitzero"`
	// Compared is the full backup with which the copy was last compared, at ComparedAt and up to ComparedRevision, where both had HashKV;
	// Differs
	// says what was not the same, empty if all was.
	Compared         string    `json:"compared,omitempty"`
	ComparedAt       time.Time `json:"comparedAt,omitzero"`
	ComparedRevision int64     `json:"comparedRevision,omitempty"`
	HashKV           uint32    `json:"hashKV,omitempty"`
	Differs          string    `json:"differs,omitempty"`
	// Doing is what goes on beside following, with Done of Total bytes where they are known.
	Doing string `json:"doing,omitempty"`
	Done  int64  `json:"doneBytes,omitempty"`
	Total int64  `json:"totalBytes,omitempty"`
	// Error says why nothing comes, since Since; empty if all is well.
	Error string    `json:"error,omitempty"`
	Since time.Time `json:"errorSince,omitzero"`
}

// NodeReport is how a node and its member do.
type NodeReport struct {
	Node cluster.NodeID `json:"node"`
	// Manager is the version of its manager.
	Manager string `json:"manager,omitempty"`
	// Member is the member's id in hexadecimal, as etcd prints it; empty if there is none. Role is one of the roles below.
	Member string `json:"member,omitempty"`
	Role   string `json:"role"`
	// Version is that of the running etcd, Healthy whether it answers linearizable reads, UnhealthySeconds for how long it hasn't.
	Version          string `json:"version,omitempty"`
	Running          bool   `json:"running"`
	Healthy          bool   `json:"healthy"`
	UnhealthySeconds int64  `json:"unhealthySeconds,omitempty"`
	Quarantined      bool   `json:"quarantined,omitempty"`
	// Error says why it isn't healthy, Busy what the manager is doing there.
	Error string `json:"error,omitempty"`
	Busy  string `json:"busy,omitempty"`
	// Revision and RaftIndex say how far the member is.
	Revision  int64  `json:"revision,omitempty"`
	RaftIndex uint64 `json:"raftIndex,omitempty"`
	// DBSize is the size of the database, DBInUse the part with data, DBQuota the size at which etcd refuses writes; 0 if not known.
	DBSize  int64 `json:"dbBytes,omitempty"`
	DBInUse int64 `json:"dbInUseBytes,omitempty"`
	DBQuota int64 `json:"dbQuotaBytes,omitempty"`
	// DiskFree and DiskTotal are of the data dir's file system, in bytes.
	DiskFree  int64 `json:"diskFreeBytes,omitempty"`
	DiskTotal int64 `json:"diskTotalBytes,omitempty"`
	// Alarms are etcd's, of this member.
	Alarms []string `json:"alarms,omitempty"`
	// Endings are CAs and certificates of this node, and when they end.
	Endings []cluster.Ending `json:"endings,omitempty"`
}

// The roles of a NodeReport.
const (
	RoleLeader   = "leader"
	RoleFollower = "follower"
	RoleLearner  = "learner"
	// RoleMember: it has a member, but etcd doesn't tell which role it has at present.
	RoleMember = "member"
	// RoleNone: the node belongs to no etcd cluster.
	RoleNone = "none"
)

// MissingNode is a node that doesn't answer.
type MissingNode struct {
	Node    cluster.NodeID `json:"node"`
	Seconds int64          `json:"seconds,omitempty"`
	Problem string         `json:"problem,omitempty"`
}

// BackupReport is how backups do.
type BackupReport struct {
	// Newest is when the newest one was begun, zero if there is none. Stored is how many there are, 0 if not counted.
	Newest time.Time `json:"newest,omitzero"`
	Stored int       `json:"stored,omitempty"`
	// IntervalSeconds is how often one is taken, VerifySeconds how often one is verified; 0 if none is.
	IntervalSeconds int64 `json:"intervalSeconds,omitempty"`
	VerifySeconds   int64 `json:"verifySeconds,omitempty"`
	// Error says why the last attempt failed, Denied why nothing old can be deleted.
	Error  string `json:"error,omitempty"`
	Denied string `json:"deleteDenied,omitempty"`
}

// ProofReport is the last verification of a backup.
type ProofReport struct {
	Backup string    `json:"backup"`
	At     time.Time `json:"at,omitzero"`
	// Bad says why the backup is bad, ChainProblem why it can't be reached from the one before it, Postponed why the verification that is
	// due waits.
	Bad          string `json:"bad,omitempty"`
	ChainProblem string `json:"chainProblem,omitempty"`
	Postponed    string `json:"postponed,omitempty"`
}

// ChangesReport is how the changes between backups are kept.
type ChangesReport struct {
	Incarnation Incarnation `json:"incarnation,omitempty"`
	// Seen is the newest revision that etcd has sent, Archived the newest in the store, and Until up to when the store has everything.
	Seen     int64     `json:"seenRevision"`
	Archived int64     `json:"archivedRevision"`
	Until    time.Time `json:"archivedUntil,omitzero"`
	// SpilledBytes wait on the leader's disk. Gaps were found by this leader; LastGap says what was lost.
	SpilledBytes int64  `json:"spilledBytes,omitempty"`
	Gaps         int    `json:"gaps,omitempty"`
	LastGap      string `json:"lastGap,omitempty"`
	Error        string `json:"error,omitempty"`
}

const (
	statusPrefix  = controlPrefix + "status/"
	statusVersion = 1
	statusWay     = "delete the object; it is only shown, and the manager writes it again if it is needed"
	// maxStatus bounds a status, in bytes: it is written every minute.
	maxStatus = 64 << 10
)

type statusJSON struct {
	Version int `json:"version"`
	Status
}

// EncodeStatus encodes a status within its bound: of one that is too long the attentions, the longest part, are left out from the end.
func EncodeStatus(s Status) ([]byte, error) {
	for {
		data, err := encodeOwn(statusJSON{Version: statusVersion, Status: s})
		if err != nil || len(data) <= maxStatus {
			return data, err
		}
		if len(s.Attention) == 0 {
			return nil, invalidf("the status of node %s has %d bytes, more than %d", s.Node, len(data), maxStatus)
		}
		s.Attention = s.Attention[:len(s.Attention)-1]
	}
}

func decodeStatus(key, way string, data []byte) (Status, error) {
	var j statusJSON
	if err := decodeOwn(key, way, data, statusVersion, &j); err != nil {
		return Status{}, err
	}
	if j.Node == "" {
		return Status{}, corrupt(key, way, errors.New("it names no node"))
	}
	return j.Status, nil
}

// PutStatus stores the status of a node in its own object, replacing what was there.
func (c *Catalog) PutStatus(ctx context.Context, s Status) error {
	if err := validName("node", string(s.Node)); err != nil {
		return err
	}
	data, err := EncodeStatus(s)
	if err != nil {
		return err
	}
	_, err = c.write(ctx, statusKey(s.Node), data, blob.PutOptions{})
	return err
}

// Status reads the object of a node; ErrNotFound if it has none, as while a leader shows what it knows.
func (c *Catalog) Status(ctx context.Context, node cluster.NodeID) (Status, error) {
	if err := validName("node", string(node)); err != nil {
		return Status{}, err
	}
	key := statusKey(node)
	data, _, err := c.read(ctx, key, statusWay)
	if err != nil {
		return Status{}, err
	}
	s, err := decodeStatus(key, statusWay, data)
	if err == nil && s.Node != node {
		return Status{}, corrupt(key, statusWay, fmt.Errorf("it is of node %q", s.Node))
	}
	return s, err
}

// RemoveStatus deletes the object of a node. Removing one that is gone is a success.
func (c *Catalog) RemoveStatus(ctx context.Context, node cluster.NodeID) error {
	if err := validName("node", string(node)); err != nil {
		return err
	}
	return c.removeFile(ctx, statusKey(node))
}

// Statuses lists whose objects there are. No object is read.
func (c *Catalog) Statuses(ctx context.Context) ([]Object, error) {
	var list []Object
	for e, err := range c.store.List(ctx, statusPrefix, blob.ListOptions{}) {
		if err != nil {
			return nil, fmt.Errorf("list %s: %w", statusPrefix, err)
		}
		if node, ok := statusOf(e.Key); ok {
			list = append(list, Object{Name: node, Stamp: stamp(e.Info), Modified: e.Modified, Size: e.Size})
		}
	}
	return list, nil
}

// LeaderStatus reads the leader record with what the leader knows; nil if it shows nothing, as a leader of an older version. A status that
// can't be read comes as a problem beside the record.
func (c *Catalog) LeaderStatus(ctx context.Context) (r LeaderRecord, s *Status, problem, err error) {
	data, _, err := c.read(ctx, leaderKey, leaderWay)
	if err != nil {
		return LeaderRecord{}, nil, nil, err
	}
	if r, err = parseLeader(data); err != nil {
		return LeaderRecord{}, nil, nil, err
	}
	var j struct {
		Status json.RawMessage `json:"status"`
	}
	if err := json.Unmarshal(data, &j); err != nil || len(j.Status) == 0 || string(j.Status) == "null" {
		return r, nil, nil, nil //nolint:nilerr // parseLeader has read it
	}
	const way = "nothing needs it; the leader replaces it within a minute"
	status, problem := decodeStatus(leaderKey, way, j.Status)
	if problem != nil {
		return r, nil, problem, nil
	}
	return r, &status, nil, nil
}

func statusKey(node cluster.NodeID) string { return statusPrefix + string(node) + ".json" }

// statusOf is whose status a key is.
func statusOf(key string) (node string, ok bool) {
	file, below := strings.CutPrefix(key, statusPrefix)
	node, ok = strings.CutSuffix(file, ".json")
	return node, below && ok && validName("node", node) == nil
}
