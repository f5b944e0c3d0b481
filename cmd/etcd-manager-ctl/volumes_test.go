package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/buildinfo"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/volume/aws"
	"github.com/etcd-manager/etcd-manager/test/awsdouble"
)

const (
	someKey  = "arn:aws:kms:us-east-1:111122223333:key/some"
	otherKey = "arn:aws:kms:us-east-1:111122223333:key/other"
)

// cloud is a region with three members' volumes, and nodes that do at each pause of the tool what managers would.
type cloud struct {
	t *testing.T
	*awsdouble.Cloud
	store blob.Store
	cat   *catalog.Catalog
	// breakAt is the number of the changing call that fails, 0 for none; after says that it is done before it fails.
	breakAt int
	after   bool
	changes int
}

func newCloud(t *testing.T, members ...string) *cloud {
	store := blobtest.NewMemory()
	c := &cloud{t: t, Cloud: awsdouble.New(awsdouble.Hooks{}), store: store, cat: catalog.New(store)}
	for _, m := range members {
		v := awsdouble.Volume{ID: "vol-" + m, Zone: "us-east-1" + m, Type: "gp3", SizeGiB: 20,
			Attachment: &awsdouble.Attachment{Instance: "i-" + m, Device: "/dev/xvdu", State: "attached"},
			Tags: map[string]string{"k8s.io/etcd/main": m + "/a,b,c", "kubernetes.io/cluster/example.com": "owned",
				"Name": m + ".etcd-main.example.com"}}
		c.AddVolume(v)
		c.says(m, v.ID, true)
	}
	_, err := c.cat.CreateSpec(t.Context(), cluster.Spec{MemberCount: 3})
	must(t, err)
	s := httptest.NewServer(http.HandlerFunc(c.serve))
	t.Cleanup(s.Close)
	for k, v := range map[string]string{"AWS_ENDPOINT_URL_EC2": s.URL, "AWS_REGION": "us-east-1",
		"AWS_ACCESS_KEY_ID": "operator", "AWS_SECRET_ACCESS_KEY": "operator", "AWS_PROFILE": "",
		"AWS_CONFIG_FILE": filepath.Join(t.TempDir(), "none"), "AWS_SHARED_CREDENTIALS_FILE": filepath.Join(t.TempDir(), "none")} {
		t.Setenv(k, v)
	}
	return c
}

// serve breaks one of the changing calls, before or after it was done.
func (c *cloud) serve(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	must(c.t, err)
	form, err := url.ParseQuery(string(body))
	must(c.t, err)
	r.Body = io.NopCloser(bytes.NewReader(body))
	action := form.Get("Action")
	if !strings.HasPrefix(action, "Describe") {
		c.changes++
		if c.changes == c.breakAt {
			if c.after {
				c.Cloud.ServeHTTP(httptest.NewRecorder(), r)
			}
			w.WriteHeader(http.StatusForbidden)
			fmt.Fprintf(w, "<Response><Errors><Error><Code>UnauthorizedOperation</Code><Message>no %s</Message></Error></Errors><RequestID>r</RequestID></Response>", action)
			return
		}
	}
	c.Cloud.ServeHTTP(w, r)
}

func (c *cloud) says(member, volume string, serving bool) {
	must(c.t, c.cat.PutVolume(context.Background(),
		catalog.VolumeRecord{Node: cluster.NodeID("etcd-" + member), Volume: volume, Serving: serving}))
}

// live is one step of each node that has something to do. That two have is what must never be.
func (c *cloud) live() {
	busy := 0
	for _, v := range c.Volumes() {
		next := v.Tags[aws.TagReplacedBy]
		member, _, found := strings.Cut(v.Tags["k8s.io/etcd/main"], "/")
		if next == "" || !found {
			continue
		}
		busy++
		n, _ := c.Volume(next)
		switch {
		case v.Tags[aws.TagGivenUp] == "":
			v.Tags[aws.TagGivenUp] = "2026-01-01T00:00:00Z"
			c.AddVolume(v)
		case v.Attachment != nil:
			v.Attachment, v.State = nil, ""
			c.AddVolume(v)
		case n.Attachment == nil:
			n.Attachment = &awsdouble.Attachment{Instance: "i-" + member, Device: "/dev/xvdv", State: "attached"}
			c.AddVolume(n)
			c.says(member, next, false)
		default:
			c.says(member, next, true)
		}
	}
	if busy > 1 {
		c.t.Errorf("%d members are without their data at once", busy)
	}
}

