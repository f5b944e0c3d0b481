package kubernetes

import (
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// encode is an object as an API server stores it.
func encode(t *testing.T, apiVersion, kind string, o interface{ Marshal() ([]byte, error) }) string {
	t.Helper()
	raw, err := o.Marshal()
	must(t, err)
	b, err := (&runtime.Unknown{TypeMeta: runtime.TypeMeta{APIVersion: apiVersion, Kind: kind}, Raw: raw}).Marshal()
	must(t, err)
	return "k8s\x00" + string(b)
}

func objectMeta(namespace, name string) metav1.ObjectMeta {
	return metav1.ObjectMeta{Name: name, Namespace: namespace, UID: types.UID("uid-" + namespace + name),
		CreationTimestamp: metav1.NewTime(time.Now().Truncate(time.Second))}
}

// objects are those of a namespace, by key, without itself and its events.
func objects(t *testing.T, ns string) map[string]string {
	t.Helper()
	all := map[string]string{}
	for i := range 20 {
		name := fmt.Sprintf("web-%02d", i)
		all["/registry/deployments/"+ns+"/"+name] = encode(t, "apps/v1", "Deployment", &appsv1.Deployment{ObjectMeta: objectMeta(ns, name)})
		all["/registry/pods/"+ns+"/"+name] = encode(t, "v1", "Pod",
			&corev1.Pod{ObjectMeta: objectMeta(ns, name),
				Spec: corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: "c", Image: "image"}}}})
		all["/registry/secrets/"+ns+"/"+name] = encode(t, "v1", "Secret",
			&corev1.Secret{ObjectMeta: objectMeta(ns, name), Data: map[string][]byte{"k": bytes.Repeat([]byte{0, 255, '\n'}, 50)}})
		all["/registry/services/specs/"+ns+"/"+name] = encode(t, "v1", "Service", &corev1.Service{ObjectMeta: objectMeta(ns, name)})
		all["/registry/example.com/widgets/"+ns+"/"+
			name] = fmt.Sprintf(`{"apiVersion":"example.com/v1","kind":"Widget","metadata":{"name":%q,"namespace":%q},"spec":{"n":%d}}`+
			"\n", name, ns, i)
	}
	return all
}

func namespace(t *testing.T, name string, asked *metav1.Time, finalizers ...corev1.FinalizerName) string {
	t.Helper()
	n := &corev1.Namespace{ObjectMeta: objectMeta("", name), Spec: corev1.NamespaceSpec{Finalizers: finalizers},
		Status: corev1.NamespaceStatus{Phase: corev1.NamespaceActive}}
	if n.DeletionTimestamp = asked; asked != nil {
		n.Status.Phase = corev1.NamespaceTerminating
	}
	return encode(t, "v1", "Namespace", n)
}

