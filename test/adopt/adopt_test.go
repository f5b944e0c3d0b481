package adopt

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// kubeadm writes the manifest of a node's etcd as kubeadm does, and starts what the kubelet would start.
func (w *world) kubeadm(n *harness.Node, initial []string) (manifest string, etcd *old) {
	w.t.Helper()
	listen := n.ClientURL()
	if len(w.Nodes) == 1 {
		listen = fmt.Sprintf("https://127.0.0.1:%d,%s", w.Ports.Client, n.ClientURL())
	}
	flags := []string{
		"--advertise-client-urls=" + n.ClientURL(), "--cert-file=/etc/kubernetes/pki/etcd/server.crt",
		"--client-cert-auth=true", "--data-dir=/var/lib/etcd",
		"--initial-advertise-peer-urls=" + n.PeerURL(), "--initial-cluster=" + strings.Join(initial, ","),
		"--key-file=/etc/kubernetes/pki/etcd/server.key",
		"--listen-client-urls=" + listen, "--listen-peer-urls=" + n.PeerURL(), "--name=" + n.Name,
		"--peer-cert-file=/etc/kubernetes/pki/etcd/peer.crt", "--peer-client-cert-auth=true",
		"--peer-key-file=/etc/kubernetes/pki/etcd/peer.key",
		"--peer-trusted-ca-file=/etc/kubernetes/pki/etcd/ca.crt", "--snapshot-count=10000",
		"--trusted-ca-file=/etc/kubernetes/pki/etcd/ca.crt",
	}
	data, pki := filepath.Join(w.host(n), "var-lib-etcd"), filepath.Join(w.host(n), "pki")
	manifest = filepath.Join(w.host(n), "manifests", "etcd.yaml")
	harness.WriteFile(w.t, manifest, `apiVersion: v1
kind: Pod
metadata:
  annotations:
    kubeadm.kubernetes.io/etcd.advertise-client-urls: `+n.ClientURL()+`
  labels: {component: etcd, tier: control-plane}
  name: etcd
  namespace: kube-system
spec:
  containers:
  - command:
    - etcd
    - `+strings.Join(flags, "\n    - ")+`
    image: registry.k8s.io/etcd:3.6.16-0
    name: etcd
    volumeMounts:
    - mountPath: /var/lib/etcd
      name: etcd-data
    - mountPath: /etc/kubernetes/pki/etcd
      name: etcd-certs
  hostNetwork: true
  volumes:
  - hostPath: {path: `+pki+`, type: DirectoryOrCreate}
    name: etcd-certs
  - hostPath: {path: `+data+`, type: DirectoryOrCreate}
    name: etcd-data
`)
	mounts := strings.NewReplacer("/etc/kubernetes/pki/etcd", pki, "/var/lib/etcd", data)
	for i := range flags {
		flags[i] = mounts.Replace(flags[i])
	}
	return manifest, w.run(n, flags, nil)
}

// serving waits until a node's own etcd is healthy under its manager.
func (w *world) serving(n *harness.Node) {
	w.t.Helper()
	w.WaitFor("the etcd of "+n.Name+" to serve under the manager", 60*time.Second, func() string {
		v, err := n.Status(w.t.Context())
		if err != nil || !v.Etcd.Healthy || v.Etcd.Quarantined {
			return fmt.Sprintf("%+v, %v", v, err)
		}
		return ""
	})
}

// same fails the test unless members and cluster id are these.
func (w *world) same(want map[string]uint64) {
	w.t.Helper()
	if got := w.members(); fmt.Sprint(got) != fmt.Sprint(want) {
		w.t.Fatalf("the members are %x; want %x", got, want)
	}
}

// TestKubeadmSingle adopts the one member of a kubeadm cluster: the dry run changes nothing, the adoption goes on where it was
// interrupted, and a manager that is started in between refuses.
func TestKubeadmSingle(t *testing.T) {
	w := newWorld(t, 1)
	n := w.Nodes[0]
	manifest, etcd := w.kubeadm(n, []string{n.Name + "=" + n.PeerURL()})
	w.Put("/data/first", "1")
	ids := w.members()

	before := files(t, w.Dir)
	w.adopt(n, "--manifest="+manifest, "--dry-run").end(t, 0, "member a of cluster", "--etcd-address=0.0.0.0",
		"ETCD_SNAPSHOT_COUNT=10000", "Nothing was changed")
	if after := files(t, w.Dir); after != before {
		t.Fatalf("the dry run has changed something: %s\nbefore: %s", after, before)
	}

	w.adopt(n, "--manifest="+manifest, "--yes", "--wait=0s").end(t, 1, "Stop the old etcd now", "mv "+manifest,
		"run the same command again")
	n.Args = []string{"--pki-dir=" + w.pkiOf(n)}
	n.Start()
	if code := n.WaitExit(30 * time.Second); code != 1 || !strings.Contains(n.LogText(), "isn't finished") {
		t.Errorf("a manager in the middle of an adoption exits with %d:\n%s", code, n.LogTail(5))
	}
	w.Put("/data/second", "2")
	etcd.stop() // but its manifest is there, and the kubelet would start it again
	w.adopt(n, "--manifest="+manifest, "--yes", "--wait=0s").end(t, 1, "continues", "is still there")
	must(t, os.Rename(manifest, manifest+".before"))
	w.adopt(n, "--manifest="+manifest, "--yes").end(t, 0, "are the manager's now")
	w.adopt(n, "--manifest="+manifest, "--yes").end(t, 0, "is already adopted")

	w.startManager(n)
	w.WaitHealthy(1)
	w.same(ids)
	if data, _ := w.ReadAll("/data/"); len(data) != 2 {
		t.Errorf("the data are %v", data)
	}
}

