package main

import (
	"bytes"
	"context"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"
	"go.etcd.io/etcd/etcdutl/v3/snapshot"
	"go.uber.org/zap"

	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/envelope"
	"github.com/etcd-manager/etcd-manager/pkg/envelope/awskms"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/test/awsdouble"
)

const encrypted1 = "2026-02-01T10:00:00Z-000000"

// newIdentity makes a key of age, and returns the recipient and the file with the identity.
func newIdentity(t *testing.T) (recipient, path string) {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	must(t, err)
	path = filepath.Join(t.TempDir(), "keys.txt")
	must(t, os.WriteFile(path, []byte(id.String()+"\n"), 0o600))
	return id.Recipient().String(), path
}

// sealedBackup makes a backup of a real snapshot that the recipient can read.
func (w *world) sealedBackup(name, compression, recipient string) real {
	w.t.Helper()
	r := realSnapshot(w.t)
	s, err := envelope.NewSealer(envelope.Config{Cluster: "main", KMS: w.kms}, []string{recipient})
	must(w.t, err)
	c := catalog.New(w.store, catalog.WithKeys(s, nil))
	_, err = backup.NewWriter(c, backup.Options{Compression: compression}).Write(context.Background(), name, backup.Facts{
		ClusterName: "main", Node: "a", EtcdVersion: etcd.CompiledVersion, Spec: specOf(3), Revision: r.revision, Reason: "before-upgrade",
	}, io.NopCloser(bytes.NewReader(r.data)), nil)
	must(w.t, err)
	return r
}

// wants runs the tool and looks for words in what it says.
func (w *world) wants(code int, words []string, args ...string) string {
	w.t.Helper()
	got, out, errOut := w.exec(append([]string{"--backup-store=mem:"}, args...)...)
	if got != code {
		w.t.Errorf("%v: exit code %d, want %d: %s%s", args, got, code, out, errOut)
	}
	for _, word := range words {
		if !strings.Contains(out+errOut, word) {
			w.t.Errorf("%v: %q lacks %q", args, out+errOut, word)
		}
	}
	return out + errOut
}

func TestEncrypted(t *testing.T) {
	for _, compression := range []string{"gzip", "zstd"} {
		t.Run(compression, func(t *testing.T) {
			w := newWorld(t)
			recipient, identity := newIdentity(t)
			_, other := newIdentity(t)
			r := w.sealedBackup(encrypted1, compression, "age:"+recipient)
			w.spec(3, etcd.CompiledVersion)
			// What needs no key works without.
			w.wants(exitOK, []string{encrypted1}, "list-backups")
			w.wants(exitOK, []string{encrypted1}, "restore-backup", encrypted1)
			for _, args := range [][]string{{"verify-backup", encrypted1}, {"inspect", encrypted1},
				{"download-backup", encrypted1, filepath.Join(t.TempDir(), "x.db")}} {
				for _, key := range [][]string{nil, {"--identity=" + other}} {
					said := w.wants(exitFailure, []string{"no key to open it", recipient, "--identity"}, append(args, key...)...)
					if strings.Contains(said, "BAD") || strings.Contains(said, "corrupt") {
						t.Errorf("a missing key is called a damage: %s", said)
					}
				}
			}
			w.wants(exitOK, []string{"sound", "before-upgrade"}, "verify-backup", encrypted1, "--identity="+identity)
			w.wants(exitOK, []string{`"encryption"`, `"` + compression + `"`}, "verify-backup", encrypted1, "-o",
				"json", "--identity="+other, "--identity="+identity)
			path := filepath.Join(t.TempDir(), "snapshot.db")
			w.wants(exitOK, nil, "download-backup", encrypted1, path, "--identity="+identity)
			if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, r.data) {
				t.Errorf("downloaded %d bytes, %v", len(got), err)
			}
			w.wants(exitUsage, []string{"--identity", "/no/such/file"}, "list-backups", "--identity=/no/such/file")
		})
	}
}

// TestImportEncrypted: what is imported can be sealed like what a manager writes.
func TestImportEncrypted(t *testing.T) {
	w, r := newWorld(t), realSnapshot(t)
	recipient, identity := newIdentity(t)
	path := filepath.Join(t.TempDir(), "snapshot.db")
	must(t, os.WriteFile(path, r.data, 0o600))
	w.wants(exitOK, nil, "import-backup", path, "--backup-encryption=age:"+recipient, "--backup-compression=zstd")
	w.wants(exitFailure, []string{recipient}, "verify-backup", "latest")
	w.wants(exitOK, []string{"sound"}, "verify-backup", "latest", "--identity="+identity)
	w.wants(exitUsage, []string{"--backup-compression"}, "import-backup", path, "--backup-compression=lzma")
}

// TestEncryptedByKMS: the tool needs no flag for keys of the service, and says what the service refuses.
func TestEncryptedByKMS(t *testing.T) {
	w, d := newWorld(t), awsdouble.StartKMS(t)
	d.Setenv(t)
	w.kms = awskms.New(awskms.Config{Endpoint: d.URL})
	key := d.NewKey()
	w.sealedBackup(encrypted1, "gzip", "aws-kms:"+key)
	w.wants(exitOK, []string{"sound"}, "verify-backup", encrypted1)
	d.Rotate(key)
	w.wants(exitOK, []string{"sound"}, "verify-backup", encrypted1)
	w.wants(exitFailure, []string{"no key to open it", key}, "verify-backup", encrypted1, "--identity=aws-kms:"+d.NewKey())
	d.SetState(key, "Disabled")
	said := w.wants(exitFailure, []string{"the key is refused", "disabled", key}, "verify-backup", encrypted1)
	if strings.Contains(said, "BAD") || strings.Contains(said, "corrupt") {
		t.Errorf("a refused key is called a damage: %s", said)
	}
	d.SetState(key, "Enabled")
	// Moved to another name: what the manifest says of itself is edited along with it.
	const moved = "2026-02-01T11:00:00Z-000000"
	for _, file := range []string{"/etcd.backup.gz.age", "/_etcd_manager_manifest.json", "/_etcd_backup.meta"} {
		w.put(moved+file, strings.ReplaceAll(w.content(encrypted1+file), encrypted1, moved))
	}
	w.wants(exitFailure, []string{"sealed"}, "verify-backup", moved)
}

// TestOtherToolsRead: zcat unpacks the default backup, and etcd's own tool takes what comes out.
func TestOtherToolsRead(t *testing.T) {
	w, r := newWorld(t), realSnapshot(t)
	w.takeBackup(encrypted1, r.data, r.revision)
	data, _, err := blob.ReadAll(t.Context(), w.store, encrypted1+"/etcd.backup.gz", 1<<30)
	must(t, err)
	zcat, err := exec.LookPath("zcat")
	if err != nil {
		t.Skip("no zcat here")
	}
	cmd := exec.CommandContext(t.Context(), zcat)
	cmd.Stdin = bytes.NewReader(data)
	plain, err := cmd.Output()
	if err != nil || !bytes.Equal(plain, r.data) {
		t.Fatalf("zcat: %d bytes, %v", len(plain), err)
	}
	path := filepath.Join(t.TempDir(), "snapshot.db")
	must(t, os.WriteFile(path, plain, 0o600))
	status, err := snapshot.NewV3(zap.NewNop()).Status(path)
	if err != nil || status.Revision != r.revision {
		t.Errorf("etcdutl: %+v, %v", status, err)
	}
}
