package cluster

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/test/harness"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// waitDoing waits until the leader says something.
func waitDoing(t *testing.T, c *harness.Cluster, within time.Duration, parts ...string) {
	t.Helper()
	c.WaitFor("the leader to say "+strings.Join(parts, ", "), within, func() string {
		l := c.Leader()
		if l == nil {
			return "nobody leads"
		}
		v, err := l.Status(t.Context())
		if err != nil {
			return err.Error()
		}
		for _, p := range parts {
			if !strings.Contains(v.Doing, p) {
				return "it says: " + v.Doing
			}
		}
		if !v.Alarm {
			return "it says so, but calls for nobody"
		}
		return ""
	})
}

// crash kills all managers and starts them again; their etcds go on.
func crash(c *harness.Cluster) {
	for _, n := range c.Nodes {
		n.Kill()
	}
	c.StartAll()
}

// TestBadSpecs writes specs that can't be fulfilled. A running cluster runs on, and the leader names spec and way out.
func TestBadSpecs(t *testing.T) {
	testutil.Long(t)
	c := harness.Start(t, harness.Options{})
	check := c.Untouched()
	path := filepath.Join(c.StoreURL, "control", "etcd-cluster-spec")
	for _, tc := range []struct {
		spec string
		say  []string
	}{
		{`{"memberCount":0}`, []string{"0 members", "configure-cluster"}},
		{`{"memberCount":2}`, []string{"2 members", "configure-cluster"}},
		{`{"memberCount":100}`, []string{"100 members", "configure-cluster"}},
		{`{"memberCount":3,"etcdVersion":"9.9.9"}`, []string{"9.9.9"}},
		{`{"memberCount":3,"etcdVersion":"latest"}`, []string{"latest"}},
		{`not JSON`, []string{"etcd-cluster-spec"}},
	} {
		harness.WriteFile(t, path, tc.spec)
		crash(c)
		waitDoing(t, c, 20*time.Second, tc.say...)
	}
	harness.WriteFile(t, path, `{"memberCount":3}`)
	crash(c)
	c.WaitHealthy(3)
	check()
}

// TestBadSpecBeforeForming has nothing formed, and one healthy cluster as soon as the spec is right.
func TestBadSpecBeforeForming(t *testing.T) {
	testutil.Long(t)
	c := harness.New(t, harness.Options{NoSpec: true})
	c.StartAll()
	c.WaitLog(30*time.Second, "configure-cluster")
	if _, errOut, code := c.Ctl("configure-cluster", "--member-count=2"); code == 0 || !strings.Contains(errOut, "2") {
		t.Errorf("configure-cluster --member-count=2: exit code %d: %s", code, errOut)
	}
	for _, n := range c.Nodes {
		if s, err := n.State(); s != nil || err != nil {
			t.Errorf("node %s has a state file without a spec: %v %v", n.Name, s, err)
		}
	}
	if _, errOut, code := c.Ctl("configure-cluster", "--member-count=3"); code != 0 {
		t.Fatalf("configure-cluster: exit code %d: %s", code, errOut)
	}
	c.WaitHealthy(3)
	c.OneToken()
}

