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

// kopsPorts are those of the events cluster in kopsArgs.
func kopsPorts() ports { return ports{4002, 2381, 3997, 3995, 8081} }

// kopsTags are those that kOps gives a member's volume.
func kopsTags(member string) map[string]string {
	return map[string]string{
		"KubernetesCluster": "example.com", "kubernetes.io/cluster/example.com": "owned", "Name": member + ".etcd-events.example.com",
		"k8s.io/etcd/events": member + "/a,b,c", "k8s.io/role/control-plane": "1", "k8s.io/role/master": "1",
	}
}

// kopsCommand is the command of kOps, unchanged, and what lets a test look at the manager.
func kopsCommand(extra ...string) func(m *master) []string {
	return func(m *master) []string {
		return slices.Concat([]string{"/go-runner"}, kopsArgs(),
			[]string{fmt.Sprintf("--etcd-manager-metrics-port=%d", m.w.ports.status)}, extra)
	}
}

// memberIDs are etcd's ids of the members, by name.
func (w *world) memberIDs() map[string]uint64 {
	w.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 15*time.Second)
	defer cancel()
	r, err := w.client(w.t, w.masters...).MemberList(ctx)
	if err != nil {
		w.t.Fatal(err)
	}
	ids := map[string]uint64{}
	for _, m := range r.Members {
		ids[m.Name] = m.ID
	}
	return ids
}

