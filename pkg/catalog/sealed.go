package catalog

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/envelope"
)

// clearJSON is what a sealed manifest says to everybody: enough to list and to choose a backup, and to know which key it needs.
type clearJSON struct {
	Version     int         `json:"version"`
	Backup      string      `json:"backup"`
	ClusterName string      `json:"clusterName"`
	ClusterID   HexID       `json:"clusterId"`
	MemberID    HexID       `json:"memberId"`
	EtcdVersion string      `json:"etcdVersion"`
	Revision    int64       `json:"revision"`
	Stored      Digest      `json:"stored"`
	Compression string      `json:"compression"`
	Encryption  *Encryption `json:"encryption"`
	Started     time.Time   `json:"started"`
	Finished    time.Time   `json:"finished"`
	ToolVersion string      `json:"toolVersion"`
	// Sealed is the envelope of a secretJSON.
	Sealed []byte `json:"sealed,omitempty"`
}

// secretJSON is what only who has the key gets to know.
type secretJSON struct {
	Raw    Digest         `json:"raw"`
	Reason string         `json:"reason"`
	Keys   int64          `json:"keys,omitempty"`
	Node   cluster.NodeID `json:"node,omitempty"`
	// Clear is clearDigest of what stands beside it.
	Clear string `json:"clear"`
}

// clearDigest is the SHA-256 over what stands in the clear, however it is spaced and in whatever order.
func clearDigest(data []byte) (string, error) {
	var m map[string]json.RawMessage
	if err := json.Unmarshal(data, &m); err != nil {
		return "", err
	}
	delete(m, "sealed")
	plain, err := json.Marshal(m)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(plain)
	return hex.EncodeToString(sum[:]), nil
}

// sealManifest encodes the manifest of a backup that is sealed.
func (c *Catalog) sealManifest(ctx context.Context, m *Manifest) ([]byte, error) {
	if c.sealer == nil {
		return nil, fmt.Errorf("write manifest of %s: the backup is encrypted, and there is no key to encrypt its manifest with: %w",
			m.Backup, ErrInvalid)
	}
	j := clearJSON{
		Version: sealedVersion, Backup: m.Backup, ClusterName: m.ClusterName, ClusterID: m.ClusterID,
		MemberID: m.MemberID, EtcdVersion: m.EtcdVersion,
		Revision: m.Revision, Stored: m.Stored, Compression: m.Compression, Encryption: m.Encryption,
		Started: m.Started, Finished: m.Finished, ToolVersion: m.ToolVersion,
	}
	data, err := encodeOwn(j)
	if err != nil {
		return nil, err
	}
	digest, err := clearDigest(data)
	if err != nil {
		return nil, err
	}
	secret, err := json.Marshal(secretJSON{Raw: m.Raw, Reason: m.Reason, Keys: m.Keys, Node: m.Node, Clear: digest})
	if err != nil {
		return nil, fmt.Errorf("encode manifest: %w", err)
	}
	if j.Sealed, err = envelope.SealBytes(ctx, c.sealer, secret, m.bind(manifestFile)); err != nil {
		return nil, fmt.Errorf("write manifest: %w", err)
	}
	return encodeOwn(j)
}

// sealedManifest decodes the manifest of a backup that is sealed.
func (c *Catalog) sealedManifest(ctx context.Context, name string, data []byte) (*Manifest, error) {
	key := name + "/" + manifestFile
	var j clearJSON
	if err := decodeOwn(key, manifestWay, data, sealedVersion, &j); err != nil {
		return nil, err
	}
	m := &Manifest{
		Backup: j.Backup, ClusterName: j.ClusterName, ClusterID: j.ClusterID, MemberID: j.MemberID,
		EtcdVersion: j.EtcdVersion, Revision: j.Revision,
		Stored: j.Stored, Compression: j.Compression, Encryption: j.Encryption, Started: j.Started,
		Finished: j.Finished, ToolVersion: j.ToolVersion,
	}
	err := m.check(name, false)
	if err == nil && (m.Encryption == nil || len(j.Sealed) == 0) {
		err = errors.New("its version says that it is sealed, and nothing of it is")
	}
	if err != nil {
		return nil, corrupt(key, manifestWay, err)
	}
	if m.Encryption.Scheme != envelope.Scheme {
		m.Locked = &ObjectError{Object: key, Kind: cluster.ErrFuture,
			Err: fmt.Errorf("encryption %q is not known", m.Encryption.Scheme), Way: futureWay}
		return m, nil
	}
	secret, err := c.secret(ctx, m, j.Sealed)
	switch {
	case errors.Is(err, envelope.ErrTampered):
		return nil, corrupt(key, manifestWay, err)
	case ctx.Err() != nil:
		return nil, err
	case err != nil:
		m.Locked = err
		return m, nil
	}
	digest, err := clearDigest(data)
	if err == nil && digest != secret.Clear {
		err = fmt.Errorf("it was edited: its unencrypted part is not the one that was encrypted with it: %w", envelope.ErrTampered)
	}
	m.Raw, m.Reason, m.Keys, m.Node = secret.Raw, secret.Reason, secret.Keys, secret.Node
	if err == nil {
		err = m.check(name, true)
	}
	if err != nil {
		return nil, corrupt(key, manifestWay, err)
	}
	return m, nil
}

// secret opens what is sealed of a manifest.
func (c *Catalog) secret(ctx context.Context, m *Manifest, sealed []byte) (secretJSON, error) {
	var s secretJSON
	if c.opener == nil {
		return s, &envelope.Error{Op: "open", Binding: m.bind(manifestFile), Kind: envelope.ErrNoKey, KeyIDs: m.Encryption.KeyIDs}
	}
	plain, err := envelope.OpenBytes(ctx, c.opener, sealed, m.bind(manifestFile))
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(plain, &s); err != nil {
		return s, fmt.Errorf("what is sealed of it: %w: %w", envelope.ErrTampered, err)
	}
	return s, nil
}
