package kops

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// limits are what EBS and kOps allow for a type of volume.
type limits struct {
	minSize, maxSize int
	// minIOPS to maxIOPS may be asked for, up to iopsPerGiB for each GiB; none at all if maxIOPS is 0. baseIOPS come with every volume.
	minIOPS, maxIOPS, iopsPerGiB, baseIOPS int
	// Throughput in MiB/s, up to a quarter of the IOPS.
	minThroughput, maxThroughput int
}

func limitsOf(volumeType string) (limits, bool) {
	switch volumeType {
	case "gp2":
		return limits{minSize: 1, maxSize: 16384}, true
	case "gp3":
		return limits{minSize: 1, maxSize: 16384, minIOPS: 3000, maxIOPS: 16000, iopsPerGiB: 500, baseIOPS: 3000,
			minThroughput: 125, maxThroughput: 1000}, true
	case "io1":
		return limits{minSize: 4, maxSize: 16384, minIOPS: 100, maxIOPS: 64000, iopsPerGiB: 50, baseIOPS: 100}, true
	case "io2":
		return limits{minSize: 4, maxSize: 16384, minIOPS: 100, maxIOPS: 64000, iopsPerGiB: 500, baseIOPS: 100}, true
	case "standard":
		return limits{minSize: 1, maxSize: 1024}, true
	}
	return limits{}, false
}

// supportedProvider is the only cloud whose volumes and machines are known here.
const supportedProvider = "aws"

// provider refuses a file of another cloud: manifests and plans for AWS would be wrong there. v1alpha2 has a
// name, v1alpha3 an object with a field
// for each provider. A file that doesn't say is taken to be of AWS.
func (p *parser) provider(spec *fields) {
	v, path := spec.take("cloudProvider", "legacyCloudProvider")
	var names []string
	switch v := v.(type) {
	case nil:
		return
	case map[string]any:
		names = slices.Sorted(maps.Keys(v))
	default:
		names = []string{strings.TrimSpace(fmt.Sprint(v))}
	}
	for _, name := range names {
		if name != supportedProvider {
			p.fail(path, "%q is not supported: only aws is", name)
		}
	}
}

// storeSchemes are those that pkg/blob/connect opens; a test holds them to it.
func storeSchemes() []string {
	return []string{"s3", "do", "hos", "linode", "scw", "gs", "azureblob", "file"}
}

// checkStore refuses a store that a manager could not open.
func checkStore(p *parser, path, url string) {
	scheme, _, ok := strings.Cut(url, "://")
	if ok && slices.Contains(storeSchemes(), scheme) || !ok && strings.HasPrefix(url, "/") {
		return
	}
	p.fail(path, "%q is not a store that is supported: it begins with %s:// or is an absolute path", url,
		strings.Join(storeSchemes(), "://, "))
}

// ports are what kOps gives to each etcd cluster.
type ports struct{ client, peer, grpc, quarantine int }

func portsOf(name string) (ports, bool) {
	switch name {
	case "main":
		return ports{4001, 2380, 3996, 3994}, true
	case "events":
		return ports{4002, 2381, 3997, 3995}, true
	case "cilium":
		return ports{4003, 2382, 3991, 3992}, true
	case "leases":
		return ports{4004, 2383, 4006, 4005}, true
	}
	return ports{}, false
}

// check finds what kOps or EBS would refuse, and fills in the defaults that depend on the type of volume.
func (f *File) check(p *parser) {
	if f.Name == "" {
		p.fail("metadata.name", "it is missing")
	}
	if f.ConfigBase == "" {
		p.fail("spec.configBase", "it is missing (v1alpha3: spec.configStore.base)")
	}
	if f.ConfigBase != "" {
		checkStore(p, "spec.configBase", f.ConfigBase)
	}
	if f.KeyStore != "" && !strings.HasPrefix(f.KeyStore, f.ConfigBase+"/") {
		checkStore(p, "spec.keyStore", f.KeyStore)
	}
	if len(f.Clusters) == 0 {
		p.fail("spec.etcdClusters", "there is none")
	}
	seen := map[string]bool{}
	for i := range f.Clusters {
		c := &f.Clusters[i]
		path := "spec.etcdClusters[" + c.Name + "]"
		if seen[c.Name] {
			p.fail(path, "it is there twice")
		}
		seen[c.Name] = true
		if c.BackupStore == "" && f.ConfigBase != "" {
			c.BackupStore = f.ConfigBase + "/backups/etcd/" + c.Name
		}
		if c.BackupStore != "" {
			checkStore(p, path+".backups.backupStore", c.BackupStore)
		}
		c.check(p, path)
	}
}

var memberName = regexp.MustCompile(`^[a-z0-9]([a-z0-9-]*[a-z0-9])?$`)

