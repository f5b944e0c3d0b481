// Package aws finds, attaches and describes the EBS volumes of an etcd cluster, by EC2's and the instance metadata's own interfaces.
// For the operator it also makes, changes and tags them ([Provider]), and asks KMS whether a key can be used.
//
// It is the only package that imports the SDK's EC2 client, which takes minutes to compile. It
// never detaches a volume from a machine that runs, never takes a root volume, and never mounts
// anything: it hands on the path of a device.
package aws

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	awsconfig "github.com/aws/aws-sdk-go-v2/config"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/aws-sdk-go-v2/service/ec2"
	"github.com/aws/aws-sdk-go-v2/service/ec2/types"
	"github.com/aws/smithy-go"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/volume"
)

// requestTimeout bounds one call with the SDK's own retries.
const requestTimeout = time.Minute

// Config says which volumes belong to the cluster. ClusterName and Tags are required.
type Config struct {
	ClusterName string
	// Tags are those that a volume must carry, as key or key=value.
	Tags []string
	// NameTag is the tag whose value names the member, like "a/a,b,c". If it is empty, the volume's Name tag up to the first dot does.
	NameTag string
	// Region is asked of the environment and then of the instance's metadata if it is empty.
	Region string
}

// Client asks EC2. It may be used concurrently and holds nothing that must be closed.
type Client struct {
	cfg  Config
	ec2  ec2Calls
	base aws.Config
	imds *imds.Client
}

// Self is the machine that this process runs on.
type Self struct {
	Instance, Zone, Region, Account string
	// Address is its first IPv6 address, else its private IPv4 address.
	Address string
	// RootDevice is the name of the device with its own system; Devices are the names in use.
	RootDevice string
	Devices    []string
}

// Instance is another machine.
type Instance struct {
	ID, State, Address string
}

// Open reads the SDK's usual variables and files. The region is learned from the instance if nothing else names it.
func Open(ctx context.Context, cfg Config) (*Client, error) {
	if err := cfg.Check(); err != nil {
		return nil, err
	}
	options := []func(*awsconfig.LoadOptions) error{
		awsconfig.WithRetryer(func() aws.Retryer {
			return retry.NewStandard(func(o *retry.StandardOptions) { o.MaxAttempts, o.MaxBackoff = 5, 10*time.Second })
		}),
	}
	if cfg.Region != "" {
		options = append(options, awsconfig.WithRegion(cfg.Region))
	}
	base, err := awsconfig.LoadDefaultConfig(ctx, options...)
	if err != nil {
		return nil, fmt.Errorf("configure AWS: %w", err)
	}
	c := &Client{cfg: cfg}
	// Version 2 alone: many machines offer no other, and it can't be tricked by a proxy.
	c.imds = imds.NewFromConfig(base, func(o *imds.Options) { o.EnableFallback = aws.FalseTernary })
	if base.Region == "" {
		doc, err := c.document(ctx)
		if err != nil {
			return nil, fmt.Errorf("find the AWS region (set AWS_REGION where there is no instance metadata): %w", err)
		}
		base.Region = doc.Region
	}
	c.ec2, c.base = newEC2(base), base
	return c, nil
}

// Check returns an error if something is missing.
func (cfg Config) Check() error {
	if cfg.ClusterName == "" {
		return errors.New("the cluster's name is missing (--cluster-name)")
	}
	if len(cfg.Tags) == 0 {
		return errors.New("--volume-tag is missing: without a tag every volume of the account would be taken for the cluster's, for example --volume-tag=kubernetes.io/cluster/example.com=owned")
	}
	for _, t := range cfg.Tags {
		if key, _, _ := strings.Cut(t, "="); key == "" {
			return fmt.Errorf("--volume-tag=%s names no tag", t)
		}
	}
	return nil
}

func (c *Client) document(ctx context.Context) (*imds.GetInstanceIdentityDocumentOutput, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	doc, err := c.imds.GetInstanceIdentityDocument(ctx, nil)
	if err != nil {
		return nil, fmt.Errorf("read the instance's metadata: %w; in a container the metadata's hop limit must be 2, or the host's network be used", err)
	}
	return doc, nil
}

