package harness

import (
	"bytes"
	"compress/gzip"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// OneToken returns the token of all state files, and fails if there is more than one cluster or the marker doesn't name it as formed.
func (c *Cluster) OneToken() string {
	c.t.Helper()
	token := ""
	for _, n := range c.Nodes {
		s, err := n.State()
		must(c.t, err)
		if s == nil {
			continue
		}
		if token != "" && token != s.GetCluster().GetClusterToken() {
			c.t.Fatalf("node %s has token %s, others have %s", n.Name, s.GetCluster().GetClusterToken(), token)
		}
		token = s.GetCluster().GetClusterToken()
	}
	m, _, err := c.Catalog.Marker(c.t.Context())
	must(c.t, err)
	if string(m.Token) != token || m.Phase != "formed" {
		c.t.Fatalf("the marker says token %s, phase %s; the nodes have token %s", m.Token, m.Phase, token)
	}
	return token
}

// Untouched starts clients and returns what checks that none of them saw a failed request and no etcd was restarted.
func (c *Cluster) Untouched() func() {
	c.t.Helper()
	load := c.StartLoad(LoadOptions{})
	pids := map[string]int{}
	for _, n := range c.Nodes {
		pids[n.Name] = n.EtcdPID()
	}
	return func() {
		c.t.Helper()
		r := load.Stop()
		c.t.Log(r)
		if len(r.Failures) > 0 || r.Acked == 0 {
			c.t.Errorf("%d requests failed, %d writes were acknowledged", len(r.Failures), r.Acked)
		}
		load.Verify()
		for _, n := range c.Nodes {
			if pid := n.EtcdPID(); pid != pids[n.Name] {
				c.t.Errorf("the etcd of %s was restarted (pid %d, then %d)", n.Name, pids[n.Name], pid)
			}
		}
	}
}

// BackupWith waits for a backup that surely contains a revision, and returns its name.
func (c *Cluster) BackupWith(revision int64) string {
	c.t.Helper()
	name := ""
	c.WaitFor(fmt.Sprintf("a backup with revision %d", revision), 60*time.Second, func() string {
		for _, b := range c.Backups() {
			m, err := c.Catalog.Manifest(c.t.Context(), b.Name)
			if err == nil && m.Revision >= revision {
				name = b.Name
				return ""
			}
		}
		return fmt.Sprintf("%d backups, none of them has it", len(c.Backups()))
	})
	return name
}

// RestartAll ends all managers in order and starts them.
func (c *Cluster) RestartAll() {
	c.t.Helper()
	c.TermAll()
	c.StartAll()
}

// CheckEnded checks the record of a restore, and that its command is gone.
func (c *Cluster) CheckEnded(op catalog.Operation, want catalog.OperationState) {
	c.t.Helper()
	if op.State != want {
		c.t.Fatalf("the restore of %s ended as %s: %s; want %s", op.Backup, op.State, op.Reason, want)
	}
	if want != catalog.StateDone && op.Reason == "" {
		c.t.Errorf("the restore of %s ended as %s without a reason", op.Backup, op.State)
	}
	c.WaitFor("the command to be gone", 20*time.Second, func() string {
		cmds, problems, err := c.Catalog.Commands(c.t.Context())
		must(c.t, err)
		for _, cmd := range cmds {
			if cmd.Name == op.Command {
				return "it is still queued"
			}
		}
		if len(problems) > 0 {
			return problems[0].Err.Error()
		}
		return ""
	})
}

// Spec is the cluster spec in the store.
func (c *Cluster) Spec() cluster.Spec {
	c.t.Helper()
	spec, _, err := c.Catalog.Spec(c.t.Context())
	must(c.t, err)
	return spec
}

// Gzipped compresses.
func Gzipped(t testing.TB, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(data)
	must(t, err)
	must(t, w.Close())
	return b.Bytes()
}

// EmptyTrash removes what lies in the node's trash can, as an operator short of space does.
func (n *Node) EmptyTrash() {
	n.t.Helper()
	must(n.t, os.RemoveAll(filepath.Join(n.DataDir, "data-trashcan")))
}

// WriteFile writes a file and the directories above it.
func WriteFile(t testing.TB, path, text string) {
	t.Helper()
	must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	must(t, os.WriteFile(path, []byte(text), 0o644))
}

// RefreshCAs has the test's own clients read the CAs again, at once.
func (c *Cluster) RefreshCAs() {
	c.t.Helper()
	must(c.t, c.keeper.Refresh())
}
