package detect

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/internal/testutil/machine"
)

const clientURL = "https://127.0.0.1:2379"

// TestLook finds every layout, with all that a client needs.
func TestLook(t *testing.T) {
	for _, c := range []struct {
		kind Kind
		make func(root string)
		want string // Where Unit DataDir URL CA Cert Key Name
	}{
		{Kubeadm, func(root string) { machine.Kubeadm(t, root, clientURL, "https://127.0.0.1:2380") },
			"/etc/kubernetes/manifests/etcd.yaml the kubelet (a static pod) /var/lib/etcd https://127.0.0.1:2379 /etc/kubernetes/pki/etcd/ca.crt " +
				"/etc/kubernetes/pki/etcd/healthcheck-client.crt /etc/kubernetes/pki/etcd/healthcheck-client.key kube-etcd-healthcheck-client"},
		{K3s, func(root string) { machine.Rancher(t, root, "k3s", clientURL) },
			"/var/lib/rancher/k3s/server/db/etcd/config k3s /var/lib/rancher/k3s/server/db/etcd https://127.0.0.1:2379 " +
				"/var/lib/rancher/k3s/server/tls/etcd/server-ca.crt /var/lib/rancher/k3s/server/tls/etcd/client.crt " +
				"/var/lib/rancher/k3s/server/tls/etcd/client.key etcd-client"},
		{RKE2, func(root string) { machine.Rancher(t, root, "rke2", clientURL) },
			"/var/lib/rancher/rke2/server/db/etcd/config rke2-server /var/lib/rancher/rke2/server/db/etcd https://127.0.0.1:2379 " +
				"/var/lib/rancher/rke2/server/tls/etcd/server-ca.crt /var/lib/rancher/rke2/server/tls/etcd/client.crt " +
				"/var/lib/rancher/rke2/server/tls/etcd/client.key etcd-client"},
		{Talos, func(root string) { machine.Talos(t, root) },
			"/system/secrets/etcd Talos /var/lib/etcd https://127.0.0.1:2379 /system/secrets/etcd/ca.crt /system/secrets/etcd/admin.crt " +
				"/system/secrets/etcd/admin.key root"},
		{Systemd, func(root string) { machine.Unit(t, root, "https://0.0.0.0:2379") },
			"/lib/systemd/system/etcd.service etcd /var/lib/etcd/default https://127.0.0.1:2379 /etc/etcd/pki/ca.crt /etc/etcd/pki/server.crt " +
				"/etc/etcd/pki/server.key node-1"},
	} {
		t.Run(string(c.kind), func(t *testing.T) {
			root := t.TempDir()
			c.make(root)
			list, err := Look(root, time.Now())
			testutil.Must(t, err)
			if len(list) != 1 || list[0].Kind != c.kind || len(list[0].Missing) > 0 {
				t.Fatalf("found %+v", list)
			}
			e := list[0]
			if got := strings.Join([]string{e.Where, e.Unit, e.DataDir, e.URL, e.CA, e.Cert, e.Key, e.Name}, " "); got != c.want {
				t.Errorf("found %s\nwant  %s", got, c.want)
			}
		})
	}
}

// TestMissing takes something away from each layout, and wants to be told what, and what to do.
func TestMissing(t *testing.T) {
	kubeadm := func(root string) { machine.Kubeadm(t, root, clientURL, "https://127.0.0.1:2380") }
	unit := func(root string) { machine.Unit(t, root, clientURL) }
	remove := func(files ...string) func(string) {
		return func(root string) {
			for _, f := range files {
				testutil.Must(t, os.Remove(filepath.Join(root, f)))
			}
		}
	}
	const pki = "/etc/kubernetes/pki/"
	for what, c := range map[string]struct {
		make, change func(root string)
		now          time.Time
		want         string
	}{
		"no CA": {kubeadm, remove(pki + "etcd/ca.crt"), time.Now(), "the CA can't be read: open " + pki + "etcd/ca.crt"},
		"an empty CA": {kubeadm, func(root string) { machine.Write(t, root, pki+"etcd/ca.crt", "") }, time.Now(),
			"holds no certificate"},
		"another CA": {kubeadm, func(root string) { (*machine.CA)(nil).Issue(t, root, pki+"etcd/ca", "other") }, time.Now(),
			"doesn't verify etcd's own certificate"},
		"certificates that have ended": {kubeadm, func(string) {}, time.Now().Add(2000 * time.Hour), "expired"},
		"no client certificate": {kubeadm, remove(pki+"etcd/healthcheck-client.crt", pki+"apiserver-etcd-client.key", pki+"etcd/server.crt"),
			time.Now(), "kubeadm init phase certs etcd-healthcheck-client"},
		"a key of another certificate": {unit, func(root string) {
			data, err := os.ReadFile(filepath.Join(root, "/etc/etcd/pki/ca.key"))
			testutil.Must(t, err)
			machine.Write(t, root, "/etc/etcd/pki/server.key", string(data))
		}, time.Now(), "private key does not match"},
		"a name that isn't in the certificate": {func(root string) { machine.Unit(t, root, "https://10.0.0.9:2379") }, func(string) {},
			time.Now(), "isn't for 10.0.0.9"},
	} {
		root := t.TempDir()
		c.make(root)
		c.change(root)
		list, err := Look(root, c.now)
		if err != nil || len(list) != 1 {
			t.Errorf("%s: %+v, %v", what, list, err)
			continue
		}
		said := fmt.Sprint(list[0].Missing)
		if !strings.Contains(said, c.want) || strings.Contains(said, root) {
			t.Errorf("%s: says %s\nwant %s, without %s", what, said, c.want, root)
		}
		for _, m := range list[0].Missing {
			if m.Do == "" {
				t.Errorf("%s: doesn't say what to do about %s", what, m.What)
			}
		}
	}
}

