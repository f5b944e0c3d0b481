package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestEtcdTarget: what the command line leaves open comes from the first installation that is there.
func TestEtcdTarget(t *testing.T) {
	dir := t.TempDir()
	kops := installation{"kOps", "https://127.0.0.1:4001", filepath.Join(dir, "kops-ca.crt"), "kops.crt", "kops.key"}
	kubeadm := installation{"kubeadm", "https://127.0.0.1:2379", filepath.Join(dir, "kubeadm-ca.crt"), "kubeadm.crt", "kubeadm.key"}
	candidates := []installation{kops, kubeadm}
	if err := (&etcdTarget{}).complete(candidates); err == nil || exitCode(err) != exitUsage ||
		!strings.Contains(err.Error(), "--endpoints") {
		t.Errorf("without anything: %v", err)
	}
	must(t, os.WriteFile(kubeadm.ca, nil, 0o600))
	for _, c := range []struct{ given, want etcdTarget }{
		{etcdTarget{}, etcdTarget{[]string{kubeadm.endpoint}, kubeadm.ca, "kubeadm.crt", "kubeadm.key"}},
		{etcdTarget{cert: "my.crt", key: "my.key"}, etcdTarget{[]string{kubeadm.endpoint}, kubeadm.ca, "my.crt", "my.key"}},
		{etcdTarget{endpoints: []string{"https://10.0.0.1:4001"}},
			etcdTarget{[]string{"https://10.0.0.1:4001"}, kubeadm.ca, "kubeadm.crt", "kubeadm.key"}},
		{etcdTarget{endpoints: []string{"http://127.0.0.1:2379"}}, etcdTarget{endpoints: []string{"http://127.0.0.1:2379"}}},
		{etcdTarget{[]string{"https://x:1"}, "ca", "crt", "key"}, etcdTarget{[]string{"https://x:1"}, "ca", "crt", "key"}},
	} {
		got := c.given
		if err := got.complete(candidates); err != nil ||
			strings.Join(got.endpoints, ",") != strings.Join(c.want.endpoints, ",") || got.ca != c.want.ca ||
			got.cert != c.want.cert || got.key != c.want.key {
			t.Errorf("%+v became %+v, %v; want %+v", c.given, got, err, c.want)
		}
	}
	must(t, os.WriteFile(kops.ca, nil, 0o600))
	first := etcdTarget{}
	if err := first.complete(candidates); err != nil || first.endpoints[0] != kops.endpoint {
		t.Errorf("with both: %+v, %v", first, err)
	}
	first.ca = kops.ca
	if _, err := first.tls(); err == nil || !strings.Contains(err.Error(), "no certificate in PEM") {
		t.Errorf("an empty CA: %v", err)
	}
}

// TestMasterleasesUsage: what is wrong on the command line is said before etcd is asked.
func TestMasterleasesUsage(t *testing.T) {
	w := newWorld(t)
	for _, args := range [][]string{{"masterleases"}, {"masterleases", "purge"}, {"masterleases", "list", "x"},
		{"masterleases", "prune", "-o", "json"}} {
		if code, _, errOut := w.exec(args...); code != exitUsage || errOut == "" {
			t.Errorf("%v: exit code %d: %s", args, code, errOut)
		}
	}
	code, _, errOut := w.exec("masterleases", "list", "--endpoints=http://127.0.0.1:1", "--timeout=1s")
	if code != exitStore || !strings.Contains(errOut, "127.0.0.1:1") || !strings.Contains(errOut, "quorum") {
		t.Errorf("no etcd there: exit code %d: %s", code, errOut)
	}
}
