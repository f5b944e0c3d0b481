package main

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/blob/connect"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/test/awsdouble"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

const kopsTestdata = "../../pkg/kops/testdata/"

func (w *world) kopsStore(url string) blob.Store {
	if w.onServer != nil && w.stores[url] == nil {
		w.stores[url] = w.onServer(url)
	}
	if w.stores[url] == nil {
		w.stores[url] = blobtest.NewMemory()
	}
	return w.stores[url]
}

// newKopsWorld has stores in memory, and a double of EC2 and KMS that the real SDK talks to.
func newKopsWorld(t *testing.T) *world {
	w := newWorld(t)
	w.stores, w.cloud = map[string]blob.Store{}, awsdouble.New(awsdouble.Hooks{})
	w.cloud.Behave(func(b *awsdouble.Behavior) { b.PageSize = 4 })
	none := filepath.Join(t.TempDir(), "none")
	t.Chdir(t.TempDir())
	arn := func(id string) string { return "arn:aws:kms:us-east-1:111122223333:key/" + id }
	keys := map[string]awsdouble.Key{}
	for name, k := range map[string]awsdouble.Key{"etcd": {ARN: arn("1234"), State: "Enabled", Spec: "SYMMETRIC_DEFAULT"},
		"other":    {ARN: arn("5678"), State: "Enabled", Spec: "SYMMETRIC_DEFAULT"},
		"disabled": {ARN: arn("9"), State: "Disabled", Spec: "SYMMETRIC_DEFAULT"},
		"rsa":      {ARN: arn("8"), State: "Enabled", Spec: "RSA_2048"}} {
		keys["alias/"+name], keys[k.ARN], keys[strings.TrimPrefix(k.ARN, arn(""))] = k, k, k
	}
	for name, handler := range map[string]http.Handler{"EC2": w.cloud, "KMS": w.cloud.Keys(keys)} {
		server := httptest.NewServer(handler)
		t.Cleanup(server.Close)
		t.Setenv("AWS_ENDPOINT_URL_"+name, server.URL)
	}
	for k, v := range map[string]string{"AWS_ACCESS_KEY_ID": "AKIDOUBLE", "AWS_SECRET_ACCESS_KEY": "double",
		"AWS_SESSION_TOKEN": "", "AWS_PROFILE": "", "AWS_REGION": "", "AWS_DEFAULT_REGION": "",
		"AWS_CONFIG_FILE": none, "AWS_SHARED_CREDENTIALS_FILE": none, "AWS_EC2_METADATA_DISABLED": "true", "AWS_ENDPOINT_URL": ""} {
		t.Setenv(k, v)
	}
	return w
}

// file writes a cluster file of the testdata into the working directory, with pairs of old and new text exchanged.
func (w *world) file(name string, edits ...string) {
	w.t.Helper()
	data, err := os.ReadFile(filepath.Join(w.testdata, "..", kopsTestdata, name+".yaml"))
	must(w.t, err)
	text := string(data)
	for i := 0; i < len(edits); i += 2 {
		if !strings.Contains(text, edits[i]) {
			w.t.Fatalf("%q is not in %s", edits[i], name)
		}
		text = strings.ReplaceAll(text, edits[i], edits[i+1])
	}
	must(w.t, os.WriteFile("cluster.yaml", []byte(text), 0o644))
}

// snapshot is everything that there is: objects with their content, and volumes.
func (w *world) snapshot() string {
	w.t.Helper()
	var lines []string
	for url, s := range w.stores {
		for e, err := range s.List(w.t.Context(), "", blob.ListOptions{}) {
			must(w.t, err)
			lines = append(lines, fmt.Sprint(url, e.Key, e.Version))
		}
	}
	slices.Sort(lines)
	return fmt.Sprint(lines, w.cloud.Volumes())
}

// changeLines are the lines that name a change, without the action.
func changeLines(text, prefix string) []string {
	var out []string
	for line := range strings.Lines(text) {
		line, ok := strings.CutPrefix(line, prefix)
		f := strings.Fields(line)
		if ok && len(f) >= 2 && (f[0] == "create" || f[0] == "modify") {
			out = append(out, f[0]+" "+f[1])
		}
	}
	return out
}

