package pki

import (
	"crypto"
	"crypto/sha256"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// Problem is something wrong that an inspection found.
type Problem struct {
	// Serious says that it doesn't work, or isn't safe. Otherwise it works, but a person should know.
	Serious bool `json:"serious"`
	// Path is the file or directory.
	Path string `json:"path"`
	// Text says what is wrong, Do what to do about it.
	Text string `json:"text"`
	Do   string `json:"do"`
}

// CertificateInfo is one certificate of a file.
type CertificateInfo struct {
	Path string `json:"path"`
	// Name and Issuer are common names.
	Name   string `json:"name"`
	Issuer string `json:"issuer"`
	// CA says that it is one, and Signs that it signs here: the key beside it is its own.
	CA    bool `json:"ca"`
	Signs bool `json:"signs,omitempty"`
	// Key is the path of the private key that fits, empty if none does. SignedBy is the base name of the CA here that has signed it.
	Key      string `json:"key,omitempty"`
	SignedBy string `json:"signedBy,omitempty"`
	// Usages are "server" and "client", Hosts the names and addresses that it is for.
	Usages    []string  `json:"usages,omitempty"`
	Hosts     []string  `json:"hosts,omitempty"`
	NotBefore time.Time `json:"notBefore"`
	NotAfter  time.Time `json:"notAfter"`
	// SHA256 is the fingerprint, in hexadecimal. All masters must have the same CAs.
	SHA256 string `json:"sha256"`
}

// Inspection is what Inspect found.
type Inspection struct {
	Dir          string            `json:"dir"`
	Certificates []CertificateInfo `json:"certificates"`
	Problems     []Problem         `json:"problems"`

	now  time.Time
	cas  map[string]*caFiles
	uids []int // who may own keys
}

// caFiles are the two files of a CA, as far as they can be read.
type caFiles struct {
	name, certPath, keyPath string
	certs                   []*x509.Certificate
	key                     crypto.Signer
	usable                  *Authority
}

// Inspect reads the CAs in dir, and says what ends when, what fits what, and all that is wrong. It reads only the names that are asked for
// (CANames, or some of them), changes nothing, and doesn't stop at the first problem.
func Inspect(dir string, names []string, now time.Time) *Inspection {
	i := &Inspection{Dir: dir, now: now, cas: map[string]*caFiles{}, uids: []int{0, os.Geteuid()},
		Certificates: []CertificateInfo{}, Problems: []Problem{}}
	if !i.directory() {
		return i
	}
	var all []*caFiles
	for _, name := range names {
		base := filepath.Join(dir, name)
		ca := &caFiles{name: name, certPath: base + ".crt", keyPath: base + ".key"}
		i.read(ca)
		i.cas[name] = ca
		all = append(all, ca)
	}
	for _, ca := range all {
		i.pair(ca, all)
		i.list(ca)
	}
	i.mixed(all)
	return i
}

// OK tells whether nothing serious is wrong.
func (i *Inspection) OK() bool {
	for _, p := range i.Problems {
		if p.Serious {
			return false
		}
	}
	return true
}

func (i *Inspection) wrong(path, do, format string, args ...any) {
	i.Problems = append(i.Problems, Problem{Serious: true, Path: path, Text: fmt.Sprintf(format, args...), Do: do})
}

func (i *Inspection) warn(path, do, format string, args ...any) {
	i.Problems = append(i.Problems, Problem{Path: path, Text: fmt.Sprintf(format, args...), Do: do})
}

// authorityWrong is wrong for an error that says what to do behind a semicolon.
func (i *Inspection) authorityWrong(path string, err error) {
	text, do, _ := strings.Cut(strings.TrimPrefix(err.Error(), ErrAuthority.Error()+": "), "; ")
	i.wrong(path, do, "%s", text)
}

const initHint = "make the CAs once with `etcd-manager-ctl pki init`, and copy the same files to every master"

func (i *Inspection) directory() bool {
	st, err := os.Stat(i.Dir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		i.wrong(i.Dir, initHint, "the directory of the CAs doesn't exist")
		return false
	case err != nil:
		i.wrong(i.Dir, "run this as the manager's user, which is usually root", "the directory of the CAs can't be read: %v", err)
		return false
	case !st.IsDir():
		i.wrong(i.Dir, "give the directory that holds the CAs (--pki-dir)", "this is a file and not a directory")
		return false
	case st.Mode().Perm()&0o022 != 0:
		i.wrong(i.Dir, "chmod 700 "+i.Dir, "others can replace the CAs: the permissions of the directory are %04o", st.Mode().Perm())
	}
	return true
}

// read reads both files of a CA.
func (i *Inspection) read(ca *caFiles) {
	if data, ok := i.file(ca.certPath); ok {
		var err error
		if ca.certs, err = parseCertificates(ca.certPath, data); err != nil {
			i.authorityWrong(ca.certPath, err)
		}
	}
	if data, ok := i.file(ca.keyPath); ok {
		var err error
		if ca.key, err = parseKey(ca.keyPath, data); err != nil {
			i.authorityWrong(ca.keyPath, err)
		}
		i.private(ca.keyPath)
	}
}

func (i *Inspection) file(path string) ([]byte, bool) {
	data, err := os.ReadFile(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		i.wrong(path, initHint, "the file is missing")
	case err != nil:
		i.wrong(path, "run this as the manager's user, which is usually root", "the file can't be read: %v", err)
	}
	return data, err == nil
}

// private checks that only the owner can read a key, and that it is one of those who may.
func (i *Inspection) private(path string) {
	st, err := os.Stat(path)
	if err != nil {
		return
	}
	if st.Mode().Perm()&0o077 != 0 {
		i.wrong(path, "chmod 600 "+path, "others can use the private key: its permissions are %04o", st.Mode().Perm())
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok {
		for _, uid := range i.uids {
			if int(sys.Uid) == uid {
				return
			}
		}
		i.wrong(path, "chown root "+path, "the private key belongs to the user with the id %d", sys.Uid)
	}
}

// pair checks that certificate and key of a CA are one, and that what it signs is accepted.
func (i *Inspection) pair(ca *caFiles, all []*caFiles) {
	if len(ca.certs) == 0 || ca.key == nil {
		return
	}
	if !ca.fits(ca.key) {
		for _, other := range all {
			if other != ca && other.fits(ca.key) {
				i.wrong(ca.keyPath, "put each key beside its own certificate", "it is the key of %s.crt, not of %s.crt: the files are mixed up",
					other.name, ca.name)
				return
			}
		}
		i.wrong(ca.keyPath, "copy both files of the CA from where it was made", "the key doesn't fit %s", ca.certPath)
		return
	}
	a, err := LoadAuthority(ca.certPath, ca.keyPath, i.now)
	if err != nil {
		i.authorityWrong(ca.certPath, err)
		return
	}
	ca.usable = a
	usages := []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	leaf, err := DefaultPolicy().issue(a, subject{commonName: "check", usages: usages}, ca.key.Public(), i.now)
	for _, usage := range usages {
		if err == nil {
			_, err = leaf.Verify(x509.VerifyOptions{Roots: a.pool, CurrentTime: i.now, KeyUsages: []x509.ExtKeyUsage{usage}})
		}
	}
	if err != nil {
		i.wrong(ca.certPath, "replace the CA, or remove its limits", "certificates that this CA signs aren't accepted: %v", err)
	}
}

// fits tells whether a key belongs to one of the CA's certificates.
func (ca *caFiles) fits(key crypto.Signer) bool {
	for _, c := range ca.certs {
		if samePublicKey(c.PublicKey, key.Public()) {
			return true
		}
	}
	return false
}

// list notes the certificates of a CA, and which of them end.
func (i *Inspection) list(ca *caFiles) {
	for _, c := range ca.certs {
		info := infoOf(ca.certPath, c)
		info.Signs = ca.usable != nil && ca.usable.signer.Equal(c)
		if ca.key != nil && samePublicKey(c.PublicKey, ca.key.Public()) {
			info.Key = ca.keyPath
		}
		i.Certificates = append(i.Certificates, info)
		left := c.NotAfter.Sub(i.now)
		_, soon := level(left, c.NotAfter.Sub(c.NotBefore))
		switch {
		case !info.Signs && left <= 0 && ca.usable != nil:
			i.warn(ca.certPath, "remove it from the file on all masters", "the certificate %q %s; another one signs", info.Name,
				endWords(c.NotAfter, i.now))
		case info.Signs && soon:
			i.warn(ca.certPath, "replace the CA as docs/operations.md says (New CAs)", "the CA %q %s", info.Name, endWords(c.NotAfter, i.now))
		}
	}
}

// mixed finds files of one CA under the name of another, and CAs that are the same.
func (i *Inspection) mixed(all []*caFiles) {
	for n, ca := range all {
		for _, c := range ca.certs {
			for _, other := range all {
				if other != ca && strings.HasPrefix(c.Subject.CommonName, other.name) && !strings.HasPrefix(c.Subject.CommonName, ca.name) {
					i.wrong(ca.certPath, "put each file under its own name", "the certificate calls itself %q: the files are mixed up",
						c.Subject.CommonName)
				}
			}
		}
		for _, other := range all[n+1:] {
			if ca.usable == nil || other.usable == nil || !samePublicKey(ca.key.Public(), other.key.Public()) {
				continue
			}
			what := "whoever may sign certificates for etcd's clients can also join as a member"
			if ca.name == ManagerCA || other.name == ManagerCA {
				what = "whoever may sign certificates for etcd can also command the managers"
			}
			i.warn(ca.certPath, "use three CAs; a cluster that kubeadm made has one for all of etcd, and works", "%s and %s are the same CA: %s",
				ca.name, other.name, what)
		}
	}
}

// AddFile inspects a certificate that was issued: when it ends, which key beside it fits (NAME.key, NAME-key.pem), and which of the CAs
// has signed it.
func (i *Inspection) AddFile(path string) {
	data, ok := i.issued(path)
	if !ok {
		return
	}
	certs, err := parseCertificates(path, data)
	if err != nil {
		i.wrong(path, "give a file with a certificate in PEM", "%s", strings.TrimPrefix(err.Error(), ErrAuthority.Error()+": "))
		return
	}
	c := certs[0]
	info := infoOf(path, c)
	info.Key = i.keyBeside(path, c)
	for _, name := range CANames() {
		if ca := i.cas[name]; ca != nil && ca.signed(c) {
			info.SignedBy = name
			break
		}
	}
	i.Certificates = append(i.Certificates, info)
	left := c.NotAfter.Sub(i.now)
	_, soon := level(left, c.NotAfter.Sub(c.NotBefore))
	const again = "issue it again: `etcd-manager-ctl pki client NAME --renew`"
	client := len(info.Usages) == 1 && info.Usages[0] == "client"
	switch {
	case left <= 0:
		i.wrong(path, again, "the certificate %q %s", info.Name, endWords(c.NotAfter, i.now))
	case i.now.Before(c.NotBefore):
		i.wrong(path, "set the clock of this machine", "the certificate %q is not valid before %s", info.Name,
			c.NotBefore.UTC().Format(time.RFC3339))
	case soon:
		i.warn(path, again, "the certificate %q %s", info.Name, endWords(c.NotAfter, i.now))
	}
	switch {
	case info.CA:
		i.wrong(path, "give the certificate that the CA has signed", "this is a CA, which only signs")
	case info.SignedBy == "":
		i.wrong(path, again, "none of the CAs in %s has signed the certificate %q; its issuer is %q", i.Dir, info.Name, info.Issuer)
	case client && info.SignedBy == PeersCA:
		i.wrong(path, again, "it is a client certificate, but of the peers' CA: etcd accepts only clients of %s", ClientsCA)
	}
}

func (i *Inspection) issued(path string) ([]byte, bool) {
	data, err := os.ReadFile(path)
	if err != nil {
		i.wrong(path, "give the path of a certificate, as this user can read it", "the file can't be read: %v", err)
	}
	return data, err == nil
}

// keyBeside finds the key of a certificate by the usual names. A key that doesn't fit is a problem; none is not, as it may be elsewhere.
func (i *Inspection) keyBeside(path string, c *x509.Certificate) string {
	base := strings.TrimSuffix(strings.TrimSuffix(path, ".crt"), ".pem")
	for _, keyPath := range []string{base + ".key", base + "-key.pem"} {
		data, err := os.ReadFile(keyPath)
		if err != nil {
			continue
		}
		i.private(keyPath)
		key, err := parseKey(keyPath, data)
		switch {
		case err != nil:
			i.wrong(keyPath, "restore the key, or issue a new pair", "%s", strings.TrimPrefix(err.Error(), ErrAuthority.Error()+": "))
		case !samePublicKey(c.PublicKey, key.Public()):
			i.wrong(keyPath, "put each key beside its own certificate, or issue a new pair", "the key doesn't fit %s", path)
		default:
			return keyPath
		}
	}
	return ""
}

// signed tells whether one of the CA's certificates has signed c.
func (ca *caFiles) signed(c *x509.Certificate) bool {
	for _, parent := range ca.certs {
		if c.CheckSignatureFrom(parent) == nil {
			return true
		}
	}
	return false
}

func infoOf(path string, c *x509.Certificate) CertificateInfo {
	sum := sha256.Sum256(c.Raw)
	info := CertificateInfo{Path: path, Name: c.Subject.CommonName, Issuer: c.Issuer.CommonName, CA: c.IsCA,
		NotBefore: c.NotBefore.UTC(), NotAfter: c.NotAfter.UTC(), SHA256: hex.EncodeToString(sum[:]),
		Hosts: append([]string(nil), c.DNSNames...)}
	for _, ip := range c.IPAddresses {
		info.Hosts = append(info.Hosts, ip.String())
	}
	for _, u := range c.ExtKeyUsage {
		switch u {
		case x509.ExtKeyUsageServerAuth:
			info.Usages = append(info.Usages, "server")
		case x509.ExtKeyUsageClientAuth:
			info.Usages = append(info.Usages, "client")
		}
	}
	return info
}
