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
	"time"
)

// ErrAuthority is wrapped by every error that says that a CA can't be used; the message names the file and the way out.
var ErrAuthority = errors.New("certificate authority unusable")

// Authority is a CA: the certificates that are trusted and the one of them that signs. It is immutable.
type Authority struct {
	certPath, keyPath string
	certPEM, keyPEM   []byte

	trusted []*x509.Certificate
	bundle  []byte
	pool    *x509.CertPool
	signer  *x509.Certificate
	key     crypto.Signer
}

// LoadAuthority reads a CA. certPath may hold several certificates (a CA rotation): all of them are
// trusted, and the one that belongs to the key signs; if several do (a CA certificate that was renewed
// with its key), the valid one that ends last. The key is PKCS#1, PKCS#8 or SEC 1 (EC) in PEM.
//
// Errors wrap ErrAuthority, and fs.ErrNotExist if a file is missing. now is the time at which the signing certificate must be valid.
func LoadAuthority(certPath, keyPath string, now time.Time) (*Authority, error) {
	certPEM, err := readCAFile(certPath)
	if err != nil {
		return nil, err
	}
	keyPEM, err := readCAFile(keyPath)
	if err != nil {
		return nil, err
	}
	return parseAuthority(certPath, certPEM, keyPath, keyPEM, now)
}

func readCAFile(path string) ([]byte, error) {
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("%w: %s is missing: copy the CA there, the same on every master (`etcd-manager-ctl pki init` makes new ones, once): %w",
			ErrAuthority, path, err)
	case err != nil:
		return nil, fmt.Errorf("%w: read: %w", ErrAuthority, err)
	}
	return data, nil
}

func parseAuthority(certPath string, certPEM []byte, keyPath string, keyPEM []byte, now time.Time) (*Authority, error) {
	a := &Authority{certPath: certPath, keyPath: keyPath, certPEM: certPEM, keyPEM: keyPEM, pool: x509.NewCertPool()}
	var err error
	if a.trusted, err = parseCertificates(certPath, certPEM); err != nil {
		return nil, err
	}
	var bundle bytes.Buffer
	for _, c := range a.trusted {
		a.pool.AddCert(c)
		if err := pem.Encode(&bundle, &pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}); err != nil {
			return nil, err
		}
	}
	a.bundle = bundle.Bytes()
	if a.key, err = parseKey(keyPath, keyPEM); err != nil {
		return nil, err
	}
	if err := a.chooseSigner(now); err != nil {
		return nil, err
	}
	return a, nil
}

func parseCertificates(path string, data []byte) ([]*x509.Certificate, error) {
	var certs []*x509.Certificate
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w: certificate %d in %s can't be read; replace or remove it: %w", ErrAuthority,
				len(certs)+1, path, err)
		}
		certs = append(certs, c)
	}
	if len(certs) == 0 {
		return nil, fmt.Errorf("%w: %s holds no certificate in PEM; restore the file from where the CA was made", ErrAuthority, path)
	}
	return certs, nil
}

func parseKey(path string, data []byte) (crypto.Signer, error) {
	for {
		var block *pem.Block
		if block, data = pem.Decode(data); block == nil {
			return nil, fmt.Errorf("%w: %s holds no private key in PEM; restore the file from where the CA was made", ErrAuthority, path)
		}
		if block.Type == "EC PARAMETERS" || block.Type == "CERTIFICATE" {
			continue
		}
		if block.Type == "ENCRYPTED PRIVATE KEY" || block.Headers["DEK-Info"] != "" {
			return nil, fmt.Errorf("%w: the key in %s is encrypted with a passphrase; store it without one, readable by root only",
				ErrAuthority, path)
		}
		key, err := parseKeyDER(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("%w: the key in %s can't be read as PKCS#1, PKCS#8 or EC: %w", ErrAuthority, path, err)
		}
		return key, nil
	}
}

// parseKeyDER goes by content and not by the PEM type, which some tools get wrong.
func parseKeyDER(der []byte) (crypto.Signer, error) {
	if k, err := x509.ParsePKCS1PrivateKey(der); err == nil {
		return k, nil
	}
	if k, err := x509.ParseECPrivateKey(der); err == nil {
		return k, nil
	}
	k, err := x509.ParsePKCS8PrivateKey(der)
	if err != nil {
		return nil, err
	}
	s, ok := k.(crypto.Signer)
	if !ok {
		return nil, fmt.Errorf("a %T can't sign", k)
	}
	return s, nil
}

// chooseSigner finds the certificate of the key, preferring a valid one, then the one that ends last.
func (a *Authority) chooseSigner(now time.Time) error {
	var problem error
	for _, c := range a.trusted {
		if !samePublicKey(c.PublicKey, a.key.Public()) {
			continue
		}
		if err := a.usable(c, now); err != nil {
			problem = err
			continue
		}
		if a.signer == nil || c.NotAfter.After(a.signer.NotAfter) {
			a.signer = c
		}
	}
	switch {
	case a.signer != nil:
		return nil
	case problem != nil:
		return problem
	}
	return fmt.Errorf("%w: none of the %d certificate(s) in %s matches the key in %s; copy both files from the same CA",
		ErrAuthority, len(a.trusted), a.certPath, a.keyPath)
}

func (a *Authority) usable(c *x509.Certificate, now time.Time) error {
	const day = "2006-01-02 15:04:05 MST"
	switch {
	case now.After(c.NotAfter):
		return fmt.Errorf("%w: the CA certificate in %s expired on %s; put a renewed CA (same key, or a new pair beside the old certificate) into %s and %s on every master",
			ErrAuthority, a.certPath, c.NotAfter.UTC().Format(day), a.certPath, a.keyPath)
	case now.Before(c.NotBefore):
		return fmt.Errorf("%w: the CA certificate in %s is not valid before %s and this machine's clock says %s; set the clock, or replace the CA",
			ErrAuthority, a.certPath, c.NotBefore.UTC().Format(day), now.UTC().Format(day))
	case c.BasicConstraintsValid && !c.IsCA, c.Version == 3 && !c.BasicConstraintsValid:
		return fmt.Errorf("%w: the certificate in %s is not a CA certificate (basicConstraints CA:TRUE is missing), so what it signs is refused; replace it", ErrAuthority, a.certPath)
	case c.KeyUsage != 0 && c.KeyUsage&x509.KeyUsageCertSign == 0:
		return fmt.Errorf("%w: the certificate in %s must not sign certificates (keyUsage keyCertSign is missing); replace it",
			ErrAuthority, a.certPath)
	}
	return nil
}

func samePublicKey(a, b crypto.PublicKey) bool {
	k, ok := a.(interface{ Equal(crypto.PublicKey) bool })
	return ok && k.Equal(b)
}

// Pool is the set of all trusted certificates. The caller must not change it.
func (a *Authority) Pool() *x509.CertPool { return a.pool }

// Certificate is the certificate that signs.
func (a *Authority) Certificate() *x509.Certificate { return a.signer }

// sameFiles tells whether the authority was read from exactly these contents.
func (a *Authority) sameFiles(certPEM, keyPEM []byte) bool {
	return bytes.Equal(a.certPEM, certPEM) && bytes.Equal(a.keyPEM, keyPEM)
}
