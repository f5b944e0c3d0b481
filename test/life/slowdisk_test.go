package life

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// TestSlowDisk: a member whose database takes minutes to load, since its disk is cold and slow, is waited for. Its deadline, 10 s here, is
// for members that do nothing; one that reads its disk isn't removed, although another master could take its place, and comes back as the
// member that it was. Its manager answers all the time.
func TestSlowDisk(t *testing.T) {
	testutil.Long(t)
	if !*all {
		t.Skip("it takes minutes: only with -all")
	}
	t.Parallel() // it mostly waits

	const database, perSecond = 320 << 20, 4_000_000 // etcd reads it twice: the log, and the database
	c := harness.Start(t, harness.Options{Nodes: 4, Spec: &cluster.Spec{MemberCount: 3}, Args: args("--change-log-interval=0")})
	n := slowNode(t, c)
	slow := slowDisk(t, n.DataDir, perSecond)
	value := make([]byte, 1<<20)
	rnd := rand.NewChaCha8([32]byte{1})
	for i := range database / len(value) {
		_, _ = rnd.Read(value)
		c.Put(fmt.Sprintf("/big/%d", i), string(value))
	}
	c.WaitHealthy(3)
	before := memberIDs(t, c)

	n.KillWhole()
	evict(t, n.DataDir)
	began := time.Now()
	n.Start()
	slow(n.PID())
	read := func() int64 { // what the node's etcd has read from the disk
		pid := n.EtcdPID()
		if pid == 0 {
			return 0
		}
		text, err := os.ReadFile(fmt.Sprintf("/proc/%d/io", pid))
		if err != nil {
			return 0
		}
		var x, bytes int64
		_, err = fmt.Sscanf(string(text), "rchar: %d\nwchar: %d\nsyscr: %d\nsyscw: %d\nread_bytes: %d", &x, &x, &x, &x, &bytes)
		must(t, err)
		return bytes
	}
	c.WaitFor("etcd on the slow disk serves", 5*time.Minute, func() string {
		if noneReplaced(t, c); t.Failed() {
			t.FailNow()
		}
		v, err := n.Status(t.Context())
		switch {
		case err != nil:
			return err.Error()
		case !v.Etcd.Healthy:
			return fmt.Sprintf("%d MiB are read", read()>>20)
		}
		return ""
	})
	t.Logf("etcd was back after %s, and had read %d MiB", time.Since(began).Round(time.Second), read()>>20)
	if d := time.Since(began); d < 30*time.Second {
		t.Skipf("the disk isn't slow here: %s", d)
	}
	c.WaitHealthy(3)
	for _, x := range c.Nodes {
		if log := x.LogText(); strings.Contains(log, fmt.Sprintf("member %s hasn't answered", n.Name)) {
			t.Errorf("node %s found that the manager of %s is silent", x.Name, n.Name)
		}
	}
	noneReplaced(t, c)
	if after := memberIDs(t, c); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("the members are %x; before they were %x", after, before)
	}
}

// slowNode is a node with a member, whose manager doesn't lead.
func slowNode(t *testing.T, c *harness.Cluster) *harness.Node {
	t.Helper()
	members, leader := memberIDs(t, c), c.WaitLeader()
	for _, n := range c.Nodes {
		if members[n.ID()] != 0 && n != leader {
			return n
		}
	}
	t.Fatalf("none of the members %v has a manager that doesn't lead", members)
	return nil
}

func memberIDs(t *testing.T, c *harness.Cluster) map[string]uint64 {
	t.Helper()
	ctx, cancel := contextFor(t, 10*time.Second)
	defer cancel()
	l, err := c.Client().MemberList(ctx)
	must(t, err)
	ids := map[string]uint64{}
	for _, m := range l.Members {
		ids[m.Name] = m.ID
	}
	return ids
}

// slowDisk returns what has a process, and those that it starts, read its disk with so many bytes in a second. The test is skipped where
// the kernel can't, or nobody may.
func slowDisk(t *testing.T, dir string, perSecond int) func(pid int) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("to slow a disk down takes root")
	}
	var st syscall.Stat_t
	must(t, syscall.Stat(dir, &st))
	device := fmt.Sprintf("%d:%d", unix.Major(st.Dev), unix.Minor(st.Dev))
	group, err := os.MkdirTemp("/sys/fs/cgroup/blkio", "etcd-manager-test-")
	if err != nil {
		t.Skipf("no controller of a disk's speed: %v", err)
	}
	t.Cleanup(func() { _ = os.Remove(group) })
	if err := os.WriteFile(filepath.Join(group, "blkio.throttle.read_bps_device"), fmt.Appendf(nil, "%s %d", device, perSecond), 0); err != nil {
		t.Skipf("this disk can't be slowed down: %v", err)
	}
	return func(pid int) {
		t.Helper()
		must(t, os.WriteFile(filepath.Join(group, "cgroup.procs"), []byte(strconv.Itoa(pid)), 0))
	}
}

// evict has the kernel forget what it keeps of the files below a directory.
func evict(t *testing.T, dir string) {
	t.Helper()
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := f.Sync(); err != nil {
			return err
		}
		return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
	}))
}
