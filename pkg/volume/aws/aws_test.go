package aws

import (
	"context"
	"errors"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/volume"
	"github.com/etcd-manager/etcd-manager/test/awsdouble"
)

const key = "arn:aws:kms:us-east-1:111122223333:key/1234"

// region is a double with the environment that leads the SDK to it.
type region struct {
	t *testing.T
	*awsdouble.Cloud
	ec2 *httptest.Server
}

// newRegion makes a region where attached volumes appear as files below each machine's root, in tmp/<instance>.
func newRegion(t *testing.T) (r *region, root func(instance string) string) {
	t.Helper()
	tmp := t.TempDir()
	root = func(instance string) string { return filepath.Join(tmp, instance) }
	r = &region{t: t, Cloud: awsdouble.New(awsdouble.Hooks{Attach: func(v awsdouble.Volume, instance, _ string) error {
		link := filepath.Join(root(instance), byID+serial(volume.ID(v.ID)))
		return errors.Join(os.MkdirAll(filepath.Dir(link), 0o755), os.WriteFile(link, []byte(v.ID), 0o600))
	}})}
	r.ec2 = httptest.NewServer(r.Cloud)
	t.Cleanup(r.ec2.Close)
	for k, v := range map[string]string{
		"AWS_ENDPOINT_URL_EC2": r.ec2.URL, "AWS_REGION": "", "AWS_DEFAULT_REGION": "", "AWS_ACCESS_KEY_ID": "",
		"AWS_SECRET_ACCESS_KEY": "", "AWS_SESSION_TOKEN": "", "AWS_PROFILE": "",
		"AWS_CONFIG_FILE": filepath.Join(tmp, "none"), "AWS_SHARED_CREDENTIALS_FILE": filepath.Join(tmp, "none"),
		"AWS_EC2_METADATA_DISABLED": "false", "AWS_ENDPOINT_URL": "",
	} {
		t.Setenv(k, v)
	}
	return r, root
}

func config() Config {
	return Config{ClusterName: "etcd", Tags: []string{"k8s.io/etcd/main", "kubernetes.io/cluster/example.com=owned"},
		NameTag: "k8s.io/etcd/main"}
}

// tags are those that kOps gives a member's volume.
func tags(member string) map[string]string {
	return map[string]string{"k8s.io/etcd/main": member + "/a,b,c", "kubernetes.io/cluster/example.com": "owned",
		"Name": member + ".etcd-main.example.com"}
}

// machine makes an instance and who gets it a volume.
func (r *region) machine(id, zone string, root string) *Acquirer {
	r.t.Helper()
	r.AddInstance(awsdouble.Instance{ID: id, Zone: zone, IPv4: "10.0.0.1"})
	imds := httptest.NewServer(r.Metadata(id))
	r.t.Cleanup(imds.Close)
	r.t.Setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", imds.URL)
	c, err := Open(r.t.Context(), config())
	if err != nil {
		r.t.Fatal(err)
	}
	self, err := FindSelf(r.t.Context(), c)
	if err != nil {
		r.t.Fatal(err)
	}
	return &Acquirer{Client: c, Self: self, Host: volume.Direct{}, DeviceRoot: root, Poll: 10 * time.Millisecond, Say: r.t.Logf}
}

// acquire runs Acquire in the background and remembers what it says.
type acquiring struct {
	mu   sync.Mutex
	text string
	done chan struct{}
	v    *volume.Volume
	dev  string
	err  error
}

func acquire(t *testing.T, a *Acquirer) *acquiring {
	t.Helper()
	q := &acquiring{done: make(chan struct{})}
	a.Say = func(format string, args ...any) {
		line := fmt.Sprintf(format, args...)
		t.Log(line)
		q.mu.Lock()
		defer q.mu.Unlock()
		q.text += line + "\n"
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	go func() {
		defer close(q.done)
		q.v, q.dev, q.err = a.Acquire(ctx)
	}()
	return q
}

// says waits until the text was said.
func (q *acquiring) says(t *testing.T, text string) {
	t.Helper()
	for end := time.Now().Add(15 * time.Second); ; {
		q.mu.Lock()
		said := q.text
		q.mu.Unlock()
		if strings.Contains(said, text) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%q was not said, but:\n%s", text, said)
		}
		select {
		case <-q.done:
			t.Fatalf("ended with %v, %v without saying %q", q.v, q.err, text)
		case <-time.After(5 * time.Millisecond):
		}
	}
}

