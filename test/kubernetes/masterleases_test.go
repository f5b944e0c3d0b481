package kubernetes

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// etcdFlags tell etcd-manager-ctl how to reach the etcd of a node.
func etcdFlags(t *testing.T, c *harness.Cluster, n *harness.Node) []string {
	t.Helper()
	s, err := n.State()
	must(t, err)
	dir := filepath.Join(n.DataDir, "pki", s.GetCluster().GetClusterToken(), "clients")
	return []string{"--endpoints=" + n.ClientURL(), "--cacert=" + dir + "/ca.crt", "--cert=" + dir + "/server.crt",
		"--key=" + dir + "/server.key"}
}

// addresses lists whose master leases there are.
func addresses(t testing.TB, client *clientv3.Client) []string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	r, err := client.Get(ctx, masterleases, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	must(t, err)
	var out []string
	for _, kv := range r.Kvs {
		out = append(out, strings.TrimPrefix(string(kv.Key), masterleases))
	}
	return out
}

// TestMasterleases makes every kind of entry and has the tool tell them apart: of two masters that live, of an API server elsewhere that
// renews its own, of a master that is gone with and without a lease, and one that expires while it is looked at.
func TestMasterleases(t *testing.T) {
	testutil.Long(t)
	t.Parallel()
	c := harness.Start(t, harness.Options{Args: []string{"--member-unhealthy-deadline=10m"}})
	a, b, dead := c.Node("a"), c.Node("b"), c.Node("c")
	s := &storage{newCodec(), c.Client(a.ClientURL(), b.ClientURL())}
	const elsewhere, forgotten, long, short = "192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"
	for _, address := range []string{a.Address, b.Address, elsewhere} {
		h := hold(s, address)
		t.Cleanup(h.die)
	}
	put := func(address string, ttl int64) {
		t.Helper()
		var opts []clientv3.OpOption
		if ttl > 0 {
			l, err := s.client.Grant(t.Context(), ttl)
			must(t, err)
			opts = append(opts, clientv3.WithLease(l.ID))
		}
		_, err := s.update(t.Context(), masterleases+address, endpointsOf(address, 1), opts...)
		must(t, err)
	}
	put(dead.Address, 0)
	put(forgotten, 0)
	put(long, 3600)
	put(short, 3)
	dead.KillWhole()

	ctl := func(args ...string) (string, string, int) {
		t.Helper()
		return c.Ctl(slices.Concat([]string{"masterleases"}, args, etcdFlags(t, c, a), []string{"--watch=6s"})...)
	}
	out, errOut, code := ctl("list")
	t.Logf("masterleases list:\n%s%s", out, errOut)
	verdicts := map[string]string{}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 4 {
			verdicts[f[0]] = strings.TrimSpace(strings.Join(f[1:], " "))
		}
	}
	for address, want := range map[string][]string{
		a.Address: {"yes, member a", "live"}, b.Address: {"yes, member b", "live"}, elsewhere: {"no", "live, renewed just now"},
		forgotten: {"none never no", "stale"}, long: {"in 3", "stale"}, dead.Address: {"none never no", "stale"},
	} {
		for _, part := range want {
			if !strings.Contains(verdicts[address], part) {
				t.Errorf("%s is shown as %q; want %q in it", address, verdicts[address], part)
			}
		}
	}
	if _, shown := verdicts[short]; shown || code != 0 {
		t.Errorf("the entry that has expired meanwhile is shown, or the exit code %d isn't 0", code)
	}
	if !strings.Contains(errOut, "member c doesn't count as a live master") {
		t.Errorf("it isn't said that member c doesn't answer: %s", errOut)
	}

	before := addresses(t, s.client)
	for _, args := range [][]string{{"prune", "--dry-run"}, {"prune"}} {
		out, errOut, code := ctl(args...)
		if want := 2 * (len(args) % 2); code != want || !strings.Contains(out+errOut, "remove 3 master leases") {
			t.Errorf("%v: exit code %d, want %d: %s%s", args, code, want, out, errOut)
		}
		if now := addresses(t, s.client); !slices.Equal(now, before) {
			t.Errorf("%v has changed the entries from %v to %v", args, before, now)
		}
	}
	out, errOut, code = ctl("prune", "--yes")
	t.Logf("masterleases prune --yes:\n%s%s", out, errOut)
	want := []string{a.Address, b.Address, elsewhere}
	slices.Sort(want)
	if now := addresses(t, s.client); code != 0 || !slices.Equal(now, want) {
		t.Errorf("after prune there are %v, want %v (exit code %d)", now, want, code)
	}
	if out, _, code := ctl("prune", "--yes"); code != 0 || !strings.Contains(out, "nothing to remove") {
		t.Errorf("a second prune: exit code %d: %s", code, out)
	}
	out, _, code = ctl("prune", "--all", "--yes")
	if n := strings.Count(out, masterleases); code != 0 || n != 3 {
		t.Errorf("prune --all removed %d entries, want 3 (exit code %d): %s", n, code, out)
	}
	c.WaitFor("the entries of those that live to be back", 10*time.Second, func() string {
		if now := addresses(t, s.client); !slices.Equal(now, want) {
			return fmt.Sprintf("there are %v", now)
		}
		return ""
	})
}
