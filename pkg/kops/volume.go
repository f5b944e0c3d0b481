package kops

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
)

// Volume is one volume of block storage, as it is or as it is wanted.
type Volume struct {
	// ID is the provider's; empty for one that doesn't exist yet.
	ID         string
	Zone, Type string
	SizeGiB    int
	// IOPS and Throughput are 0 where the type of volume has none to be set.
	IOPS, Throughput int
	Encrypted        bool
	// Key is the ARN of the key; empty for what is not encrypted, and for one to be made with the account's default key.
	Key  string
	Tags map[string]string
}

// Volumes is the block storage of the provider. All methods may be called concurrently and more than once. An error says which action was
// refused, if it is a matter of permissions.
type Volumes interface {
	// List returns the volumes that carry all of these tags, also those that are being changed, as they will be.
	List(ctx context.Context, tags map[string]string) ([]Volume, error)
	// Create makes a volume and returns its id. The token names the request: a second call with the same token gives the same volume.
	Create(ctx context.Context, v Volume, token string) (id string, err error)
	// Modify changes type, size, IOPS and throughput to those of v while the volume is in use.
	Modify(ctx context.Context, v Volume) error
	// Tag sets tags and leaves others alone.
	Tag(ctx context.Context, id string, tags map[string]string) error
	// Key returns the ARN of a key that is named by id, alias or ARN, and an error if it can't be used.
	Key(ctx context.Context, name string) (arn string, err error)
}

// The tags by which kOps and the managers find a cluster's volumes.
const (
	tagCluster = "KubernetesCluster"
	tagName    = "Name"
	tagEtcd    = "k8s.io/etcd/"
	tagOwned   = "kubernetes.io/cluster/"
	tagMaster  = "k8s.io/role/master"
	tagControl = "k8s.io/role/control-plane"
	owned      = "owned"
)

// clusterTags are the two ways in which a volume says whose it is; either will do.
func (f *File) clusterTags() []map[string]string {
	return []map[string]string{{tagOwned + f.Name: owned}, {tagCluster: f.Name}}
}

func (c *EtcdCluster) memberNames() []string {
	var names []string
	for _, m := range c.Members {
		names = append(names, m.Name)
	}
	slices.Sort(names)
	return names
}

// volume is the volume that a member should have.
func (f *File) volume(c *EtcdCluster, m Member) Volume {
	tags := maps.Clone(f.Labels)
	if tags == nil {
		tags = map[string]string{}
	}
	tags[tagCluster] = f.Name
	tags[tagOwned+f.Name] = owned
	tags[tagName] = fmt.Sprintf("%s.etcd-%s.%s", m.Name, c.Name, f.Name)
	tags[tagEtcd+c.Name] = m.Name + "/" + strings.Join(c.memberNames(), ",")
	tags[tagControl], tags[tagMaster] = "1", "1"
	return Volume{Zone: m.Zone, Type: m.VolumeType, SizeGiB: m.Size, IOPS: m.IOPS, Throughput: m.Throughput,
		Encrypted: m.Encrypted != nil && *m.Encrypted, Key: m.Key, Tags: tags}
}

// The tags with which one volume takes the place of another (docs/format.md).
const (
	tagReplaces = "etcd-manager.io/replaces"
	tagGivenUp  = "etcd-manager.io/given-up"
)

// candidates are the volumes that say that they are a member's: by the tag from which its manager
// learns its name, or by their own name. One whose place another one takes is not among them.
func candidates(all []Volume, cluster, member, name string) []Volume {
	var found []Volume
	for _, v := range all {
		tagged, _, _ := strings.Cut(v.Tags[tagEtcd+cluster], "/")
		if tagged == member || tagged == "" && v.Tags[tagName] == name {
			found = append(found, v)
		}
	}
	replaced := map[string]bool{}
	for _, v := range found {
		replaced[v.Tags[tagReplaces]] = true
	}
	return slices.DeleteFunc(found, func(v Volume) bool { return replaced[v.ID] || v.Tags[tagGivenUp] != "" })
}

