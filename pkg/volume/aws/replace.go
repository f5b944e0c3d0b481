package aws

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"

	"github.com/etcd-manager/etcd-manager/pkg/volume"
)

// Tags by which a volume is replaced by another one (docs/format.md).
const (
	// TagReplacedBy on a volume names the one that is to take its place.
	TagReplacedBy = "etcd-manager.io/replaced-by"
	// TagReplaces on a new volume names the one whose place it takes.
	TagReplaces = "etcd-manager.io/replaces"
	// TagGivenUp on a volume says since when its node doesn't use it any more. It is the point of
	// no return: before it the node goes on with the old volume after a crash, after it with the
	// new one.
	TagGivenUp = "etcd-manager.io/given-up"
	// TagKept on a volume that was replaced holds the tag, as key=value, by which it was a member's.
	TagKept = "etcd-manager.io/kept"
)

// Create makes an empty volume of the same zone, size and type and with the same tags as another, encrypted as wanted, and tagged to take
// its place, and waits until it can be used. Repeated, it returns the volume that was made the first time, if that is there still.
func (c *Client) Create(ctx context.Context, like *volume.Volume, want volume.Encryption) (*volume.Volume, error) {
	call, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	described, err := c.ec2.DescribeVolumes(call, &ec2.DescribeVolumesInput{VolumeIds: []string{string(like.ID)}})
	if err != nil {
		return nil, c.explain("DescribeVolumes", "*", err)
	}
	if len(described.Volumes) != 1 {
		return nil, fmt.Errorf("EC2 doesn't know volume %s: %w", like.ID, errNotYet)
	}
	old := &described.Volumes[0]
	in := &ec2.CreateVolumeInput{
		AvailabilityZone: old.AvailabilityZone, Size: old.Size, VolumeType: old.VolumeType, Throughput: old.Throughput,
		Encrypted:         aws.Bool(true),
		ClientToken:       aws.String("etcd-manager-" + string(like.ID) + "-" + want.Key[max(0, len(want.Key)-20):]),
		TagSpecifications: []types.TagSpecification{{ResourceType: types.ResourceTypeVolume, Tags: replacementTags(like)}},
	}
	if old.VolumeType != types.VolumeTypeGp2 { // its IOPS follow from its size
		in.Iops = old.Iops
	}
	if want.Key != "" {
		in.KmsKeyId = aws.String(want.Key)
	}
	id, err := c.create(ctx, in)
	if err != nil {
		return nil, c.explain("CreateVolume", "arn:aws:ec2:*:*:volume/*", err)
	}
	return c.usable(ctx, id, want.Key, createPoll)
}

// replacementTags are those of the volume whose place is taken, but for what AWS and etcd-manager itself wrote there.
func replacementTags(old *volume.Volume) []types.Tag {
	list := []types.Tag{{Key: aws.String(TagReplaces), Value: aws.String(string(old.ID))}}
	for _, k := range slices.Sorted(maps.Keys(old.Tags)) {
		if !strings.HasPrefix(k, "aws:") && !strings.HasPrefix(k, "etcd-manager.io/") {
			list = append(list, types.Tag{Key: aws.String(k), Value: aws.String(old.Tags[k])})
		}
	}
	return list
}

// Tag sets tags of a volume.
func (c *Client) Tag(ctx context.Context, id volume.ID, tags map[string]string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	in := &ec2.CreateTagsInput{Resources: []string{string(id)}}
	for _, k := range slices.Sorted(maps.Keys(tags)) {
		in.Tags = append(in.Tags, types.Tag{Key: aws.String(k), Value: aws.String(tags[k])})
	}
	if _, err := c.ec2.CreateTags(ctx, in); err != nil {
		return c.explain("CreateTags", "volume/"+string(id), err)
	}
	return nil
}

// Untag removes tags of a volume. Those that aren't there are no error.
func (c *Client) Untag(ctx context.Context, id volume.ID, keys ...string) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	in := &ec2.DeleteTagsInput{Resources: []string{string(id)}}
	for _, k := range keys {
		in.Tags = append(in.Tags, types.Tag{Key: aws.String(k)})
	}
	if _, err := c.ec2.DeleteTags(ctx, in); err != nil {
		return c.explain("DeleteTags", "volume/"+string(id), err)
	}
	return nil
}

