package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync"
	"syscall"

	"google.golang.org/protobuf/proto"
	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/atomicfile"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// readState reads the state file. No file is nil without an error; anything that can't be used is cluster.ErrCorrupt.
func readState(path string) (*cluster.EtcdState, error) {
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read state file: %w", err)
	}
	var p protosv1.EtcdState
	if err := proto.Unmarshal(data, &p); err != nil {
		return nil, fmt.Errorf("state file %s (%d bytes): %w: %v; restore the file, or move it away to have the node join anew", path, len(data), cluster.ErrCorrupt, err)
	}
	if err := wire.CheckNames(&p); err != nil {
		return nil, fmt.Errorf("state file %s (%d bytes): %w: %w; restore the file, or move it away to have the node join anew", path,
			len(data), cluster.ErrCorrupt, err)
	}
	s := wire.StateFromProto(&p)
	if s.Token == "" || len(s.Nodes) == 0 {
		return nil, fmt.Errorf("state file %s (%d bytes): %w: it names no cluster; restore the file, or move it away to have the node join anew", path, len(data), cluster.ErrCorrupt)
	}
	return s, nil
}

func writeState(path string, s *cluster.EtcdState) error {
	data, err := proto.Marshal(wire.StateToProto(s))
	if err != nil {
		return fmt.Errorf("encode state: %w", err)
	}
	if err := atomicfile.Write(path, data, 0o600); err != nil {
		return fmt.Errorf("write state file: %w", err)
	}
	return nil
}

// phase is how far an operation is on this node.
type phase string

const (
	phaseBegun    phase = "" // something of it may lie in the staging area
	phaseProven   phase = "proven"
	phaseStaged   phase = "staged"
	phaseStopped  phase = "stopped"
	phaseSwitched phase = "switched"
	// phaseHalting comes before phaseHalted: etcd is to be stopped, and whether clients have written isn't known yet. Nobody may take it for an answer.
	phaseHalting  phase = "halting"
	phaseHalted   phase = "halted"
	phaseReverted phase = "reverted"
)

// held tells whether etcd must not run in this phase, whatever happens to the manager.
func (p phase) held() bool { return p == phaseStopped || p == phaseHalting || p == phaseHalted }

// switched tells whether the staged data dir is the current one in this phase.
func (p phase) switched() bool { return p == phaseSwitched || p == phaseHalting || p == phaseHalted }

// journal is what the node has to remember beside the state file. It is replaced as a whole, atomically.
type journal struct {
	Version     int    `json:"version"`
	ClusterName string `json:"clusterName"`
	// Term and Leader are the highest leadership that was obeyed.
	Term   cluster.Term   `json:"term"`
	Leader cluster.NodeID `json:"leader"`
	// Operation is the restore that was begun here and not finished.
	Operation *journalOperation `json:"operation,omitempty"`
	// MayBeEmpty is the token under which etcd may be started on an absent data dir: a founder, or a member that joins and
	// has not been seen with data yet. A member that had data once must never start without.
	MayBeEmpty cluster.Token `json:"mayBeEmpty,omitempty"`
	// Begun is the token under which etcd was started for the first time on an absent data dir. From then on it never starts
	// on an absent one: others may count on what it has promised.
	Begun cluster.Token `json:"begun,omitempty"`
	// Settings are etcd's settings as the leader last gave them.
	Settings cluster.Settings `json:"settings,omitempty"`
	// Stopped is when the end of a manager last stopped etcd, nil if that is over and done with.
	Stopped *cluster.Stop `json:"stopped,omitempty"`
}

type journalOperation struct {
	ID    cluster.OperationID `json:"id"`
	Phase phase               `json:"phase"`
	Token cluster.Token       `json:"token,omitempty"`
	// Old is the state file from before Stop, as binary EtcdState; empty if there was none.
	Old []byte `json:"old,omitempty"`
	// Revision, Hash, Keys and SizeBytes are of the staged data; before that of the backup.
	Revision  int64  `json:"revision,omitempty"`
	Hash      uint32 `json:"hash,omitempty"`
	Keys      int64  `json:"keys,omitempty"`
	SizeBytes int64  `json:"sizeBytes,omitempty"`
	Backup    string `json:"backup,omitempty"`
	// UnknownLeases says of which leases of the backup, with its changes, nobody knows the TTL; empty if there are none.
	UnknownLeases string `json:"unknownLeases,omitempty"`
	// LeasesTold is whether that was looked at: an older manager didn't.
	LeasesTold bool `json:"leasesTold,omitempty"`
	// Written is true once a client's write was found in the log of the new data: there is no way back then.
	Written bool `json:"written,omitempty"`
	// Record is the leader's record of the operation, as it came with Stop.
	Record []byte `json:"record,omitempty"`
}