// FindSelf asks who this machine is. It is no method, as MayGiveUp.
func FindSelf(ctx context.Context, c *Client) (*Self, error) {
	doc, err := c.document(ctx)
	if err != nil {
		return nil, err
	}
	s := &Self{Instance: doc.InstanceID, Zone: doc.AvailabilityZone, Region: doc.Region, Account: doc.AccountID}
	found, err := c.describeInstances(ctx, []string{s.Instance})
	if err != nil {
		return nil, err
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("EC2 doesn't know the instance %s, which the metadata name: %w", s.Instance, errNotYet)
	}
	i := &found[0]
	s.RootDevice = aws.ToString(i.RootDeviceName)
	for _, m := range i.BlockDeviceMappings {
		s.Devices = append(s.Devices, aws.ToString(m.DeviceName))
	}
	s.Address = address(i)
	if s.Address == "" {
		// EC2 tells addresses a little later than the metadata do.
		if s.Address, err = c.metadata(ctx, "local-ipv4"); err != nil {
			return nil, err
		}
	}
	return s, nil
}

func (c *Client) metadata(ctx context.Context, path string) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	out, err := c.imds.GetMetadata(ctx, &imds.GetMetadataInput{Path: path})
	if err != nil {
		return "", fmt.Errorf("read %s of the instance's metadata: %w", path, err)
	}
	defer out.Content.Close()
	data, err := io.ReadAll(io.LimitReader(out.Content, 1<<10))
	if err != nil {
		return "", fmt.Errorf("read %s of the instance's metadata: %w", path, err)
	}
	return strings.TrimSpace(string(data)), nil
}

// address is an instance's first IPv6 address, else its private IPv4 address.
func address(i *types.Instance) string {
	candidates := []string{aws.ToString(i.Ipv6Address)}
	for _, n := range i.NetworkInterfaces {
		for _, a := range n.Ipv6Addresses {
			candidates = append(candidates, aws.ToString(a.Ipv6Address))
		}
	}
	for _, s := range append(candidates, aws.ToString(i.PrivateIpAddress)) {
		if a, err := netip.ParseAddr(s); err == nil {
			return a.String()
		}
	}
	return ""
}

func (c *Client) describeInstances(ctx context.Context, ids []string) ([]types.Instance, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var list []types.Instance
	in := &ec2.DescribeInstancesInput{InstanceIds: ids}
	for {
		out, err := c.onNode().DescribeInstances(ctx, in)
		if err != nil {
			return nil, c.explain("DescribeInstances", "*", err)
		}
		for _, r := range out.Reservations {
			list = append(list, r.Instances...)
		}
		if aws.ToString(out.NextToken) == "" {
			return list, nil
		}
		in.NextToken = out.NextToken
	}
}

// Machines asks EC2 of machines, too.
type Machines struct{ *Client }

// Instances describes machines by their ids.
func (m Machines) Instances(ctx context.Context, ids []string) (map[string]Instance, error) {
	return Instances(ctx, m.Client, ids)
}

// Instances describes machines by their ids. Those that EC2 doesn't know (any more) are missing.
// It is no method, as MayGiveUp.
func Instances(ctx context.Context, c *Client, ids []string) (map[string]Instance, error) {
	found := map[string]Instance{}
	if len(ids) == 0 {
		return found, nil
	}
	list, err := c.describeInstances(ctx, ids)
	if code(err) == "InvalidInstanceID.NotFound" {
		// One that is gone spoils the whole question; what is left of the answer is one by one.
		if len(ids) == 1 {
			return found, nil
		}
		for _, id := range ids {
			one, err := Instances(ctx, c, []string{id})
			if err != nil {
				return nil, err
			}
			if i, ok := one[id]; ok {
				found[id] = i
			}
		}
		return found, nil
	}
	if err != nil {
		return nil, err
	}
	for i := range list {
		in := Instance{ID: aws.ToString(list[i].InstanceId), Address: address(&list[i])}
		if list[i].State != nil {
			in.State = string(list[i].State.Name)
		}
		found[in.ID] = in
	}
	return found, nil
}

// Volumes returns the cluster's volumes, sorted by id; of one zone, if zone isn't empty.
func (c *Client) Volumes(ctx context.Context, zone string) ([]*volume.Volume, error) {
	var filters []types.Filter
	for _, t := range c.cfg.Tags {
		filters = append(filters, tagFilter(t))
	}
	if zone != "" {
		filters = append(filters, types.Filter{Name: aws.String("availability-zone"), Values: []string{zone}})
	}
	return c.describeVolumes(ctx, &ec2.DescribeVolumesInput{Filters: filters})
}

func tagFilter(tag string) types.Filter {
	if key, value, ok := strings.Cut(tag, "="); ok {
		return types.Filter{Name: aws.String("tag:" + key), Values: []string{value}}
	}
	return types.Filter{Name: aws.String("tag-key"), Values: []string{tag}}
}

