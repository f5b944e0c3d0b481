package sidecar

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"sigs.k8s.io/yaml"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// after returns what stands in a line of a text after a word.
func after(t *testing.T, text, word string) string {
	t.Helper()
	m := regexp.MustCompile(`(?m)^` + regexp.QuoteMeta(word) + ` +(.*)$`).FindStringSubmatch(text)
	if m == nil {
		t.Fatalf("no line begins with %q:\n%s", word, text)
	}
	return m[1]
}

// state is what a restore must bring back.
type state struct {
	hash   uint32
	leases string // ids with the time that was granted, and the keys
}

func (n *node) state(revision int64) state {
	n.t.Helper()
	c, ctx := n.client(), n.t.Context()
	h, err := c.HashKV(ctx, n.url, revision)
	testutil.Must(n.t, err)
	all, err := c.Leases(ctx)
	testutil.Must(n.t, err)
	var list []string
	for _, l := range all.Leases {
		ttl, err := c.TimeToLive(ctx, l.ID, clientv3.WithAttachedKeys())
		testutil.Must(n.t, err)
		list = append(list, fmt.Sprintf("%x %d %d", int64(l.ID), ttl.GrantedTTL, len(ttl.Keys)))
	}
	slices.Sort(list)
	return state{h.Hash, strings.Join(list, ", ")}
}