func (j *journalOperation) oldState() (*cluster.EtcdState, error) {
	if len(j.Old) == 0 {
		return nil, nil
	}
	var p protosv1.EtcdState
	if err := proto.Unmarshal(j.Old, &p); err != nil {
		return nil, fmt.Errorf("journal: the state from before operation %s: %w: %v", j.ID, cluster.ErrCorrupt, err)
	}
	if err := wire.CheckNames(&p); err != nil {
		return nil, fmt.Errorf("journal: the state from before operation %s: %w: %w", j.ID, cluster.ErrCorrupt, err)
	}
	return wire.StateFromProto(&p), nil
}

const journalVersion = 1

func readJournal(path, clusterName string) (journal, error) {
	j := journal{Version: journalVersion, ClusterName: clusterName}
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return j, nil
	}
	if err != nil {
		return j, fmt.Errorf("read journal: %w", err)
	}
	if err := json.Unmarshal(data, &j); err != nil {
		return j, fmt.Errorf("journal %s: %w: %v; if no restore is running it can be deleted", path, cluster.ErrCorrupt, err)
	}
	if j.Version > journalVersion {
		return j, fmt.Errorf("journal %s has version %d, this manager knows %d: %w; run the newer manager", path, j.Version, journalVersion, cluster.ErrFuture)
	}
	if j.ClusterName != clusterName {
		return j, fmt.Errorf("data dir belongs to cluster %.60q, not to %q: %w; check --cluster-name and --data-dir", j.ClusterName, clusterName, cluster.ErrOtherCluster)
	}
	if j.Term > cluster.MaxTerm {
		// The vote file still holds the highest term that this node has seen. To keep this one would refuse all leaders for good.
		klog.Errorf("journal %s: no history reaches term %d; it is forgotten", path, j.Term)
		j.Term, j.Leader = 0, ""
	}
	return j, nil
}

func (j journal) write(path string) error {
	data, err := json.MarshalIndent(j, "", "  ")
	if err != nil {
		return fmt.Errorf("encode journal: %w", err)
	}
	if err := atomicfile.Write(path, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write journal: %w", err)
	}
	return nil
}

// VoteFile keeps what this node has promised in elections. It is durable when Save returns. It may be used concurrently.
type VoteFile struct {
	mu   sync.Mutex
	path string
}

// Vote is the stored promise: the highest term, and who got this node's vote in it.
type Vote struct {
	Term cluster.Term   `json:"term"`
	For  cluster.NodeID `json:"for,omitempty"`
}

// Votes returns the vote file of a data dir.
func Votes(dataDir string) *VoteFile { return &VoteFile{path: layout(dataDir).vote()} }

// Load reads the last promise; the zero Vote if there never was one.
func (v *VoteFile) Load() (Vote, error) {
	v.mu.Lock()
	defer v.mu.Unlock()
	var vote Vote
	data, err := os.ReadFile(v.path)
	if errors.Is(err, fs.ErrNotExist) {
		return vote, nil
	}
	if err != nil {
		return vote, fmt.Errorf("read vote: %w", err)
	}
	err = json.Unmarshal(data, &vote)
	if err == nil && vote.Term > cluster.MaxTerm {
		err = fmt.Errorf("no history reaches term %d", vote.Term)
	}
	if err != nil {
		return vote, fmt.Errorf("vote file %s: %w: %v; stop the manager, wait ten seconds, delete the file and start again", v.path, cluster.ErrCorrupt, err)
	}
	return vote, nil
}

// Save replaces the promise.
func (v *VoteFile) Save(vote Vote) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	if err := os.MkdirAll(filepath.Dir(v.path), 0o700); err != nil {
		return fmt.Errorf("write vote: %w", err)
	}
	data, err := json.Marshal(vote)
	if err != nil {
		return fmt.Errorf("encode vote: %w", err)
	}
	if err := atomicfile.Write(v.path, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write vote: %w", err)
	}
	return nil
}

// lockDataDir makes sure that only one manager uses a data dir.
func lockDataDir(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR|syscall.O_CLOEXEC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("lock data dir: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return nil, fmt.Errorf("another manager uses this data dir (lock %s): %w; stop it first, or give this one a --data-dir of its own", path, err)
	}
	return f, nil
}

func diskFree(path string) int64 {
	_, free := diskSpace(path)
	return free
}
