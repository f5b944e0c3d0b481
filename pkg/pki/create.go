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

// How a CA came to be where it is.
const (
	// CAMade says that key and certificate were made, CACompleted that a key had no certificate yet and got one,
	// CAKept that both were there.
	CAMade      = "made"
	CACompleted = "completed"
	CAKept      = "kept"
)

// Made is what Init did for one CA.
type Made struct {
	// Name is the base name, Cert and Key are the paths.
	Name string `json:"name"`
	Cert string `json:"certificate"`
	Key  string `json:"key"`
	// State is CAMade, CACompleted or CAKept.
	State string `json:"state"`
}

// CreateCAs makes the three authorities in dir, valid for ten years, as Init does.
func CreateCAs(dir string, now time.Time) error {
	_, err := Init(dir, createdCALife, now)
	return err
}

// Init makes the authorities that are missing in dir, and says what it did for each. They are valid for life, and start a day in the
// past. The keys are ECDSA P-256, readable by their owner only.
//
// What is there is never overwritten: a pair that exists is left as it is (and not looked into), a key without a certificate (a crash in
// between) gets one. A certificate without its key, or a key that can't be read, is an error, and then nothing is made. Processes that
// start on the same directory at once take turns.
func Init(dir string, life time.Duration, now time.Time) ([]Made, error) {
	if err := makeDir(dir); err != nil {
		return nil, fmt.Errorf("create CAs: %w", err)
	}
	lock, err := os.Open(dir)
	if err != nil {
		return nil, fmt.Errorf("create CAs: %w", err)
	}
	defer lock.Close()
	if err := syscall.Flock(int(lock.Fd()), syscall.LOCK_EX); err != nil {
		return nil, fmt.Errorf("create CAs: lock %s: %w", dir, err)
	}
	var list []newCA
	var errs []error
	for _, name := range CANames() {
		c, err := lookForCA(dir, name)
		list, errs = append(list, c), append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("create CAs: %w", err)
	}
	var made []Made
	for _, c := range list {
		if err := c.make(life, now); err != nil {
			return made, fmt.Errorf("create CA %s: %w", c.Name, err)
		}
		made = append(made, c.Made)
	}
	return made, nil
}

// CANames are the base names of the three authorities.
func CANames() []string { return []string{ManagerCA, PeersCA, ClientsCA} }

// makeDir makes a directory for keys. Only the directory itself is private: others may be in those above it.
func makeDir(dir string) error {
	if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	return nil
}

// newCA is a CA that is to be made, as far as it isn't there.
type newCA struct {
	Made
	key crypto.Signer // if it is there without its certificate
}

// lookForCA finds out what is to be made. It changes nothing.
func lookForCA(dir, name string) (newCA, error) {
	base := filepath.Join(dir, name)
	c := newCA{Made: Made{Name: name, Cert: base + ".crt", Key: base + ".key", State: CAMade}}
	haveCert, err := exists(c.Cert)
	if err != nil {
		return c, err
	}
	haveKey, err := exists(c.Key)
	if err != nil {
		return c, err
	}
	switch {
	case haveCert && haveKey:
		c.State = CAKept
	case haveCert:
		return c, fmt.Errorf("%w: %s exists without %s; restore the key, or move the certificate away to have a new CA made",
			ErrAuthority, c.Cert, c.Key)
	case haveKey:
		c.State = CACompleted
		data, err := os.ReadFile(c.Key)
		if err != nil {
			return c, err
		}
		c.key, err = parseKey(c.Key, data)
		return c, err
	}
	return c, nil
}

func (c newCA) make(life time.Duration, now time.Time) (err error) {
	key := c.key
	switch c.State {
	case CAKept:
		return nil
	case CAMade:
		if key, err = createKey(c.Key); err != nil {
			return err
		}
	}
	template := &x509.Certificate{
		Subject:               pkix.Name{CommonName: c.Name},
		NotBefore:             now.Add(-createdCABackdate),
		NotAfter:              now.Add(life),
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
	return atomicfile.Write(c.Cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644)
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
	key, data, err := newKey()
	if err != nil {
		return nil, err
	}
	return key, atomicfile.Write(path, data, 0o600)
}

// createKey is writeNewKey for a path at which nothing may be: what appears there meanwhile is never overwritten.
func createKey(path string) (crypto.Signer, error) {
	key, data, err := newKey()
	if err != nil {
		return nil, err
	}
	return key, atomicfile.Create(path, data, 0o600)
}

func newKey() (crypto.Signer, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func serial() (*big.Int, error) {
	return rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
}
