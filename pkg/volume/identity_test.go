package volume

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// TestClaim: a volume is claimed once, and then belongs to one node of one cluster.
func TestClaim(t *testing.T) {
	want := Identity{ClusterName: "etcd", Node: "etcd-a", Store: "s3://bucket/one/main", Volume: "vol-1",
		Created: time.Unix(1770000000, 0).UTC()}
	dir := t.TempDir()
	for range 2 {
		if err := Claim(dir, want); err != nil {
			t.Fatal(err)
		}
	}
	for name, change := range map[string]func(*Identity){
		`"etcd-events"`:       func(i *Identity) { i.ClusterName = "etcd-events" },
		"etcd-b":              func(i *Identity) { i.Node = "etcd-b" },
		"a copy":              func(i *Identity) { i.Volume = "vol-2" },
		"s3://bucket/another": func(i *Identity) { i.Store = "s3://bucket/another/main" },
	} {
		other := want
		change(&other)
		if err := Claim(dir, other); !errors.Is(err, ErrForeign) || !strings.Contains(err.Error(), name) {
			t.Errorf("Claim by another: %v, want ErrForeign and %q", err, name)
		}
	}
	unnamed := want
	unnamed.Volume = ""
	if err := Claim(dir, unnamed); err != nil {
		t.Errorf("without a provider: %v", err)
	}
	moved := want
	moved.Store += "/"
	if err := Claim(dir, moved); err != nil {
		t.Errorf("the same store, written differently: %v", err)
	}
	for content, sentinel := range map[string]error{"": cluster.ErrCorrupt, "{}": cluster.ErrCorrupt, `{"version":2}`: cluster.ErrFuture} {
		if err := os.WriteFile(IdentityPath(dir), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := Claim(dir, want); !errors.Is(err, sentinel) {
			t.Errorf("Claim with the identity %q: %v", content, err)
		}
	}
}

// TestClaimOfAnotherManagersVolume: without an identity the state file tells whose it is.
func TestClaimOfAnotherManagersVolume(t *testing.T) {
	state := func(names ...string) []byte {
		s := &protosv1.EtcdState{Cluster: &protosv1.EtcdCluster{ClusterToken: "token"}}
		for _, n := range names {
			s.Cluster.Nodes = append(s.Cluster.Nodes, &protosv1.EtcdNode{Name: n})
		}
		data, err := proto.Marshal(s)
		if err != nil {
			t.Fatal(err)
		}
		return data
	}
	want := Identity{ClusterName: "etcd", Node: "etcd-a", Store: "/store"}
	for name, c := range map[string]struct {
		state []byte
		ok    bool
	}{
		"its own":     {state("etcd-a", "etcd-b", "etcd-c"), true},
		"another's":   {state("etcd-x", "etcd-y", "etcd-z"), false},
		"unreadable":  {[]byte("not a state file"), false},
		"of no nodes": {state(), false},
	} {
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, "state"), c.state, 0o600); err != nil {
			t.Fatal(err)
		}
		err := Claim(dir, want)
		if c.ok && err != nil || !c.ok && !errors.Is(err, ErrForeign) {
			t.Errorf("%s: %v", name, err)
		}
		if id, _ := ReadIdentity(dir); (id != nil) != c.ok {
			t.Errorf("%s: the identity afterwards is %v", name, id)
		}
	}
}

func TestParseEncryption(t *testing.T) {
	const key = "arn:aws:kms:us-east-1:111122223333:key/1234"
	plain, other, right := &Volume{ID: "vol-1"}, &Volume{ID: "vol-2", Encrypted: true, Key: "arn:other"},
		&Volume{ID: "vol-3", Encrypted: true, Key: key}
	for value, ok := range map[string][3]bool{"": {true, true, true}, "false": {true, true, true},
		"true": {false, true, true}, key: {false, false, true}} {
		e, err := ParseEncryption(value)
		if err != nil {
			t.Fatal(err)
		}
		for i, v := range []*Volume{plain, other, right} {
			if err := e.Check(v); (err == nil) != ok[i] || err != nil && !errors.Is(err, ErrNotEncrypted) {
				t.Errorf("%q, volume %s: %v", value, v.ID, err)
			}
		}
	}
	for _, bad := range []string{"yes", "alias/x", "arn:aws:kms:us-east-1:111122223333:alias/x", "arn:aws:s3:::bucket"} {
		if _, err := ParseEncryption(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}
