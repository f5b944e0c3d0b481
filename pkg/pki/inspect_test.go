package pki

import (
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// said puts an inspection's problems into lines.
func said(i *Inspection) string {
	var b strings.Builder
	for _, p := range i.Problems {
		word := "warning"
		if p.Serious {
			word = "problem"
		}
		b.WriteString(word + ": " + p.Path + ": " + p.Text + " | " + p.Do + "\n")
	}
	return b.String()
}

func mustDo(t *testing.T, errs ...error) {
	t.Helper()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

func named(name string) func(*x509.Certificate) {
	return func(c *x509.Certificate) { c.Subject = pkix.Name{CommonName: name} }
}

// TestInspect breaks a directory of sound CAs in one way, and looks for what is said about it, with its file and
// a way out.
func TestInspect(t *testing.T) {
	ec, other := ecKey(t), ecKey(t)
	for _, c := range []struct {
		name    string
		spoil   func(dir string)
		serious bool
		want    []string
	}{
		{"a key is missing", func(dir string) { mustDo(t, os.Remove(filepath.Join(dir, PeersCA+".key"))) }, true,
			[]string{"etcd-peers-ca.key: the file is missing", "pki init", "every master"}},
		{"keys are swapped", func(dir string) {
			a, b := filepath.Join(dir, PeersCA+".key"), filepath.Join(dir, ClientsCA+".key")
			mustDo(t, os.Rename(a, a+".x"), os.Rename(b, a), os.Rename(a+".x", b))
		}, true, []string{"etcd-peers-ca.key: it is the key of etcd-clients-ca.crt, not of etcd-peers-ca.crt",
			"etcd-clients-ca.key: it is the key of etcd-peers-ca.crt"}},
		{"both files are swapped", func(dir string) {
			for _, ext := range []string{".key", ".crt"} {
				a, b := filepath.Join(dir, PeersCA+ext), filepath.Join(dir, ClientsCA+ext)
				mustDo(t, os.Rename(a, a+".x"), os.Rename(b, a), os.Rename(a+".x", b))
			}
		}, true, []string{`etcd-peers-ca.crt: the certificate calls itself "etcd-clients-ca"`, "under its own name"}},
		{"a foreign key", func(dir string) { put(t, filepath.Join(dir, ManagerCA+".key"), pkcs8(t, other)) }, true,
			[]string{"etcd-manager-ca.key: the key doesn't fit", "copy both files"}},
		{"a key for everybody", func(dir string) { mustDo(t, os.Chmod(filepath.Join(dir, ClientsCA+".key"), 0o644)) }, true,
			[]string{"etcd-clients-ca.key: others can use the private key: its permissions are 0644", "chmod 600"}},
		{"a directory for everybody", func(dir string) { mustDo(t, os.Chmod(dir, 0o777)) }, true,
			[]string{"others can replace the CAs", "0777", "chmod 700"}},
		{"rubbish", func(dir string) { put(t, filepath.Join(dir, PeersCA+".crt"), []byte("hello")) }, true,
			[]string{"etcd-peers-ca.crt holds no certificate", "restore the file"}},
		{"expired", func(dir string) {
			put(t, filepath.Join(dir, PeersCA+".crt"), selfSigned(t, ec, -year, -time.Hour, named(PeersCA)))
			put(t, filepath.Join(dir, PeersCA+".key"), pkcs8(t, ec))
		}, true, []string{"etcd-peers-ca.crt expired on 2026-01-30", "put a renewed CA"}},
		{"ends soon", func(dir string) {
			put(t, filepath.Join(dir, PeersCA+".crt"), selfSigned(t, ec, -year, 20*24*time.Hour, named(PeersCA)))
			put(t, filepath.Join(dir, PeersCA+".key"), pkcs8(t, ec))
		}, false, []string{"ends in 20 days", "New CAs"}},
		{"an old one in the bundle", func(dir string) {
			put(t, filepath.Join(dir, PeersCA+".crt"), selfSigned(t, other, -year, -time.Hour, named("old")),
				selfSigned(t, ec, -year, year, named(PeersCA)))
			put(t, filepath.Join(dir, PeersCA+".key"), pkcs8(t, ec))
		}, false, []string{`the certificate "old" has ended`, "remove it"}},
		{"servers only", func(dir string) {
			put(t, filepath.Join(dir, ClientsCA+".crt"), selfSigned(t, ec, -year, year, named(ClientsCA),
				func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }))
			put(t, filepath.Join(dir, ClientsCA+".key"), pkcs8(t, ec))
		}, true, []string{"etcd-clients-ca.crt: certificates that this CA signs aren't accepted", "usage"}},
		{"one CA for all of etcd", func(dir string) {
			cert, key := selfSigned(t, ec, -year, year, named("etcd-ca")), pkcs8(t, ec)
			for _, name := range []string{PeersCA, ClientsCA} {
				put(t, filepath.Join(dir, name+".crt"), cert)
				put(t, filepath.Join(dir, name+".key"), key)
			}
		}, false, []string{"etcd-peers-ca and etcd-clients-ca are the same CA", "kubeadm"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := dirWithCAs(t, epoch)
			c.spoil(dir)
			i := Inspect(dir, CANames(), epoch)
			got := said(i)
			if i.OK() == c.serious || strings.Count(got, "\n") > 2 || got == "" {
				t.Errorf("serious is %v, got:\n%s", c.serious, got)
			}
			for _, w := range c.want {
				if !strings.Contains(got, w) {
					t.Errorf("%q isn't said in:\n%s", w, got)
				}
			}
			for _, p := range i.Problems {
				if p.Do == "" {
					t.Errorf("no way out of %+v", p)
				}
			}
		})
	}
}

func TestInspectSound(t *testing.T) {
	dir := dirWithCAs(t, epoch)
	i := Inspect(dir, CANames(), epoch)
	if len(i.Problems) > 0 || len(i.Certificates) != 3 {
		t.Fatalf("%s%+v", said(i), i.Certificates)
	}
	for n, name := range CANames() {
		if c := i.Certificates[n]; c.Name != name || !c.Signs || !c.CA || c.Key != filepath.Join(dir, name+".key") || len(c.SHA256) != 64 {
			t.Errorf("%+v", c)
		}
	}
	// A manager without TLS to etcd needs only its own CA.
	mustDo(t, os.Remove(filepath.Join(dir, PeersCA+".key")))
	if i := Inspect(dir, []string{ManagerCA}, epoch); len(i.Problems) > 0 {
		t.Error(said(i))
	}
	for path, want := range map[string]string{
		filepath.Join(dir, "absent"):         "doesn't exist",
		filepath.Join(dir, ManagerCA+".crt"): "not a directory",
	} {
		if i := Inspect(path, CANames(), epoch); i.OK() || len(i.Problems) != 1 || !strings.Contains(said(i), want) {
			t.Errorf("%s: %s", path, said(i))
		}
	}
}

// TestInspectOwner is about a key that belongs to somebody else.
func TestInspectOwner(t *testing.T) {
	dir := dirWithCAs(t, epoch)
	i := &Inspection{uids: []int{os.Geteuid() + 1}}
	i.private(filepath.Join(dir, PeersCA+".key"))
	if i.OK() || !strings.Contains(said(i), "belongs to the user") || !strings.Contains(said(i), "chown") {
		t.Error(said(i))
	}
}

// TestInspectFiles is about certificates that were issued.
func TestInspectFiles(t *testing.T) {
	dir, out := dirWithCAs(t, epoch), t.TempDir()
	r := ClientRequest{Name: "kube-apiserver", Dir: out, Duration: year}
	files, err := r.Issue(dir, epoch)
	mustDo(t, err)
	check := func(now time.Time, path string, want ...string) {
		t.Helper()
		i := Inspect(dir, CANames(), now)
		i.AddFile(path)
		got := said(i)
		if (len(want) == 0) != (got == "") {
			t.Errorf("got:\n%s", got)
		}
		for _, w := range want {
			if !strings.Contains(got, w) {
				t.Errorf("%q isn't said in:\n%s", w, got)
			}
		}
	}
	check(epoch, files.Cert)
	i := Inspect(dir, CANames(), epoch)
	i.AddFile(files.Cert)
	last := i.Certificates[len(i.Certificates)-1]
	if last.SignedBy != ClientsCA || last.Key != files.Key || len(last.Usages) != 1 || last.Usages[0] != "client" {
		t.Errorf("%+v", last)
	}
	check(epoch.Add(year+time.Hour), files.Cert, "problem: "+files.Cert, "has ended", "--renew")
	check(epoch.Add(year-10*24*time.Hour), files.Cert, "warning: "+files.Cert, "ends in 10 days")
	check(epoch.Add(-2*time.Hour), files.Cert, "not valid before", "clock")
	check(epoch, filepath.Join(out, "absent.crt"), "can't be read")
	check(epoch, filepath.Join(dir, ClientsCA+".crt"), "this is a CA")

	put(t, files.Key, pkcs8(t, ecKey(t)))
	check(epoch, files.Cert, "the key doesn't fit")
	put(t, files.Key, []byte("x"))
	check(epoch, files.Cert, "holds no private key")
	mustDo(t, os.Remove(files.Key))
	check(epoch, files.Cert) // it may be on another machine

	peers, err := LoadAuthority(filepath.Join(dir, PeersCA+".crt"), filepath.Join(dir, PeersCA+".key"), epoch)
	mustDo(t, err)
	c, err := DefaultPolicy().issue(peers, subject{commonName: "x", usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}},
		ecKey(t).Public(), epoch)
	mustDo(t, err)
	wrong := filepath.Join(out, "wrong.crt")
	put(t, wrong, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: c.Raw}))
	check(epoch, wrong, "of the peers' CA", "etcd-clients-ca")
	foreign := dirWithCAs(t, epoch)
	i = Inspect(foreign, CANames(), epoch)
	i.AddFile(files.Cert)
	if !strings.Contains(said(i), "none of the CAs in") {
		t.Error(said(i))
	}
}