func (q *acquiring) gets(t *testing.T, id volume.ID) {
	t.Helper()
	<-q.done
	if q.err != nil || q.v.ID != id || !strings.HasSuffix(q.dev, serial(id)) {
		t.Fatalf("got %v, %s, %v; want %s", q.v, q.dev, q.err, id)
	}
}

func (q *acquiring) fails(t *testing.T, sentinel error, words ...string) {
	t.Helper()
	<-q.done
	if q.err == nil || sentinel != nil && !errors.Is(q.err, sentinel) {
		t.Fatalf("got %v, %v, want an error %v", q.v, q.err, sentinel)
	}
	for _, w := range words {
		if !strings.Contains(q.err.Error(), w) {
			t.Errorf("%v doesn't say %q", q.err, w)
		}
	}
}

// TestAttachThroughTrouble: throttled, with old answers, slow attachments and pages, the volume of the own zone is found and attached.
func TestAttachThroughTrouble(t *testing.T) {
	testutil.Long(t)
	r, root := newRegion(t)
	for i, member := range []string{"a", "b", "c"} {
		r.AddVolume(awsdouble.Volume{ID: "vol-" + member, Zone: "us-east-1" + member, SizeGiB: 20, Type: "gp3", Tags: tags(member)})
		r.AddVolume(awsdouble.Volume{ID: fmt.Sprintf("vol-%d", i), Zone: "us-east-1" + member,
			Tags: map[string]string{"Name": "somebody else's"}})
	}
	a := r.machine("i-b", "us-east-1b", root("i-b"))
	time.Sleep(150 * time.Millisecond) // so that what was made above is older than the lag
	r.Behave(func(b *awsdouble.Behavior) {
		b.Lag, b.AttachDelay, b.PageSize = 100*time.Millisecond, 200*time.Millisecond, 1
	})
	r.Fail("DescribeVolumes", awsdouble.Throttled(), awsdouble.Throttled())
	r.Fail("AttachVolume", awsdouble.Throttled(), awsdouble.Fault{Status: 500, Code: "InternalError",
		Message: "An internal error has occurred"})
	q := acquire(t, a)
	q.gets(t, "vol-b")
	if q.v.Node != "etcd-b" {
		t.Errorf("node %s", q.v.Node)
	}
	if v, _ := r.Volume("vol-b"); v.Attachment.Device != "/dev/xvdu" {
		t.Errorf("attached as %s", v.Attachment.Device)
	}
}

// TestAttachedHereComesFirst: what is attached already is used, though others are free; nothing is attached or asked for.
func TestAttachedHereComesFirst(t *testing.T) {
	r, root := newRegion(t)
	r.AddVolume(awsdouble.Volume{ID: "vol-1", Zone: "us-east-1a", Tags: tags("a")})
	r.AddVolume(awsdouble.Volume{ID: "vol-2", Zone: "us-east-1a", Tags: tags("b")})
	a := r.machine("i-1", "us-east-1a", root("i-1"))
	acquire(t, a).gets(t, "vol-1")
	again := r.machine("i-1", "us-east-1a", root("i-1"))
	acquire(t, again).gets(t, "vol-1")
	if n := strings.Count(strings.Join(r.Calls(), " "), "AttachVolume"); n != 1 {
		t.Errorf("%d calls of AttachVolume", n)
	}
}

// TestLeftBehind: of several volumes that were made to take another one's place, only the one that
// it names does; what is left behind is named.
func TestLeftBehind(t *testing.T) {
	r, root := newRegion(t)
	of := func(more ...string) map[string]string {
		m := tags("a")
		for i := 0; i < len(more); i += 2 {
			m[more[i]] = more[i+1]
		}
		return m
	}
	r.AddVolume(awsdouble.Volume{ID: "vol-1", Zone: "us-east-1a", Tags: of(TagReplaces, "vol-9")})
	r.AddVolume(awsdouble.Volume{ID: "vol-2", Zone: "us-east-1a", Tags: of(TagReplaces, "vol-8")})
	r.AddVolume(awsdouble.Volume{ID: "vol-3", Zone: "us-east-1a", Tags: of(TagReplaces, "vol-9")})
	old := awsdouble.Volume{ID: "vol-9", Zone: "us-east-1a", Tags: of(TagReplacedBy, "vol-3", TagGivenUp, "now"),
		Attachment: &awsdouble.Attachment{Instance: "i-1", Device: "/dev/xvdu", State: "attached"}}
	r.machine("i-1", "us-east-1a", root("i-1"))
	r.AddVolume(old)
	q := acquire(t, r.machine("i-2", "us-east-1a", root("i-2")))
	q.says(t, "that is replaced by vol-3; delete it")
	q.says(t, "which doesn't have this member's tags (any more)")
	q.says(t, "replaces vol-9 when that is released")
	old.Attachment = nil
	r.AddVolume(old)
	q.gets(t, "vol-3")
	for _, id := range []string{"vol-1", "vol-2"} {
		if v, _ := r.Volume(id); v.Attachment != nil {
			t.Errorf("%s is attached to %s", id, v.Attachment.Instance)
		}
	}
}

