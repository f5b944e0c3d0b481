package main

import (
	"context"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// TestLatestEverywhere: wherever a command takes the name of a backup, latest is the same one: the newest good one of the life that
// serves, though others come later by their names.
func TestLatestEverywhere(t *testing.T) {
	const want = "2026-02-01T10:00:00Z-000000"
	manifest := func(w *world, name string, id uint64, revision int64) {
		w.put(name+"/etcd.backup.gz", strings.Repeat("x", 1500))
		digest := catalog.Digest{Size: 1500, SHA256: strings.Repeat("0", 64)}
		must(w.t, w.catalog().PutManifest(context.Background(),
			&catalog.Manifest{Backup: name, ClusterName: "c", ClusterID: catalog.HexID(id), EtcdVersion: "3.5.21",
				Revision: revision, Compression: "gzip", Raw: digest, Stored: digest, Started: catalog.BackupTime(name)}))
		must(w.t, w.catalog().CommitBackup(context.Background(), name,
			catalog.BackupInfo{EtcdVersion: "3.5.21", Time: catalog.BackupTime(name), Spec: specOf(3)}))
	}
	for _, args := range [][]string{
		{"restore-backup", "latest"}, {"restore-backup", "latest", "--dry-run"}, {"restore-backup", "latest", "--latest"},
		{"verify-backup", "latest"}, {"verify-backup", "latest", "--chain"}, {"download-backup", "latest"}, {"inspect", "latest"},
		{"pin-backup", "latest"}, {"unpin-backup", "latest"}, {"delete-command", "latest"},
	} {
		t.Run(strings.Join(args, " "), func(t *testing.T) {
			t.Chdir(t.TempDir())
			w := newWorld(t)
			w.spec(3, "3.5.21")
			manifest(w, want, 0xb, 2_000_000_000)
			manifest(w, "2026-02-01T13:00:00Z-000000", 0xa, 100) // dated ahead, and of the life that was replaced
			manifest(w, "2026-02-01T11:00:00Z-000000", 0xb, 2_000_000_100)
			must(t, w.catalog().PutProof(context.Background(), "2026-02-01T11:00:00Z-000000", catalog.Proof{Outcome: catalog.Disproven}))
			w.queue(want, catalog.RestoreOptions{})
			code, out, errOut := w.exec(append([]string{"--backup-store=mem://x"}, args...)...)
			if !strings.Contains(out+errOut, want) || code == exitNotFound || code == exitUsage {
				t.Errorf("code %d, %s%s", code, out, errOut)
			}
			if args[0] == "pin-backup" {
				w.content(want + "/_etcd_manager_pin.json")
			}
		})
	}
}
