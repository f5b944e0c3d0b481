package aws

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sort"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/aws-sdk-go-v2/service/kms"
	kmstypes "github.com/aws/aws-sdk-go-v2/service/kms/types"

	"github.com/etcd-manager/etcd-manager/pkg/volume"
)

const (
	// createPatience is how long a new volume has time to become usable.
	createPatience = 2 * time.Minute
	// DefaultCreatePoll is the time between looks at a new volume.
	DefaultCreatePoll = time.Second
)

// Provisioned is a volume with what can be asked for of it. IOPS and Throughput (MiB/s) are 0 where its type has none to be set.
type Provisioned struct {
	volume.Volume
	IOPS, Throughput int
}

// Provider makes and changes volumes, for the operator. Machines that use volumes need none of it. It may be used concurrently.
type Provider struct {
	// Poll is the time between looks at a new volume.
	Poll time.Duration
	c    *Client
	kms  kmsCalls
}

// OpenProvider reads the SDK's usual variables and files. A region that is given wins over them.
func OpenProvider(ctx context.Context, region string) (*Provider, error) {
	options := []func(*awsconfig.LoadOptions) error{awsconfig.WithRetryer(func() aws.Retryer {
		return retry.NewStandard(func(o *retry.StandardOptions) { o.MaxAttempts, o.MaxBackoff = 5, 10*time.Second })
	})}
	if region != "" {
		options = append(options, awsconfig.WithRegion(region))
	}
	base, err := awsconfig.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("configure AWS: %w", err)
	}
	if base.Region == "" {
		return nil, errors.New("the AWS region is not known: set AWS_REGION")
	}
	return &Provider{Poll: DefaultCreatePoll, c: &Client{ec2: newEC2(base)}, kms: newKMS(base)}, nil
}

// Tagged returns the volumes that carry all of these tags, sorted by id. One that is being changed is described as it will be.
func (p *Provider) Tagged(ctx context.Context, tags map[string]string) ([]Provisioned, error) {
	var filters []types.Filter
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		filters = append(filters, tagFilter(k+"="+tags[k]))
	}
	return p.describe(ctx, &ec2.DescribeVolumesInput{Filters: filters})
}

func (p *Provider) describe(ctx context.Context, in *ec2.DescribeVolumesInput) ([]Provisioned, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var list []Provisioned
	for {
		out, err := p.c.ec2.DescribeVolumes(ctx, in)
		if err != nil {
			return nil, denied("ec2:DescribeVolumes", err)
		}
		for i := range out.Volumes {
			v := &out.Volumes[i]
			if v.State == types.VolumeStateDeleting || v.State == types.VolumeStateDeleted {
				continue
			}
			list = append(list, Provisioned{Volume: *p.c.volume(v), IOPS: int(aws.ToInt32(v.Iops)),
				Throughput: int(aws.ToInt32(v.Throughput))})
		}
		if aws.ToString(out.NextToken) == "" {
			break
		}
		in.NextToken = out.NextToken
	}
	sort.Slice(list, func(i, j int) bool { return compareIDs(list[i].ID, list[j].ID) < 0 })
	if err := p.overlay(ctx, list); err != nil {
		return nil, err
	}
	for i := range list {
		list[i].settle()
	}
	return list, nil
}

func compareIDs(a, b volume.ID) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

// settle drops what a type of volume has, but nobody can set.
func (v *Provisioned) settle() {
	switch v.Type {
	case "gp3":
	case "io1", "io2":
		v.Throughput = 0
	default:
		v.IOPS, v.Throughput = 0, 0
	}
}

// overlay puts what changes that are under way will lead to over what is.
func (p *Provider) overlay(ctx context.Context, list []Provisioned) error {
	if len(list) == 0 {
		return nil
	}
	byID := map[string]*Provisioned{}
	in := &ec2.DescribeVolumesModificationsInput{Filters: []types.Filter{{Name: aws.String("modification-state"),
		Values: []string{"modifying", "optimizing"}}}}
	for i := range list {
		byID[string(list[i].ID)] = &list[i]
	}
	for {
		out, err := p.c.ec2.DescribeVolumesModifications(ctx, in)
		if err != nil {
			return denied("ec2:DescribeVolumesModifications", err)
		}
		for _, m := range out.VolumesModifications {
			v := byID[aws.ToString(m.VolumeId)]
			if v == nil {
				continue
			}
			v.SizeGiB, v.Type = int(aws.ToInt32(m.TargetSize)), string(m.TargetVolumeType)
			v.IOPS, v.Throughput = int(aws.ToInt32(m.TargetIops)), int(aws.ToInt32(m.TargetThroughput))
		}
		if aws.ToString(out.NextToken) == "" {
			return nil
		}
		in.NextToken = out.NextToken
	}
}

func positive(n int) *int32 {
	if n <= 0 {
		return nil
	}
	return aws.Int32(int32(n))
}

// Create makes a volume and waits until it can be used. The token names the request: with the same
// token there is one volume, however often it is asked for.
func (p *Provider) Create(ctx context.Context, v Provisioned, token string) (volume.ID, error) {
	in := &ec2.CreateVolumeInput{
		AvailabilityZone: aws.String(v.Zone), VolumeType: types.VolumeType(v.Type), Size: positive(v.SizeGiB),
		Iops: positive(v.IOPS), Throughput: positive(v.Throughput),
		Encrypted: aws.Bool(v.Encrypted), ClientToken: aws.String(token),
		TagSpecifications: []types.TagSpecification{{ResourceType: types.ResourceTypeVolume, Tags: tagList(v.Tags)}},
	}
	if v.Key != "" {
		in.KmsKeyId = aws.String(v.Key)
	}
	id, err := p.c.create(ctx, in)
	if err != nil {
		return "", denied("ec2:CreateVolume (and ec2:CreateTags)", err)
	}
	_, err = p.c.usable(ctx, id, v.Key, p.Poll)
	return id, err
}

