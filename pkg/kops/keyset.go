package kops

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

const (
	caLife     = 10 * 365 * 24 * time.Hour
	caBackdate = 48 * time.Hour
	// caWarning is how long before its end a CA is spoken of.
	caWarning = 90 * 24 * time.Hour
)

// keyset is what kOps keeps of a certificate authority: all certificates that are trusted, and which of them signs.
type keyset struct {
	APIVersion string         `json:"apiVersion"`
	Kind       string         `json:"kind"`
	Metadata   map[string]any `json:"metadata"`
	Spec       keysetSpec     `json:"spec"`
}

type keysetSpec struct {
	Keys      []keysetItem `json:"keys"`
	PrimaryID string       `json:"primaryID,omitempty"`
	Type      string       `json:"type"`
}

type keysetItem struct {
	ID string `json:"id"`
	// DistrustTimestamp is set on what is no longer trusted.
	DistrustTimestamp string `json:"distrustTimestamp,omitempty"`
	PrivateMaterial   []byte `json:"privateMaterial,omitempty"`
	PublicMaterial    []byte `json:"publicMaterial"`
}

// keypairs are the names of the authorities of an etcd cluster. All clusters that API servers use share the one for clients.
func keypairs(cluster string) []string {
	clients := "etcd-clients-ca"
	if cluster == "cilium" {
		clients += "-cilium"
	}
	return []string{"etcd-manager-ca-" + cluster, "etcd-peers-ca-" + cluster, clients}
}

// keysetPath is where a keyset is below the key store; what is issued lacks the private keys.
func keysetPath(name string, private bool) string {
	if private {
		return "private/" + name + "/keyset.yaml"
	}
	return "issued/" + name + "/keyset.yaml"
}

// newKeyset makes an authority, as kOps does.
func newKeyset(name string, now time.Time) (*keyset, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 94))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: now.Add(-caBackdate), NotAfter: now.Add(caLife),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return nil, err
	}
	item := keysetItem{
		ID:              serial.String(),
		PublicMaterial:  pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		PrivateMaterial: pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(key)}),
	}
	return &keyset{
		APIVersion: "kops.k8s.io/v1alpha2", Kind: "Keyset", Metadata: map[string]any{"creationTimestamp": nil, "name": name},
		Spec: keysetSpec{Keys: []keysetItem{item}, PrimaryID: item.ID, Type: "Keypair"},
	}, nil
}

// public is the keyset without private keys.
func (k *keyset) public() *keyset {
	p := *k
	p.Spec.Keys = nil
	for _, item := range k.Spec.Keys {
		item.PrivateMaterial = nil
		p.Spec.Keys = append(p.Spec.Keys, item)
	}
	return &p
}

func (k *keyset) encode() ([]byte, error) { return yaml.Marshal(k) }

// parseKeyset reads a private keyset and returns the end of the certificate that signs.
func parseKeyset(data []byte) (*keyset, time.Time, error) {
	var k keyset
	if err := yaml.Unmarshal(data, &k); err != nil {
		return nil, time.Time{}, errors.New(cluster.Shown(err.Error(), maxText))
	}
	if k.Kind != "Keyset" || len(k.Spec.Keys) == 0 {
		return nil, time.Time{}, errors.New("it is not a keyset with a key")
	}
	for _, item := range k.Spec.Keys {
		if k.Spec.PrimaryID != "" && item.ID != k.Spec.PrimaryID {
			continue
		}
		pair, err := tls.X509KeyPair(item.PublicMaterial, item.PrivateMaterial)
		if err != nil {
			return nil, time.Time{}, fmt.Errorf("key %.60q: %w", item.ID, err)
		}
		if !pair.Leaf.IsCA {
			return nil, time.Time{}, fmt.Errorf("key %.60q: the certificate is not a CA's", item.ID)
		}
		return &k, pair.Leaf.NotAfter, nil
	}
	return nil, time.Time{}, fmt.Errorf("its primary key %.60q is not among its keys", k.Spec.PrimaryID)
}
