package volume

import (
	"crypto/sha256"
	"encoding/hex"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// needLoop skips the test where loop devices and mounts can't be made.
func needLoop(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("skipped: loop devices need root")
	}
	for _, tool := range []string{"losetup", "mkfs.ext4", "blkid", "e2fsck", "resize2fs"} {
		if _, err := findTool(tool); err != nil {
			t.Skipf("skipped: %v", err)
		}
	}
	if _, err := os.Stat("/dev/loop-control"); err != nil {
		t.Skipf("skipped: no loop devices: %v", err)
	}
}

func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	path, err := findTool(name)
	if err != nil {
		t.Skipf("skipped: %v", err)
	}
	out, err := exec.Command(path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %v: %v: %s", name, args, err, out)
	}
	return strings.TrimSpace(string(out))
}

// image makes a sparse file of that many MiB.
func image(t *testing.T, mib int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "image")
	f, err := os.Create(path)
	if err == nil {
		err = f.Truncate(mib << 20)
	}
	if err != nil {
		t.Fatal(err)
	}
	f.Close()
	return path
}

// loop makes a device of a file.
func loop(t *testing.T, image string) string {
	t.Helper()
	dev := tool(t, "losetup", "--find", "--show", image)
	t.Cleanup(func() { tool(t, "losetup", "--detach", dev) })
	return dev
}

func sum(t *testing.T, path string) string {
	t.Helper()
	f, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	h := sha256.New()
	if _, err := io.Copy(h, f); err != nil {
		t.Fatal(err)
	}
	return hex.EncodeToString(h.Sum(nil))
}

// mount mounts a device and takes it away again with the test.
func mount(t *testing.T, dev, point string) (*Mounted, error) {
	t.Helper()
	m := &Mounter{Host: Direct{}, Say: t.Logf}
	v, err := m.Mount(t.Context(), dev, point)
	if err == nil {
		t.Cleanup(func() { _ = unix.Unmount(point, 0) })
	}
	return v, err
}
