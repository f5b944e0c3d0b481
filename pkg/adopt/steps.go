package adopt

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/etcd-manager/etcd-manager/pkg/atomicfile"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/datadir"
	"github.com/etcd-manager/etcd-manager/pkg/pki"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
)

// ErrRuns: the other software's etcd still runs, so its data dir isn't touched yet.
var ErrRuns = errors.New("the etcd that is adopted still runs")

const recordVersion = 1

func recordPath(dataDir string) string { return filepath.Join(dataDir, "etcd-manager", "adopt.json") }

// Load reads the plan that was begun in a data dir; nil if none was.
func Load(dataDir string) (*Plan, error) {
	path := recordPath(dataDir)
	data, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read the record of the adoption: %w", err)
	}
	var p Plan
	if err := json.Unmarshal(data, &p); err != nil {
		return nil, fmt.Errorf("%s: %w: %w; if the old etcd runs, delete the file and start again", path, err, cluster.ErrCorrupt)
	}
	if p.Version > recordVersion {
		return nil, fmt.Errorf("%s has version %d: %w", path, p.Version, cluster.ErrFuture)
	}
	return &p, nil
}

// Check fails if an adoption was begun in the data dir and isn't at its end: the manager would take
// the member for one that has lost its data. store is the URL of the backup store.
func Check(dataDir, store string) error {
	p, err := Load(dataDir)
	if err != nil || p == nil || p.Done {
		return err
	}
	return fmt.Errorf("the adoption of the etcd in %s was begun and isn't finished; continue it: etcd-manager adopt --data-dir=%s --backup-store=%s --yes", p.OldDataDir, dataDir, store)
}

func (p *Plan) save() error {
	data, err := json.MarshalIndent(p, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the record of the adoption: %w", err)
	}
	path := recordPath(p.DataDir)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return fmt.Errorf("record the adoption: %w", err)
	}
	if err := atomicfile.Write(path, data, 0o600); err != nil {
		return fmt.Errorf("record the adoption: %w", err)
	}
	return nil
}

// Prepare does what doesn't concern the running etcd: record, authorities, node id, and what the store is to say. It may be repeated.
func (p *Plan) Prepare(ctx context.Context, c *catalog.Catalog) error {
	state := filepath.Join(p.DataDir, "state")
	if _, err := os.Stat(state); err == nil && !p.ours(state) {
		return fmt.Errorf("%s exists: the data dir belongs to a cluster already; choose another --data-dir: %w", state, ErrRefused)
	}
	marker, _, err := c.Marker(ctx)
	known := err == nil
	switch {
	case err != nil && !errors.Is(err, catalog.ErrNotFound):
		return fmt.Errorf("read the store: %w", err)
	case known && marker.Token != p.State.Token:
		return fmt.Errorf("the store belongs to another cluster (token %q in control/etcd-cluster-created); choose another --backup-store: %w", marker.Token, ErrRefused)
	}
	if err := p.copyAuthorities(known); err != nil {
		return err
	}
	if err := p.save(); err != nil {
		return err
	}
	if err := p.writeID(); err != nil {
		return err
	}
	if _, err := c.CreateSpec(ctx, p.Spec()); err != nil && !errors.Is(err, catalog.ErrConflict) {
		return fmt.Errorf("write the spec: %w", err)
	}
	if known {
		return nil
	}
	if _, err := c.CreateMarker(ctx, p.Marker()); err != nil && !errors.Is(err, catalog.ErrConflict) {
		return fmt.Errorf("write the marker: %w", err)
	}
	return nil
}

// ours tells whether a state file is the one that this plan writes.
func (p *Plan) ours(path string) bool {
	have, err := os.ReadFile(path)
	want, encodeErr := proto.Marshal(wire.StateToProto(&p.State))
	return err == nil && encodeErr == nil && bytes.Equal(have, want)
}

func (p *Plan) writeID() error {
	path := filepath.Join(p.DataDir, "myid")
	have, err := os.ReadFile(path)
	switch {
	case err == nil && string(bytes.TrimSpace(have)) == p.Node:
		return nil
	case err == nil:
		return fmt.Errorf("%s says %q, but the member is %s; choose another --data-dir: %w", path, have, p.Node, ErrRefused)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("read the node id: %w", err)
	}
	if err := atomicfile.Write(path, []byte(p.Node), 0o644); err != nil {
		return fmt.Errorf("write the node id: %w", err)
	}
	return nil
}

