package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/pki"
)

// TestSecurityPage: what SECURITY.md says of defaults is what the flags have.
func TestSecurityPage(t *testing.T) {
	raw, err := os.ReadFile("../../SECURITY.md")
	if err != nil {
		t.Fatal(err)
	}
	page := strings.Join(strings.Fields(string(raw)), " ")
	flags := newFlags(&options{})
	for name, x := range map[string]struct{ def, sentence string }{
		"backup-encryption":         {"", "**Encryption of backups and changes** is off by default. With `--backup-encryption`"},
		"etcd-manager-metrics-port": {"0", "**The status port** (`--etcd-manager-metrics-port`, off by default) is plain HTTP without authentication."},
		"insecure":                  {"false", "`--insecure` turns TLS off and is for experiments."},
		"etcd-insecure":             {"false", "`--etcd-insecure` turns it off."},
		"allow-unfenced-store":      {"false", "The managers don't trust it to honor conditional writes: they test that at start."},
		"pki-dir":                   {"/etc/kubernetes/pki/etcd-manager", "**CA keys** are on every master, in `--pki-dir`."},
	} {
		f := flags.Lookup(name)
		if f == nil || f.DefValue != x.def {
			t.Errorf("--%s: %+v, want the default %q", name, f, x.def)
		}
		if !strings.Contains(page, x.sentence) {
			t.Errorf("SECURITY.md doesn't say: %s", x.sentence)
		}
	}
	// The keys that are written, as it says.
	dir := t.TempDir()
	if err := pki.CreateCAs(dir, time.Now()); err != nil {
		t.Fatal(err)
	}
	keys := 0
	entries, err := os.ReadDir(dir)
	for _, e := range entries {
		info, ierr := e.Info()
		if ierr != nil {
			t.Fatal(ierr)
		}
		if strings.HasSuffix(e.Name(), ".key") {
			if keys++; info.Mode().Perm() != 0o600 {
				t.Errorf("%s has mode %s", e.Name(), info.Mode())
			}
		}
	}
	if err != nil || keys == 0 || !strings.Contains(page, "with mode 0600") {
		t.Errorf("%d keys, %v", keys, err)
	}
}
