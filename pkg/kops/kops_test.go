package kops

import (
	"errors"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob/connect"
)

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func load(t testing.TB, name string) string {
	t.Helper()
	data, err := os.ReadFile("testdata/" + name + ".yaml")
	must(t, err)
	return string(data)
}

func parse(t testing.TB, text string) *File {
	t.Helper()
	f, err := Parse([]byte(text))
	must(t, err)
	return f
}

// TestSpellings: v1alpha2 and v1alpha3 write the same thing in different ways.
func TestSpellings(t *testing.T) {
	three := load(t, "three")
	v2 := strings.Replace(three, "{name: a, instanceGroup: control-plane-us-east-1a, encryptedVolume: true}",
		"{name: a, instanceGroup: control-plane-us-east-1a, encryptedVolume: true, kmsKeyId: k, volumeIops: 4000, volumeType: gp3, volumeSize: 20}", 1)
	v3 := strings.NewReplacer("kmsKeyId", "kmsKeyID", "volumeIops", "volumeIOPS", "v1alpha2", "v1alpha3",
		"configBase: s3://bucket/example.com", "configStore: {base: s3://bucket/example.com}",
		"cloudProvider: aws", "cloudProvider: {aws: {}}", "  subnets:\n", "  networking:\n   subnets:\n", "  - {cidr",
		"   - {cidr").Replace(v2)
	if v2 == v3 || !strings.Contains(v3, "   subnets:\n   - {cidr") {
		t.Fatal("the two files are the same")
	}
	a, b := parse(t, v2), parse(t, v3)
	if !reflect.DeepEqual(a, b) {
		t.Errorf("v1alpha2 gives\n%+v\nv1alpha3\n%+v", a, b)
	}
	if m := a.Clusters[0].Members[0]; m.Key != "k" || m.IOPS != 4000 || m.Size != 20 || m.Throughput != 125 ||
		m.Zone != "us-east-1a" || len(a.Warnings) > 0 {
		t.Errorf("member %+v, warnings %q", m, a.Warnings)
	}
}

// TestReplaced: kOps takes versions that never run, since it puts the newest patch in their place on the nodes. So does the file.
func TestReplaced(t *testing.T) {
	for _, v := range []string{"3.5.0", "3.5.1", "3.5.2"} {
		f := parse(t, strings.Replace(load(t, "three"), "version: 3.5.21", "version: "+v, 1))
		if f.Clusters[0].Version != v || len(f.Warnings) != 1 || !strings.Contains(f.Warnings[0], "so "+v+" never runs") {
			t.Errorf("%s: cluster %+v, warnings %q", v, f.Clusters[0], f.Warnings)
		}
	}
}

// TestUnknown: what nobody knows is kept and warned of, and what is left open has kOps' defaults.
func TestUnknown(t *testing.T) {
	f := parse(t, load(t, "one-v1alpha3"))
	c := f.Clusters[0]
	if c.Unknown["compaction"] != "hourly" || c.Manager.Unknown["hue"] != "blue" || c.Members[0].Unknown["volumeiops"] == nil {
		t.Errorf("unknown fields are lost: %v, %v, %v", c.Unknown, c.Manager.Unknown, c.Members[0].Unknown)
	}
	text := strings.Join(f.Warnings, "\n")
	for _, want := range []string{
		"spec.etcdClusters[main].compaction is unknown", "spec.etcdClusters[main].manager.hue is unknown",
		"spec.etcdClusters[main].etcdMembers[a].volumeiops is unknown and changes nothing; did you mean volumeIops?",
		"instance group control-plane-utility-a is not in the file; its subnet is assumed to be utility-a, from its name",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no warning says %q:\n%s", want, text)
		}
	}
	if f.KeyStore != "s3://keys/one.example.com/pki" || c.BackupStore != "s3://backups/one/main" ||
		c.Version != "3.6.16" || c.Members[0].Zone != "eu-west-1a" || c.Manager.LogLevel != 6 {
		t.Errorf("read as %+v", f)
	}
}