// apply checks that a plan changes nothing, that what is done is what was shown, and that applying again does nothing.
func (w *world) apply() {
	w.t.Helper()
	before := w.snapshot()
	w.raw("kops", "plan", "-f", "cluster.yaml")
	if w.snapshot() != before {
		w.t.Error("the plan has changed something")
	}
	code, out, errOut := w.exec("kops", "apply", "-f", "cluster.yaml", "--yes")
	if shown, done := changeLines(out, ""), changeLines(errOut, "done: "); code != 0 || !slices.Equal(shown, done) {
		w.t.Errorf("exit code %d; shown was\n%s\ndone was\n%s\n%s", code, strings.Join(shown, "\n"), strings.Join(done, "\n"), errOut)
	}
	after := w.snapshot()
	code, out, errOut = w.exec("kops", "apply", "-f", "cluster.yaml", "--yes")
	if code != 0 || !strings.Contains(out, "There are no differences.") || w.snapshot() != after || strings.Contains(errOut, "done:") {
		w.t.Errorf("a second apply: exit code %d\n%s%s", code, out, errOut)
	}
}

// TestKopsOtherClouds: no command makes anything of a file of another cloud, whatever else it says.
func TestKopsOtherClouds(t *testing.T) {
	w := newKopsWorld(t)
	for _, provider := range []string{"gce", "azure", "openstack", "hetzner", "digitalocean", "scaleway", "{metal: {}}"} {
		w.file("three", "cloudProvider: aws", "cloudProvider: "+provider)
		for _, args := range [][]string{{"render"}, {"plan"}, {"apply", "--yes"}} {
			code, out, errOut := w.exec(slices.Concat([]string{"kops"}, args, []string{"-f", "cluster.yaml"})...)
			name := strings.Trim(strings.TrimSuffix(provider, ": {}}"), "{")
			if code != exitUsage || out != "" || !strings.Contains(errOut, fmt.Sprintf("spec.cloudProvider: %q is not supported", name)) {
				t.Errorf("%s of %s: exit code %d\n%s%s", args[0], provider, code, out, errOut)
			}
		}
	}
	if len(w.cloud.Volumes()) != 0 || len(w.stores) != 0 {
		t.Errorf("something was looked at or made: %v, %v", w.cloud.Volumes(), w.stores)
	}
}

// TestKopsThree takes three masters from nothing to being there, then through changes, and to refusals.
func TestKopsThree(t *testing.T) {
	w := newKopsWorld(t)
	w.file("three")
	w.raw("kops", "plan")
	w.raw("kops", "apply", "-f", "cluster.yaml") // nobody is there to ask
	w.apply()
	spec, _, err := catalog.New(w.kopsStore("s3://bucket/example.com/backups/etcd/main")).Spec(t.Context())
	must(t, err)
	if spec.MemberCount != 3 || spec.EtcdVersion != "3.5.21" || len(w.cloud.Volumes()) != 6 {
		t.Errorf("spec %+v, %d volumes", spec, len(w.cloud.Volumes()))
	}
	// Larger, faster, a newer etcd, other tags, another retention.
	larger := []string{"name: a, instanceGroup: control-plane-us-east-1a,",
		"name: a, instanceGroup: control-plane-us-east-1a, volumeSize: 40, volumeIOPS: 4000, volumeThroughput: 500,",
		"3.5.21", "3.5.35", "team: platform", "team: etcd", "backupRetentionDays: 90", "backupRetentionDays: 30"}
	w.file("three", larger...)
	w.apply()
	// What can't be: smaller, another zone, another encryption, another key.
	w.file("three", append(slices.Clone(larger), "{name: b, instanceGroup: control-plane-us-east-1b, encryptedVolume: true}",
		"{name: b, instanceGroup: control-plane-us-east-1b, encryptedVolume: false}",
		"name: c, instanceGroup: control-plane-us-east-1c, encryptedVolume: true",
		"name: c, instanceGroup: control-plane-us-east-1c, encryptedVolume: true, kmsKeyId: alias/other",
		"volumeSize: 40", "volumeSize: 30", "subnets: [us-east-1a]", "subnets: [us-east-1b]")...)
	before := w.snapshot()
	w.raw("kops", "apply", "-f", "cluster.yaml", "--yes")
	if w.snapshot() != before {
		t.Error("something was done though something else can't be")
	}
	// Something else is in the way.
	w.file("three", larger...)
	w.cloud.AddVolume(awsdouble.Volume{ID: "vol-stray",
		Tags: map[string]string{"KubernetesCluster": "example.com", "k8s.io/etcd/main": "d/a,b,c,d"}})
	w.cloud.AddVolume(awsdouble.Volume{ID: "vol-twin",
		Tags: map[string]string{"KubernetesCluster": "example.com", "k8s.io/etcd/events": "a/a,b,c"}})
	_, err = w.kopsStore("s3://bucket/example.com/pki").Put(t.Context(), "private/etcd-peers-ca-main/keyset.yaml",
		strings.NewReader("kind: Keyset"), blob.PutOptions{})
	must(t, err)
	w.raw("kops", "plan", "-f", "cluster.yaml")
	w.golden("kops-three")
}

