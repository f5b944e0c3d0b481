package catalog

import (
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// HexID is an id of etcd's, written in hexadecimal as etcd's own tools print it.
type HexID uint64

// MarshalText writes the id as etcd does.
func (h HexID) MarshalText() ([]byte, error) { return strconv.AppendUint(nil, uint64(h), 16), nil }

// UnmarshalText reads what MarshalText writes.
func (h *HexID) UnmarshalText(b []byte) error {
	v, err := strconv.ParseUint(string(b), 16, 64)
	if err != nil {
		return fmt.Errorf("id %q is not hexadecimal", b)
	}
	*h = HexID(v)
	return nil
}

// Digest is a size in bytes and the SHA-256 over those bytes.
type Digest struct {
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// Manifest is what this project knows of a backup beyond what its meta file has room for.
type Manifest struct {
	// Backup is the name that the backup was written under: a manifest that was moved is found out.
	Backup string `json:"backup"`
	// ClusterName, ClusterID, MemberID and Node tell whose data it is.
	ClusterName string         `json:"clusterName"`
	ClusterID   HexID          `json:"clusterId"`
	MemberID    HexID          `json:"memberId"`
	Node        cluster.NodeID `json:"node,omitempty"`
	EtcdVersion string         `json:"etcdVersion"`
	// Revision is one that the snapshot surely contains: what the member had when it was asked for the snapshot. What
	// was written while it began can be in it too.
	Revision int64 `json:"revision"`
	// Keys is the number of live keys at Revision; 0 if it wasn't counted.
	Keys int64 `json:"keys,omitempty"`
	// Raw is the snapshot with its trailing checksum, Stored is the file in the store.
	Raw    Digest `json:"raw"`
	Stored Digest `json:"stored"`
	// Compression is "gzip". Encryption is nil for a backup that isn't encrypted.
	Compression string      `json:"compression"`
	Encryption  *Encryption `json:"encryption,omitempty"`
	// Reason says why it was taken ("periodic", "before-restore", ...).
	Reason string `json:"reason"`
	// Started and Finished are by the clock of the node that wrote it.
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished"`
	// ToolVersion is the version of this software.
	ToolVersion string `json:"toolVersion"`
}

// Duration is how long the backup took to write.
func (m *Manifest) Duration() time.Duration { return m.Finished.Sub(m.Started) }

// Encryption says how a backup is encrypted and which keys open it.
type Encryption struct {
	Scheme string   `json:"scheme"`
	KeyIDs []string `json:"keyIds"`
}

const (
	manifestVersion = 1
	manifestWay     = "restore another backup: etcd-manager-ctl list-backups"
)

type manifestJSON struct {
	Version int `json:"version"`
	Manifest
}

// Manifest reads the manifest of a backup; ErrNotFound if it has none, as backups of other tools.
func (c *Catalog) Manifest(ctx context.Context, name string) (*Manifest, error) {
	if err := ValidBackupName(name); err != nil {
		return nil, err
	}
	key := name + "/" + manifestFile
	data, _, err := c.read(ctx, key, manifestWay)
	if err != nil {
		return nil, err
	}
	var j manifestJSON
	if err := decodeOwn(key, manifestWay, data, manifestVersion, &j); err != nil {
		return nil, err
	}
	if err := j.Manifest.check(name); err != nil {
		return nil, corrupt(key, manifestWay, err)
	}
	return &j.Manifest, nil
}

func (m *Manifest) check(name string) error {
	if m.Backup != name {
		return fmt.Errorf("it is the manifest of backup %q", m.Backup)
	}
	for _, d := range []Digest{m.Raw, m.Stored} {
		if sum, err := hex.DecodeString(d.SHA256); err != nil || len(sum) != 32 || d.Size <= 0 {
			return errors.New("it lacks sizes or checksums")
		}
	}
	return nil
}

// PutManifest writes the manifest of a backup, which comes before CommitBackup. It fails with ErrConflict if there is one.
func (c *Catalog) PutManifest(ctx context.Context, m *Manifest) error {
	if err := ValidBackupName(m.Backup); err != nil {
		return err
	}
	if err := m.check(m.Backup); err != nil {
		return fmt.Errorf("write manifest of %s: %w: %w", m.Backup, err, ErrInvalid)
	}
	data, err := encodeOwn(manifestJSON{Version: manifestVersion, Manifest: *m})
	if err != nil {
		return err
	}
	_, err = c.write(ctx, m.Backup+"/"+manifestFile, data, blob.PutOptions{IfAbsent: true})
	return err
}
