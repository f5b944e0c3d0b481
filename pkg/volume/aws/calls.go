package aws

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/kms"
)

// operation is one of a service's calls.
type operation[I, O, P any] = func(context.Context, *I, ...func(*P)) (*O, error)

// ec2Calls are the calls of EC2 that are used. They are held one by one: a program that holds the client itself, with its 800
// methods, has all of them in its binary, which is 19 MiB.
type ec2Calls struct {
	CreateTags                   operation[ec2.CreateTagsInput, ec2.CreateTagsOutput, ec2.Options]
	CreateVolume                 operation[ec2.CreateVolumeInput, ec2.CreateVolumeOutput, ec2.Options]
	DeleteTags                   operation[ec2.DeleteTagsInput, ec2.DeleteTagsOutput, ec2.Options]
	DeleteVolume                 operation[ec2.DeleteVolumeInput, ec2.DeleteVolumeOutput, ec2.Options]
	DescribeVolumes              operation[ec2.DescribeVolumesInput, ec2.DescribeVolumesOutput, ec2.Options]
	DescribeVolumesModifications operation[ec2.DescribeVolumesModificationsInput, ec2.DescribeVolumesModificationsOutput, ec2.Options]
	ModifyVolume                 operation[ec2.ModifyVolumeInput, ec2.ModifyVolumeOutput, ec2.Options]
}

func newEC2(base aws.Config) ec2Calls {
	c := ec2.NewFromConfig(base)
	return ec2Calls{
		CreateTags:                   c.CreateTags,
		CreateVolume:                 c.CreateVolume,
		DeleteTags:                   c.DeleteTags,
		DeleteVolume:                 c.DeleteVolume,
		DescribeVolumes:              c.DescribeVolumes,
		DescribeVolumesModifications: c.DescribeVolumesModifications,
		ModifyVolume:                 c.ModifyVolume,
	}
}

// nodeCalls are the calls of EC2 that only a node makes. They are apart from the others, since the operator's tool, which never attaches
// a volume, would have them in its binary.
type nodeCalls struct {
	AttachVolume      operation[ec2.AttachVolumeInput, ec2.AttachVolumeOutput, ec2.Options]
	DescribeInstances operation[ec2.DescribeInstancesInput, ec2.DescribeInstancesOutput, ec2.Options]
	DetachVolume      operation[ec2.DetachVolumeInput, ec2.DetachVolumeOutput, ec2.Options]
}

// onNode makes them of the configuration.
func (c *Client) onNode() nodeCalls {
	x := ec2.NewFromConfig(c.base)
	return nodeCalls{AttachVolume: x.AttachVolume, DescribeInstances: x.DescribeInstances, DetachVolume: x.DetachVolume}
}

// kmsCalls are the calls of KMS that are used.
type kmsCalls struct {
	DescribeKey operation[kms.DescribeKeyInput, kms.DescribeKeyOutput, kms.Options]
}

func newKMS(base aws.Config) kmsCalls {
	return kmsCalls{DescribeKey: kms.NewFromConfig(base).DescribeKey}
}
