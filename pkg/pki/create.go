package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/atomicfile"
)

// The base names of the three authorities in the PKI directory; each is a .crt and a .key file.
const (
	ManagerCA = "etcd-manager-ca"
	PeersCA   = "etcd-peers-ca"
	ClientsCA = "etcd-clients-ca"
)

const (
	createdCALife     = 10 * 365 * 24 * time.Hour
	createdCABackdate = 24 * time.Hour
)

// CreateCAs makes the three authorities in dir, for experiments and demos. What is there is never
// overwritten: a pair that exists is left as it is (and not looked into), a key without a certificate (a
// crash in between) gets one, a certificate without its key is an error. Processes that start on the same
// directory at once take turns. The keys are ECDSA P-256.
func CreateCAs(dir string, now time.Time) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("create CAs: %w", err)
	}
	lock, err := os.Open(dir)
	if err != nil {
		return fmt.Errorf("create CAs: %w", err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return fmt.Errorf("create CAs: lock %s: %w", dir, err)
	}
	for _, name := range []string{ManagerCA, PeersCA, ClientsCA} {
		if err := createCA(filepath.Join(dir, name), name, now); err != nil {
			return fmt.Errorf("create CA %s: %w", name, err)
		}
	}
	return nil
}

func createCA(base, name string, now time.Time) error {
	certPath, keyPath := base+".crt", base+".key"
	haveCert, err := exists(certPath)
	if err != nil {
		return err
	}
	haveKey, err := exists(keyPath)
	if err != nil {
		return err
	}
	var key crypto.Signer
	switch {
	case haveCert && haveKey:
		return nil
	case haveCert:
		return fmt.Errorf("%w: %s exists without %s; restore the key, or move the certificate away to have a new CA made",
			ErrAuthority, certPath, keyPath)
	case haveKey:
		data, err := os.ReadFile(keyPath)
		if err != nil {
			return err
		}
		if key, err = parseKey(keyPath, data); err != nil {
			return err
		}
	default:
		if key, err = writeNewKey(keyPath); err != nil {
			return err
		}
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: name},
		NotBefore:             now.Add(-createdCABackdate),
		NotAfter:              now.Add(createdCALife),
		IsCA:                  true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageCertSign | x509.KeyUsageCRLSign | x509.KeyUsageDigitalSignature,
	}
	if template.SerialNumber, err = serial(); err != nil {
		return err
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return err
	}
	return atomicfile.Write(certPath, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
}

func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// writeNewKey makes an ECDSA P-256 key and stores it as PKCS#8 in PEM, readable by its owner only.
func writeNewKey(path string) (crypto.Signer, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	return key, atomicfile.Write(path, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), 0o600)
}

func serial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}