// TestKopsOne: one master, v1alpha3, a key of its own, then grown to three; and an apply that is cut short is gone on with.
func TestKopsOne(t *testing.T) {
	w := newKopsWorld(t)
	w.file("one-v1alpha3")
	w.apply()
	if v := w.cloud.Volumes()[0]; v.Key != "arn:aws:kms:us-east-1:111122223333:key/1234" || !v.Encrypted ||
		v.SizeGiB != 40 || v.IOPS != 4000 || v.Throughput != 0 {
		t.Errorf("the volume is %+v", v)
	}
	w.file("one-v1alpha3", "alias/etcd", "1234") // the same key by another name
	w.raw("kops", "plan", "-f", "cluster.yaml")
	// Whoever else writes the manifest may write more.
	base := w.kopsStore("s3://bucket/one.example.com")
	const manifest = "manifests/etcd/main-control-plane-utility-a.yaml"
	data, _, err := blob.ReadAll(t.Context(), base, manifest, 1<<20)
	must(t, err)
	text := strings.Replace(string(data), "metadata:\n",
		"metadata:\n  creationTimestamp: null\n  annotations: {scheduler.alpha.kubernetes.io/critical-pod: \"\"}\n", 1)
	_, err = base.Put(t.Context(), manifest, strings.NewReader(text+"status: {}\n"), blob.PutOptions{})
	must(t, err)
	w.raw("kops", "plan", "-f", "cluster.yaml")
	for _, key := range []string{"alias/none", "alias/disabled", "alias/rsa"} {
		w.file("one-v1alpha3", "alias/etcd", key)
		w.raw("kops", "plan", "-f", "cluster.yaml")
	}
	member := "    - name: %s\n      instanceGroup: control-plane-utility-a\n      encryptedVolume: true\n"
	w.file("one-v1alpha3", "    etcdMembers:\n", "    etcdMembers:\n"+fmt.Sprintf(member, "b")+fmt.Sprintf(member, "c"))
	for _, action := range []string{"CreateVolume", "CreateTags"} {
		w.cloud.Deny(action, true)
		code, _, errOut := w.exec("kops", "apply", "-f", "cluster.yaml", "--yes")
		if code != exitFailure || !strings.Contains(errOut, "EBSVolume/") || !strings.Contains(errOut, "permission ec2:"+action) {
			t.Errorf("a refused request: exit code %d: %s", code, errOut)
		}
		w.cloud.Deny(action, false)
	}
	w.apply()
	w.golden("kops-one")
}

