package catalog

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
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
	// RevisionAtMost is what the member had when the snapshot had begun: the snapshot's own
	// revision lies between the two. 0 if it wasn't asked.
	RevisionAtMost int64 `json:"revisionAtMost,omitempty"`
	// RevisionAt is when Revision was the member's, by the clock of who asked; the zero time if it wasn't noted.
	RevisionAt time.Time `json:"revisionAt,omitzero"`
	// Keys is the number of live keys at Revision; 0 if it wasn't counted.
	Keys int64 `json:"keys,omitempty"`
	// Raw is the snapshot with its trailing checksum, Stored is the file in the store.
	Raw    Digest `json:"raw"`
	Stored Digest `json:"stored"`
	// Compression is CompressionGzip or CompressionZstd. Encryption is nil for a backup that isn't encrypted.
	Compression string      `json:"compression"`
	Encryption  *Encryption `json:"encryption,omitempty"`
	// Reason says why it was taken ("periodic", "before-restore", ...).
	Reason string `json:"reason"`
	// Started and Finished are by the clock of the node that wrote it.
	Started  time.Time `json:"started"`
	Finished time.Time `json:"finished"`
	// ToolVersion is the version of this software.
	ToolVersion string `json:"toolVersion"`
	// Locked says why what is sealed of the manifest could not be read: no key was given, or it is refused. Then Raw, Reason, Keys and
	// Node are empty, and what else stands here may have been edited without a trace. It is not stored.
	Locked error `json:"-"`
}

// DataFile is the name of the file with the snapshot.
func (m *Manifest) DataFile() string { return DataFileOf(m.Compression, m.Encryption != nil) }

// Binding is what the data of the backup is sealed with: it can't pass for that of another one.
func (m *Manifest) Binding() string { return m.bind(m.DataFile()) }

func (m *Manifest) bind(file string) string {
	return strings.Join([]string{m.ClusterName, m.Backup, file}, "/")
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
	// sealedVersion is the version of the manifest of a backup that is sealed.
	sealedVersion = 2
	manifestWay   = "restore another backup: etcd-manager-ctl list-backups"
)

type manifestJSON struct {
	Version int `json:"version"`
	Manifest
}

// Manifest reads the manifest of a backup; ErrNotFound if it has none, as backups of other tools.
// If it is sealed and there is no key that opens it, what stands in the clear is returned, with
// Locked; if it was tampered with it is corrupt.
func (c *Catalog) Manifest(ctx context.Context, name string) (*Manifest, error) {
	if err := ValidBackupName(name); err != nil {
		return nil, err
	}
	key := name + "/" + manifestFile
	data, _, err := c.read(ctx, key, manifestWay)
	if err != nil {
		return nil, err
	}
	var v struct {
		Version int `json:"version"`
	}
	if json.Unmarshal(data, &v) == nil && v.Version == sealedVersion {
		return c.sealedManifest(ctx, name, data)
	}
	var j manifestJSON
	if err := decodeOwn(key, manifestWay, data, sealedVersion, &j); err != nil {
		return nil, err
	}
	// A sealed backup never has a manifest of version 1, so nobody can strip it of its seal without anybody noticing.
	if err = j.Manifest.check(name, true); err == nil && j.Encryption != nil {
		err = errors.New("it says that the backup is encrypted, and isn't sealed itself")
	}
	if err != nil {
		return nil, corrupt(key, manifestWay, err)
	}
	return &j.Manifest, nil
}

// check looks for what every manifest must say; open tells whether what can be sealed is known.
func (m *Manifest) check(name string, open bool) error {
	if m.Backup != name {
		return fmt.Errorf("it is the manifest of backup %q", m.Backup)
	}
	digests := []Digest{m.Stored}
	if open {
		digests = append(digests, m.Raw)
	}
	for _, d := range digests {
		if sum, err := hex.DecodeString(d.SHA256); err != nil || len(sum) != 32 || d.Size <= 0 {
			return errors.New("it lacks sizes or checksums")
		}
	}
	return nil
}

// PutManifest writes the manifest of a backup, which comes before CommitBackup; that of a sealed
// backup is sealed. It fails with ErrConflict if there is one.
func (c *Catalog) PutManifest(ctx context.Context, m *Manifest) error {
	if err := ValidBackupName(m.Backup); err != nil {
		return err
	}
	if err := m.check(m.Backup, true); err != nil {
		return fmt.Errorf("write manifest of %s: %w: %w", m.Backup, err, ErrInvalid)
	}
	var (
		data []byte
		err  error
	)
	if m.Encryption != nil {
		data, err = c.sealManifest(ctx, m)
	} else {
		data, err = encodeOwn(manifestJSON{Version: manifestVersion, Manifest: *m})
	}
	if err != nil {
		return err
	}
	_, err = c.write(ctx, m.Backup+"/"+manifestFile, data, blob.PutOptions{IfAbsent: true})
	return err
}