// TestCorruptState spoils a node's state file. That node stays out of everything and says why; the others serve.
func TestCorruptState(t *testing.T) {
	testutil.Long(t)
	c := harness.Start(t, harness.Options{})
	n := c.Nodes[2]
	if n == c.Leader() {
		n = c.Nodes[1]
	}
	if code := n.Term(); code != 0 {
		t.Errorf("exit code %d after SIGTERM", code)
	}
	good, err := os.ReadFile(filepath.Join(n.DataDir, "state"))
	must(t, err)
	load := c.StartLoad(harness.LoadOptions{Any: true})
	harness.WriteFile(t, filepath.Join(n.DataDir, "state"), "\xff\xff\xffgarbage")
	n.Start()
	c.WaitLog(20*time.Second, "corrupt", n)
	if text := n.LogText(); !strings.Contains(text, filepath.Join(n.DataDir, "state")) || !strings.Contains(text, "move it away") {
		t.Errorf("the message names no file or no way out:\n%s", n.LogTail(10))
	}
	acked := load.Acked()
	c.WaitFor("writes meanwhile", 20*time.Second, func() string {
		if load.Acked() < acked+20 {
			return "too few"
		}
		return ""
	})
	if n.EtcdPID() != 0 {
		t.Errorf("node %s runs an etcd although it can't read its state", n.Name)
	}
	n.Kill()
	must(t, os.WriteFile(filepath.Join(n.DataDir, "state"), good, 0o600))
	n.Start()
	c.WaitHealthy(3)
	t.Log(load.Stop())
	load.Verify()
}

// TestSecondManager starts a second manager on a data dir that is in use; it ends, and the first one isn't disturbed.
func TestSecondManager(t *testing.T) {
	c := harness.Start(t, harness.Options{Nodes: 1})
	check := c.Untouched()
	out, code := runManager(t, c.Programs.Manager, append(c.Args(c.Nodes[0]), "--grpc-port=19998"), nil)
	if code != 1 || !strings.Contains(out, c.Nodes[0].DataDir) {
		t.Errorf("a second manager on one data dir: exit code %d: %s", code, out)
	}
	out, code = runManager(t, c.Programs.Manager, append(c.Args(c.Nodes[0]), "--data-dir="+filepath.Join(c.Dir, "another")), nil)
	if code != 1 || !strings.Contains(out, "in use") {
		t.Errorf("a second manager on one port: exit code %d: %s", code, out)
	}
	check()
}

// TestStoreAway takes the store away in every way from a running cluster, through restarts of the managers. etcd serves on, and the
// leader says what is wrong; backups go on when the store is back.
func TestStoreAway(t *testing.T) {
	testutil.Long(t)
	t.Parallel() // it mostly waits
	s3 := servers.StartVersityGW(t)
	c := harness.Start(t, harness.Options{S3: s3, BackupInterval: time.Second})
	c.WaitBackups(1)
	check := c.Untouched()
	s3.Stop()
	c.WaitFor("a failed backup or a store error in the status", 90*time.Second, func() string {
		v, err := c.WaitLeader().Status(t.Context())
		if err != nil || v.StoreError == "" && v.BackupError == "" {
			return "there is none"
		}
		return ""
	})
	// One by one: the others still know where a restarted manager is, although it can't look for them.
	for _, n := range c.Nodes {
		n.Kill()
		n.Start()
		c.WaitFor("the manager of "+n.Name+" to be among the others again", 60*time.Second, func() string {
			v, err := n.Status(t.Context())
			switch {
			case err != nil:
				return err.Error()
			case v.Leader == "":
				return "it knows no leader"
			}
			return ""
		})
	}
	waitDoing(t, c, 2*time.Minute, "store") // a person is called once it has lasted for a minute
	crash(c)                                // all at once: they find each other when the store is back
	s3.Start()
	c.WaitHealthy(3)
	backups := len(c.Backups())
	c.WaitFor("another backup", 90*time.Second, func() string {
		if len(c.Backups()) <= backups {
			return "there is none"
		}
		return ""
	})
	// It hangs: connections are taken, nothing answers.
	s3.Pause()
	l := c.WaitLeader()
	l.Kill()
	l.Start()
	waitDoing(t, c, 2*time.Minute, "store")
	s3.Resume()
	c.WaitHealthy(3)
	check()
}