// TestNone: a machine without an etcd, and why.
func TestNone(t *testing.T) {
	for file, c := range map[string]struct{ text, want string }{
		"/etc/hostname": {"x", "looked for /etc/kubernetes/manifests/etcd.yaml"},
		"/var/lib/rancher/k3s/server/db/state.db":       {"", "SQLite"},
		"/etc/rancher/rke2/config.yaml":                 {"datastore-endpoint: mysql://x\n", "datastore-endpoint"},
		"/etc/kubernetes/manifests/kube-apiserver.yaml": {"", "elsewhere"},
		"/etc/os-release":                               {"ID=talos\n", "control plane"},
		"/lib/systemd/system/not-etcd.service":          {"[Service]\nExecStart=/usr/bin/etcdctl watch\n", "units of systemd"},
	} {
		root := t.TempDir()
		machine.Write(t, root, file, c.text)
		if list, err := Look(root, time.Now()); !errors.Is(err, ErrNoEtcd) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %+v, %v; want %s", file, list, err, c.want)
		}
	}
	for file, text := range map[string]string{
		"/etc/kubernetes/manifests/etcd.yaml":        "{",
		"/var/lib/rancher/k3s/server/db/etcd/config": "a: [",
		"/etc/systemd/system/etcd.service":           "[Service]\nEnvironmentFile=/gone\nExecStart=/usr/bin/etcd\n",
		"/lib/systemd/system/database.service":       "[Service]\nExecStart=/opt/etcd \"--name\n",
	} {
		root := t.TempDir()
		machine.Write(t, root, file, text)
		if list, err := Look(root, time.Now()); err == nil || errors.Is(err, ErrNoEtcd) {
			t.Errorf("%s, which can't be read: %+v, %v", file, list, err)
		}
	}
}

func TestSeveral(t *testing.T) {
	root := t.TempDir()
	machine.Kubeadm(t, root, clientURL, "https://127.0.0.1:2380")
	machine.Unit(t, root, "https://127.0.0.1:4379")
	machine.Write(t, root, "/etc/systemd/system/events.service", "[Service]\nExecStart=-\"/usr/bin/etcd\" --config-file=/etc/events.yaml\n")
	machine.Write(t, root, "/etc/events.yaml", "data-dir: /events\nlisten-client-urls: http://10.0.0.1:1,http://localhost:2\n")
	list, err := Look(root, time.Now())
	testutil.Must(t, err)
	if len(list) != 3 {
		t.Fatalf("found %+v", list)
	}
	for which, want := range map[string]string{"": "3 etcds were found", "systemd": "2 etcds", "nobody": "none of those", "kubeadm": "/var/lib/etcd",
		"etcd": "/var/lib/etcd/default", "/etc/events.yaml": "/events", "events.service": "/events"} {
		e, err := Choose(list, which)
		if got := e.DataDir + fmt.Sprint(err); !strings.Contains(got, want) {
			t.Errorf("%q: %s", which, got)
		}
		if e.DataDir == "/events" && (e.URL != "http://localhost:2" || e.CA != "" || len(e.Missing) > 0) {
			t.Errorf("without TLS: %+v", e)
		}
	}
}
