package e2e

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/test/awsdouble"
)

// kopsMainArgs are the arguments with which kOps starts the manager of the main cluster.
func kopsMainArgs() []string {
	return strings.Fields(`--log-file=/var/log/etcd.log --also-stdout /ko-app/etcd-manager
--backup-store=s3://backups/example.com/backups/etcd/main --client-urls=https://__name__:4001 --cluster-name=etcd
--containerized=true --dns-suffix=.internal.example.com --grpc-port=3996 --peer-urls=https://__name__:2380
--quarantine-client-urls=https://__name__:3994 --v=6 --volume-name-tag=k8s.io/etcd/main --volume-provider=aws
--volume-tag=k8s.io/etcd/main --volume-tag=k8s.io/role/control-plane=1 --volume-tag=kubernetes.io/cluster/example.com=owned`)
}

// TestTwoClustersOnANode: both of kOps' commands, unchanged, on one machine, started at the same
// moment. Each manager takes the volume of its own cluster under a device name of its own, both
// keep their names in the one hosts file, and neither sees the other's data.
func TestTwoClustersOnANode(t *testing.T) {
	testutil.Long(t)
	t.Parallel()
	c := newCloud(t, kopsPorts())
	events := c.w
	events.startS3("example.com/backups/etcd/events")
	const mainStore = "--backup-store=s3://" + bucket + "/example.com/backups/etcd/main"
	events.ctl("configure-cluster", "--member-count=1")
	events.ctl("configure-cluster", "--member-count=1", mainStore)
	tags := func(cluster string) map[string]string {
		return map[string]string{
			"KubernetesCluster": "example.com", "kubernetes.io/cluster/example.com": "owned", "Name": "a.etcd-" + cluster + ".example.com",
			"k8s.io/etcd/" + cluster: "a/a", "k8s.io/role/control-plane": "1", "k8s.io/role/master": "1",
		}
	}
	for _, cluster := range []string{"main", "events"} {
		c.addVolume(awsdouble.Volume{ID: "vol-0" + cluster, Zone: "us-east-1a", Type: "gp3", SizeGiB: 20, Tags: tags(cluster)}, 256)
	}
	first := c.machine("etcd-events-a", "i-a", "us-east-1a", kopsCommand())

	// The other manager shares the machine with the first: its network and hosts file, its processes, its devices.
	world := *events
	world.ports, world.masters = ports{4001, 2380, 3996, 3994, 8082}, nil
	second := &master{w: &world, name: "etcd-a", address: first.address, container: world.name + "-main"}
	world.masters = []*master{second}
	args := slices.Concat([]string{"create", "--name", second.container, "--network", "container:" + first.container,
		"--pid", "container:" + world.name + "-machine-i-a",
		"--mount", "type=volume,dst=/var/log", "-v", world.pkiDir + ":/etc/kubernetes/pki/etcd-manager:ro", "-e",
		"AWS_ENDPOINT_URL_EC2=" + c.url,
		"-e", "AWS_EC2_METADATA_SERVICE_ENDPOINT=" + c.serve(c.Metadata("i-a"))}, privileges(), world.labels())
	for _, e := range events.store.env {
		args = append(args, "-e", e)
	}
	args = slices.Concat(args, []string{"--entrypoint", "/go-runner", image(t)}, kopsMainArgs(),
		[]string{fmt.Sprintf("--etcd-manager-metrics-port=%d", world.ports.status)})
	mustDocker(t, args...)
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the log of the main cluster's manager:\n%s", second.log())
		}
	})
	first.start()
	second.start()

	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()
	for _, m := range []*master{first, second} {
		waitFor(t, m.name+" serves", 3*time.Minute, func() string {
			v, err := m.status()
			switch {
			case err != nil:
				return err.Error()
			case !v.Etcd.Healthy || v.Etcd.Quarantined:
				return v.Doing + " " + v.Etcd.Error
			}
			return ""
		})
		if _, err := m.w.client(t, m).Put(ctx, "whose", m.name); err != nil {
			t.Fatal(err)
		}
	}
	devices := map[string]bool{}
	for cluster, m := range map[string]*master{"main": second, "events": first} {
		v, _ := c.Volume("vol-0" + cluster)
		if v.Attachment == nil || v.Attachment.Instance != "i-a" {
			t.Fatalf("the volume of %s is not attached: %+v", cluster, v.Attachment)
		}
		devices[v.Attachment.Device] = true
		if log := m.log(); strings.Count(log, "mounted at /proc/1/root/mnt/master-vol-0"+cluster) != 1 {
			t.Errorf("the log of %s doesn't say once that its volume is mounted", m.name)
		}
		r, err := m.w.client(t, m).Get(ctx, "whose")
		if err != nil || len(r.Kvs) != 1 || string(r.Kvs[0].Value) != m.name {
			t.Errorf("%s has %v, %v", m.name, r, err)
		}
		if ids := m.w.memberIDs(); len(ids) != 1 || ids[m.name] == 0 {
			t.Errorf("the members of %s are %x", cluster, ids)
		}
	}
	if len(devices) != 2 {
		t.Errorf("the volumes are attached as %v", devices)
	}
	hosts, err := containerFile(second.container, "/etc/hosts")
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{"etcd-manager[etcd] ", "etcd-manager[etcd-events] ",
		first.address + "\tetcd-a.internal.example.com\n", first.address + "\tetcd-events-a.internal.example.com\n"} {
		if !strings.Contains(string(hosts), want) {
			t.Errorf("the hosts file has no %q:\n%s", want, hosts)
		}
	}
	second.stop()
	first.stop()
}
