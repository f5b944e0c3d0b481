package main

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// metalArgs are the flags of kOps on machines without a cloud.
func metalArgs() []string {
	return append(strings.Fields(`--backup-store=file:///mnt/disks/backups --client-urls=https://__name__:4001 --cluster-name=etcd --containerized=true
--dns-suffix=.internal.example.com --grpc-port=3996 --peer-urls=https://__name__:2380 --quarantine-client-urls=https://__name__:3994 --v=6
--volume-name-tag=k8s.io/etcd/main --volume-provider=external --volume-tag=example.com--main--`), metalStatic)
}

const metalStatic = `--static-config={"etcdVersion":"3.5.21","nodes":[{"id":"example.com--main--0","ip":["node0.main.example.com"]},` +
	`{"id":"example.com--main--1","ip":["node1.main.example.com"]},{"id":"example.com--main--2","ip":["node2.main.example.com"]}]}`

func TestMetalFlags(t *testing.T) {
	o, err := parseOptions(metalArgs(), nil)
	if err != nil {
		t.Fatal(err)
	}
	if !o.prepared() || o.addressGiven || !o.static.has("example.com--main--1") || o.static.has("example.com--main--3") {
		t.Errorf("read as %+v", o)
	}
	for edit, want := range map[string]string{
		"--volume-tag=":         "needs one --volume-tag",
		"--volume-tag=..":       "needs one --volume-tag",
		"--volume-tag=../../x":  "needs one --volume-tag",
		"--volume-tag=a/b":      "needs one --volume-tag",
		"--volume-tag=second--": "needs one --volume-tag",
	} {
		args := slices.DeleteFunc(metalArgs(), func(s string) bool {
			return strings.HasPrefix(s, "--volume-tag=") &&
				edit != "--volume-tag=second--"
		})
		if _, err := parseOptions(append(args, edit), nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", edit, err)
		}
	}
	none := slices.DeleteFunc(metalArgs(), func(s string) bool { return strings.HasPrefix(s, "--volume-tag=") })
	if _, err := parseOptions(none, nil); err == nil || !strings.Contains(err.Error(), "--data-dir is missing") {
		t.Errorf("without a tag: %v", err)
	}
}

// TestStaticNames: a host name may stand for an address, and a node's id is what can be a file's name.
func TestStaticNames(t *testing.T) {
	args := []string{"--cluster-name=etcd", "--backup-store=/b", "--data-dir=/d", "--address=10.0.0.1"}
	for static, want := range map[string]string{
		`{"nodes":[{"id":"a","ip":["10.0.0.1"]}]}`:                "",
		`{"nodes":[{"id":"a","ip":["node0.example.com"]}]}`:       "",
		`{"nodes":[{"id":"a","ip":["10.0.0.2"]}]}`:                "names no node with the address 10.0.0.1",
		`{"nodes":[{"id":"../a","ip":["10.0.0.1"]}]}`:             "not usable as a name",
		`{"nodes":[{"id":"","ip":["10.0.0.1"]}]}`:                 "not usable as a name",
		`{"nodes":[{"id":"a b","ip":["10.0.0.1"]}]}`:              "not usable as a name",
		`{"nodes":[{"id":"..","ip":["10.0.0.1"]}]}`:               "not usable as a name",
		`{"nodes":[{"id":"a","ip":["x"]},{"id":"b","ip":["y"]}]}`: "has 2 nodes",
	} {
		_, err := parseOptions(append(args, "--static-config="+static), nil)
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", static, err, want)
		}
	}
}

// TestFixedID: which of the fixed members this is.
func TestFixedID(t *testing.T) {
	o := &options{address: "10.0.0.2", dataDir: t.TempDir(), static: &staticConfig{Nodes: []staticNode{
		{"a", []string{"a.example.com"}}, {"b", []string{"b.example.com", "b2.example.com"}}, {"c", []string{"10.0.0.3"}}}}}
	hosts := map[string]string{"a.example.com": "10.0.0.1", "b.example.com": "192.0.2.1", "b2.example.com": "::ffff:10.0.0.2"}
	unknown := errors.New("no such host")
	ask := func(_ context.Context, host string) ([]netip.Addr, error) {
		if hosts[host] == "" {
			return nil, unknown
		}
		return []netip.Addr{netip.MustParseAddr(hosts[host])}, nil
	}
	check := func(what string, want cluster.NodeID) {
		t.Helper()
		if id, err := o.fixedID(t.Context(), ask); id != want || err != nil {
			t.Errorf("%s: %q, %v; want %q", what, id, err, want)
		}
	}
	check("by the second name", "b")
	o.address = "10.0.0.3"
	check("by the address", "c")
	o.address = "10.0.0.9"
	if _, err := o.fixedID(t.Context(), ask); !errors.Is(err, cluster.ErrPermanent) {
		t.Errorf("an address of nobody: %v", err)
	}
	delete(hosts, "a.example.com")
	if _, err := o.static.byName(t.Context(), o.address, ask); !errors.Is(err, unknown) || errors.Is(err, cluster.ErrPermanent) {
		t.Errorf("a name that doesn't resolve yet may still be this node's: %v", err)
	}
	if err := os.WriteFile(filepath.Join(o.dataDir, "myid"), []byte("a\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	check("by what the data dir says", "a")
}

// TestNodeIDFile: the file's content becomes a name, and nothing that can't be one is taken.
func TestNodeIDFile(t *testing.T) {
	o := &options{dataDir: t.TempDir()}
	for _, id := range []string{"", "..", "../x", "a/b", `a\b`, "a b", "a,b", "a=b", "a\nb", ".a", strings.Repeat("a", 300)} {
		if err := os.WriteFile(o.myID(), []byte(id), 0o600); err != nil {
			t.Fatal(err)
		}
		if got, err := o.nodeID(t.Context()); !errors.Is(err, cluster.ErrName) || !strings.Contains(err.Error(), o.myID()) {
			t.Errorf("%.20q: %q, %v", id, got, err)
		}
	}
	if err := os.Remove(o.myID()); err != nil {
		t.Fatal(err)
	}
	first, err := o.nodeID(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if again, err := o.nodeID(t.Context()); again != first || err != nil {
		t.Errorf("%q, then %q, %v", first, again, err)
	}
}

// TestOwnAddress: the lowest that others can reach, IPv4 first.
func TestOwnAddress(t *testing.T) {
	for all, want := range map[string]string{
		"127.0.0.1 ::1 fe80::1": "",
		"":                      "",
		"127.0.0.1 169.254.0.5 192.168.1.9 10.0.0.7 fd00::1": "10.0.0.7",
		"fd00::2 fd00::1 fe80::1 ::1":                        "fd00::1",
		"fd00::1 192.168.1.9":                                "192.168.1.9",
		"::ffff:10.0.0.9 10.0.0.10":                          "10.0.0.9",
	} {
		var list []netip.Addr
		for _, s := range strings.Fields(all) {
			list = append(list, netip.MustParseAddr(s))
		}
		a, ok := ownAddress(list)
		if ok != (want != "") || ok && a.String() != want {
			t.Errorf("%s: %s, %t; want %s", all, a, ok, want)
		}
	}
	all, err := machineAddresses()
	if err != nil || len(all) == 0 {
		t.Errorf("this machine has %v, %v", all, err)
	}
}