// Volume describes one volume.
func (c *Client) Volume(ctx context.Context, id volume.ID) (*volume.Volume, error) {
	list, err := c.describeVolumes(ctx, &ec2.DescribeVolumesInput{VolumeIds: []string{string(id)}})
	if err != nil {
		return nil, err
	}
	if len(list) == 0 {
		return nil, fmt.Errorf("EC2 doesn't know volume %s: %w", id, errNotYet)
	}
	return list[0], nil
}

func (c *Client) describeVolumes(ctx context.Context, in *ec2.DescribeVolumesInput) ([]*volume.Volume, error) {
	ctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	var list []*volume.Volume
	for {
		out, err := c.ec2.DescribeVolumes(ctx, in)
		if err != nil {
			return nil, c.explain("DescribeVolumes", "*", err)
		}
		for i := range out.Volumes {
			list = append(list, c.volume(&out.Volumes[i]))
		}
		if aws.ToString(out.NextToken) == "" {
			break
		}
		in.NextToken = out.NextToken
	}
	slices.SortFunc(list, func(a, b *volume.Volume) int { return strings.Compare(string(a.ID), string(b.ID)) })
	return list, nil
}

func (c *Client) volume(v *types.Volume) *volume.Volume {
	w := &volume.Volume{
		ID: volume.ID(aws.ToString(v.VolumeId)), Zone: aws.ToString(v.AvailabilityZone), Type: string(v.VolumeType),
		SizeGiB:   int(aws.ToInt32(v.Size)),
		Encrypted: aws.ToBool(v.Encrypted), Key: aws.ToString(v.KmsKeyId), State: string(v.State), Tags: map[string]string{},
		Created: aws.ToTime(v.CreateTime),
	}
	for _, t := range v.Tags {
		w.Tags[aws.ToString(t.Key)] = aws.ToString(t.Value)
	}
	for _, a := range v.Attachments {
		w.Attachments = append(w.Attachments, volume.Attachment{Instance: aws.ToString(a.InstanceId),
			Device: aws.ToString(a.Device), State: string(a.State)})
	}
	w.Node = c.cfg.node(w.Tags)
	return w
}

// node is whose volume it is by its tags; empty if they don't say.
func (cfg Config) node(tags map[string]string) cluster.NodeID {
	var member string
	if cfg.NameTag != "" {
		member, _, _ = strings.Cut(tags[cfg.NameTag], "/")
	} else {
		member, _, _ = strings.Cut(tags["Name"], ".")
	}
	if member = strings.TrimSpace(member); member == "" {
		return ""
	}
	id, err := cluster.ParseNodeID(cfg.ClusterName + "-" + member)
	if err != nil {
		return ""
	}
	return id
}

// PermissionError says which permission the machine's role, or the operator, lacks.
type PermissionError struct {
	// Action and Resource are as in an IAM policy.
	Action, Resource string
	Err              error
}

// Error names action and resource.
func (e *PermissionError) Error() string {
	return fmt.Sprintf("permission %s is missing on %s: allow it in the IAM policy (docs/aws.md has it): %v", e.Action, e.Resource, e.Err)
}

// Unwrap returns what EC2 said.
func (e *PermissionError) Unwrap() error { return e.Err }

// IsMissing tells that EC2 doesn't know a volume: it was deleted, or is so new that not all of EC2 has heard of it.
func IsMissing(err error) bool {
	return errors.Is(err, errNotYet) || code(err) == "InvalidVolume.NotFound"
}

// errNotYet: what was asked for isn't there, perhaps not yet.
var errNotYet = errors.New("not there (yet)")

// explain says what was asked of EC2, and turns a refusal into a PermissionError.
func (c *Client) explain(operation, resource string, err error) error {
	switch code(err) {
	case "UnauthorizedOperation", "AccessDenied", "AccessDeniedException", "Client.UnauthorizedOperation":
		return &PermissionError{Action: "ec2:" + operation, Resource: resource, Err: err}
	}
	return fmt.Errorf("ec2:%s: %w", operation, err)
}

// code is EC2's word for an error.
func code(err error) string {
	var api smithy.APIError
	if errors.As(err, &api) {
		return api.ErrorCode()
	}
	return ""
}

// arn names a volume or an instance as policies do.
func (s *Self) arn(kind, id string) string {
	partition := "aws"
	switch {
	case strings.HasPrefix(s.Region, "cn-"):
		partition = "aws-cn"
	case strings.HasPrefix(s.Region, "us-gov-"):
		partition = "aws-us-gov"
	}
	return fmt.Sprintf("arn:%s:ec2:%s:%s:%s/%s", partition, s.Region, s.Account, kind, id)
}
