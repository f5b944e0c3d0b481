package kops

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"regexp"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// ErrInvalid: the file says something that can't be.
var ErrInvalid = errors.New("kOps cluster file can't be used")

// File is what a kOps cluster file says about etcd.
type File struct {
	// Name is the Kubernetes cluster's.
	Name string
	// ConfigBase is the URL below which kOps keeps what it makes for this cluster, KeyStore that of the key pairs.
	ConfigBase, KeyStore string
	// Labels are tags for everything of this cluster.
	Labels   map[string]string
	Clusters []EtcdCluster
	// Warnings are what the operator should know though the file can be used.
	Warnings []string
}

var regionForm = regexp.MustCompile(`^[a-z]+(?:-[a-z]+)+-\d+`)

// Region is the provider's region, as the zones of the members tell it; empty if there are none.
func (f *File) Region() string {
	for _, c := range f.Clusters {
		for _, m := range c.Members {
			return regionForm.FindString(m.Zone)
		}
	}
	return ""
}

// EtcdCluster is one of spec.etcdClusters.
type EtcdCluster struct {
	// Name is main, events, cilium or leases.
	Name                      string
	Version                   string
	CPURequest, MemoryRequest string
	BackupStore               string
	// Image is etcd's, if the file names one.
	Image                                    string
	HeartbeatInterval, LeaderElectionTimeout string
	Manager                                  Manager
	Members                                  []Member
	// Unknown are fields that this version doesn't know, as they stand there.
	Unknown map[string]any
}

// Manager is etcdClusters[].manager.
type Manager struct {
	Image, BackupInterval, DiscoveryPollInterval string
	// RetentionDays is 0 if the file doesn't say.
	RetentionDays     int
	ListenMetricsURLs []string
	// LogLevel is 6 if the file doesn't say.
	LogLevel int
	Env      []EnvVar
	Unknown  map[string]any
}

// EnvVar is one variable of the manager's environment.
type EnvVar struct {
	Name  string `json:"name"`
	Value string `json:"value"`
}

// Member is one of etcdMembers. What the file leaves open has kOps' default.
type Member struct {
	Name, InstanceGroup string
	// Zone is that of the instance group.
	Zone                   string
	VolumeType             string
	Size, IOPS, Throughput int
	// Encrypted is nil if the file doesn't say.
	Encrypted *bool
	// Key is the KMS key as the file names it: an id, an alias or an ARN. Empty means the account's default key.
	Key     string
	Unknown map[string]any
}

// The defaults of kOps.
const (
	defaultVolumeType = "gp3"
	defaultSize       = 20
	defaultLogLevel   = 6
)

// maxTold is how many errors, and how many warnings, are told of one file. maxText is how many bytes of what stands in the file one of
// them repeats.
const (
	maxTold = 20
	maxText = 150
)

// Parse reads a cluster file as "kops get -o yaml" writes it: a Cluster and, in further documents, its instance groups.
// The error wraps ErrInvalid and names everything that is wrong.
func Parse(data []byte) (*File, error) {
	p := &parser{zones: map[string]string{}, groups: map[string][]string{}}
	var found *fields
	for i, doc := range documents(data) {
		m, err := decode(doc)
		if err != nil {
			return nil, fmt.Errorf("%w: document %d is not YAML: %s", ErrInvalid, i+1, cluster.Shown(err.Error(), maxText))
		}
		f := p.fields("", m)
		switch kind := f.text("kind"); kind {
		case "Cluster":
			if found != nil {
				return nil, fmt.Errorf("%w: it holds two clusters; give one at a time", ErrInvalid)
			}
			found = f
		case "InstanceGroup":
			p.instanceGroup(f)
		case "SSHCredential":
		default:
			p.warn("document %d is of kind %q, which has no settings of etcd", i+1, kind)
		}
	}
	if found == nil {
		return nil, fmt.Errorf("%w: it holds no document of kind Cluster; it is written by: kops get --name=NAME -o yaml", ErrInvalid)
	}
	file := p.cluster(found)
	p.provider(found.object("spec"))
	file.check(p)
	file.Warnings = p.warnings
	if err := errors.Join(p.errs...); err != nil {
		return nil, fmt.Errorf("%w:\n%w", ErrInvalid, err)
	}
	return file, nil
}

var separator = regexp.MustCompile(`(?m)^---.*$`)

func documents(data []byte) [][]byte {
	var out [][]byte
	for _, doc := range separator.Split(string(data), -1) {
		if strings.TrimSpace(doc) != "" {
			out = append(out, []byte(doc))
		}
	}
	return out
}

func decode(doc []byte) (map[string]any, error) {
	data, err := yaml.YAMLToJSONStrict(doc)
	if err != nil {
		return nil, err
	}
	d := json.NewDecoder(bytes.NewReader(data))
	d.UseNumber()
	var m map[string]any
	if err := d.Decode(&m); err != nil && !errors.Is(err, io.EOF) {
		return nil, err
	}
	return m, nil
}

// parser gathers what is found in all documents.
type parser struct {
	errs     []error
	warnings []string
	// zones are the subnets' zones by name, groups the instance groups' subnets.
	zones  map[string]string
	groups map[string][]string
}

func (p *parser) warn(format string, args ...any) {
	if len(p.warnings) < maxTold {
		p.warnings = append(p.warnings, fmt.Sprintf(format, shown(args)...))
	}
}