// maxTokens bounds how many volumes of one wish were deleted, or have lost their tags, before another one is made.
const maxTokens = 20

// create makes a volume. EC2 remembers the token of the request for long: it answers with the
// volume that was made for it, or refuses it when that has been deleted since, also by EC2 itself
// because the key could not be used. Then, and when the volume is not what was asked for any more,
// the request gets another token.
func (c *Client) create(ctx context.Context, in *ec2.CreateVolumeInput) (volume.ID, error) {
	token := aws.ToString(in.ClientToken)
	for n := 1; ; n++ {
		if n > 1 {
			in.ClientToken = aws.String(fmt.Sprintf("%s-%d", token, n))
		}
		call, cancel := context.WithTimeout(ctx, requestTimeout)
		out, err := c.ec2.CreateVolume(call, in)
		cancel()
		if err == nil {
			id := volume.ID(aws.ToString(out.VolumeId))
			if n == maxTokens || !c.strays(ctx, id, in) {
				return id, nil
			}
			continue
		}
		if code(err) != "IdempotentParameterMismatch" || n == maxTokens {
			return "", err
		}
	}
}

// strays tells whether a volume exists and lacks tags that were asked for: somebody has taken them off since it was made.
func (c *Client) strays(ctx context.Context, id volume.ID, in *ec2.CreateVolumeInput) bool {
	v, err := c.Volume(ctx, id)
	if err != nil {
		return false // not to be seen yet, as a new one
	}
	for _, s := range in.TagSpecifications {
		for _, t := range s.Tags {
			if have, ok := v.Tags[aws.ToString(t.Key)]; !ok || have != aws.ToString(t.Value) {
				return true
			}
		}
	}
	return false
}

// createPoll is how often a new volume is looked at.
const createPoll = 2 * time.Second

// usable waits for a new volume. EC2 makes encrypted ones before it asks for the key, and takes them back if it may not use it.
func (c *Client) usable(ctx context.Context, id volume.ID, key string, poll time.Duration) (*volume.Volume, error) {
	ctx, cancel := context.WithTimeout(ctx, createPatience)
	defer cancel()
	for seen := false; ; {
		v, err := c.Volume(ctx, id)
		switch {
		case err == nil && (v.State == "available" || v.State == "in-use"):
			return v, nil
		case err == nil && v.State == "creating":
			seen = true
		case err == nil, seen && IsMissing(err):
			return nil, fmt.Errorf("EC2 has taken the new volume %s back: this means that you may not use the key %q (kms:CreateGrant, kms:GenerateDataKeyWithoutPlaintext; docs/kops.md)", id, key)
		case !IsMissing(err):
			return nil, err
		}
		if !sleep(ctx, poll) {
			return nil, fmt.Errorf("wait for the new volume %s: %w", id, context.Cause(ctx))
		}
	}
}

func tagList(tags map[string]string) []types.Tag {
	var list []types.Tag
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		list = append(list, types.Tag{Key: aws.String(k), Value: aws.String(tags[k])})
	}
	return list
}

// Modify changes type, size, IOPS and throughput, while the volume is in use.
func (p *Provider) Modify(ctx context.Context, v Provisioned) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err := p.c.ec2.ModifyVolume(ctx, &ec2.ModifyVolumeInput{
		VolumeId: aws.String(string(v.ID)), VolumeType: types.VolumeType(v.Type), Size: positive(v.SizeGiB),
		Iops: positive(v.IOPS), Throughput: positive(v.Throughput),
	})
	return denied("ec2:ModifyVolume", err)
}

// Tag sets tags and leaves others alone.
func (p *Provider) Tag(ctx context.Context, id volume.ID, tags map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err := p.c.ec2.CreateTags(ctx, &ec2.CreateTagsInput{Resources: []string{string(id)}, Tags: tagList(tags)})
	return denied("ec2:CreateTags", err)
}

// Key returns the ARN of a key that is named by id, alias or ARN, and an error if volumes can't be encrypted with it.
func (p *Provider) Key(ctx context.Context, name string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	out, err := p.kms.DescribeKey(ctx, &kms.DescribeKeyInput{KeyId: aws.String(name)})
	if err != nil {
		return "", denied("kms:DescribeKey", err)
	}
	m := out.KeyMetadata
	switch {
	case m == nil || aws.ToString(m.Arn) == "":
		return "", fmt.Errorf("KMS says nothing about key %q", name)
	case m.KeyState != kmstypes.KeyStateEnabled:
		return "", fmt.Errorf("key %q (%s) can't be used: it is %s", name, aws.ToString(m.Arn), m.KeyState)
	case m.KeySpec != "" && m.KeySpec != kmstypes.KeySpecSymmetricDefault:
		return "", fmt.Errorf("key %q (%s) can't be used for volumes: it is of the kind %s, and must be symmetric",
			name, aws.ToString(m.Arn), m.KeySpec)
	}
	return aws.ToString(m.Arn), nil
}

// denied explains what was asked of AWS, and which permission is missing if that is why.
func denied(action string, err error) error {
	switch code(err) {
	case "UnauthorizedOperation", "AccessDenied", "AccessDeniedException", "Client.UnauthorizedOperation":
		return fmt.Errorf("permission %s is missing: give it to the user of this command (docs/kops.md has the list): %w", action, err)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", action, err)
	}
	return nil
}