// Delete deletes a volume that is attached nowhere.
func (c *Client) Delete(ctx context.Context, id volume.ID) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err := c.ec2.DeleteVolume(ctx, &ec2.DeleteVolumeInput{VolumeId: aws.String(string(id))})
	if err != nil && code(err) != "InvalidVolume.NotFound" {
		return c.explain("DeleteVolume", "volume/"+string(id), err)
	}
	return nil
}

// Kept returns the volumes that were replaced and are kept, sorted by id.
func (c *Client) Kept(ctx context.Context) ([]*volume.Volume, error) {
	if c.cfg.NameTag == "" {
		return nil, errors.New("--volume-name-tag is missing: it identifies the replaced volumes of this cluster")
	}
	filters := []types.Filter{tagFilter(TagKept)}
	for _, t := range c.cfg.Tags {
		if key, _, _ := strings.Cut(t, "="); key != c.cfg.NameTag {
			filters = append(filters, tagFilter(t))
		}
	}
	list, err := c.describeVolumes(ctx, &ec2.DescribeVolumesInput{Filters: filters})
	if err != nil {
		return nil, err
	}
	return slices.DeleteFunc(list, func(v *volume.Volume) bool { return !strings.HasPrefix(v.Tags[TagKept], c.cfg.NameTag+"=") }), nil
}

// Keep ends a replacement: the old volume isn't a member's any more, and the new one is like any other.
func (c *Client) Keep(ctx context.Context, old, replacement *volume.Volume) error {
	name := c.cfg.NameTag
	if name == "" {
		return errors.New("--volume-name-tag is missing: it is removed from the replaced volume")
	}
	// The old volume's own tag goes last: as long as it is there, whoever comes next finds that there is something left to do.
	if err := c.Untag(ctx, replacement.ID, TagReplaces); err != nil {
		return err
	}
	if err := c.Tag(ctx, old.ID, map[string]string{TagKept: name + "=" + old.Tags[name]}); err != nil {
		return err
	}
	return c.Untag(ctx, old.ID, name)
}

// MayGiveUp finds out, without doing anything, whether this machine may do what giving a volume up takes.
// It is no method: a program keeps all exported methods of what it prints, and this one has calls that only a node makes.
func MayGiveUp(ctx context.Context, c *Client, id volume.ID, self *Self) error {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err := c.ec2.CreateTags(ctx, &ec2.CreateTagsInput{DryRun: aws.Bool(true), Resources: []string{string(id)},
		Tags: []types.Tag{{Key: aws.String(TagGivenUp), Value: aws.String("")}}})
	if code(err) != dryRun {
		return c.explain("CreateTags", self.arn("volume", string(id)), err)
	}
	_, err = c.onNode().DetachVolume(ctx, &ec2.DetachVolumeInput{DryRun: aws.Bool(true), VolumeId: aws.String(string(id)),
		InstanceId: aws.String(self.Instance)})
	if code(err) != dryRun {
		return c.explain("DetachVolume", self.arn("volume", string(id))+" and "+self.arn("instance", self.Instance), err)
	}
	return nil
}

// dryRun is how EC2 says that it would have done what was asked for.
const dryRun = "DryRunOperation"

// release takes a volume that was given up off this machine.
func (a *Acquirer) release(ctx context.Context, v *volume.Volume) error {
	if a.Unmount != nil {
		if err := a.Unmount(ctx, v); err != nil {
			return err
		}
	}
	a.say("detaching volume %s, which was released for %s", v, v.Tags[TagReplacedBy])
	call, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	_, err := a.Client.onNode().DetachVolume(call, &ec2.DetachVolumeInput{VolumeId: aws.String(string(v.ID)),
		InstanceId: aws.String(a.Self.Instance)})
	if err != nil && code(err) != "IncorrectState" {
		return a.Client.explain("DetachVolume", a.Self.arn("volume", string(v.ID))+" and "+a.Self.arn("instance", a.Self.Instance), err)
	}
	return nil
}
