package pki

import (
	"bytes"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestClientCertificate(t *testing.T) {
	dir, out := dirWithCAs(t, epoch), filepath.Join(t.TempDir(), "a", "out")
	r := ClientRequest{Name: "kube-apiserver", Dir: out, Duration: 2 * year}
	files, err := r.Issue(dir, epoch)
	mustDo(t, err)
	ca, err := LoadAuthority(filepath.Join(dir, ClientsCA+".crt"), filepath.Join(dir, ClientsCA+".key"), epoch)
	mustDo(t, err)
	verify := func(usage x509.ExtKeyUsage) error {
		_, err := readCert(t, files.Cert).Verify(x509.VerifyOptions{Roots: ca.Pool(), CurrentTime: epoch,
			KeyUsages: []x509.ExtKeyUsage{usage}})
		return err
	}
	mustDo(t, verify(x509.ExtKeyUsageClientAuth))
	if verify(x509.ExtKeyUsageServerAuth) == nil {
		t.Error("a client certificate can be a server's")
	}
	if c := readCert(t, files.Cert); c.Subject.CommonName != r.Name || !c.NotAfter.Equal(files.NotAfter) ||
		!samePublicKey(c.PublicKey, mustKey(t, files.Key).Public()) {
		t.Errorf("%s, ends %s", c.Subject, c.NotAfter)
	}
	for path, want := range map[string]os.FileMode{out: 0o700, files.Key: 0o600, files.Cert: 0o644, filepath.Dir(out): 0o755} {
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != want {
			t.Errorf("%s: %v, %v", path, st.Mode(), err)
		}
	}

	// A second one is refused and nothing is changed; a renewal keeps the key.
	before := readFiles(t, files)
	if _, err := r.Issue(dir, epoch); !errors.Is(err, ErrExists) || !strings.Contains(err.Error(), "--renew") {
		t.Errorf("a second one: %v", err)
	}
	if !bytes.Equal(before, readFiles(t, files)) {
		t.Error("a refused wish changed something")
	}
	key, _ := os.ReadFile(files.Key)
	r.Renew = true
	later := epoch.Add(year)
	renewed, err := r.Issue(dir, later)
	mustDo(t, err)
	if now, _ := os.ReadFile(files.Key); !bytes.Equal(now, key) || !renewed.NotAfter.Equal(later.Add(2*year)) {
		t.Errorf("renewed until %s, key the same: %v", renewed.NotAfter, bytes.Equal(now, key))
	}
	// It never outlives its CA, and a crash before the certificate is continued with the same key.
	r.Renew, r.Duration = false, 100*year
	mustDo(t, os.Remove(files.Cert))
	last, err := r.Issue(dir, later)
	mustDo(t, err)
	if now, _ := os.ReadFile(files.Key); !bytes.Equal(now, key) || !last.NotAfter.Equal(ca.Certificate().NotAfter) {
		t.Errorf("ends %s, its CA %s", last.NotAfter, ca.Certificate().NotAfter)
	}
}

func readFiles(t *testing.T, f ClientFiles) []byte {
	t.Helper()
	var all []byte
	for _, path := range []string{f.CA, f.Cert, f.Key} {
		data, err := os.ReadFile(path)
		mustDo(t, err)
		all = append(all, data...)
	}
	return all
}

func TestClientCertificateRefused(t *testing.T) {
	dir := dirWithCAs(t, epoch)
	for name, want := range map[string]string{
		"": "can't be a name", "..": "can't be a name", "a/b": "can't be a name", "a\nb": "can't be a name", "ca": "those of the CA",
		strings.Repeat("x", 65): "65 bytes", "etcd-manager-client-a": "those of the managers",
	} {
		out := filepath.Join(t.TempDir(), "out")
		_, err := ClientRequest{Name: name, Dir: out, Duration: year}.Issue(dir, epoch)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v", name, err)
		}
		if _, err := os.Stat(out); err == nil {
			t.Errorf("%q: something was written", name)
		}
	}
	out := t.TempDir()
	put(t, filepath.Join(out, "ca.crt"), []byte("another CA"))
	if _, err := (ClientRequest{Name: "x", Dir: out, Duration: year}).Issue(dir, epoch); !errors.Is(err, ErrExists) ||
		!strings.Contains(err.Error(), "isn't the CA of") {
		t.Errorf("%v", err)
	}
	out = t.TempDir()
	put(t, filepath.Join(out, "x.key"), []byte("rubbish"))
	if _, err := (ClientRequest{Name: "x", Dir: out, Duration: year}).Issue(dir, epoch); err == nil || !strings.Contains(err.Error(), "move") {
		t.Errorf("%v", err)
	}
	if data, _ := os.ReadFile(filepath.Join(out, "x.key")); string(data) != "rubbish" {
		t.Error("a key was overwritten")
	}
	if _, err := (ClientRequest{Name: "x", Dir: out, Duration: time.Second}).Issue(dir, epoch); err == nil {
		t.Error("a second is a duration")
	}
	if _, err := (ClientRequest{Name: "x", Dir: out, Duration: year}).Issue(t.TempDir(), epoch); !errors.Is(err, ErrAuthority) {
		t.Errorf("without a CA: %v", err)
	}
}

// TestInit is about what CreateCAs doesn't show: what was done, and that nothing is made if something doesn't fit.
func TestInit(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	mustDo(t, os.Mkdir(dir, 0o700))
	put(t, filepath.Join(dir, ClientsCA+".crt"), []byte("without a key"))
	if _, err := Init(dir, year, epoch); !errors.Is(err, ErrAuthority) || !strings.Contains(err.Error(), ClientsCA+".key") {
		t.Fatal(err)
	}
	if list, _ := os.ReadDir(dir); len(list) != 1 {
		t.Errorf("half of it was made: %v", list)
	}
	mustDo(t, os.Remove(filepath.Join(dir, ClientsCA+".crt")))
	put(t, filepath.Join(dir, PeersCA+".key"), pkcs8(t, ecKey(t)))
	for _, want := range []string{CAMade + CACompleted + CAMade, CAKept + CAKept + CAKept} {
		made, err := Init(dir, year, epoch)
		mustDo(t, err)
		got := ""
		for _, m := range made {
			got += m.State
		}
		if got != want {
			t.Errorf("did %s, want %s", got, want)
		}
	}
	if i := Inspect(dir, CANames(), epoch); len(i.Problems) > 0 || !i.Certificates[0].NotAfter.Equal(epoch.Add(year)) {
		t.Errorf("%s%+v", said(i), i.Certificates)
	}
}