// ctl runs the tool. The operator interrupts after so many pauses.
func (c *cloud) ctl(patience int, args ...string) (int, string, string) {
	var out, errOut bytes.Buffer
	args = append(append([]string{"--backup-store=mem://", "volumes"}, args...), "--cluster-name=etcd",
		"--volume-name-tag=k8s.io/etcd/main",
		"--volume-tag=k8s.io/etcd/main", "--volume-tag", "kubernetes.io/cluster/example.com=owned")
	code := run(c.t.Context(), deps{args: args, in: strings.NewReader(""), out: &out, errOut: &errOut, build: buildinfo.Info{Version: "1.2.3"}, now: time.Now,
		open: func(context.Context, string) (blob.Store, error) { return c.store, nil },
		pause: func(context.Context) bool {
			patience--
			c.live()
			return patience > 0
		}})
	return code, out.String(), errOut.String()
}

// check fails the test unless all volumes are encrypted with the key, and as many old ones are kept.
func (c *cloud) check(key string, kept int) {
	c.t.Helper()
	code, out, errOut := c.ctl(1, "check", "--require-encrypted-volume="+key)
	if code != exitOK || strings.Count(out, key) != 3 || strings.Count(out, "kept, replaced by") != kept ||
		strings.Contains(out, "replaces") {
		c.t.Errorf("volumes check: %d\n%s%s", code, out, errOut)
	}
	if n := len(c.Volumes()); n != 3+kept {
		c.t.Errorf("there are %d volumes, want 3 and %d that are kept", n, kept)
	}
}

// TestEncryptBrokenAtEachCall: whatever call to EC2 is the last one of a run, done or not, the next
// run goes on; no volume is made twice, and never are two members without their data.
func TestEncryptBrokenAtEachCall(t *testing.T) {
	for _, after := range []bool{false, true} {
		for n := 1; ; n++ {
			c := newCloud(t, "a", "b", "c")
			c.breakAt, c.after = n, after
			code, _, errOut := c.ctl(100, "encrypt", "--yes", "--require-encrypted-volume="+someKey)
			if code == exitOK {
				c.check(someKey, 3)
				if n < 16 {
					t.Errorf("only %d calls change anything", n-1)
				}
				break
			}
			if !strings.Contains(errOut, "permission ec2:") {
				t.Errorf("call %d: exit code %d: %s", n, code, errOut)
			}
			if code, _, errOut := c.ctl(100, "encrypt", "--yes", "--require-encrypted-volume="+someKey); code != exitOK {
				t.Errorf("after call %d (done: %t): exit code %d: %s", n, after, code, errOut)
			}
			c.check(someKey, 3)
		}
	}
}

// TestEncryptInterrupted: interrupted after each look, the same command goes on.
func TestEncryptInterrupted(t *testing.T) {
	c := newCloud(t, "a", "b", "c")
	code, runs := exitUnfollowed, 0
	for ; code == exitUnfollowed && runs < 100; runs++ {
		code, _, _ = c.ctl(1, "encrypt", "--yes", "--require-encrypted-volume")
	}
	if code != exitOK || runs < 10 {
		t.Errorf("exit code %d in run %d", code, runs)
	}
	c.check("arn:aws:kms:us-east-1:111122223333:key/aws-ebs-default", 3)
	if code, _, errOut := c.ctl(1, "encrypt", "--yes"); code != exitOK || !strings.Contains(errOut, "every member's volume is encrypted") {
		t.Errorf("nothing is left: %d %s", code, errOut)
	}
	// To a key that is wanted.
	if code, _, errOut := c.ctl(100, "encrypt", "--yes", "--require-encrypted-volume="+otherKey); code != exitOK {
		t.Errorf("another key: %d %s", code, errOut)
	}
	c.check(otherKey, 6)
	if code, _, errOut := c.ctl(1, "confirm"); code != exitUsage || strings.Count(errOut, "vol-") < 6 {
		t.Errorf("confirm without anybody to ask: %d %s", code, errOut)
	}
	if code, _, errOut := c.ctl(1, "confirm", "--yes"); code != exitOK {
		t.Errorf("confirm: %d %s", code, errOut)
	}
	c.check(otherKey, 0)
}

