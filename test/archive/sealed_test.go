package archive

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// TestSealed restores a point out of a store in which everything is encrypted; without the key the operator is told which one is lacking.
func TestSealed(t *testing.T) {
	testutil.Long(t)
	t.Parallel()
	id, err := age.GenerateX25519Identity()
	must(t, err)
	file := filepath.Join(t.TempDir(), "identity")
	must(t, os.WriteFile(file, []byte(id.String()+"\n"), 0o600))
	c := harness.Start(t, harness.Options{Args: []string{
		"--change-log-interval=1s", "--queue-poll-interval=1s", "--backup-compression=zstd",
		"--backup-encryption=age:" + id.Recipient().String(), "--backup-identity=" + file,
	}})
	c.WaitBackups(1)
	for i := range 50 {
		c.Put(fmt.Sprintf("/data/%03d", i), strings.Repeat("v", i*10))
	}
	a := now(c)
	c.Put("/data/later", "1")
	kept(t, c, c.Put("/data/later", "2"))
	to := fmt.Sprintf("--to-revision=%d", a.revision)
	if out, errOut, code := c.Ctl("restore-backup", to, "--dry-run"); code != 1 ||
		!strings.Contains(errOut, id.Recipient().String()) || !strings.Contains(errOut, "no key") {
		t.Errorf("without the key: exit code %d\n%s%s", code, out, errOut)
	}
	a.check(t, c, restored(t, c, "--identity="+file, to))
	out, errOut, code := c.Ctl("verify-backup", "--identity="+file, c.Backups()[0].Name)
	if code != 0 || !strings.Contains(out, "sound") {
		t.Errorf("verify-backup: exit code %d\n%s%s", code, out, errOut)
	}
}