func (c *EtcdCluster) check(p *parser, path string) {
	if _, ok := portsOf(c.Name); !ok {
		p.fail(path+".name", "%q is not a cluster of kOps: main, events, cilium or leases", c.Name)
	}
	if v, err := cluster.ParseVersion(c.Version); c.Version == "" {
		p.warn("%s.version is not set: the running version stays; a new cluster gets the version that is compiled into the managers", path)
	} else if err != nil {
		p.fail(path+".version", "%v", err)
	} else if why := v.Unsafe(); why != "" && v.Replaceable() {
		p.warn("%s.version: %s, so %s never runs: the newest patch of 3.5 that is on the nodes runs in its place", path, why, c.Version)
	} else if why != "" {
		p.fail(path+".version", "%s is not possible: %s", c.Version, why)
	}
	if !cluster.ValidMemberCount(len(c.Members)) {
		p.fail(path+".etcdMembers", "%d members are not possible: it must be an odd number from 1 to 9", len(c.Members))
	}
	if c.Manager.RetentionDays < 0 {
		p.fail(path+".manager.backupRetentionDays", "%d days are not possible", c.Manager.RetentionDays)
	}
	for _, d := range []struct{ field, value string }{{"manager.backupInterval", c.Manager.BackupInterval},
		{"manager.discoveryPollInterval", c.Manager.DiscoveryPollInterval},
		{"heartbeatInterval", c.HeartbeatInterval}, {"leaderElectionTimeout", c.LeaderElectionTimeout}} {
		if v, err := time.ParseDuration(d.value); d.value != "" && (err != nil || v <= 0) {
			p.fail(path+"."+d.field, "%q is not a duration such as 15m", d.value)
		}
	}
	names, groups := []string{}, []string{}
	for i := range c.Members {
		m := &c.Members[i]
		at := path + ".etcdMembers[" + m.Name + "]"
		if !memberName.MatchString(m.Name) {
			p.fail(at+".name", "%q is not possible: lower-case letters, digits and dashes", m.Name)
		}
		if slices.Contains(names, m.Name) {
			p.fail(at, "the name is there twice")
		}
		if m.InstanceGroup != "" && slices.Contains(groups, m.InstanceGroup) {
			p.warn("%s: two members are in instance group %s: if that loses its zone, both are gone", at, m.InstanceGroup)
		}
		names, groups = append(names, m.Name), append(groups, m.InstanceGroup)
		m.check(p, at)
	}
}

func (m *Member) check(p *parser, at string) {
	l, ok := limitsOf(m.VolumeType)
	if !ok {
		p.fail(at+".volumeType", "%q is not a type for etcd: gp3, gp2, io1, io2 or standard", m.VolumeType)
		return
	}
	if m.Size < l.minSize || m.Size > l.maxSize {
		p.fail(at+".volumeSize", "%d GiB are not possible for %s: %d to %d", m.Size, m.VolumeType, l.minSize, l.maxSize)
	}
	m.checkIOPS(p, at, l)
	switch {
	case l.maxThroughput == 0 && m.Throughput != 0:
		p.fail(at+".volumeThroughput", "%s volumes have no such setting; gp3 volumes have", m.VolumeType)
	case l.maxThroughput > 0 && m.Throughput == 0:
		m.Throughput = l.minThroughput
	case l.maxThroughput > 0 && (m.Throughput < l.minThroughput || m.Throughput > l.maxThroughput):
		p.fail(at+".volumeThroughput", "%d MiB/s are not possible for %s: %d to %d", m.Throughput, m.VolumeType,
			l.minThroughput, l.maxThroughput)
	case 4*m.Throughput > m.IOPS && l.maxThroughput > 0:
		p.fail(at+".volumeThroughput", "%d MiB/s need %d IOPS, a quarter of a MiB/s for each; volumeIOPS is %d",
			m.Throughput, 4*m.Throughput, m.IOPS)
	}
	switch {
	case m.Key != "" && (m.Encrypted == nil || !*m.Encrypted):
		p.fail(at+".kmsKeyId", "a key is named, but encryptedVolume is not true")
	case m.Encrypted == nil:
		p.warn("%s.encryptedVolume is not set: a new volume is not encrypted, an existing one stays as it is", at)
	}
	if strings.ContainsAny(m.Key, " \t") {
		p.fail(at+".kmsKeyId", "%q is neither a key id, an alias nor an ARN", m.Key)
	}
}

func (m *Member) checkIOPS(p *parser, at string, l limits) {
	switch {
	case l.maxIOPS == 0 && m.IOPS != 0:
		p.fail(at+".volumeIOPS", "%s volumes have no such setting; gp3, io1 and io2 volumes have", m.VolumeType)
	case l.maxIOPS == 0:
	case m.IOPS == 0:
		m.IOPS = l.baseIOPS
	case m.IOPS < l.minIOPS || m.IOPS > l.maxIOPS:
		p.fail(at+".volumeIOPS", "%d are not possible for %s: %d to %d", m.IOPS, m.VolumeType, l.minIOPS, l.maxIOPS)
	case m.IOPS > l.baseIOPS && m.IOPS > l.iopsPerGiB*m.Size:
		p.fail(at+".volumeIOPS", "%d are not possible for %d GiB of %s: at most %d for each GiB", m.IOPS, m.Size,
			m.VolumeType, l.iopsPerGiB)
	}
}
