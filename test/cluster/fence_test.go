package cluster

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/blob/connect"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// twoMounts returns two overlays of one directory: both show the same files, and each has inodes,
// and so locks, of its own, as NFS has with nolock.
func twoMounts(t *testing.T) (one, other string) {
	t.Helper()
	if os.Getuid() != 0 {
		t.Skip("only root can mount")
	}
	base := t.TempDir()
	mount := func(args ...string) {
		if out, err := exec.Command("mount", args...).CombinedOutput(); err != nil {
			t.Skipf("mount %v: %v: %s", args, err, out)
		}
		dir := args[len(args)-1]
		t.Cleanup(func() {
			if out, err := exec.Command("umount", "--lazy", dir).CombinedOutput(); err != nil {
				t.Errorf("unmount %s: %v: %s", dir, err, out)
			}
		})
	}
	mount("-t", "tmpfs", "none", base) // an overlay can't lie on another one
	for _, dir := range []string{"low", "up", "work0", "work1", "mnt0", "mnt1"} {
		must(t, os.Mkdir(filepath.Join(base, dir), 0o700))
	}
	for i := range 2 {
		options := fmt.Sprintf("lowerdir=%s/low,upperdir=%s/up,workdir=%s/work%d,index=off", base, base, base, i)
		mount("-t", "overlay", "-o", options, "overlay", fmt.Sprintf("%s/mnt%d", base, i))
	}
	return filepath.Join(base, "mnt0"), filepath.Join(base, "mnt1")
}

// TestAnotherStore: a master of a cluster that serves comes back with a store that doesn't fence it
// off. It is named with the cause, nothing is restored, and when it has the right store again the
// restore that was queued goes on by itself.
func TestAnotherStore(t *testing.T) {
	testutil.Long(t)
	t.Parallel() // it mostly waits
	for name, x := range map[string]struct {
		stores func(t *testing.T) (right, wrong string)
		cause  string
	}{
		"another directory": {func(t *testing.T) (right, wrong string) {
			dir := t.TempDir()
			return filepath.Join(dir, "right"), filepath.Join(dir, "wrong")
		}, "another store"},
		"local locks": {twoMounts, "file locks don't reach"},
	} {
		t.Run(name, func(t *testing.T) {
			right, wrong := x.stores(t)
			c := harness.Start(t, harness.Options{StoreURL: right})
			c.WaitBackups(1)
			b := c.Node("b")
			b.Term()
			b.Args = []string{"--backup-store=" + wrong}
			b.Start()
			c.WaitHealthy(3)
			c.WaitFor("node b is named", 4*time.Minute, func() string { return unfenced(t, c, "node b", x.cause) })
			out, errOut, code := c.Ctl("restore-backup", "latest", "--now")
			if code != 0 {
				t.Fatalf("code %d: %s%s", code, out, errOut)
			}
			c.WaitFor("the restore is held", time.Minute, func() string {
				if l := c.Leader(); l != nil {
					if v, err := l.Status(t.Context()); err == nil && len(v.Waiting) > 0 {
						return unfenced(t, c, "node b", x.cause)
					}
				}
				return "nobody says that it waits"
			})
			ops, _, err := c.Catalog.Operations(t.Context())
			must(t, err)
			if len(ops) > 0 {
				t.Fatalf("a restore was begun: %+v", ops)
			}
			b.Term()
			b.Args = nil
			b.Start()
			var done catalog.Operation
			c.WaitFor("the restore", 4*time.Minute, func() string {
				ops, _, err := c.Catalog.Operations(t.Context())
				if err != nil || len(ops) == 0 {
					return fmt.Sprintf("%d operations, %v", len(ops), err)
				}
				done = ops[0]
				if !done.State.Final() {
					return string(done.State)
				}
				return ""
			})
			c.CheckEnded(done, catalog.StateDone)
			c.WaitHealthy(3)
		})
	}
}

// unfenced is "" when every node says that the store fences nothing, and why.
func unfenced(t *testing.T, c *harness.Cluster, words ...string) string {
	for _, n := range c.Nodes {
		v, err := n.Status(t.Context())
		if err != nil {
			return err.Error()
		}
		found := false
		for _, a := range v.Attention {
			if a.Kind != cluster.AttentionUnfenced {
				continue
			}
			found = true
			for _, w := range append(words, "node "+string(v.Leader)) {
				found = found && strings.Contains(a.Text, w)
			}
		}
		if !found {
			return fmt.Sprintf("node %s: %v; it does: %s", n.Name, v.Attention, v.Doing)
		}
	}
	return ""
}

// TestFoundersWithTwoStores: masters that find each other and were given two stores form nothing in either.
func TestFoundersWithTwoStores(t *testing.T) {
	testutil.Long(t)
	t.Parallel() // it mostly waits
	seeds := t.TempDir()
	other := filepath.Join(t.TempDir(), "other")
	c := harness.New(t, harness.Options{Nodes: 3})
	for _, n := range c.Nodes {
		dir := filepath.Join(seeds, n.Name)
		must(t, os.Mkdir(dir, 0o700))
		for _, m := range c.Nodes {
			if m != n {
				must(t, os.WriteFile(filepath.Join(dir, m.Name), fmt.Appendf(nil, "%s:%d\n", m.Address, c.Ports.GRPC), 0o600))
			}
		}
		n.Args = []string{"--seeds-dir=" + dir}
	}
	store, err := connect.Open(t.Context(), other, os.Getenv)
	must(t, err)
	elsewhere := catalog.New(store)
	_, err = elsewhere.CreateSpec(t.Context(), cluster.Spec{MemberCount: 3})
	must(t, err)
	right := c.Node("c").Args
	c.Node("c").Args = append(slices.Clone(right), "--backup-store="+other)
	c.StartAll()
	c.WaitFor("the two stores are named", 4*time.Minute, func() string { return unfenced(t, c, "node c", "another store", other) })
	for _, x := range []*catalog.Catalog{c.Catalog, elsewhere} {
		if m, _, err := x.Marker(t.Context()); err == nil {
			t.Errorf("a cluster was formed: %+v", m)
		}
	}
	for _, n := range c.Nodes {
		if n.EtcdPID() != 0 {
			t.Errorf("node %s runs an etcd", n.Name)
		}
	}
	c.Node("c").Term()
	c.Node("c").Args = right
	c.Node("c").Start()
	c.WaitHealthy(3)
}