// compareVolume says what differs between the volume that a member should have and those that are
// there. encryption is false if the file doesn't say whether it is to be encrypted, and encrypt is
// the command that does that with one that exists.
func compareVolume(want Volume, found []Volume, encryption bool, encrypt string) Change {
	ch := Change{Kind: KindVolume, Name: want.Tags[tagName], Volume: want}
	switch len(found) {
	case 0:
		ch.Action = ActionCreate
		ch.Fields = volumeFields(want)
		return ch
	case 1:
	default:
		var ids []string
		for _, v := range found {
			ids = append(ids, v.ID)
		}
		ch.Action = ActionRefuse
		ch.Why = fmt.Sprintf("%s all have the tags of this member: remove the tags from the wrong ones", strings.Join(ids, ", "))
		return ch
	}
	have := found[0]
	ch.Volume.ID = have.ID
	ch.Fields = append(settings(have, want), tagFields(have, want)...)
	if why := impossible(have, want, encryption, encrypt); why != "" {
		ch.Action, ch.Why = ActionRefuse, why
	} else if len(ch.Fields) > 0 {
		ch.Action = ActionModify
	}
	return ch
}

// impossible says what can't be changed about a volume, and what to do instead; "" if all can be.
func impossible(have, want Volume, encryption bool, encrypt string) string {
	encrypt = "the encryption of an existing volume can't be changed; move its content to a new one: " + encrypt
	switch {
	case have.Zone != want.Zone:
		return fmt.Sprintf("volume %s is in zone %s, the instance group in %s, and a volume can't be moved: name an instance group in %s, or detach the volume and remove its tags: then the member is created again in %s",
			have.ID, have.Zone, want.Zone, have.Zone, want.Zone)
	case have.SizeGiB > want.SizeGiB:
		return fmt.Sprintf("volume %s has %d GiB, the file says %d, and a volume can't be made smaller: set %d, or remove its tags: then the member is created again", have.ID, have.SizeGiB, want.SizeGiB, have.SizeGiB)
	case encryption && have.Encrypted && !want.Encrypted:
		return fmt.Sprintf("volume %s is encrypted (perhaps because the account encrypts by default), the file says that it is not, and a volume can't be decrypted: set encryptedVolume: true", have.ID)
	case encryption && !have.Encrypted && want.Encrypted:
		return fmt.Sprintf("volume %s is not encrypted, the file says that it is: %s", have.ID, encrypt)
	case want.Key != "" && have.Key != want.Key:
		return fmt.Sprintf("volume %s is encrypted with key %s, the file says %s: %s", have.ID, have.Key, want.Key, encrypt)
	}
	return ""
}

// encryptCommand moves the members of an etcd cluster to encrypted volumes while it runs.
func (f *File) encryptCommand(c *EtcdCluster, key string) string {
	command := "etcd-manager-ctl --backup-store=" + c.BackupStore + " volumes encrypt"
	for _, flag := range f.flags(c, true) {
		if name := flagName(flag); name == "--cluster-name" || strings.HasPrefix(name, "--volume-") && name != "--volume-provider" {
			command += " " + flag
		}
	}
	if key != "" {
		command += " --require-encrypted-volume=" + key
	}
	return command
}

func volumeFields(v Volume) []Field {
	fields := settings(Volume{}, v)
	fields = append([]Field{{Name: "Zone", To: v.Zone}}, fields...)
	encrypted := "no"
	if v.Encrypted {
		encrypted = "with the account's default key"
	}
	if v.Key != "" {
		encrypted = "with key " + v.Key
	}
	return append(append(fields, Field{Name: "Encrypted", To: encrypted}), tagFields(Volume{}, v)...)
}

// settings are the differences in what can be changed while a volume is in use.
func settings(have, want Volume) []Field {
	var fields []Field
	if have.Type != want.Type {
		fields = append(fields, Field{"Type", have.Type, want.Type})
	}
	for _, n := range []struct {
		name       string
		have, want int
		// follows is true for what a change of the type changes by itself.
		follows bool
	}{{"SizeGiB", have.SizeGiB, want.SizeGiB, false}, {"IOPS", have.IOPS, want.IOPS, true},
		{"Throughput", have.Throughput, want.Throughput, true}} {
		if n.have == n.want || n.follows && n.want == 0 {
			continue
		}
		from := ""
		if n.have != 0 {
			from = strconv.Itoa(n.have)
		}
		fields = append(fields, Field{n.name, from, strconv.Itoa(n.want)})
	}
	return fields
}

// tagFields are the tags that are missing or differ. Others are left alone.
func tagFields(have, want Volume) []Field {
	var fields []Field
	for _, k := range slices.Sorted(maps.Keys(want.Tags)) {
		if have.Tags[k] != want.Tags[k] {
			fields = append(fields, Field{"Tag " + k, have.Tags[k], want.Tags[k]})
		}
	}
	return fields
}