// TestKopsWhileChanging: a change that EC2 has taken but not made yet is none that is left to do.
func TestKopsWhileChanging(t *testing.T) {
	w := newKopsWorld(t)
	w.file("one-v1alpha3")
	w.apply()
	w.cloud.Behave(func(b *awsdouble.Behavior) { b.ModifyDelay = time.Hour })
	w.file("one-v1alpha3", "volumeSize: 40", "volumeSize: 80", "volumeIOPS: 4000", "volumeIOPS: 5000")
	w.apply()
	if v := w.cloud.Volumes()[0]; v.SizeGiB != 40 {
		t.Errorf("the volume has changed already: %+v", v)
	}
	w.file("one-v1alpha3", "volumeSize: 40", "volumeSize: 90")
	code, _, errOut := w.exec("kops", "apply", "-f", "cluster.yaml", "--yes")
	if code != exitFailure || !strings.Contains(errOut, "already being modified") {
		t.Errorf("a volume that is being changed: exit code %d: %s", code, errOut)
	}
}

// TestKopsKeyRefused: EC2 takes a new volume back if it may not use the key.
func TestKopsKeyRefused(t *testing.T) {
	w := newKopsWorld(t)
	w.cloud.Behave(func(b *awsdouble.Behavior) { b.UnusableKeys = []string{"arn:aws:kms:us-east-1:111122223333:key/1234"} })
	w.file("one-v1alpha3")
	code, _, errOut := w.exec("kops", "apply", "-f", "cluster.yaml", "--yes")
	if code != exitFailure || !strings.Contains(errOut, "kms:CreateGrant") {
		t.Errorf("a key that can't be used: exit code %d: %s", code, errOut)
	}
	w.cloud.Behave(func(b *awsdouble.Behavior) { b.UnusableKeys = nil })
	w.apply() // though EC2 remembers that it has made this volume today
}

// TestKopsGP2: types whose IOPS nobody can set, but EC2 tells, make no difference; and the type changes while the volume is in use.
func TestKopsGP2(t *testing.T) {
	w := newKopsWorld(t)
	w.file("one-v1alpha3", "volumeType: io2", "volumeType: gp2", "volumeIOPS: 4000", "")
	w.apply()
	w.file("one-v1alpha3", "volumeType: io2", "volumeType: gp3")
	w.apply()
	w.file("one-v1alpha3")
	w.apply()
	w.file("one-v1alpha3", "volumeType: io2", "volumeType: gp2", "volumeIOPS: 4000", "")
	w.apply()
}

// TestKopsS3 has the stores on an S3 server.
func TestKopsS3(t *testing.T) {
	s := servers.StartVersityGW(t)
	w := newKopsWorld(t)
	env := map[string]string{"S3_ENDPOINT": s.Endpoint, "S3_REGION": s.Region, "S3_ACCESS_KEY_ID": s.AccessKeyID,
		"S3_SECRET_ACCESS_KEY": s.SecretAccessKey}
	w.onServer = func(url string) blob.Store {
		store, err := connect.Open(t.Context(), url, func(k string) string { return env[k] })
		must(t, err)
		return store
	}
	w.file("three", "s3://bucket/", "s3://"+s.Bucket+"/")
	w.apply()
	w.file("three", "s3://bucket/", "s3://"+s.Bucket+"/", "3.5.21", "3.5.35", "backupRetentionDays: 90", "backupRetentionDays: 30")
	w.apply()
}

// TestKopsRender writes the files of each instance group.
func TestKopsRender(t *testing.T) {
	w := newKopsWorld(t)
	w.file("three")
	w.raw("kops", "render", "-f", "cluster.yaml", "--out=out")
	for _, path := range []string{"out/control-plane-us-east-1a/pods/etcd-manager-main.yaml",
		"out/control-plane-us-east-1b/systemd/etcd-manager-main.service"} {
		data, err := os.ReadFile(path)
		must(t, err)
		fmt.Fprintf(&w.log, "$ cat %s\n%s\n", path, data)
	}
	w.file("three", "image: example.com/etcd-manager:v1", `image: ""`)
	w.raw("kops", "render", "-f", "cluster.yaml")
	w.file("three")
	code, out, _ := w.exec("kops", "render", "-f", "cluster.yaml", "--etcd-image=example.com/etcd:%s")
	if code != 0 || strings.Count(out, "\n---\n") != 12 || !strings.Contains(out, "reference: example.com/etcd:3.5.21") {
		t.Errorf("to standard output: exit code %d, %d documents", code, strings.Count(out, "\n---\n"))
	}
	w.golden("kops-render")
}