// TestSaysWhatItWaitsFor starts managers that can't form a cluster yet. Before there is any leader, the status of each node says what is
// waited for and since when, and nothing is formed.
func TestSaysWhatItWaitsFor(t *testing.T) {
	testutil.Long(t)
	t.Parallel() // it mostly waits
	for _, x := range []struct {
		what   string
		noSpec bool
		cause  func(c *harness.Cluster, s3 *servers.S3)
		say    []string
	}{
		{what: "wrong keys", say: []string{"denied"}, cause: func(c *harness.Cluster, _ *servers.S3) {
			c.StoreEnv["S3_SECRET_ACCESS_KEY"] = "wrong"
		}},
		{what: "no bucket", say: []string{"missing"}, cause: func(c *harness.Cluster, s3 *servers.S3) {
			c.StoreURL = "s3://missing/test/backups/etcd/main"
		}},
		{what: "a server that is down", say: []string{"refused"}, cause: func(_ *harness.Cluster, s3 *servers.S3) { s3.Stop() }},
		{what: "a server that hangs", say: []string{"backup store"}, cause: func(_ *harness.Cluster, s3 *servers.S3) { s3.Pause() }},
		{what: "no spec", noSpec: true, say: []string{"how many members are wanted"}, cause: func(*harness.Cluster, *servers.S3) {}},
	} {
		t.Run(x.what, func(t *testing.T) {
			t.Parallel()
			s3 := servers.StartVersityGW(t, servers.InMemory())
			c := harness.New(t, harness.Options{S3: s3, NoSpec: x.noSpec})
			x.cause(c, s3)
			c.StartAll()
			for _, n := range c.Nodes {
				var said string
				c.WaitFor("the status of "+n.Name, 2*time.Minute, func() string {
					v, err := n.Status(t.Context())
					if err != nil {
						return err.Error()
					}
					said = v.Doing + " " + v.StoreError
					for _, a := range v.Attention {
						said += " " + a.String()
					}
					for _, w := range x.say {
						if !strings.Contains(said, w) {
							return fmt.Sprintf("it doesn't say %q: %s", w, said)
						}
					}
					return ""
				})
				t.Logf("node %s: %s", n.Name, said)
				if s, err := n.State(); s != nil || err != nil {
					t.Errorf("node %s has a state file although nothing could be formed: %v %v", n.Name, s, err)
				}
			}
		})
	}
}

// TestFullDisk restores where there is no room for it: the restore fails with the reason, and the running cluster is left alone.
func TestFullDisk(t *testing.T) {
	testutil.Long(t)
	c := harness.New(t, harness.Options{BackupInterval: 2 * time.Second})
	n := c.Nodes[1]
	if err := unix.Mount("tmpfs", n.DataDir, "tmpfs", 0, "size=180m"); err != nil {
		t.Skipf("a small file system is needed, and can't be mounted here: %v", err)
	}
	t.Cleanup(func() {
		n.KillWhole()
		if err := unix.Unmount(n.DataDir, unix.MNT_DETACH); err != nil {
			t.Errorf("unmount: %v", err)
		}
	})
	harness.WriteFile(t, filepath.Join(n.DataDir, "myid"), n.Name)
	c.StartAll()
	c.WaitHealthy(3)
	name := c.BackupWith(c.Put("/data/a", "b"))
	fill := filepath.Join(n.DataDir, "fill")
	var st unix.Statfs_t
	must(t, unix.Statfs(n.DataDir, &st))
	if room := int64(st.Bavail)*st.Bsize - 20<<20; room > 0 {
		must(t, os.WriteFile(fill, make([]byte, room), 0o600))
	}
	check := c.Untouched()
	cmd, err := c.Catalog.QueueRestore(t.Context(), name, c.Spec(), catalog.RestoreOptions{})
	must(t, err)
	crash(c)
	op := c.WaitOperation(cmd.Name, time.Minute)
	c.CheckEnded(op, catalog.StateFailed)
	if !strings.Contains(op.Reason, "MiB") || !strings.Contains(op.Reason, n.DataDir) {
		t.Errorf("the reason is %q; it should name the disk of %s", op.Reason, n.DataDir)
	}
	t.Log(op.Reason)
	c.WaitHealthy(3)
	check()
}
