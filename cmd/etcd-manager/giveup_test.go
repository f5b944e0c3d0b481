package main

import (
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/blob/file"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/volume"
	ebs "github.com/etcd-manager/etcd-manager/pkg/volume/aws"
	"github.com/etcd-manager/etcd-manager/test/awsdouble"
)

// TestNothingIsGivenUpForNothing: between the leader's word and the point of no return etcd is stopped. Meanwhile the new volume may go,
// or lose its tag. Then the old one is kept: it isn't even unmounted, and doesn't get the tag that says that it was given up.
func TestNothingIsGivenUpForNothing(t *testing.T) {
	const old, next = "vol-1", "vol-2"
	for name, x := range map[string]struct {
		spoil func(*awsdouble.Cloud)
		want  string
	}{
		"nothing happened": {func(*awsdouble.Cloud) {}, ""},
		"it is gone":       {func(c *awsdouble.Cloud) { c.RemoveVolume(next) }, next},
		"it replaces another one": {func(c *awsdouble.Cloud) {
			v, _ := c.Volume(next)
			v.Tags[ebs.TagReplaces] = "vol-9"
			c.AddVolume(v)
		}, "isn't tagged"},
		"it is in another zone": {func(c *awsdouble.Cloud) {
			v, _ := c.Volume(next)
			v.Zone = "us-east-1b"
			c.AddVolume(v)
		}, "us-east-1b"},
		"the tag is denied": {func(c *awsdouble.Cloud) { c.Deny("CreateTags", true) }, "ec2:CreateTags"},
	} {
		t.Run(name, func(t *testing.T) {
			cloud := awsdouble.New(awsdouble.Hooks{})
			d, unmounted := giver(t, cloud, old, next)
			x.spoil(cloud)
			_, err := d.giveUpVolume(t.Context())
			cloud.Deny("CreateTags", false)
			v, _ := cloud.Volume(old)
			given := v.Tags[ebs.TagGivenUp] != ""
			if x.want == "" {
				if err != nil || !given || !*unmounted {
					t.Fatalf("err %v, tagged as given up: %t, unmounted: %t", err, given, *unmounted)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), x.want) {
				t.Errorf("error %v, want %q in it", err, x.want)
			}
			if given || *unmounted {
				t.Errorf("tagged as given up: %t, unmounted: %t; the volume has to be kept", given, *unmounted)
			}
		})
	}
}

// giver is a daemon that is about to give up a volume for another one.
func giver(t *testing.T, cloud *awsdouble.Cloud, old, next string) (d *daemon, unmounted *bool) {
	t.Helper()
	const zone, instance = "us-east-1a", "i-1"
	cloud.AddInstance(awsdouble.Instance{ID: instance, Zone: zone, IPv4: "10.0.0.1"})
	tags := map[string]string{"k8s.io/etcd/main": "a/a,b,c", "kubernetes.io/cluster/example.com": "owned"}
	with := func(k, v string) map[string]string {
		m := map[string]string{k: v}
		for k, v := range tags {
			m[k] = v
		}
		return m
	}
	cloud.AddVolume(awsdouble.Volume{ID: old, Zone: zone, State: "in-use", Tags: with(ebs.TagReplacedBy, next), Attachment: &awsdouble.Attachment{Instance: instance, State: "attached"}})
	cloud.AddVolume(awsdouble.Volume{ID: next, Zone: zone, State: "available", Tags: with(ebs.TagReplaces, old)})
	api, imds := httptest.NewServer(cloud), httptest.NewServer(cloud.Metadata(instance))
	t.Cleanup(api.Close)
	t.Cleanup(imds.Close)
	none := filepath.Join(t.TempDir(), "none")
	for k, v := range map[string]string{"AWS_ENDPOINT_URL_EC2": api.URL, "AWS_EC2_METADATA_SERVICE_ENDPOINT": imds.URL, "AWS_EC2_METADATA_DISABLED": "false",
		"AWS_REGION": "", "AWS_DEFAULT_REGION": "", "AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_PROFILE": "", "AWS_CONFIG_FILE": none, "AWS_SHARED_CREDENTIALS_FILE": none} {
		t.Setenv(k, v)
	}
	client, err := ebs.Open(t.Context(), ebs.Config{ClusterName: "etcd", Tags: []string{"k8s.io/etcd/main", "kubernetes.io/cluster/example.com=owned"}, NameTag: "k8s.io/etcd/main"})
	if err != nil {
		t.Fatal(err)
	}
	self, err := ebs.FindSelf(t.Context(), client)
	if err != nil {
		t.Fatal(err)
	}
	own, err := client.Volume(t.Context(), volume.ID(old))
	if err != nil {
		t.Fatal(err)
	}
	store, err := file.New(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	unmounted = new(bool)
	d = &daemon{o: &options{dataDir: t.TempDir()}, id: "a", catalog: catalog.New(store),
		volume: &dataVolume{ebs: client, self: self, volume: own, unmount: func() error { *unmounted = true; return nil }}}
	d.volume.seen.put([]*volume.Volume{own})
	return d, unmounted
}