// TestTwoMachinesTwoVolumes: two machines of one zone at once get one volume each, and a third waits.
func TestTwoMachinesTwoVolumes(t *testing.T) {
	r, root := newRegion(t)
	r.Behave(func(b *awsdouble.Behavior) { b.AttachDelay = 50 * time.Millisecond })
	r.AddVolume(awsdouble.Volume{ID: "vol-1", Zone: "us-east-1a", Tags: tags("a")})
	r.AddVolume(awsdouble.Volume{ID: "vol-2", Zone: "us-east-1a", Tags: tags("b")})
	one, two := acquire(t, r.machine("i-1", "us-east-1a", root("i-1"))), acquire(t, r.machine("i-2", "us-east-1a", root("i-2")))
	<-one.done
	<-two.done
	if one.err != nil || two.err != nil || one.v.ID == two.v.ID {
		t.Fatalf("%v %v, %v %v", one.v, one.err, two.v, two.err)
	}
	third := acquire(t, r.machine("i-3", "us-east-1a", root("i-3")))
	third.says(t, "which is running")
	r.Terminate("i-1")
	third.gets(t, one.v.ID)
}

// TestNeverForcedUnlessTold: a volume that is stuck on a machine is waited for; only with the flag,
// only after its time and never from a machine that runs is it taken away.
func TestNeverForcedUnlessTold(t *testing.T) {
	for _, c := range []struct {
		name       string
		after      time.Duration
		state      string // of the instance that has it
		attachment string
		says       string
		forced     bool
	}{
		{"no flag, detaching", 0, "shutting-down", "detaching", "never forced without --force-detach-after", false},
		{"no flag, stopped", 0, "stopped", "attached", "never forced without --force-detach-after", false},
		{"running", time.Millisecond, "running", "attached", "which is running", false},
		{"not yet", time.Hour, "shutting-down", "detaching", "by force after 1h0m0s", false},
		{"detaching", 50 * time.Millisecond, "running", "detaching", "by force", true},
		{"stopped", 50 * time.Millisecond, "stopped", "attached", "by force", true},
		{"gone", 50 * time.Millisecond, "", "attached", "unknown to EC2", true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r, root := newRegion(t)
			r.Behave(func(b *awsdouble.Behavior) { b.StuckOn = []string{"i-old"} })
			if c.state != "" {
				r.AddInstance(awsdouble.Instance{ID: "i-old", Zone: "us-east-1a", State: c.state})
			}
			r.AddVolume(awsdouble.Volume{ID: "vol-1", Zone: "us-east-1a", Tags: tags("a"),
				Attachment: &awsdouble.Attachment{Instance: "i-old", Device: "/dev/xvdu", State: c.attachment}})
			a := r.machine("i-new", "us-east-1a", root("i-new"))
			a.ForceDetachAfter = c.after
			q := acquire(t, a)
			q.says(t, c.says)
			if c.forced {
				q.gets(t, "vol-1")
				return
			}
			before := len(r.Calls())
			for len(r.Calls()) < before+6 { // a few looks later nothing has happened
				time.Sleep(5 * time.Millisecond)
			}
			if strings.Contains(strings.Join(r.Calls(), " "), "DetachVolume") {
				t.Error("it was detached")
			}
		})
	}
}

// TestStuckWithoutABreak: one answer in which a machine that runs is missing doesn't count the time before it.
func TestStuckWithoutABreak(t *testing.T) {
	a := &Acquirer{}
	v := &volume.Volume{ID: "vol-1", Attachments: []volume.Attachment{{Instance: "i-old", State: "attached"}}}
	a.stuckFor(v, true)
	time.Sleep(20 * time.Millisecond)
	if held := a.stuckFor(v, true); held < 20*time.Millisecond {
		t.Errorf("stuck for %s", held)
	}
	a.stuckFor(v, false)
	if held := a.stuckFor(v, true); held > 10*time.Millisecond {
		t.Errorf("stuck for %s after it wasn't", held)
	}
}

