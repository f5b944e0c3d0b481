package main

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/pki"
)

var fingerprint = regexp.MustCompile(`SHA-256 [0-9a-f]{16}`)

// TestPKI makes CAs and a client certificate, breaks them and asks what is wrong. No command needs a store.
func TestPKI(t *testing.T) {
	w := newWorld(t)
	t.Chdir(t.TempDir())
	w.raw("pki")
	w.raw("pki", "make")
	w.raw("pki", "check", "--pki-dir=pki")
	w.raw("pki", "init", "--pki-dir=pki", "--duration=1h")
	w.raw("pki", "init", "--pki-dir=pki", "--duration=5y")
	w.raw("pki", "init", "--pki-dir=pki")
	w.raw("pki", "client", "--pki-dir=pki")
	w.raw("pki", "client", "etcd-manager-client-a", "--pki-dir=pki")
	w.raw("pki", "client", "kube-apiserver", "--pki-dir=pki", "--out=my certificates", "--duration=1y")
	w.raw("pki", "client", "kube-apiserver", "--pki-dir=pki", "--out=my certificates")
	w.raw("pki", "client", "kube-apiserver", "--pki-dir=pki", "--out=my certificates", "--renew")
	w.raw("pki", "check", "--pki-dir=pki", "my certificates/kube-apiserver.crt")

	must(t, os.Chmod("pki/etcd-manager-ca.key", 0o644))
	must(t, os.Rename("pki/etcd-peers-ca.key", "x"))
	must(t, os.Rename("pki/etcd-clients-ca.key", "pki/etcd-peers-ca.key"))
	must(t, os.Rename("x", "pki/etcd-clients-ca.key"))
	w.raw("pki", "check", "--pki-dir=pki")
	w.raw("pki", "client", "other", "--pki-dir=pki", "--out=other")
	w.raw("pki", "check", "--pki-dir=pki", "-o", "yaml")
	text := fingerprint.ReplaceAllString(w.log.String(), "SHA-256 0123456789abcdef")
	w.log.Reset()
	w.log.WriteString(text)
	w.golden("pki")
}

func TestPKIOutput(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(t.TempDir(), "pki")
	code, out, errOut := w.exec("pki", "init", "--pki-dir="+dir, "-o", "json")
	var made []pki.Made
	if err := json.Unmarshal([]byte(out), &made); err != nil || code != exitOK || len(made) != 3 || made[0].State != pki.CAMade {
		t.Errorf("init: %v, code %d\n%s%s", err, code, out, errOut)
	}
	code, out, errOut = w.exec("pki", "client", "x", "--pki-dir="+dir, "--out="+dir, "-o", "json")
	var files pki.ClientFiles
	if err := json.Unmarshal([]byte(out), &files); err != nil || code != exitOK || files.Key != filepath.Join(dir, "x.key") {
		t.Errorf("client: %v, code %d\n%s%s", err, code, out, errOut)
	}
	must(t, os.Remove(filepath.Join(dir, pki.PeersCA+".key")))
	code, out, errOut = w.exec("pki", "check", files.Cert, "--pki-dir="+dir, "-o", "json")
	var i pki.Inspection
	if err := json.Unmarshal([]byte(out), &i); err != nil || code != exitFailure || len(i.Problems) != 1 || len(i.Certificates) != 4 ||
		!i.Problems[0].Serious || !strings.Contains(errOut, "1 problem found") {
		t.Errorf("check: %v, code %d\n%s%s", err, code, out, errOut)
	}
}