// TestRefused: each of these is said with the place where it stands.
func TestRefused(t *testing.T) {
	member := "{name: a, instanceGroup: control-plane-us-east-1a, encryptedVolume: true}"
	with := func(fields string) [2]string {
		return [2]string{member, strings.TrimSuffix(member, "}") + ", " + fields + "}"}
	}
	for _, c := range []struct {
		edit [2]string
		want string
	}{
		{with("volumeType: st1"), `etcdMembers[a].volumeType: "st1" is not a type for etcd`},
		{with("volumeSize: 0"), "volumeSize: 0 GiB are not possible for gp3: 1 to 16384"},
		{with("volumeSize: 20000"), "volumeSize: 20000 GiB"},
		{with("volumeSize: big"), "big is not a whole number"},
		{with("volumeSize: 4, volumeType: io1, volumeIOPS: 201"), "volumeIOPS: 201 are not possible for 4 GiB of io1: at most 50"},
		{with("volumeSize: 7, volumeIOPS: 3501"), "3501 are not possible for 7 GiB of gp3: at most 500"},
		{with("volumeIOPS: 2999"), "volumeIOPS: 2999 are not possible for gp3: 3000 to 16000"},
		{with("volumeIOPS: 17000, volumeSize: 100"), "17000 are not possible"},
		{with("volumeType: gp2, volumeIOPS: 100"), "gp2 volumes have no such setting"},
		{with("volumeType: io1, volumeThroughput: 125"), "io1 volumes have no such setting"},
		{with("volumeThroughput: 100"), "100 MiB/s are not possible for gp3: 125 to 1000"},
		{with("volumeThroughput: 1000"), "1000 MiB/s need 4000 IOPS"},
		{[2]string{"encryptedVolume: true}", "encryptedVolume: false, kmsKeyId: k}"},
			"kmsKeyId: a key is named, but encryptedVolume is not true"},
		{[2]string{"encryptedVolume: true}", "encryptedVolume: maybe}"}, "maybe is neither true nor false"},
		{[2]string{"    - " + member + "\n", ""}, "etcdMembers: 2 members are not possible"},
		{[2]string{"{name: b,", "{name: a,"}, "the name is there twice"},
		{[2]string{"name: events", "name: main"}, "spec.etcdClusters[main]: it is there twice"},
		{[2]string{"name: events", "name: other"}, `"other" is not a cluster of kOps`},
		{[2]string{"version: 3.5.21", "version: 3.3.25"}, "only etcd 3.4 to 3.7 are supported"},
		{[2]string{"version: 3.5.21", "version: newest"}, `"newest" is not an etcd version`},
		{[2]string{"backupInterval: 15m", "backupInterval: often"}, `manager.backupInterval: "often" is not a duration`},
		{[2]string{"backupRetentionDays: 90", "backupRetentionDays: -1"}, "-1 days are not possible"},
		{[2]string{"subnets: [us-east-1a]", "subnets: [us-east-1a, us-east-1b]"},
			"the zone of instance group \"control-plane-us-east-1a\" is not known: it must have one"},
		{[2]string{"configBase: s3://bucket/example.com", ""}, "spec.configBase: it is missing"},
		{[2]string{"kind: Cluster", "kind: Klaster"}, "it holds no document of kind Cluster"},
		{[2]string{"spec:\n  api", "spec: [\n  api"}, "document 1 is not YAML"},
		{[2]string{"    name: main", "    provider: Legacy\n    name: main"}, `provider: "Legacy" is not possible`},
	} {
		text := strings.Replace(load(t, "three"), c.edit[0], c.edit[1], 1)
		if text == load(t, "three") {
			t.Fatalf("%q is not in the file", c.edit[0])
		}
		if _, err := Parse([]byte(text)); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%q: %v; want %q", c.edit[1], err, c.want)
		}
	}
}

