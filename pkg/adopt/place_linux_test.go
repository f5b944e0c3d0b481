package adopt

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

var exampleDir = regexp.MustCompile(`--data-dir=(\S+-manager)\b`)

// TestPlaceExamples: who follows what a refusal says is not refused again, also where etcd's data dir is the
// root of a file system with lost+found.
func TestPlaceExamples(t *testing.T) {
	mount := t.TempDir()
	if err := unix.Mount("tmpfs", mount, "tmpfs", 0, ""); err != nil {
		t.Skipf("skipped: no file system can be mounted: %v", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(mount, unix.MNT_DETACH) })
	for _, dir := range []string{"lost+found", "member/wal", "beside/member"} {
		if err := os.MkdirAll(filepath.Join(mount, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	check := func(old, dataDir string) error {
		return (&Plan{OldDataDir: old, DataDir: dataDir, PKIDir: "/pki"}).checkPlace()
	}
	beside, elsewhere := filepath.Join(mount, "beside"), t.TempDir()
	for name, c := range map[string]struct{ old, dataDir, says string }{
		"root, beside it":         {mount, mount + "-manager", "is the root of a file system"},
		"root, itself":            {mount, mount, "is the root of a file system"},
		"root, inside":            {mount, filepath.Join(mount, "manager"), "is the root of a file system"},
		"root, elsewhere":         {mount, elsewhere, "is the root of a file system"},
		"directory, itself":       {beside, beside, "is inside of etcd's own"},
		"directory, inside":       {beside, filepath.Join(beside, "manager"), "is inside of etcd's own"},
		"directory, elsewhere":    {beside, elsewhere, "on different file systems"},
		"directory, far from it":  {beside, "/nowhere/at/all", "on different file systems"},
		"directory, not absolute": {beside, "manager", "must be absolute paths"},
	} {
		err := check(c.old, c.dataDir)
		if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.says) {
			t.Errorf("%s: %v; want %q", name, err, c.says)
			continue
		}
		example := exampleDir.FindStringSubmatch(err.Error())
		if example == nil {
			if c.says != "must be absolute paths" {
				t.Errorf("%s: no example: %v", name, err)
			}
			continue
		}
		old := c.old
		if old == mount { // what is said is done
			old = filepath.Join(mount, "etcd")
			if !strings.Contains(err.Error(), "mkdir "+old+" && mv "+mount+"/member "+old+"/") {
				t.Errorf("%s: it isn't said how: %v", name, err)
			}
			if err := os.MkdirAll(old, 0o700); err != nil {
				t.Fatal(err)
			}
		}
		if err := check(old, example[1]); err != nil {
			t.Errorf("%s: the example %s is refused: %v", name, example[1], err)
		}
	}
}
