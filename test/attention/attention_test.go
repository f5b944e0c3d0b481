// Package attention holds the end-to-end test of what a person is told: how each attention is caused, what the nodes say of it, and that
// what they say ends it.
package attention

import (
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/pki"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// atOnce is how many tests run beside each other. They mostly wait for something to last, or to pass.
const atOnce = "3"

func TestMain(m *testing.M) {
	flag.Parse()
	given := false
	flag.Visit(func(f *flag.Flag) { given = given || f.Name == "test.parallel" })
	if f := flag.Lookup("test.parallel"); f != nil && !given {
		_ = f.Value.Set(atOnce)
	}
	os.Exit(harness.Main(m))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// page asks a node's status port.
func page(t *testing.T, c *harness.Cluster, n *harness.Node, path string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, fmt.Sprintf("http://%s:%d%s", n.Address, c.Ports.Status, path), nil)
	must(t, err)
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, err.Error()
	}
	defer func() { _ = resp.Body.Close() }()
	b, err := io.ReadAll(resp.Body)
	must(t, err)
	return resp.StatusCode, string(b)
}

// metric tells whether a node's metrics have a line.
func metric(t *testing.T, c *harness.Cluster, n *harness.Node, line string) bool {
	t.Helper()
	_, body := page(t, c, n, "/metrics")
	return strings.Contains(body, "\netcd_manager_"+line+"\n")
}

// raised waits until a node says that a person is needed for something of this kind, and returns what it says.
func raised(t *testing.T, c *harness.Cluster, n *harness.Node, kind cluster.AttentionKind) cluster.Attention {
	t.Helper()
	var got cluster.Attention
	c.WaitFor(fmt.Sprintf("node %s says %s", n.Name, kind), 2*time.Minute, func() string {
		v, err := n.Status(t.Context())
		if err != nil {
			return err.Error()
		}
		for _, a := range v.Attention {
			if a.Kind == kind {
				got = a
				return ""
			}
		}
		return fmt.Sprintf("%+v; it does: %s", v.Attention, v.Doing)
	})
	if got.Text == "" || (got.Command == "") == (got.NoCommand == "") || got.Since.IsZero() {
		t.Errorf("incomplete: %+v", got)
	}
	if !metric(t, c, n, "attention_needed 1") || !metric(t, c, n, fmt.Sprintf("attention{kind=%q} 1", kind)) {
		t.Errorf("no metric says so")
	}
	t.Logf("node %s: %s", n.Name, got)
	return got
}

// ended waits until no node that runs needs a person.
func ended(t *testing.T, c *harness.Cluster) {
	t.Helper()
	c.WaitFor("nobody is needed any more", 2*time.Minute, func() string {
		for _, n := range c.Nodes {
			if !n.Running() {
				continue
			}
			v, err := n.Status(t.Context())
			switch {
			case err != nil:
				return err.Error()
			case len(v.Attention) > 0 || v.Alarm:
				return fmt.Sprintf("%s: %v", n.Name, v.Attention)
			case !metric(t, c, n, "attention_needed 0"):
				return n.Name + ": its metric still says so"
			}
		}
		return ""
	})
}

// TestQuorumLost loses two of three masters, then their disks. The one that is left says so by itself, without any leader.
func TestQuorumLost(t *testing.T) {
	testutil.Long(t)
	t.Parallel() // it mostly waits
	c := harness.Start(t, harness.Options{})
	c.WaitBackups(1)
	for _, n := range c.Nodes {
		c.WaitFor("node "+n.Name+" exports what is known of the cluster", time.Minute, func() string {
			for _, line := range []string{"attention_needed 0", "members_healthy 3", "members_wanted 3", "store_up 1",
				"backups 1", "leader_known 1"} {
				if !metric(t, c, n, line) {
					return line + " is missing"
				}
			}
			return ""
		})
	}
	a, b, d := c.Nodes[0], c.Nodes[1], c.Nodes[2]
	c.Put("k", "v")
	b.KillWhole()
	d.KillWhole()
	raised(t, c, a, cluster.AttentionQuorum)
	raised(t, c, a, cluster.AttentionNoLeader)
	for _, line := range []string{"members_healthy 0", "members_wanted 3", "store_up 1", "backups 1", "leader_known 0",
		"backup_failing 0"} {
		if !metric(t, c, a, line) {
			t.Errorf("%s is missing", line)
		}
	}
	for path, want := range map[string]int{"/livez": 200, "/healthz": 200, "/readyz?verbose": 503} {
		if code, body := page(t, c, a, path); code != want {
			t.Errorf("%s: %d %s", path, code, body)
		} else {
			t.Logf("%s: %d %s", path, code, body)
		}
	}
	_, text := page(t, c, a, "/status")
	t.Logf("%s", text)
	if lines := strings.Split(strings.TrimSpace(text), "\n"); strings.Contains(lines[len(lines)-1], "3 of 3") {
		t.Errorf("the last line is old: %s", lines[len(lines)-1])
	}

	// The other masters come back with empty disks: now there is a leader, and a command.
	b.Wipe(true)
	d.Wipe(true)
	b.Start()
	d.Start()
	var at cluster.Attention
	c.WaitFor("a leader names the way without loss", time.Minute, func() string {
		at = raised(t, c, c.WaitLeader(), cluster.AttentionQuorum)
		if at.Command == "" {
			return at.String()
		}
		return ""
	})
	if i, j := strings.Index(at.Text, "recover --from-survivor"), strings.Index(at.Text, "restore-backup"); i < 0 || j < i {
		t.Errorf("the way with loss stands first: %s", at.Text)
	}
	c.WaitFor("the command can be obeyed", time.Minute, func() string {
		out, errOut, code := c.Ctl("recover", "--from-survivor", "--yes")
		if code != 0 {
			return out + errOut
		}
		return ""
	})
	c.WaitHealthy(3)
	ended(t, c)
	got, err := c.Client().Get(t.Context(), "k")
	must(t, err)
	if len(got.Kvs) != 1 || string(got.Kvs[0].Value) != "v" {
		t.Errorf("what was written before the loss is gone: %v", got.Kvs)
	}
}

// TestCertificates has CAs that end in six days: each node says so, since each has its own files. It ends when new ones are put in.
func TestCertificates(t *testing.T) {
	testutil.Long(t)
	t.Parallel() // it mostly waits
	c := harness.Start(t, harness.Options{Nodes: 1, CAs: func(dir string) {
		const life = 10 * 365 * 24 * time.Hour
		must(t, pki.CreateCAs(dir, time.Now().Add(6*24*time.Hour+time.Hour-life)))
	}})
	a := raised(t, c, c.Nodes[0], cluster.AttentionCertificate)
	if a.Node != "a" || !strings.Contains(a.Text, "ends in 6 days") ||
		!strings.Contains(a.NoCommand, "put new ones into "+c.PKI) || !strings.Contains(a.NoCommand, "New CAs") {
		t.Errorf("%+v", a)
	}
	c.TermAll()
	must(t, os.RemoveAll(c.PKI))
	must(t, pki.CreateCAs(c.PKI, time.Now()))
	c.StartAll()
	c.WaitHealthy(1)
	ended(t, c)
}
