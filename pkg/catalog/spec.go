package catalog

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"regexp"
	"strings"

	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

const specWay = "write it again: etcd-manager-ctl configure-cluster --member-count=N"

// Spec reads the cluster spec and its version. It is returned as it stands; ValidateSpec judges it.
// Without one the error is ErrNotFound; one that can't be read is cluster.ErrCorrupt.
func (c *Catalog) Spec(ctx context.Context) (cluster.Spec, string, error) {
	data, info, err := c.read(ctx, specKey, specWay)
	if err != nil {
		return cluster.Spec{}, info.Version, err
	}
	var p protosv1.ClusterSpec
	if err := unmarshalShared(data, &p); err != nil {
		return cluster.Spec{}, info.Version, corrupt(specKey, specWay, err)
	}
	return specFromProto(&p), info.Version, nil
}

// CreateSpec writes the spec if there is none, and fails with ErrConflict if there is.
func (c *Catalog) CreateSpec(ctx context.Context, spec cluster.Spec) (version string, err error) {
	return c.putSpec(ctx, spec, blob.PutOptions{IfAbsent: true})
}

// ReplaceSpec writes the spec if the stored one still has the given version, and fails with ErrConflict if not.
func (c *Catalog) ReplaceSpec(ctx context.Context, spec cluster.Spec, version string) (newVersion string, err error) {
	opts, err := ifVersion(specKey, version)
	if err != nil {
		return "", err
	}
	return c.putSpec(ctx, spec, opts)
}

func (c *Catalog) putSpec(ctx context.Context, spec cluster.Spec, opts blob.PutOptions) (string, error) {
	data, err := marshalShared(specToProto(spec))
	if err != nil {
		return "", err
	}
	return c.writeOwn(ctx, specKey, data, opts, nil)
}

var versionPattern = regexp.MustCompile(`^[0-9]+\.[0-9]+\.[0-9]+(-[0-9A-Za-z.-]+)?$`)

// ValidateSpec tells what is wrong with a spec, in words for the operator. An empty version is fine.
func ValidateSpec(spec cluster.Spec) error {
	if !cluster.ValidMemberCount(spec.MemberCount) {
		return invalidf("member count %d is not possible: it must be odd and from 1 to 9 (etcd-manager-ctl configure-cluster --member-count=N sets it)", spec.MemberCount)
	}
	if spec.EtcdVersion != "" && !versionPattern.MatchString(spec.EtcdVersion) {
		return invalidf("etcd version %q is not a version such as 3.5.21 (etcd-manager-ctl configure-cluster --etcd-version=X.Y.Z sets it)",
			spec.EtcdVersion)
	}
	return nil
}

// marshalShared writes one of the messages that other tools read: proto3 JSON on one line. The library
// varies its white space on purpose; the field's own writers don't, so it is taken out.
func marshalShared(m proto.Message) ([]byte, error) {
	data, err := protojson.Marshal(m)
	if err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	var b bytes.Buffer
	if err := json.Compact(&b, data); err != nil {
		return nil, fmt.Errorf("encode %s: %w", m.ProtoReflect().Descriptor().Name(), err)
	}
	return b.Bytes(), nil
}

// unmarshalShared reads one of the messages that other tools write. Fields that it doesn't know are ignored: the
// messages have no version, and a reader that stops at every addition stops a cluster for nothing.
func unmarshalShared(data []byte, m proto.Message) error {
	return protojson.UnmarshalOptions{DiscardUnknown: true}.Unmarshal(data, m)
}

func specFromProto(p *protosv1.ClusterSpec) cluster.Spec {
	return cluster.Spec{
		MemberCount: int(p.GetMemberCount()),
		EtcdVersion: strings.TrimPrefix(strings.TrimSpace(p.GetEtcdVersion()), "v"),
	}
}

func specToProto(s cluster.Spec) *protosv1.ClusterSpec {
	return &protosv1.ClusterSpec{MemberCount: int32(s.MemberCount), EtcdVersion: s.EtcdVersion}
}
