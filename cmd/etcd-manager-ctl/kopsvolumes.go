package main

import (
	"context"

	"github.com/etcd-manager/etcd-manager/pkg/kops"
	"github.com/etcd-manager/etcd-manager/pkg/volume"
	"github.com/etcd-manager/etcd-manager/pkg/volume/aws"
)

// ebs is EC2 as the volumes of a kOps cluster.
type ebs struct{ p *aws.Provider }

// openKopsVolumes returns the block storage of the cluster that the file describes.
func openKopsVolumes(ctx context.Context, f *kops.File) (kops.Volumes, error) {
	p, err := aws.OpenProvider(ctx, f.Region())
	if err != nil {
		return nil, err
	}
	return ebs{p}, nil
}

func (e ebs) List(ctx context.Context, tags map[string]string) ([]kops.Volume, error) {
	list, err := e.p.Tagged(ctx, tags)
	if err != nil {
		return nil, err
	}
	var out []kops.Volume
	for _, v := range list {
		out = append(out, kops.Volume{ID: string(v.ID), Zone: v.Zone, Type: v.Type, SizeGiB: v.SizeGiB, IOPS: v.IOPS,
			Throughput: v.Throughput, Encrypted: v.Encrypted, Key: v.Key, Tags: v.Tags})
	}
	return out, nil
}

func provisioned(v kops.Volume) aws.Provisioned {
	return aws.Provisioned{
		Volume: volume.Volume{ID: volume.ID(v.ID), Zone: v.Zone, Type: v.Type, SizeGiB: v.SizeGiB,
			Encrypted: v.Encrypted, Key: v.Key, Tags: v.Tags},
		IOPS: v.IOPS, Throughput: v.Throughput,
	}
}

func (e ebs) Create(ctx context.Context, v kops.Volume, token string) (string, error) {
	id, err := e.p.Create(ctx, provisioned(v), token)
	return string(id), err
}

func (e ebs) Modify(ctx context.Context, v kops.Volume) error {
	return e.p.Modify(ctx, provisioned(v))
}

func (e ebs) Tag(ctx context.Context, id string, tags map[string]string) error {
	return e.p.Tag(ctx, volume.ID(id), tags)
}

func (e ebs) Key(ctx context.Context, name string) (string, error) { return e.p.Key(ctx, name) }