// TestOtherClouds: a file of a cloud that isn't supported is refused by the cloud's name, in every form that
// kOps writes, and so is a store.
func TestOtherClouds(t *testing.T) {
	three := load(t, "three")
	for edit, want := range map[string]string{
		"cloudProvider: gce":                      `spec.cloudProvider: "gce" is not supported`,
		"cloudProvider: azure":                    `"azure" is not supported`,
		"cloudProvider: openstack":                `"openstack" is not supported`,
		"cloudProvider: hetzner":                  `"hetzner" is not supported`,
		"cloudProvider: digitalocean":             `"digitalocean" is not supported`,
		"cloudProvider: AWS":                      `"AWS" is not supported`,
		"cloudProvider: {gce: {project: p}}":      `"gce" is not supported`,
		"cloudProvider: {metal: {}}":              `"metal" is not supported`,
		"cloudProvider: {scaleway: null}":         `"scaleway" is not supported`,
		"cloudProvider: {aws: {}, openstack: {}}": `"openstack" is not supported`,
		"cloudProvider: [linode]":                 `"[linode]" is not supported`,
		"legacyCloudProvider: spotinst":           `spec.legacyCloudProvider: "spotinst" is not supported`,
	} {
		_, err := Parse([]byte(strings.Replace(three, "cloudProvider: aws", edit, 1)))
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", edit, err, want)
		}
	}
	for _, edit := range []string{"cloudProvider: aws", "cloudProvider: {aws: {}}", "cloudProvider: {aws: null}",
		"cloudProvider: null", "cloudProvider:"} {
		if _, err := Parse([]byte(strings.Replace(three, "cloudProvider: aws", edit, 1))); err != nil {
			t.Errorf("%s: %v", edit, err)
		}
	}
	for store, want := range map[string]string{
		"swift://bucket/example.com": `spec.configBase: "swift://bucket/example.com" is not a store`,
		"k8s://space/example.com":    `"k8s://space/example.com" is not a store`,
		"memfs://container/x":        `"memfs://container/x" is not a store`, "example.com": `"example.com" is not a store`,
	} {
		_, err := Parse([]byte(strings.Replace(three, "configBase: s3://bucket/example.com", "configBase: "+store, 1)))
		if !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v; want %q", store, err, want)
		}
	}
	own := strings.Replace(three, "    name: main\n", "    name: main\n    backups: {backupStore: 'swift://b/main'}\n", 1)
	if _, err := Parse([]byte(own)); !errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(),
		`spec.etcdClusters[main].backups.backupStore: "swift://b/main" is not a store`) {
		t.Errorf("a store of its own: %v", err)
	}
}

// TestAllowed: what is right at the edge of the limits.
func TestAllowed(t *testing.T) {
	member := "{name: a, instanceGroup: control-plane-us-east-1a, encryptedVolume: true"
	for _, fields := range []string{"volumeSize: 1", "volumeSize: 4, volumeType: io1, volumeIOPS: 200",
		"volumeSize: 8, volumeIOPS: 4000, volumeThroughput: 1000",
		"volumeType: gp2, volumeSize: 16384", "volumeType: standard, volumeSize: 1024"} {
		if _, err := Parse([]byte(strings.Replace(load(t, "three"), member, member+", "+fields, 1))); err != nil {
			t.Errorf("%s: %v", fields, err)
		}
	}
}

