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
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/atomicfile"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// ErrExists is wrapped by the error that says that a file would have to be overwritten.
var ErrExists = errors.New("the file exists")

// ClientRequest is a wish for a client certificate of etcd, as etcdctl and API servers need one.
type ClientRequest struct {
	// Name is the common name, and so etcd's user if etcd has users. It is also the base name of the files.
	Name string
	// Dir is where the files go. It is made if it is missing.
	Dir string
	// Duration is for how long the certificate is valid; it never ends after its CA.
	Duration time.Duration
	// Renew replaces the certificate, and the copy of the CA, of a key that exists. The key stays.
	Renew bool
}

// ClientFiles are what such a wish leads to.
type ClientFiles struct {
	Name string `json:"name"`
	CA   string `json:"ca"`
	Cert string `json:"certificate"`
	Key  string `json:"key"`
	// NotAfter is when the certificate ends.
	NotAfter time.Time `json:"notAfter"`
}

// maxCommonName is what X.509 allows for a common name, in bytes.
const maxCommonName = 64

// Check says what is wrong with a wish, before anything is read.
func (r ClientRequest) Check() error {
	switch {
	case r.Name == "" || strings.Trim(r.Name, ".") == "" || strings.ContainsAny(r.Name, "/\x00\n"):
		return fmt.Errorf("client certificate: %q can't be a name: it becomes the common name and the name of the files, for example "+
			"kube-apiserver", r.Name)
	case len(r.Name) > maxCommonName:
		return fmt.Errorf("client certificate: the name has %d bytes; a common name has at most %d", len(r.Name), maxCommonName)
	case strings.HasPrefix(r.Name, cluster.EtcdUserPrefix):
		return fmt.Errorf("client certificate: names that begin with %s are those of the managers; choose another one", cluster.EtcdUserPrefix)
	case r.Name == "ca":
		return errors.New("client certificate: the files of the name \"ca\" would be those of the CA; choose another one")
	case r.Duration < time.Minute:
		return fmt.Errorf("client certificate: a duration of %s is too short; give at least 1m", r.Duration)
	}
	return nil
}

// Issue signs a client certificate with the clients' CA in dir, and writes NAME.crt, NAME.key and ca.crt, by which a client knows etcd's
// servers. No key is ever overwritten; certificates only with Renew. The certificate comes last, so the next call continues after a crash.
func (r ClientRequest) Issue(dir string, now time.Time) (ClientFiles, error) {
	base := filepath.Join(r.Dir, r.Name)
	files := ClientFiles{Name: r.Name, CA: filepath.Join(r.Dir, "ca.crt"), Cert: base + ".crt", Key: base + ".key"}
	if err := r.Check(); err != nil {
		return files, err
	}
	ca, err := LoadAuthority(filepath.Join(dir, ClientsCA+".crt"), filepath.Join(dir, ClientsCA+".key"), now)
	if err != nil {
		return files, err
	}
	if err := r.mayWrite(files, ca); err != nil {
		return files, err
	}
	if err := makeDir(r.Dir); err != nil {
		return files, fmt.Errorf("client certificate: %w", err)
	}
	key, err := keyOf(files.Key)
	if err != nil {
		return files, err
	}
	policy := Policy{Duration: r.Duration, Backdate: DefaultPolicy().Backdate}
	c, err := policy.issue(ca, subject{commonName: r.Name, usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}, key.Public(), now)
	if err != nil {
		return files, err
	}
	files.NotAfter = c.NotAfter
	if err := atomicfile.Write(files.CA, ca.bundle, 0o644); err != nil {
		return files, err
	}
	return files, atomicfile.Write(files.Cert, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}), 0o644)
}

// mayWrite refuses to overwrite what somebody may still need.
func (r ClientRequest) mayWrite(files ClientFiles, ca *Authority) error {
	if r.Renew {
		return nil
	}
	there, err := exists(files.Cert)
	switch {
	case err != nil:
		return fmt.Errorf("client certificate: %w", err)
	case there:
		return fmt.Errorf("client certificate: %w: %s; renew it with the same key by --renew, or choose another name or directory",
			ErrExists, files.Cert)
	}
	have, err := os.ReadFile(files.CA)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("client certificate: %w", err)
	case !bytes.Equal(have, ca.bundle):
		return fmt.Errorf("client certificate: %w: %s, and it isn't the CA of %s; choose another directory, or replace it by --renew",
			ErrExists, files.CA, ca.certPath)
	}
	return nil
}

// keyOf reads the key at a path, or makes one if there is none.
func keyOf(path string) (crypto.Signer, error) {
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return createKey(path)
	case err != nil:
		return nil, fmt.Errorf("read key: %w", err)
	}
	key, err := parseKey(path, data)
	if err != nil {
		return nil, fmt.Errorf("client certificate: move %s away, then a new key is made: %w", path, err)
	}
	return key, nil
}
