package disaster

import (
	"context"
	"fmt"
	"maps"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// content is everything that a cluster has, but for what API servers write about themselves.
type content struct {
	keys     map[string]string
	revision int64
}

// read reads the whole cluster.
func read(c *harness.Cluster) content {
	keys, revision := c.ReadAll("/")
	maps.DeleteFunc(keys, func(k, _ string) bool { return strings.HasPrefix(k, "/registry/masterleases/") })
	return content{keys, revision}
}

// fill writes objects such as an API server does, of which one hangs on a lease, and returns what is there then.
func fill(t *testing.T, c *harness.Cluster, namespace string, count int) content {
	t.Helper()
	client := c.Client()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	put := func(key, value string, opts ...clientv3.OpOption) {
		t.Helper()
		if _, err := client.Put(ctx, key, value, opts...); err != nil {
			t.Fatalf("put %s: %v", key, err)
		}
	}
	for i := range count {
		// No text: etcd's values have any bytes, a line break at the end as well.
		put(fmt.Sprintf("/registry/deployments/%s/%03d", namespace, i), fmt.Sprintf("k8s\x00\n\xff%s %d\n", namespace, i))
		put(fmt.Sprintf("/registry/pods/%s/%03d", namespace, i), fmt.Sprintf("pod %d", i))
	}
	lease, err := client.Grant(ctx, 3600)
	must(t, err)
	put("/registry/leases/"+namespace, "leased", clientv3.WithLease(lease.ID))
	put("/registry/masterleases/10.0.0.1", "an API server", clientv3.WithLease(lease.ID))
	return read(c)
}

// backupOf waits for a backup that has this content, and returns its name.
func backupOf(t *testing.T, c *harness.Cluster, of content) string {
	t.Helper()
	name := ""
	c.WaitFor(fmt.Sprintf("a backup with revision %d", of.revision), time.Minute, func() string {
		for _, b := range c.Backups() {
			if m, err := c.Catalog.Manifest(t.Context(), b.Name); err == nil && m.Revision >= of.revision {
				name = b.Name
				return ""
			}
		}
		return fmt.Sprintf("%d backups, none has it", len(c.Backups()))
	})
	return name
}

// same fails unless the cluster has exactly these keys, at a higher revision than any client has seen before.
func same(t *testing.T, c *harness.Cluster, want content, seen int64) content {
	t.Helper()
	got := read(c)
	for k, v := range want.keys {
		if g, ok := got.keys[k]; !ok {
			t.Errorf("%s is lost", k)
		} else if g != v {
			t.Errorf("%s is %q, it was %q", k, g, v)
		}
	}
	for k := range got.keys {
		if _, ok := want.keys[k]; !ok {
			t.Errorf("%s is there and shouldn't be", k)
		}
	}
	if got.revision <= seen {
		t.Errorf("the revision is %d; clients have seen %d", got.revision, seen)
	}
	return got
}

// agree fails unless all members hash alike at the newest revision.
func agree(t *testing.T, c *harness.Cluster, n int) {
	t.Helper()
	c.WaitHealthy(n)
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var revision int64
	hashes := map[uint32][]string{}
	for _, node := range c.Nodes {
		if node.EtcdPID() == 0 {
			continue
		}
		client := c.Client(node.ClientURL())
		r, err := client.Get(ctx, "/") // a linearizable read, so that the member has everything
		must(t, err)
		if revision == 0 {
			revision = r.Header.Revision
		}
		h, err := client.HashKV(ctx, node.ClientURL(), revision)
		must(t, err)
		hashes[h.Hash] = append(hashes[h.Hash], node.Name)
	}
	if len(hashes) != 1 {
		t.Errorf("the members' hashes differ: %v", hashes)
	}
}

// leased fails unless the key that hung on a lease still does.
func leased(t *testing.T, c *harness.Cluster, namespace string) {
	t.Helper()
	client := c.Client()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	r, err := client.Get(ctx, "/registry/leases/"+namespace)
	must(t, err)
	if len(r.Kvs) != 1 || r.Kvs[0].Lease == 0 {
		t.Fatalf("the leased key is %v", r.Kvs)
	}
	l, err := client.TimeToLive(ctx, clientv3.LeaseID(r.Kvs[0].Lease))
	must(t, err)
	if l.TTL <= 0 {
		t.Errorf("the lease has ended: %+v", l)
	}
}

// done fails unless the newest operation was done, and returns it.
func done(t *testing.T, c *harness.Cluster) catalog.Operation {
	t.Helper()
	ops, _, err := c.Catalog.Operations(t.Context())
	must(t, err)
	if len(ops) == 0 {
		t.Fatal("there is no operation")
	}
	op := ops[len(ops)-1]
	if op.State != catalog.StateDone {
		t.Fatalf("the operation %s is %s: %s", op.ID, op.State, op.Reason)
	}
	t.Logf("operation %s: etcd served nobody for %s", op.ID, op.Outage)
	return op
}

// token is the cluster token that all nodes have in their state files.
func token(t *testing.T, c *harness.Cluster) string {
	t.Helper()
	tokens := map[string]bool{}
	last := ""
	for _, n := range c.Nodes {
		s, err := n.State()
		must(t, err)
		if s != nil && n.Running() {
			last = s.GetCluster().GetClusterToken()
			tokens[last] = true
		}
	}
	if len(tokens) != 1 {
		t.Errorf("the nodes have the tokens %v", tokens)
	}
	return last
}

// index finds the block with the command, so that a test can look between two steps.
func index(t *testing.T, blocks []block, word string) int {
	t.Helper()
	for i, b := range blocks {
		if b.lang == "sh" && strings.Contains(b.text, word) {
			return i
		}
	}
	t.Fatalf("no block has %q", word)
	return 0
}

// pages are the names of all pages but the index.
func pages(t testing.TB) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join(docsDir, "*.md"))
	must(t, err)
	var list []string
	for _, n := range names {
		if base := filepath.Base(n); base != "README.md" {
			list = append(list, base)
		}
	}
	return list
}