// TestEncryptAgain: what an earlier run left behind with another key is named and not used, and
// after the way back (the tag taken off, the new volume deleted) the command makes another one,
// though EC2 remembers that it made one for the same wish.
func TestEncryptAgain(t *testing.T) {
	c := newCloud(t, "a", "b", "c")
	c.breakAt = 2 // the tag on the old volume
	if code, _, errOut := c.ctl(100, "encrypt", "--yes"); code == exitOK {
		t.Fatalf("exit code %d: %s", code, errOut)
	}
	var left string
	for _, v := range c.Volumes() {
		if v.Tags[aws.TagReplaces] != "" {
			left = v.ID
		}
	}
	code, _, errOut := c.ctl(100, "encrypt", "--yes", "--require-encrypted-volume="+someKey)
	if v, ok := c.Volume(left); code != exitOK || !strings.Contains(errOut, left+" was created for it before") || !ok ||
		v.Attachment != nil {
		t.Errorf("exit code %d, %s is %+v: %s", code, left, v, errOut)
	}

	c = newCloud(t, "a", "b", "c")
	c.Behave(func(b *awsdouble.Behavior) { b.Lag = 300 * time.Millisecond })
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
		if _, out, errOut := c.ctl(1, "check"); strings.Count(out, "attached") == 3 {
			break
		} else if time.Now().After(end) {
			t.Fatalf("the volumes aren't seen: %s%s", out, errOut)
		}
	}
	if code, _, errOut := c.ctl(1, "encrypt", "--yes", "--require-encrypted-volume="+someKey); code != exitUnfollowed {
		t.Fatalf("exit code %d: %s", code, errOut)
	}
	old, _ := c.Volume("vol-a")
	first := old.Tags[aws.TagReplacedBy]
	if first == "" {
		t.Fatalf("nothing was begun: %+v", old)
	}
	c.Behave(func(b *awsdouble.Behavior) { b.Lag = 0 })
	c.RemoveVolume(first)
	delete(old.Tags, aws.TagReplacedBy)
	delete(old.Tags, aws.TagGivenUp)
	c.AddVolume(old)
	c.says("a", "vol-a", true)
	if code, _, errOut := c.ctl(100, "encrypt", "--yes", "--require-encrypted-volume="+someKey); code != exitOK {
		t.Errorf("after the way back: exit code %d: %s", code, errOut)
	}
	c.check(someKey, 3)
}

// TestEncryptWaits: nothing is begun while a member doesn't serve, and never with fewer than three.
func TestEncryptWaits(t *testing.T) {
	c := newCloud(t, "a", "b", "c")
	c.says("b", "vol-b", false)
	code, _, errOut := c.ctl(3, "encrypt", "--yes")
	if code != exitUnfollowed || !strings.Contains(errOut, "etcd-b doesn't serve from vol-b") || c.changes > 0 {
		t.Errorf("exit code %d, %d changes: %s", code, c.changes, errOut)
	}
	c = newCloud(t, "a")
	code, _, errOut = c.ctl(3, "encrypt", "--yes")
	if code != exitUnfollowed || !strings.Contains(errOut, "at least 3 are needed") || c.changes > 0 {
		t.Errorf("exit code %d, %d changes: %s", code, c.changes, errOut)
	}
}

// TestVolumesCheck shows all members, those without a volume too.
func TestVolumesCheck(t *testing.T) {
	c := newCloud(t, "a", "b")
	v, _ := c.Volume("vol-b")
	v.Encrypted, v.Key = true, someKey
	c.AddVolume(v)
	code, out, errOut := c.ctl(1, "check")
	want := `MEMBER  VOLUME  SIZE    TYPE  ENCRYPTED  KEY                                           STATE
etcd-a  vol-a   20 GiB  gp3   no         -                                             attached to i-a as /dev/xvdu
etcd-b  vol-b   20 GiB  gp3   yes        arn:aws:kms:us-east-1:111122223333:key/some   attached to i-b as /dev/xvdu
etcd-c  -       -       -     -          -                                             no volume (no volume has its tag)
`
	if code != exitOK || strings.Join(strings.Fields(out), " ") != strings.Join(strings.Fields(want), " ") {
		t.Errorf("exit code %d: %s\n%s", code, out, errOut)
	}
	code, out, errOut = c.ctl(1, "check", "--require-encrypted-volume", "-o", "json")
	if code != exitFailure || !strings.Contains(out, `"problem": "not encrypted as required"`) ||
		!strings.Contains(errOut, "1 volume not encrypted") {
		t.Errorf("exit code %d: %s\n%s", code, out, errOut)
	}
	c.Deny("DescribeVolumes", true)
	if code, _, errOut = c.ctl(1, "check"); code != exitFailure ||
		!strings.Contains(errOut, "permission ec2:DescribeVolumes is missing on *") {
		t.Errorf("exit code %d: %s", code, errOut)
	}
	for _, args := range [][]string{{"volumes"}, {"volumes", "chek"}, {"volumes", "check"},
		{"volumes", "check", "--cluster-name=x", "--volume-tag=y", "--require-encrypted-volume=z"}} {
		var out, errOut bytes.Buffer
		if code := run(t.Context(), deps{args: args, out: &out, errOut: &errOut, now: time.Now}); code != exitUsage {
			t.Errorf("%v: exit code %d: %s", args, code, errOut.String())
		}
	}
}
