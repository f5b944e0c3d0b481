package volume

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/etcd-manager/etcd-manager/pkg/atomicfile"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// identityVersion is the version of the file's format.
const identityVersion = 1

// Identity says whose a volume is. It lies on the volume itself (docs/format.md), since tags and mount points can be mixed up.
type Identity struct {
	Version     int            `json:"version"`
	ClusterName string         `json:"clusterName"`
	Node        cluster.NodeID `json:"node"`
	// Store tells clusters of one name apart.
	Store string `json:"store"`
	// Volume is the provider's id, if there is a provider. A copy of a volume is told from the volume by it.
	Volume  ID        `json:"volume,omitempty"`
	Created time.Time `json:"created"`
}

// IdentityPath is where the identity lies below the data dir.
func IdentityPath(dataDir string) string {
	return filepath.Join(dataDir, "etcd-manager", "volume.json")
}

// ReadIdentity returns nil if the volume has none.
func ReadIdentity(dataDir string) (*Identity, error) {
	path := IdentityPath(dataDir)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read identity of the volume: %w", err)
	}
	var id Identity
	if err := json.Unmarshal(data, &id); err != nil {
		return nil, fmt.Errorf("read identity of the volume: %s: %w: %w", path, err, cluster.ErrCorrupt)
	}
	if id.Version > identityVersion {
		return nil, fmt.Errorf("read identity of the volume: %s : %w", path, cluster.ErrFuture)
	}
	if id.Version < 1 || id.ClusterName == "" || id.Node == "" {
		return nil, fmt.Errorf("read identity of the volume: %s names no cluster or no node: %w", path, cluster.ErrCorrupt)
	}
	if err := id.check(); err != nil {
		return nil, fmt.Errorf("read identity of the volume: %s: %w: %w", path, err, cluster.ErrCorrupt)
	}
	return &id, nil
}

// maxField bounds each text of an identity, in bytes: they stand in messages.
const maxField = 1 << 10

func (want *Identity) check() error {
	for what, s := range map[string]string{
		"cluster": want.ClusterName, "node": string(want.Node), "store": want.Store, "volume": string(want.Volume),
	} {
		if len(s) > maxField || s != cluster.Shown(s, maxField) {
			return fmt.Errorf("the name of its %s is too long, or has characters that can't be printed", what)
		}
	}
	return nil
}

// Claim makes sure that the volume mounted at dataDir is want's, and writes that down if it doesn't
// stand there yet. Only a volume that holds nothing of etcd, or the state file of this very node,
// is claimed. An error that wraps ErrForeign means that it is somebody else's.
func Claim(dataDir string, want Identity) error {
	have, err := ReadIdentity(dataDir)
	if err != nil {
		return err
	}
	if have != nil {
		return want.compare(have, dataDir)
	}
	if err := stateIsOf(dataDir, want.Node); err != nil {
		return err
	}
	want.Version = identityVersion
	data, err := json.MarshalIndent(want, "", "  ")
	if err != nil {
		return fmt.Errorf("write identity of the volume: %w", err)
	}
	path := IdentityPath(dataDir)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("write identity of the volume: %w", err)
	}
	if err := atomicfile.Write(path, append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write identity of the volume: %w", err)
	}
	return nil
}

func (want *Identity) compare(have *Identity, dataDir string) error {
	path := IdentityPath(dataDir)
	switch {
	case have.ClusterName != want.ClusterName:
		return fmt.Errorf("the volume at %s holds data of cluster %q, not of %q (%s): etcd is not started on it: %w",
			dataDir, have.ClusterName, want.ClusterName, path, ErrForeign)
	case have.Node != want.Node:
		return fmt.Errorf("the volume at %s holds data of node %s, but this is %s (%s): etcd is not started on it: %w",
			dataDir, have.Node, want.Node, path, ErrForeign)
	case !sameStore(have.Store, want.Store):
		return fmt.Errorf("the volume at %s holds data of a cluster whose backup store is %s, but --backup-store is %s: etcd is not started on it; if the store of this cluster has moved, delete %s: %w",
			dataDir, have.Store, want.Store, path, ErrForeign)
	case have.Volume != "" && want.Volume != "" && have.Volume != want.Volume:
		return fmt.Errorf("the data at %s were written on volume %s and lie on %s: a copy, as from a snapshot, may lack what its member has acknowledged and voted, so etcd is not started on it; attach a blank volume instead, which the other members fill, or, if all members were copied at once, delete %s on each: %w",
			dataDir, have.Volume, want.Volume, path, ErrForeign)
	}
	return nil
}

func sameStore(a, b string) bool {
	normal := func(s string) string { return strings.TrimRight(strings.TrimPrefix(s, "file://"), "/") }
	return normal(a) == normal(b)
}

// stateIsOf checks the state file of a volume that has no identity yet, because another etcd-manager has used it, or none.
func stateIsOf(dataDir string, node cluster.NodeID) error {
	path := filepath.Join(dataDir, "state")
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read state file of the volume: %w", err)
	}
	var s protosv1.EtcdState
	if err := proto.Unmarshal(data, &s); err != nil {
		return fmt.Errorf("the volume at %s has a state file that can't be read, so its owner isn't known: %w: %w",
			dataDir, err, ErrForeign)
	}
	var names []string
	for _, n := range s.GetCluster().GetNodes() {
		if n.GetName() == string(node) {
			return nil
		}
		names = append(names, n.GetName())
	}
	return fmt.Errorf("the volume at %s holds data of an etcd cluster of %s, which don't include this node %s (%s): etcd is not started on it: %w",
		dataDir, cluster.Shown(strings.Join(names, ", "), maxField), node, path, ErrForeign)
}
