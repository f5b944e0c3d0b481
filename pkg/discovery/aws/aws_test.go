package aws

import (
	"context"
	"errors"
	"reflect"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/volume"
	ebs "github.com/etcd-manager/etcd-manager/pkg/volume/aws"
)

type answers struct {
	volumes   []*volume.Volume
	instances map[string]ebs.Instance
	err       error
}

func (a answers) Volumes(context.Context, string) ([]*volume.Volume, error) { return a.volumes, a.err }
func (a answers) Instances(_ context.Context, ids []string) (map[string]ebs.Instance, error) {
	found := map[string]ebs.Instance{}
	for _, id := range ids {
		if i, ok := a.instances[id]; ok {
			found[id] = i
		}
	}
	return found, nil
}

// TestFind: who holds a volume of the cluster runs a manager.
func TestFind(t *testing.T) {
	at := func(node cluster.NodeID, instance, state string) *volume.Volume {
		return &volume.Volume{Node: node, Attachments: []volume.Attachment{{Instance: instance, State: state}}}
	}
	a := answers{
		volumes: []*volume.Volume{
			at("etcd-a", "i-a", "attached"), at("etcd-b", "i-b", "attaching"), at("etcd-c", "i-c", "detaching"),
			{Node: "etcd-d"}, at("etcd-e", "i-gone", "attached"), at("", "i-a", "attached"),
		},
		instances: map[string]ebs.Instance{"i-a": {Address: "10.0.0.1"}, "i-b": {Address: "fd00::2"}, "i-c": {Address: "10.0.0.3"}},
	}
	var seen []*volume.Volume
	s := New(a, 3996, func(v []*volume.Volume) { seen = v })
	found, err := s.Find(t.Context())
	want := map[cluster.NodeID][]string{"etcd-a": {"10.0.0.1:3996"}, "etcd-b": {"[fd00::2]:3996"}}
	if err != nil || !reflect.DeepEqual(found, want) || len(seen) != len(a.volumes) {
		t.Errorf("found %v, %v; want %v", found, err, want)
	}
	a.err = errors.New("away")
	if found, err := New(a, 1, nil).Find(t.Context()); found != nil || !errors.Is(err, a.err) {
		t.Errorf("found %v, %v", found, err)
	}
}