// TestDeletedNamespace deletes a namespace as its controller does, finds it in the history, finds
// the point before, and brings it back from there, byte by byte.
func TestDeletedNamespace(t *testing.T) {
	testutil.Long(t)
	c := harness.Start(t, harness.Options{Nodes: 1, Args: []string{"--change-log-interval=500ms"}})
	client, ctx := c.Client(), t.Context()
	const ns = "shop"
	self := "/registry/namespaces/" + ns
	want := objects(t, ns)
	want[self] = namespace(t, ns, nil, corev1.FinalizerKubernetes)
	lease, err := client.Grant(ctx, 3600)
	must(t, err)
	for k, v := range want {
		c.Put(k, v)
	}
	event := "/registry/events/" + ns + "/e"
	_, err = client.Put(ctx, event, encode(t, "v1", "Event", &corev1.Event{ObjectMeta: objectMeta(ns, "e")}), clientv3.WithLease(lease.ID))
	must(t, err)
	others := objects(t, "other")
	for k, v := range others {
		c.Put(k, v)
	}
	good := c.Put("/registry/namespaces/other", namespace(t, "other", nil, corev1.FinalizerKubernetes))

	// The API server marks the namespace, the controller empties it and takes the finalizer off, and only then it goes.
	now := metav1.NewTime(time.Now().Truncate(time.Second))
	marked := c.Put(self, namespace(t, ns, &now, corev1.FinalizerKubernetes))
	for k := range objects(t, ns) {
		_, err := client.Delete(ctx, k)
		must(t, err)
		c.Put("/registry/leases/kube-system/holder", k) // others go on
	}
	c.Put(self, namespace(t, ns, &now))
	d, err := client.Delete(ctx, self)
	must(t, err)
	gone := d.Header.Revision
	end := c.Put("/registry/leases/kube-system/holder", "end")
	if marked != good+1 {
		t.Fatalf("marked by %d, right behind %d", marked, good)
	}

	ctl := func(args ...string) string {
		t.Helper()
		out, errOut, code := c.Ctl(args...)
		if code != 0 {
			t.Fatalf("%q: exit code %d\n%s%s", args, code, out, errOut)
		}
		t.Logf("%q:\n%.1500s%s", args, out, errOut)
		return out
	}
	c.WaitFor("the changes are archived", time.Minute, func() string {
		out, errOut, _ := c.Ctl("history", "--from-revision", fmt.Sprint(end), "-o", "json")
		if !strings.Contains(out, fmt.Sprintf(`"revision":%d,"change":"put"`, end)) {
			return out + errOut
		}
		return ""
	})
	out := ctl("history", "--namespace", ns, "--deletes", "--since=10m")
	for _, w := range []string{"(Namespace shop)", "(Deployment shop/web-03)", "(Service shop/web-19)",
		"(widgets.example.com shop/web-00)", "delete"} {
		if !strings.Contains(out, w) {
			t.Errorf("the history doesn't say %q", w)
		}
	}
	if n := strings.Count(out, " delete "); n != len(want) {
		t.Errorf("%d deletions, want %d", n, len(want))
	}
	if out := ctl("history", "/registry/example.com/", "--since=10m"); !strings.Contains(out, "(Widget shop/web-00)") ||
		strings.Contains(out, `"spec"`) {
		t.Errorf("custom resources: %s", out)
	}

	var before struct {
		Revision int64 `json:"revision"`
		Marked   struct {
			Revision int64 `json:"revision"`
		} `json:"marked"`
		With struct {
			Deletions int `json:"deletions"`
		} `json:"with"`
		LastDeletion struct {
			Revision int64 `json:"revision"`
		} `json:"lastDeletion"`
	}
	must(t, json.Unmarshal([]byte(ctl("before", self, "-o", "json")), &before))
	if before.Revision != good || before.Marked.Revision != marked || before.LastDeletion.Revision != gone ||
		before.With.Deletions != len(want)-1 {
		t.Errorf("%+v; the namespace was whole at %d, marked by %d and deleted by %d", before, good, marked, gone)
	}
	if out := ctl("before", self); !strings.Contains(out, fmt.Sprintf("restore-backup --to-revision=%d", good)) ||
		!strings.Contains(out, "extract --namespace=shop") {
		t.Errorf("no way back is named: %s", out)
	}
	if _, errOut, code := c.Ctl("before", "/registry/namespaces/other"); code != 3 ||
		!strings.Contains(errOut, "/registry/namespaces/other exists") {
		t.Errorf("a namespace that exists: %d %s", code, errOut)
	}

	dir := filepath.Join(c.Dir, "back")
	ctl("extract", "--namespace", ns, "--at-revision", fmt.Sprint(before.Revision), "--output-dir", dir)
	putBack(t, c, dir)
	for k, v := range want {
		r, err := client.Get(ctx, k)
		must(t, err)
		if len(r.Kvs) != 1 || string(r.Kvs[0].Value) != v {
			t.Errorf("%s is not as it was: %v", k, r.Kvs)
		}
	}
	one := filepath.Join(c.Dir, "one")
	ctl("extract", self, "--at-revision", fmt.Sprint(good), "--output-file", one)
	if data, err := os.ReadFile(one); err != nil || string(data) != want[self] {
		t.Errorf("a single key: %q, %v", data, err)
	}
	if _, errOut, code := c.Ctl("extract", self, "--at-revision", fmt.Sprint(gone)); code != 3 ||
		!strings.Contains(errOut, fmt.Sprintf("--at-revision=%d", gone-1)) {
		t.Errorf("a key that was gone: %d %s", code, errOut)
	}
}

// putBack runs the script that extract has written, with the etcdctl that is a part of the manager.
func putBack(t *testing.T, c *harness.Cluster, dir string) {
	t.Helper()
	certs := c.ClientFiles()
	run := func(endpoint string) ([]byte, error) {
		cmd := exec.CommandContext(t.Context(), "sh", filepath.Join(dir, "put-back.sh"))
		cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + c.Dir,
			"ETCDCTL=" + c.Programs.Manager + " etcdctl --dial-timeout=1s --command-timeout=1s", "ETCDCTL_ENDPOINTS=" + endpoint,
			"ETCDCTL_CACERT=" + certs.ClientCA, "ETCDCTL_CERT=" + certs.ServerCert, "ETCDCTL_KEY=" + certs.ServerKey}
		return cmd.CombinedOutput()
	}
	if out, err := run("https://127.0.0.1:1"); err == nil || strings.Contains(string(out), "exists") {
		t.Errorf("where no etcd is: %v\n%s", err, out)
	}
	out, err := run(c.Nodes[0].ClientURL())
	if err != nil {
		t.Fatalf("put back: %v\n%s", err, out)
	}
	t.Logf("put-back.sh:\n%.500s", out)
	if !strings.Contains(string(out), "exists, left alone: /registry/events/shop/e") {
		t.Errorf("what exists was not left alone:\n%s", out)
	}
}
