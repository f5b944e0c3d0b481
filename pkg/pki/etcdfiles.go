package pki

import (
	"bytes"
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/atomicfile"
)

// EtcdFiles are the paths of the files that etcd is started with.
type EtcdFiles struct {
	// PeerCA, PeerCert and PeerKey are for peers: --peer-trusted-ca-file, --peer-cert-file, --peer-key-file.
	PeerCA, PeerCert, PeerKey string
	// ClientCA, ServerCert and ServerKey are for clients: --trusted-ca-file, --cert-file, --key-file.
	ClientCA, ServerCert, ServerKey string
}

// EtcdFilesIn names the files below dir, which is <data-dir>/pki/<cluster token>.
func EtcdFilesIn(dir string) EtcdFiles {
	return EtcdFiles{
		PeerCA:     filepath.Join(dir, "peers", "ca.crt"),
		PeerCert:   filepath.Join(dir, "peers", "me.crt"),
		PeerKey:    filepath.Join(dir, "peers", "me.key"),
		ClientCA:   filepath.Join(dir, "clients", "ca.crt"),
		ServerCert: filepath.Join(dir, "clients", "server.crt"),
		ServerKey:  filepath.Join(dir, "clients", "server.key"),
	}
}

// pair is one certificate that lies in files: what it is for and where.
type pair struct {
	ca                  *Authority
	subject             subject
	caPath, cert, keyAt string
}

// ensure brings the three files to what they have to be and returns the certificate that lies there.
// why is "" if nothing had to be issued.
//
// The order makes every handshake work that reads the files in between: the bundle of trusted CAs comes
// before a certificate of a new CA, and the key is made once, before the first certificate, and kept when
// the certificate is replaced, so the two never disagree. Only a key that can't be read is made anew.
func (p pair) ensure(policy Policy, now time.Time) (c *x509.Certificate, why string, err error) {
	if err := os.MkdirAll(filepath.Dir(p.cert), 0o700); err != nil {
		return nil, "", fmt.Errorf("write certificates: %w", err)
	}
	if have, err := os.ReadFile(p.caPath); err != nil || !bytes.Equal(have, p.ca.bundle) {
		if err := atomicfile.Write(p.caPath, p.ca.bundle, 0o644); err != nil {
			return nil, "", err
		}
	}
	key, err := p.key()
	if err != nil {
		return nil, "", err
	}
	c = readCertificate(p.cert)
	why = policy.reissue(c, p.ca, p.subject, key.Public(), now)
	if why == "" {
		return c, "", nil
	}
	if c, err = policy.issue(p.ca, p.subject, key.Public(), now); err != nil {
		return nil, "", err
	}
	if err := atomicfile.Write(p.cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}), 0o644); err != nil {
		return nil, "", err
	}
	return c, why, nil
}

func (p pair) key() (crypto.Signer, error) {
	data, err := os.ReadFile(p.keyAt)
	if err == nil {
		if key, err := parseKey(p.keyAt, data); err == nil {
			return key, nil
		}
		return writeNewKey(p.keyAt)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("read key: %w", err)
	}
	return writeNewKey(p.keyAt)
}

// readCertificate returns nil for anything but a readable certificate: then a new one is issued.
func readCertificate(path string) *x509.Certificate {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	certs, err := parseCertificates(path, data)
	if err != nil {
		return nil
	}
	return certs[0]
}
