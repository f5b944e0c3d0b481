package cluster

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/volume"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// entries are the names in a directory.
func entries(t *testing.T, dir string) []string {
	t.Helper()
	list, err := os.ReadDir(dir)
	must(t, err)
	var names []string
	for _, e := range list {
		names = append(names, e.Name())
	}
	return names
}

// TestExternalVolume: without a volume at its place the manager waits, and writes nothing there. A
// volume that is taken away under it ends it, and nothing lands in the directory below. Another
// cluster's volume is refused as it is.
func TestExternalVolume(t *testing.T) {
	testutil.Long(t)
	if os.Geteuid() != 0 {
		t.Skip("skipped: mounts need root")
	}
	c := harness.New(t, harness.Options{Nodes: 1, Args: []string{"--volume-provider=external"}})
	n := c.Nodes[0]
	t.Cleanup(func() {
		for unix.Unmount(n.DataDir, unix.MNT_DETACH) == nil {
		}
	})
	below := entries(t, n.DataDir)
	mount := func() {
		t.Helper()
		if err := unix.Mount("tmpfs", n.DataDir, "tmpfs", 0, "size=512m"); err != nil {
			if errors.Is(err, unix.EPERM) {
				t.Skipf("skipped: nothing can be mounted here: %v", err)
			}
			t.Fatal(err)
		}
	}
	n.Start()
	c.WaitLog(10*time.Second, "waiting for a volume to be mounted at "+n.DataDir)
	if now := entries(t, n.DataDir); !slices.Equal(now, below) {
		t.Errorf("without a volume there is %v in the directory", now)
	}

	mount()
	c.WaitHealthy(1)
	if id, err := volume.ReadIdentity(n.DataDir); err != nil || id == nil || id.ClusterName != "test" || string(id.Node) != n.ID() {
		t.Errorf("the volume's identity is %+v, %v", id, err)
	}

	must(t, unix.Unmount(n.DataDir, unix.MNT_DETACH))
	if code := n.WaitExit(time.Minute); code != 1 {
		t.Errorf("exit code %d after the volume was taken away", code)
	}
	if text := n.LogText(); !strings.Contains(text, "nothing is mounted at "+n.DataDir) {
		t.Errorf("it didn't say why it ended: %s", n.LogTail(5))
	}
	if now := entries(t, n.DataDir); !slices.Equal(now, below) {
		t.Errorf("after the volume was taken away there is %v in the directory", now)
	}

	mount()
	must(t, volume.Claim(n.DataDir, volume.Identity{ClusterName: "somebody-else", Node: "x", Store: "/elsewhere"}))
	before := entries(t, n.DataDir)
	n.Start()
	if code := n.WaitExit(time.Minute); code != 1 {
		t.Errorf("exit code %d with another cluster's volume", code)
	}
	if text := n.LogText(); !strings.Contains(text, `holds data of cluster "somebody-else", not of "test"`) {
		t.Errorf("it didn't say whose the volume is: %s", n.LogTail(5))
	}
	if now := entries(t, n.DataDir); !slices.Equal(now, before) {
		t.Errorf("another cluster's volume has %v, had %v", now, before)
	}
}