// TestMissingPermissions: each permission that is missing is named, with its resource, and ends the waiting.
func TestMissingPermissions(t *testing.T) {
	for action, resource := range map[string]string{
		"DescribeVolumes":   "*",
		"DescribeInstances": "*",
		"AttachVolume":      "arn:aws:ec2:us-east-1:111122223333:volume/vol-1 and arn:aws:ec2:us-east-1:111122223333:instance/i-1",
		"DetachVolume":      "arn:aws:ec2:us-east-1:111122223333:volume/vol-1 and arn:aws:ec2:us-east-1:111122223333:instance/i-old",
	} {
		t.Run(action, func(t *testing.T) {
			r, root := newRegion(t)
			v := awsdouble.Volume{ID: "vol-1", Zone: "us-east-1a", Tags: tags("a")}
			if action == "DetachVolume" {
				r.AddInstance(awsdouble.Instance{ID: "i-old", Zone: "us-east-1a", State: "stopped"})
				v.Attachment = &awsdouble.Attachment{Instance: "i-old", Device: "/dev/xvdu", State: "attached"}
			}
			r.AddVolume(v)
			a := r.machine("i-1", "us-east-1a", root("i-1"))
			a.ForceDetachAfter = time.Nanosecond
			r.Deny(action, true)
			var err error
			if action == "DescribeInstances" {
				_, err = FindSelf(t.Context(), a.Client)
			} else {
				_, _, err = a.Acquire(t.Context())
			}
			var denied *PermissionError
			if !errors.As(err, &denied) || denied.Action != "ec2:"+action || denied.Resource != resource ||
				!strings.Contains(err.Error(), "ec2:"+action) {
				t.Errorf("got %v", err)
			}
		})
	}
}

// TestKeyWithoutPermission: EC2 says nothing of a key that may not be used, it only takes the attachment back.
func TestKeyWithoutPermission(t *testing.T) {
	r, root := newRegion(t)
	r.AddVolume(awsdouble.Volume{ID: "vol-1", Zone: "us-east-1a", Tags: tags("a"), Encrypted: true, Key: key})
	a := r.machine("i-1", "us-east-1a", root("i-1"))
	r.Behave(func(b *awsdouble.Behavior) {
		b.UnusableKeys = []string{key}
		b.AttachDelay = 100 * time.Millisecond
	})
	q := acquire(t, a)
	q.says(t, "kms:CreateGrant")
	q.says(t, key)
	r.Behave(func(b *awsdouble.Behavior) { b.UnusableKeys = nil })
	q.gets(t, "vol-1")
}

// TestPlainIsRefused: before it is attached.
func TestPlainIsRefused(t *testing.T) {
	for value, volumes := range map[string][]awsdouble.Volume{
		"true": {{ID: "vol-1"}},
		key:    {{ID: "vol-1"}, {ID: "vol-2", Encrypted: true, Key: "arn:aws:kms:us-east-1:111122223333:key/other"}},
	} {
		r, root := newRegion(t)
		for i, v := range volumes {
			v.Zone, v.Tags = "us-east-1a", tags([]string{"a", "b"}[i])
			r.AddVolume(v)
		}
		a := r.machine("i-1", "us-east-1a", root("i-1"))
		var err error
		if a.Encryption, err = volume.ParseEncryption(value); err != nil {
			t.Fatal(err)
		}
		acquire(t, a).fails(t, volume.ErrNotEncrypted, "vol-1", "--require-encrypted-volume")
		if strings.Contains(strings.Join(r.Calls(), " "), "AttachVolume") {
			t.Error("it was attached")
		}
		r.AddVolume(awsdouble.Volume{ID: "vol-3", Zone: "us-east-1a", Tags: tags("c"), Encrypted: true, Key: key})
		acquire(t, a).gets(t, "vol-3")
	}
}