// TestKubeadm follows docs/sidecar/kubeadm.md: an etcd 3.5 as kubeadm runs it, with users, gets the sidecar by init and the command
// that it prints. Everything is deleted, and restored to a second.
func TestKubeadm(t *testing.T) {
	n := newNode(t)
	n.enableAuth()
	store, manifest := t.TempDir(), filepath.Join(t.TempDir(), "etcd-backup.yaml")
	port := testutil.FreePort(t)
	initLine := fmt.Sprintf("%s init --root=%s --backup-store=%s --out=%s -- --metrics-port=%d --change-log-interval=100ms",
		program(t, "etcd-backup"), n.root, store, manifest, port)

	// The certificate's name is no user yet. init prints the commands that make it one.
	out, err := n.shell(initLine)
	commands := regexp.MustCompile(`etcdctl user add \S+ --no-password; etcdctl user grant-role \S+ root`).FindString(out)
	if err == nil || commands == "" || !strings.Contains(out, "kube-etcd-healthcheck-client, needs the role root") {
		t.Fatalf("an etcd with users: %v\n%s", err, out)
	}
	if _, err := os.Stat(manifest); err == nil {
		t.Fatal("a manifest was written for a sidecar that would not work")
	}
	etcdctl := servers.Binary(t, "etcdctl-3.5")
	out, err = n.shell(strings.ReplaceAll(commands, "etcdctl", etcdctl), "ETCDCTL_API=3", "ETCDCTL_ENDPOINTS="+n.url, "ETCDCTL_USER=root:secret",
		"ETCDCTL_CACERT="+n.root+pki+"etcd/ca.crt", "ETCDCTL_CERT="+n.root+pki+"etcd/healthcheck-client.crt",
		"ETCDCTL_KEY="+n.root+pki+"etcd/healthcheck-client.key")
	if err != nil {
		t.Fatalf("%s: %v\n%s", commands, err, out)
	}
	said, err := n.shell(initLine)
	if err != nil {
		t.Fatalf("init: %v\n%s", err, said)
	}
	text, err := os.ReadFile(manifest)
	testutil.Must(t, err)
	if p := podOf(t, text); p.Spec.Containers[0].Command[0] != "/etcd-backup" {
		t.Errorf("the manifest starts %v", p.Spec.Containers[0].Command)
	}
	testutil.Must(t, os.MkdirAll(filepath.Join(n.root, "/var/lib"), 0o755))
	n.background([]string{"sh", "-c", "exec " + n.here(after(t, said, "manually"))})
	waitFor(t, "the first backup", port, func(s sidecarStatus) bool { return s.Backups > 0 && s.Changes != nil })

	c, ctx := n.client(), t.Context()
	for i := range 50 {
		_, err := c.Put(ctx, fmt.Sprintf("/registry/%03d", i), strings.Repeat("x", 100+i))
		testutil.Must(t, err)
	}
	for i := range 3 {
		l, err := c.Grant(ctx, int64(1000+i))
		testutil.Must(t, err)
		_, err = c.Put(ctx, fmt.Sprintf("/lease/%d", i), "x", clientv3.WithLease(l.ID))
		testutil.Must(t, err)
	}
	r, err := c.Get(ctx, "x")
	testutil.Must(t, err)
	revision := r.Header.Revision
	want := n.state(revision)
	waitFor(t, "the last change is in the store", port, func(s sidecarStatus) bool {
		return s.Changes != nil && s.Changes.Archived >= revision
	})
	// A change belongs to the second in which it came. The next one is the point.
	point := time.Now().Truncate(time.Second).Add(time.Second)
	testutil.Eventually(t, "the second is over", func() bool { return time.Now().After(point.Add(time.Second)) })

	d, err := c.Delete(ctx, "\x00", clientv3.WithFromKey())
	testutil.Must(t, err)
	for i := range 20 { // someone works on
		_, err := c.Put(ctx, fmt.Sprintf("/later/%d", i), "x")
		testutil.Must(t, err)
	}
	waitFor(t, "the deletion is in the store", port, func(s sidecarStatus) bool {
		return s.Changes != nil && s.Changes.Archived >= d.Header.Revision+20
	})
	n.stop()
	testutil.Must(t, os.RemoveAll(n.dataDir))

	snapshot := filepath.Join(t.TempDir(), "then.db")
	out, err = n.shell(fmt.Sprintf("%s --backup-store=%s download-backup --to-time=%s %s", program(t, "etcd-manager-ctl"), store,
		point.UTC().Format(time.RFC3339), snapshot))
	if err != nil {
		t.Fatalf("download-backup: %v\n%s", err, out)
	}
	out, err = n.shell(fmt.Sprintf("%s snapshot restore %s --data-dir=/var/lib/etcd --name=node-1 --initial-cluster=node-1=%s "+
		"--initial-advertise-peer-urls=%s", servers.Binary(t, "etcdutl-3.5"), snapshot, n.peer, n.peer))
	if err != nil {
		t.Fatalf("etcdutl: %v\n%s", err, out)
	}
	n.start()
	if got := n.state(revision); got != want {
		t.Errorf("restored: %+v\nwant      %+v", got, want)
	}
	t.Logf("HashKV %x at revision %d, leases %s", want.hash, revision, want.leases)
	if d.Deleted != 53 || !strings.Contains(want.leases, " 1002 1") {
		t.Errorf("%d keys were deleted; leases %s", d.Deleted, want.leases)
	}
	// The sidecar goes on with the restored cluster, as another incarnation.
	waitFor(t, "a backup of the restored cluster", port, func(s sidecarStatus) bool { return s.Backups > 1 && s.BackupError == "" })
}

// pod is what matters here of a manifest.
type pod struct {
	Kind string `json:"kind"`
	Spec struct {
		Containers []struct {
			Command []string `json:"command"`
		} `json:"containers"`
	} `json:"spec"`
}

func podOf(t *testing.T, text []byte) pod {
	t.Helper()
	var p pod
	testutil.Must(t, yaml.UnmarshalStrict(text, &struct {
		APIVersion string         `json:"apiVersion"`
		Kind       string         `json:"kind"`
		Metadata   map[string]any `json:"metadata"`
		Spec       map[string]any `json:"spec"`
	}{}))
	testutil.Must(t, yaml.Unmarshal(text, &p))
	if p.Kind != "Pod" || len(p.Spec.Containers) != 1 {
		t.Fatalf("no pod with one container:\n%s", text)
	}
	return p
}