// copyAuthorities fills the PKI directory. The managers' own CA is made on the node that is adopted
// first, and must be the same on the others.
func (p *Plan) copyAuthorities(known bool) error {
	manager := filepath.Join(p.PKIDir, pki.ManagerCA)
	if _, err := os.Stat(manager + ".key"); errors.Is(err, fs.ErrNotExist) && known && !p.begun() {
		return fmt.Errorf("another node of this cluster was adopted before; copy %s.crt and .key from its PKI directory to this node's %s, and run this again: %w", pki.ManagerCA, p.PKIDir, ErrRefused)
	}
	if err := os.MkdirAll(p.PKIDir, 0o700); err != nil {
		return fmt.Errorf("make the PKI directory: %w", err)
	}
	for _, a := range p.Authorities {
		// The key goes first: a key without a certificate is what a crash leaves, the reverse is an error for everybody.
		if err := copyOnce(a.Key, filepath.Join(p.PKIDir, a.Name+".key"), 0o600); err != nil {
			return err
		}
		if err := copyOnce(a.Cert, filepath.Join(p.PKIDir, a.Name+".crt"), 0o644); err != nil {
			return err
		}
	}
	return pki.CreateCAs(p.PKIDir, time.Now())
}

// begun tells whether this node's adoption was recorded before.
func (p *Plan) begun() bool {
	_, err := os.Stat(recordPath(p.DataDir))
	return err == nil
}

func copyOnce(from, to string, mode fs.FileMode) error {
	data, err := os.ReadFile(from)
	if err != nil {
		return fmt.Errorf("copy the CA: %w", err)
	}
	have, err := os.ReadFile(to)
	switch {
	case err == nil && bytes.Equal(have, data):
		return nil
	case err == nil:
		return fmt.Errorf("%s exists and is not %s; a CA is never overwritten; choose another --pki-dir: %w", to, from, ErrRefused)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("copy the CA: %w", err)
	}
	if err := atomicfile.Write(to, data, mode); err != nil {
		return fmt.Errorf("copy the CA: %w", err)
	}
	return nil
}

// unitState is the state of a unit that systemd starts again by itself, as it does a few seconds
// after a crash; empty if it doesn't, or if there is no systemd to ask.
func unitState(unit string) string {
	if unit == "" {
		return ""
	}
	out, _ := exec.Command("systemctl", "is-active", unit).Output() // it fails for all that aren't active
	switch state := strings.TrimSpace(string(out)); state {
	case "active", "activating", "reloading", "deactivating":
		return state
	}
	return ""
}

// Move gives the data to the manager once the old etcd has ended: the data dir is renamed, then the state file is written. It may be
// repeated; ErrRuns means that it has done nothing yet.
func (p *Plan) Move() error {
	to := p.NewDataDir()
	_, err := os.Stat(filepath.Join(to, "member"))
	moved := err == nil
	if !moved {
		if p.Manifest != "" {
			if _, err := os.Lstat(p.Manifest); !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("%w, or the kubelet starts it again: %s is still there", ErrRuns, p.Manifest)
			}
		}
		pid, held, err := etcd.DataDirHolder(p.OldDataDir)
		switch {
		case err != nil:
			return err
		case held:
			return fmt.Errorf("%w (pid %d) on %s", ErrRuns, pid, p.OldDataDir)
		}
		if state := unitState(p.Unit); state != "" {
			return fmt.Errorf("%w, or systemd starts it again: unit %s is %s", ErrRuns, p.Unit, state)
		}
		if info, err := datadir.Inspect(p.OldDataDir); err != nil || fmt.Sprintf("%016x", info.ClusterID) != p.ClusterID {
			return fmt.Errorf("%s isn't a data dir of cluster %s any more (%s, cluster %x): %w", p.OldDataDir,
				p.ClusterID, info.Reason, info.ClusterID, errors.Join(err, ErrRefused))
		}
		if err := os.MkdirAll(filepath.Dir(to), 0o700); err != nil {
			return fmt.Errorf("move the data dir: %w", err)
		}
		if err := os.Rename(p.OldDataDir, to); err != nil {
			return fmt.Errorf("move the data dir: %w", err)
		}
	}
	for _, dir := range []string{filepath.Dir(p.OldDataDir), filepath.Dir(to)} {
		if err := atomicfile.SyncDir(dir); err != nil {
			return fmt.Errorf("move the data dir: %w", err)
		}
	}
	data, err := proto.Marshal(wire.StateToProto(&p.State))
	if err != nil {
		return fmt.Errorf("encode the state: %w", err)
	}
	if err := atomicfile.Write(filepath.Join(p.DataDir, "state"), data, 0o600); err != nil {
		return fmt.Errorf("write the state file: %w", err)
	}
	p.Done = true
	return p.save()
}