func (p *parser) fail(path, format string, args ...any) {
	switch {
	case len(p.errs) < maxTold:
		p.errs = append(p.errs, fmt.Errorf("%s: %s", cluster.Shown(path, maxText), fmt.Sprintf(format, shown(args)...)))
	case len(p.errs) == maxTold:
		p.errs = append(p.errs, errors.New("and more"))
	}
}

// shown makes what stands in the file fit for a message.
func shown(args []any) []any {
	out := make([]any, len(args))
	for i, a := range args {
		switch a := a.(type) {
		case int, int64, time.Duration:
			out[i] = a
		default:
			out[i] = cluster.Shown(fmt.Sprint(a), maxText)
		}
	}
	return out
}

func (p *parser) instanceGroup(f *fields) {
	spec := f.object("spec")
	p.groups[f.object("metadata").text("name")] = spec.texts("subnets")
}

func (p *parser) cluster(f *fields) *File {
	spec := f.object("spec")
	store := spec.object("configStore") // v1alpha3
	file := &File{Name: f.object("metadata").text("name"), ConfigBase: spec.text("configBase"),
		KeyStore: spec.text("keyStore"), Labels: spec.stringMap("cloudLabels")}
	if file.ConfigBase == "" {
		file.ConfigBase = store.text("base")
	}
	if file.KeyStore == "" {
		file.KeyStore = store.text("keypairs")
	}
	file.ConfigBase = strings.TrimRight(file.ConfigBase, "/")
	if file.KeyStore == "" && file.ConfigBase != "" {
		file.KeyStore = file.ConfigBase + "/pki"
	}
	for _, subnet := range slices.Concat(spec.objects("subnets"), spec.object("networking").objects("subnets")) {
		name := subnet.text("name")
		p.zones[name] = subnet.text("zone")
		if p.zones[name] == "" {
			p.zones[name] = name
		}
	}
	for _, c := range spec.objects("etcdClusters") {
		file.Clusters = append(file.Clusters, p.etcdCluster(c))
	}
	return file
}

func (p *parser) etcdCluster(f *fields) EtcdCluster {
	c := EtcdCluster{
		Name: f.text("name"), Version: strings.TrimPrefix(f.text("version"), "v"), CPURequest: f.text("cpuRequest"),
		MemoryRequest: f.text("memoryRequest"),
		Image:         f.text("image"), HeartbeatInterval: f.text("heartbeatInterval"),
		LeaderElectionTimeout: f.text("leaderElectionTimeout"),
	}
	if provider := f.text("provider"); provider != "" && provider != "Manager" {
		p.fail(f.path+".provider", "%q is not possible: it is Manager", provider)
	}
	f.text("enableEtcdTLS", "enableTLSAuth") // it is always on
	backups := f.object("backups")
	c.BackupStore = strings.TrimRight(backups.text("backupStore"), "/")
	backups.text("image")
	backups.rest()
	c.Manager = p.manager(f.object("manager"))
	for _, m := range f.objects("etcdMembers") {
		c.Members = append(c.Members, p.member(m))
	}
	c.Unknown = f.rest()
	return c
}

func (p *parser) manager(f *fields) Manager {
	m := Manager{
		Image: f.text("image"), BackupInterval: f.text("backupInterval"), DiscoveryPollInterval: f.text("discoveryPollInterval"),
		RetentionDays:     f.number(0, "backupRetentionDays"),
		ListenMetricsURLs: f.texts("listenMetricsURLs", "listenMetricsUrls"), LogLevel: f.number(defaultLogLevel, "logLevel"),
	}
	for _, e := range f.objects("env") {
		m.Env = append(m.Env, EnvVar{e.text("name"), e.text("value")})
		e.rest()
	}
	m.Unknown = f.rest()
	return m
}

func (p *parser) member(f *fields) Member {
	m := Member{
		Name: f.text("name"), InstanceGroup: f.text("instanceGroup"), VolumeType: f.text("volumeType"),
		Size: f.number(defaultSize, "volumeSize"),
		IOPS: f.number(0, "volumeIOPS", "volumeIops"), Throughput: f.number(0, "volumeThroughput"), Encrypted: f.boolean("encryptedVolume"),
		Key: f.text("kmsKeyID", "kmsKeyId"),
	}
	if m.VolumeType == "" {
		m.VolumeType = defaultVolumeType
	}
	m.Zone = p.zone(f.path, m.InstanceGroup)
	m.Unknown = f.rest()
	return m
}

// zone finds the one zone of an instance group. Without its document the name of the group ends
// with that of its subnet, as kOps names them.
func (p *parser) zone(path, group string) string {
	subnets, known := p.groups[group]
	if !known {
		for _, name := range slices.Sorted(maps.Keys(p.zones)) {
			if strings.HasSuffix(group, "-"+name) {
				subnets = append(subnets, name)
			}
		}
		slices.SortStableFunc(subnets, func(a, b string) int { return len(b) - len(a) })
		subnets = subnets[:min(1, len(subnets))]
		if len(subnets) == 1 {
			p.warn("%s: instance group %s is not in the file; its subnet is assumed to be %s, from its name", path, group, subnets[0])
		}
	}
	zones := map[string]bool{}
	for _, s := range subnets {
		zones[p.zones[s]] = true
	}
	delete(zones, "")
	if len(zones) != 1 {
		p.fail(path, "the zone of instance group %q is not known: it must have one, and the file must hold its InstanceGroup document (kops get --name=NAME -o yaml writes all)", group)
		return ""
	}
	for z := range zones {
		return z
	}
	return ""
}