// TestKOpsCommandUnchanged: the command of kOps as it is on three machines in three zones. Their
// volumes are found, attached, formatted once and mounted; a machine that is replaced by a new one
// gives its volume to that, which is the same member with the same data.
func TestKOpsCommandUnchanged(t *testing.T) {
	testutil.Long(t)
	t.Parallel()
	c := newCloud(t, kopsPorts())
	w := c.w
	w.startS3("example.com/backups/etcd/events")
	w.configure("")
	c.Behave(func(b *awsdouble.Behavior) {
		b.AttachDelay, b.DetachDelay = time.Second, time.Second
	})
	c.Fail("AttachVolume", awsdouble.Throttled())
	for _, zone := range []string{"a", "b", "c"} {
		c.addVolume(awsdouble.Volume{ID: "vol-0" + zone, Zone: "us-east-1" + zone, Type: "gp3", SizeGiB: 20, Tags: kopsTags(zone)}, 256)
		other := kopsTags(zone)
		other["kubernetes.io/cluster/example.com"] = "shared" // another cluster's
		c.addVolume(awsdouble.Volume{ID: "vol-00" + zone, Zone: "us-east-1" + zone, Type: "gp3", SizeGiB: 20, Tags: other}, 32)
		c.machine("etcd-events-"+zone, "i-"+zone, "us-east-1"+zone, kopsCommand())
	}
	each(w.masters, (*master).start)
	w.waitServing(3 * time.Minute)
	w.oneMemberList()
	before := w.memberIDs()
	uuids := map[string]string{}
	for _, zone := range []string{"a", "b", "c"} {
		v, _ := c.Volume("vol-0" + zone)
		if v.Attachment == nil || v.Attachment.Instance != "i-"+zone || v.Attachment.State != "attached" {
			t.Errorf("volume of zone %s: %+v", zone, v.Attachment)
		}
		if o, _ := c.Volume("vol-00" + zone); o.Attachment != nil {
			t.Errorf("another cluster's volume was attached: %+v", o.Attachment)
		}
		uuids[zone] = c.uuid("vol-0" + zone)
	}
	for _, m := range w.masters {
		log := m.log()
		for _, want := range []string{"gets an ext4 file system", "mounted at /proc/1/root/mnt/master-vol-0"} {
			if strings.Count(log, want) != 1 {
				t.Errorf("the log of %s says %q %d times", m.name, want, strings.Count(log, want))
			}
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	if _, err := w.client(t, w.masters...).Put(ctx, "kept", "yes"); err != nil {
		t.Fatal(err)
	}

	t.Log("machine i-b is terminated; a new one takes its place")
	c.terminate(w.masters[1], "i-b")
	m := c.machine("etcd-events-b2", "i-b2", "us-east-1b", kopsCommand())
	m.start()
	w.waitServing(3 * time.Minute)
	if after := w.memberIDs(); len(after) != 3 || after["etcd-events-b"] != before["etcd-events-b"] || before["etcd-events-b"] == 0 {
		t.Errorf("members are %x, were %x", after, before)
	}
	if strings.Contains(m.log(), "gets an ext4 file system") || c.uuid("vol-0b") != uuids["b"] {
		t.Error("the volume was formatted again")
	}
	if r, err := w.client(t, m).Get(ctx, "kept"); err != nil || len(r.Kvs) != 1 {
		t.Errorf("the new machine has %v, %v", r, err)
	}

	t.Log("all machines restart their managers: the volumes are used as they are mounted")
	each(w.masters, (*master).stop)
	each(w.masters, (*master).start)
	w.waitServing(2 * time.Minute)
	for zone, uuid := range uuids {
		if now := c.uuid("vol-0" + zone); now != uuid {
			t.Errorf("the file system of zone %s is %s, was %s", zone, now, uuid)
		}
	}
}

// TestStartNamesWhatIsMissing: a permission that is missing ends the start with its name and the
// resource; a plain volume is refused before a byte lands on it, and so is one of another cluster.
func TestStartNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	c := newCloud(t, kopsPorts())
	c.w.startS3("example.com/backups/etcd/events")
	c.addVolume(awsdouble.Volume{ID: "vol-0a", Zone: "us-east-1a", Type: "gp3", SizeGiB: 20, Tags: kopsTags("a")}, 64)
	ends := func(m *master, words ...string) {
		t.Helper()
		m.start()
		waitFor(t, m.name+" ends", time.Minute, func() string {
			if mustDocker(t, "inspect", "--format", "{{.State.Running}}", m.container) == "true" {
				return "it runs"
			}
			return ""
		})
		log := m.log()
		for _, w := range words {
			if !strings.Contains(log, w) {
				t.Errorf("the log of %s doesn't say %q:\n%s", m.name, w, log)
			}
		}
		if code := m.exitCode(); code != 1 {
			t.Errorf("%s: exit code %d", m.name, code)
		}
	}
	for action, resource := range map[string]string{"DescribeInstances": "*", "DescribeVolumes": "*",
		"AttachVolume": "arn:aws:ec2:us-east-1:111122223333:volume/vol-0a"} {
		c.Deny(action, true)
		ends(c.machine("denied-"+action, "i-"+strings.ToLower(action), "us-east-1a", kopsCommand()),
			"permission ec2:"+action+" is missing on "+resource, "docs/aws.md")
		c.Deny(action, false)
	}
	ends(c.machine("plain", "i-plain", "us-east-1a", kopsCommand("--require-encrypted-volume")),
		"volume vol-0a (etcd-events-a) is not encrypted")
	if v, _ := c.Volume("vol-0a"); v.Attachment != nil {
		t.Errorf("the plain volume was attached: %+v", v)
	}
	if uuid := c.uuidOrNone("vol-0a"); uuid != "" {
		t.Error("the plain volume was formatted")
	}

	// A volume that was in use by another cluster, with this one's tags.
	first := c.machine("first", "i-first", "us-east-1a", kopsCommand("--cluster-name=etcd-other"))
	first.start()
	waitFor(t, "the volume is in use", time.Minute, func() string {
		if !strings.Contains(first.log(), "it is node etcd-other-a") {
			return "not mounted yet"
		}
		return ""
	})
	c.terminate(first, "i-first")
	ends(c.machine("second", "i-second", "us-east-1a", kopsCommand()),
		`holds data of cluster "etcd-other", not of "etcd-events"`, "etcd is not started on it")
}