// TestKubeadmThree adopts three members one after the other, under load: no acknowledged write is lost, and it stays one cluster.
func TestKubeadmThree(t *testing.T) {
	testutil.Long(t)
	w := newWorld(t, 3)
	var initial []string
	for _, n := range w.Nodes {
		initial = append(initial, n.Name+"="+n.PeerURL())
	}
	manifests, etcds := map[string]string{}, map[string]*old{}
	for _, n := range w.Nodes {
		manifests[n.Name], etcds[n.Name] = w.kubeadm(n, initial)
	}
	ids := w.members()
	load := w.StartLoad(harness.LoadOptions{Any: true})
	for i, n := range w.Nodes {
		if i == 1 {
			w.adopt(n, "--manifest="+manifests[n.Name], "--yes").end(t, 1, "copy etcd-manager-ca.crt and .key")
		}
		if i > 0 {
			for _, ext := range []string{".crt", ".key"} {
				data, err := os.ReadFile(filepath.Join(w.pkiOf(w.Nodes[0]), "etcd-manager-ca"+ext))
				must(t, err)
				harness.WriteFile(t, filepath.Join(w.pkiOf(n), "etcd-manager-ca"+ext), string(data))
			}
		}
		a := w.adopt(n, "--manifest="+manifests[n.Name], "--yes")
		w.WaitFor("adopt to ask for the end of the old etcd", 30*time.Second, func() string {
			if !strings.Contains(a.text(), "Stop the old etcd now") {
				return "it says: " + a.text()
			}
			return ""
		})
		must(t, os.Rename(manifests[n.Name], manifests[n.Name]+".before"))
		etcds[n.Name].stop()
		a.end(t, 0, "are the manager's now")
		w.startManager(n)
		w.serving(n)
		w.same(ids)
	}
	w.WaitHealthy(3)
	w.same(ids)
	w.OneToken()
	r := load.Stop()
	t.Logf("three members were adopted: %s", r)
	load.Verify()
	w.RestartAll()
	w.WaitHealthy(3)
	w.same(ids)
}

// TestSystemd adopts the member that a unit of systemd runs, with settings in Environment, in a file and in the command line.
func TestSystemd(t *testing.T) {
	testutil.Long(t)
	w := newWorld(t, 1)
	n := w.Nodes[0]
	pki, data := filepath.Join(w.host(n), "pki"), filepath.Join(w.host(n), "var-lib-etcd")
	env := []string{
		"ETCD_NAME=" + n.Name, "ETCD_DATA_DIR=" + data, "ETCD_LISTEN_CLIENT_URLS=" + n.ClientURL(),
		"ETCD_ADVERTISE_CLIENT_URLS=" + n.ClientURL(),
		"ETCD_LISTEN_PEER_URLS=" + n.PeerURL(), "ETCD_INITIAL_ADVERTISE_PEER_URLS=" + n.PeerURL(),
		"ETCD_INITIAL_CLUSTER=" + n.Name + "=" + n.PeerURL(),
		"ETCD_CERT_FILE=" + pki + "/server.crt", "ETCD_KEY_FILE=" + pki + "/server.key",
		"ETCD_TRUSTED_CA_FILE=" + pki + "/ca.crt", "ETCD_CLIENT_CERT_AUTH=true",
	}
	args := []string{"--peer-cert-file=" + pki + "/peer.crt", "--peer-key-file=" + pki + "/peer.key",
		"--peer-trusted-ca-file", pki + "/ca.crt", "--peer-client-cert-auth", "--quota-backend-bytes=104857600"}
	file, unit := filepath.Join(w.host(n), "etcd.env"), filepath.Join(w.host(n), "etcd.service")
	harness.WriteFile(t, file, "# settings\n"+strings.Join(env[2:], "\n")+"\n")
	harness.WriteFile(t, unit, fmt.Sprintf(`[Unit]
Description=etcd

[Service]
Type=notify
Environment=%s "%s"
Environment=PEERCRT=%s/peer.crt
EnvironmentFile=-%s
EnvironmentFile=-/nowhere/etcd.env
ExecStart=/usr/bin/etcd --peer-cert-file=${PEERCRT} \
  %s
Restart=always

[Install]
WantedBy=multi-user.target
`, env[0], env[1], pki, file, strings.Join(args[1:], " ")))
	etcd := w.run(n, args, env)
	w.Put("/data/first", "1")
	ids := w.members()
	a := w.adopt(n, "--unit="+unit, "--yes")
	w.WaitFor("adopt to ask for the end of the old etcd", 30*time.Second, func() string {
		if !strings.Contains(a.text(), "systemctl disable --now etcd") {
			return "it says: " + a.text()
		}
		return ""
	})
	etcd.stop()
	a.end(t, 0, "ETCD_QUOTA_BACKEND_BYTES=104857600", "are the manager's now")
	w.startManager(n)
	w.WaitHealthy(1)
	w.same(ids)
	if v, err := n.Status(t.Context()); err != nil || v.Etcd.DBQuota != 104857600 {
		t.Errorf("the quota is not carried over: %+v, %v", v, err)
	}
	if got, _ := w.ReadAll("/data/"); len(got) != 1 {
		t.Errorf("the data are %v", got)
	}
}