// TestRootVolume, and volumes that don't say whose they are, are never used.
func TestRootVolume(t *testing.T) {
	r, root := newRegion(t)
	a := r.machine("i-1", "us-east-1a", root("i-1"))
	r.AddVolume(awsdouble.Volume{ID: "vol-1", Zone: "us-east-1a", Tags: tags("a"),
		Attachment: &awsdouble.Attachment{Instance: "i-1", Device: "/dev/xvda", State: "attached"}})
	nameless := tags("")
	r.AddVolume(awsdouble.Volume{ID: "vol-2", Zone: "us-east-1a", Tags: nameless})
	q := acquire(t, a)
	q.says(t, "root volume")
	q.says(t, "no member's name in its tag k8s.io/etcd/main")
	r.AddVolume(awsdouble.Volume{ID: "vol-3", Zone: "us-east-1a", Tags: tags("a")})
	q.gets(t, "vol-3")
}

// TestDeviceNameTaken: the manager of another cluster on this machine may be faster with a name.
func TestDeviceNameTaken(t *testing.T) {
	r, root := newRegion(t)
	r.AddVolume(awsdouble.Volume{ID: "vol-1", Zone: "us-east-1a", Tags: tags("a")})
	a := r.machine("i-1", "us-east-1a", root("i-1"))
	r.AddVolume(awsdouble.Volume{ID: "vol-x", Zone: "us-east-1a",
		Attachment: &awsdouble.Attachment{Instance: "i-1", Device: "/dev/xvdu", State: "attached"}})
	acquire(t, a).gets(t, "vol-1")
	if v, _ := r.Volume("vol-1"); v.Attachment.Device != "/dev/xvdv" {
		t.Errorf("attached as %s", v.Attachment.Device)
	}
}

// TestSelf: IPv6 first, else the private IPv4 address.
func TestSelf(t *testing.T) {
	r, root := newRegion(t)
	a := r.machine("i-1", "us-east-1a", root("i-1"))
	if a.Self.Address != "10.0.0.1" || a.Self.Region != "us-east-1" || a.Self.RootDevice != "/dev/xvda" {
		t.Errorf("%+v", a.Self)
	}
	r.AddInstance(awsdouble.Instance{ID: "i-1", Zone: "us-east-1a", IPv4: "10.0.0.1", IPv6: "fd00::1"})
	if s, err := FindSelf(t.Context(), a.Client); err != nil || s.Address != "fd00::1" {
		t.Errorf("%+v, %v", s, err)
	}
}

// TestFindDevice: the names that prove which volume it is come first.
func TestFindDevice(t *testing.T) {
	put := func(root, path, content string) {
		t.Helper()
		full := filepath.Join(root, path)
		if err := errors.Join(os.MkdirAll(filepath.Dir(full), 0o755), os.WriteFile(full, []byte(content), 0o600)); err != nil {
			t.Fatal(err)
		}
	}
	v := &volume.Volume{ID: "vol-0123", Attachments: []volume.Attachment{{Device: "/dev/xvdu", State: "attached"}}}
	for name, c := range map[string]struct {
		files map[string]string
		want  string
	}{
		"nothing": {nil, ""},
		"Xen":     {map[string]string{"dev/xvdu": ""}, "dev/xvdu"},
		"NVMe with udev": {map[string]string{"dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_vol0123": "", "dev/xvdu": ""},
			"dev/disk/by-id/nvme-Amazon_Elastic_Block_Store_vol0123"},
		"NVMe without": {map[string]string{"sys/block/nvme1n1/device/serial": "vol9999\n",
			"sys/block/nvme2n1/device/serial": "vol0123 \n", "dev/nvme2n1": "", "dev/nvme1n1": ""}, "dev/nvme2n1"},
		"another's NVMe": {map[string]string{"sys/block/nvme1n1/device/serial": "vol9999\n", "dev/nvme1n1": ""}, ""},
	} {
		root := t.TempDir()
		for path, content := range c.files {
			put(root, path, content)
		}
		got, err := findDevice(root, v)
		if c.want == "" && !errors.Is(err, os.ErrNotExist) || c.want != "" && (err != nil || got != filepath.Join(root, c.want)) {
			t.Errorf("%s: %s, %v", name, got, err)
		}
	}
	root := t.TempDir()
	put(root, "sys/block/nvme1n1/device/serial", "vol9999\n")
	put(root, "dev/nvme1n1", "")
	if err := os.Symlink("nvme1n1", filepath.Join(root, "dev/xvdu")); err != nil {
		t.Fatal(err)
	}
	if _, err := findDevice(root, v); !errors.Is(err, volume.ErrInUse) {
		t.Errorf("a link to another volume: %v", err)
	}
}