// TestKOpsCommand: the command of the static pod is the one with which kOps starts its manager, to the letter.
func TestKOpsCommand(t *testing.T) {
	f := parse(t, load(t, "three"))
	want := strings.Fields(`--log-file=/var/log/etcd.log --also-stdout /ko-app/etcd-manager
--backup-store=s3://bucket/example.com/backups/etcd/events --client-urls=https://__name__:4002 --cluster-name=etcd-events
--containerized=true --dns-suffix=.internal.example.com --grpc-port=3997 --peer-urls=https://__name__:2381
--quarantine-client-urls=https://__name__:3995 --v=6 --volume-name-tag=k8s.io/etcd/events --volume-provider=aws
--volume-tag=k8s.io/etcd/events --volume-tag=k8s.io/role/control-plane=1 --volume-tag=kubernetes.io/cluster/example.com=owned`)
	got := f.pod(&f.Clusters[1], Options{}).Spec.Containers[0]
	if !reflect.DeepEqual(got.Args, want) || !reflect.DeepEqual(got.Command, []string{"/go-runner"}) {
		t.Errorf("the arguments are\n%q\nwant\n%q", got.Args, want)
	}
	for name, want := range map[string][5]string{"main": {"etcd", "4001", "2380", "3996", "3994"},
		"cilium": {"etcd-cilium", "4003", "2382", "3991", "3992"}, "leases": {"etcd-leases", "4004", "2383", "4006", "4005"}} {
		c := EtcdCluster{Name: name}
		line := strings.Join(f.flags(&c, true), " ") + " "
		for i, flag := range []string{"--cluster-name=", "--client-urls=https://__name__:",
			"--peer-urls=https://__name__:", "--grpc-port=", "--quarantine-client-urls=https://__name__:"} {
			if !strings.Contains(line, flag+want[i]+" ") {
				t.Errorf("%s: no %s%s in %s", name, flag, want[i], line)
			}
		}
	}
}

// TestKeyset: what is made can be read again, and what can't be used is found out.
func TestKeyset(t *testing.T) {
	now := time.Date(2026, 2, 1, 12, 0, 0, 0, time.UTC)
	k, err := newKeyset("etcd-peers-ca-main", now)
	must(t, err)
	data, err := k.encode()
	must(t, err)
	again, end, err := parseKeyset(data)
	must(t, err)
	if !reflect.DeepEqual(again.Spec, k.Spec) || !end.Equal(now.Add(caLife)) {
		t.Errorf("it came back as %+v, ends %s", again.Spec, end)
	}
	public, err := k.public().encode()
	must(t, err)
	if strings.Contains(string(public), "privateMaterial") || !strings.Contains(string(data), "privateMaterial") {
		t.Errorf("the public half has private material, or the other has none:\n%s", public)
	}
	for name, text := range map[string]string{"public": string(public), "empty": "", "other kind": "kind: Secret",
		"no primary": strings.Replace(string(data), "primaryID: \""+k.Spec.PrimaryID, "primaryID: \"1", 1)} {
		if _, _, err := parseKeyset([]byte(text)); err == nil {
			t.Errorf("%s: it counts as good", name)
		}
	}
}

// TestCandidates: a member's volume is found by its tag or its name, and one whose place another takes is left out.
func TestCandidates(t *testing.T) {
	tagged := func(id string, tags ...string) Volume {
		v := Volume{ID: id, Tags: map[string]string{}}
		for i := 0; i < len(tags); i += 2 {
			v.Tags[tags[i]] = tags[i+1]
		}
		return v
	}
	all := []Volume{
		tagged("old", "k8s.io/etcd/main", "a/a,b,c"), tagged("new", "k8s.io/etcd/main", "a/a,b,c", tagReplaces, "old"),
		tagged("gone", "k8s.io/etcd/main", "a/a,b,c", tagGivenUp, "2026-02-01T12:00:00Z"), tagged("other", "k8s.io/etcd/events", "a/a,b,c"),
		tagged("b", "k8s.io/etcd/main", "b/a,b,c", "Name", "a.etcd-main.example.com"), tagged("c", "Name", "c.etcd-main.example.com"),
	}
	for member, want := range map[string]string{"a": "new", "b": "b", "c": "c"} {
		got := candidates(all, "main", member, member+".etcd-main.example.com")
		if len(got) != 1 || got[0].ID != want {
			t.Errorf("member %s: %v, want %s", member, got, want)
		}
	}
}

// TestStoreSchemes: a cluster file may name every store that a manager can open, and no other.
func TestStoreSchemes(t *testing.T) {
	got, want := slices.Sorted(slices.Values(storeSchemes())), slices.Sorted(slices.Values(connect.Schemes()))
	if !slices.Equal(got, want) {
		t.Errorf("the schemes of a cluster file are %q, those of pkg/blob/connect %q", got, want)
	}
}
