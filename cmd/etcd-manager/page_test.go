package main

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/file"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
	"github.com/etcd-manager/etcd-manager/pkg/operator/health"
	"github.com/etcd-manager/etcd-manager/pkg/page"
)

// TestPageListen: what --page-listen takes, and that an address which others reach needs TLS.
func TestPageListen(t *testing.T) {
	for value, want := range map[string]string{
		"127.0.0.1:2390": "", "[::1]:80": "", "": "", "10.0.0.1:2390": "",
		"2390": "must be an IP address and a port", ":2390": "must be an IP address and a port", "host:1": "must be an IP address and a port",
		"127.0.0.1:0": "must be an IP address and a port", "0.0.0.0:2390": "must be one address", "[::]:2390": "must be one address",
	} {
		o := &options{pageListen: value}
		if err := o.parsePage(true); want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%q: %v", value, err)
		}
		if outside := value == "10.0.0.1:2390"; outside != (o.pageAddresses() != nil) {
			t.Errorf("%q: certificate for %v", value, o.pageAddresses())
		}
	}
	o := &options{pageListen: "10.0.0.1:2390", etcdInsecure: true}
	if err := o.parsePage(true); err == nil || !strings.Contains(err.Error(), "use a loopback address") {
		t.Errorf("without TLS elsewhere: %v", err)
	}
}

// TestPagePort: without the flag the next free port is taken, but none that a flag gives to something else; with it only the one.
func TestPagePort(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	o := &options{pageListen: taken.Addr().String()}
	if err := o.parsePage(true); err != nil {
		t.Fatal(err)
	}
	s := &pageServer{&daemon{o: o}}
	if l, err := s.listen(); err == nil || !strings.Contains(err.Error(), "--page-listen") {
		t.Errorf("a taken port: %v, %v", l, err)
	}
	o.pageGiven = false
	l, err := s.listen()
	if err != nil {
		t.Skipf("ten ports in a row are in use here: %v", err)
	}
	_, port, _ := net.SplitHostPort(l.Addr().String())
	_ = l.Close()
	o.clientURLs = "https://__address__:" + port
	l, err = s.listen()
	if err != nil {
		t.Skipf("ten ports in a row are in use here: %v", err)
	}
	defer l.Close()
	if _, next, _ := net.SplitHostPort(l.Addr().String()); next == port {
		t.Errorf("the page took port %s, which etcd is to have", port)
	}
}

// TestPageStoreAway: a store whose directory is away, or empty where it was mounted, is never said to be one without a cluster.
func TestPageStoreAway(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "store")
	store, err := file.New(dir)
	if err != nil {
		t.Fatal(err)
	}
	url := "file://" + dir
	c, err := operator.Open(t.Context(), operator.Config{Store: url, AllowEmpty: true,
		Open: func(context.Context, string) (blob.Store, error) { return store, nil }})
	if err != nil {
		t.Fatal(err)
	}
	said := catalog.Status{Node: "a", Leader: "b", Nodes: []catalog.NodeReport{{Node: "a", Role: catalog.RoleFollower, Healthy: true}}}
	look := func(said catalog.Status) page.View {
		reader := page.NewReader(t.Context(), func(ctx context.Context) (health.Facts, error) {
			return c.Facts(ctx, operator.HealthOptions{})
		})
		latest := page.NewLatest(func() word { return word{status: said} })
		return place{store: url, cluster: "main", node: "a"}.look(t.Context(), reader, latest)
	}
	if v := look(catalog.Status{Node: "a"}); v.Report.Formed != "unknown" || !strings.Contains(v.Report.Summary, "mounted") {
		t.Errorf("no directory, a node without a member: %q %s", v.Report.Formed, v.Report.Summary)
	}
	if v := look(said); v.Report.Formed != "yes" || !strings.Contains(v.StoreProblem, "mounted") {
		t.Errorf("no directory: %q, %s", v.Report.Formed, v.StoreProblem)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if v := look(said); v.Report.Formed != "yes" || !strings.Contains(v.StoreProblem, "mounted") || !v.StoreRead.IsZero() {
		t.Errorf("an empty directory: %q, %s, read at %s", v.Report.Formed, v.StoreProblem, v.StoreRead)
	}
	if v := look(catalog.Status{Node: "a"}); v.Report.Formed != "no" || v.StoreProblem != "" {
		t.Errorf("a new store: %q, %s", v.Report.Formed, v.StoreProblem)
	}
}
