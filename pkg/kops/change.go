package kops

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/retention"
)

// Action is what is to be done about a difference.
type Action string

// The actions.
const (
	ActionCreate Action = "create"
	ActionModify Action = "modify"
	// ActionNote is for what follows from other changes.
	ActionNote Action = "note"
	// ActionRefuse is for what can't be done; then nothing is.
	ActionRefuse Action = "refuse"
)

// Kind is what a change is about.
type Kind string

// The kinds, in the order in which they are applied: what is started last needs what comes before.
const (
	KindKeypair   Kind = "Keypair"
	KindSpec      Kind = "ClusterSpec"
	KindVolume    Kind = "EBSVolume"
	KindRetention Kind = "Retention"
	KindPod       Kind = "StaticPod"
)

// Field is one difference. An empty From or To means that there is nothing.
type Field struct{ Name, From, To string }

// Change is one difference between the file and what exists, and what is to be done about it.
type Change struct {
	Action Action
	Kind   Kind
	Name   string
	Fields []Field
	// Why is the reason of a refusal, or the text of a note.
	Why string
	// Volume is how the volume is to be, with its id if it exists.
	Volume Volume
	// object is what is written to a store in its place.
	object object
	spec   cluster.Spec
}

// object is something in a store: where, what, and the version that it replaces. Without a version nothing may be there.
type object struct {
	store, key string
	data       []byte
	version    string
}

// Stored is an object as it was found, or the fact that it is not there.
type Stored struct {
	Data    []byte
	Version string
}

// exists tells whether the object is there.
func (s Stored) exists() bool { return s.Version != "" }

// StoreState is what a backup store holds for an etcd cluster.
type StoreState struct {
	// Spec is what stands there; Version is empty if there is none.
	Spec    cluster.Spec
	Version string
	Backups []retention.Backup
}

// Observation is what exists, at one moment.
type Observation struct {
	Now     time.Time
	Volumes []Volume
	// Keys are the ARNs of the keys that the file names.
	Keys map[string]string
	// Stores is by the name of the etcd cluster, Keysets by the authority's, Pods by their path.
	Stores  map[string]StoreState
	Keysets map[string]Stored
	// Issued tells which keysets stand there without their private keys, too.
	Issued map[string]bool
	Pods   map[string]Stored
}

// Plan is what differs between a file and what exists.
type Plan struct {
	Changes  []Change
	Warnings []string
}

// Empty tells whether nothing is to be done.
func (p Plan) Empty() bool {
	return !slices.ContainsFunc(p.Changes, func(c Change) bool { return c.Action != ActionNote })
}

// Refused are the changes that can't be made.
func (p Plan) Refused() []Change {
	var out []Change
	for _, c := range p.Changes {
		if c.Action == ActionRefuse {
			out = append(out, c)
		}
	}
	return out
}

// Compare says what differs. It is a function of its arguments.
func Compare(f *File, o Observation, opts Options) (Plan, error) {
	p := Plan{Warnings: slices.Clone(f.Warnings)}
	p.compareKeypairs(f, o)
	for i := range f.Clusters {
		p.compareSpec(&f.Clusters[i], o)
	}
	for i := range f.Clusters {
		p.compareVolumes(f, &f.Clusters[i], o)
	}
	for i := range f.Clusters {
		if err := p.comparePods(f, &f.Clusters[i], o, opts); err != nil {
			return Plan{}, err
		}
	}
	order := []Kind{KindKeypair, KindSpec, KindVolume, KindRetention, KindPod}
	slices.SortStableFunc(p.Changes, func(a, b Change) int { return slices.Index(order, a.Kind) - slices.Index(order, b.Kind) })
	return p, nil
}

func (p *Plan) add(c Change) {
	if c.Action != "" {
		p.Changes = append(p.Changes, c)
	}
}

func (p *Plan) warn(format string, args ...any) {
	p.Warnings = append(p.Warnings, fmt.Sprintf(format, args...))
}

func (p *Plan) compareKeypairs(f *File, o Observation) {
	seen := map[string]bool{}
	for i := range f.Clusters {
		for _, name := range keypairs(f.Clusters[i].Name) {
			if !seen[name] {
				p.compareKeypair(f, name, o)
			}
			seen[name] = true
		}
	}
}

func (p *Plan) compareKeypair(f *File, name string, o Observation) {
	stored := o.Keysets[name]
	c := Change{Kind: KindKeypair, Name: name, object: object{store: f.KeyStore, key: keysetPath(name, true)}}
	if !stored.exists() {
		c.Action = ActionCreate
		c.Fields = []Field{{Name: "Subject", To: "CN=" + name}}
		if o.Issued[name] {
			c.Action, c.Why = ActionRefuse, fmt.Sprintf("%s/%s has the certificate without its private key: bring %s back from where it was created", f.KeyStore, keysetPath(name, false), keysetPath(name, true))
		}
		p.add(c)
		return
	}
	k, end, err := parseKeyset(stored.Data)
	switch {
	case err != nil:
		c.Action, c.Why = ActionRefuse, fmt.Sprintf("%s/%s can't be used: %v", f.KeyStore, c.object.key, err)
	case !end.After(o.Now):
		c.Action, c.Why = ActionRefuse, fmt.Sprintf("it expired on %s: rotate it with kops create keypair and kops promote keypair",
			end.UTC().Format(time.DateOnly))
	case !o.Issued[name]:
		c.Action = ActionModify
		c.Fields = []Field{{Name: "Issued", To: keysetPath(name, false)}}
		if data, err := k.public().encode(); err == nil {
			c.object.data = data
		}
	case end.Sub(o.Now) < caWarning:
		p.warn("the CA %s expires on %s: rotate it with kops create keypair and kops promote keypair", name,
			end.UTC().Format(time.DateOnly))
	}
	p.add(c)
}

func (p *Plan) compareSpec(c *EtcdCluster, o Observation) {
	have := o.Stores[c.Name]
	want := cluster.Spec{MemberCount: len(c.Members), EtcdVersion: c.Version}
	if want.EtcdVersion == "" {
		want.EtcdVersion = have.Spec.EtcdVersion // the file leaves it to what runs
	}
	if have.Version != "" && have.Spec == want {
		return
	}
	ch := Change{Action: ActionModify, Kind: KindSpec, Name: c.Name, spec: want,
		object: object{store: c.BackupStore, version: have.Version}}
	if have.Version == "" {
		ch.Action = ActionCreate
	}
	count := func(n int) string {
		if n == 0 {
			return ""
		}
		return fmt.Sprint(n)
	}
	for _, f := range []Field{{"MemberCount", count(have.Spec.MemberCount), count(want.MemberCount)},
		{"EtcdVersion", have.Spec.EtcdVersion, want.EtcdVersion}} {
		if f.From != f.To {
			ch.Fields = append(ch.Fields, f)
		}
	}
	p.add(ch)
}

func (p *Plan) compareVolumes(f *File, c *EtcdCluster, o Observation) {
	wanted := map[string]bool{}
	for _, m := range c.Members {
		want := f.volume(c, m)
		if want.Key != "" {
			want.Key = o.Keys[want.Key]
		}
		p.add(compareVolume(want, candidates(o.Volumes, c.Name, m.Name, want.Tags[tagName]), m.Encrypted != nil,
			f.encryptCommand(c, want.Key)))
		wanted[m.Name] = true
	}
	for _, v := range o.Volumes {
		member, _, _ := strings.Cut(v.Tags[tagEtcd+c.Name], "/")
		if member != "" && !wanted[member] {
			p.warn("volume %s is of member %s of %s, which is not in the file; it is left alone", v.ID, member, c.Name)
		}
	}
}

func (p *Plan) comparePods(f *File, c *EtcdCluster, o Observation, opts Options) error {
	p.compareRetention(c, o)
	if opts.image(c) == "" {
		p.warn("etcdClusters[%s].manager.image is not set, so its static pods are left to kOps; name an image there or with --image",
			c.Name)
		return nil
	}
	for _, group := range c.groups() {
		path := podPath(c.Name, group)
		stored := o.Pods[path]
		ch := Change{Action: ActionCreate, Kind: KindPod, Name: path,
			object: object{store: f.ConfigBase, key: path, version: stored.Version}}
		var have pod
		if stored.exists() {
			ch.Action = ActionModify
			if err := yaml.Unmarshal(stored.Data, &have); err != nil {
				p.warn("%s/%s can't be read and is written again: %v", f.ConfigBase, path, err)
			}
		}
		want := f.pod(c, opts)
		want.mountEtcd(o.Stores[c.Name].Spec.EtcdVersion, opts.EtcdImage)
		want.keepEtcd(&have)
		var err error
		if ch.object.data, err = want.encode(); err != nil {
			return fmt.Errorf("encode static pod of %s: %w", c.Name, err)
		}
		if ch.Fields = comparePod(&have, want); len(ch.Fields) > 0 {
			p.add(ch)
		}
	}
	return nil
}

// groups are the instance groups on which members of the cluster live, each once.
func (c *EtcdCluster) groups() []string {
	var out []string
	for _, m := range c.Members {
		if !slices.Contains(out, m.InstanceGroup) {
			out = append(out, m.InstanceGroup)
		}
	}
	slices.Sort(out)
	return out
}

// kept is what the environment of a manager says of it; empty is the default.
type kept struct{ daily, hourly string }

func retentionOf(env []EnvVar) (r kept) {
	for _, e := range env {
		switch e.Name {
		case retentionVar:
			r.daily = e.Value
		case hourlyVar:
			r.hourly = e.Value
		}
	}
	return r
}

// compareRetention says what a new retention means for the backups that there are. It takes effect with the static pods.
func (p *Plan) compareRetention(c *EtcdCluster, o Observation) {
	want := retentionOf(c.environment())
	var before kept
	for _, group := range c.groups() {
		var have pod
		stored := o.Pods[podPath(c.Name, group)]
		if !stored.exists() || yaml.Unmarshal(stored.Data, &have) != nil || len(have.Spec.Containers) == 0 {
			continue
		}
		before = retentionOf(have.Spec.Containers[0].Env)
	}
	if before == want {
		return
	}
	policy := retention.Default()
	if d, err := retention.ParseDuration(want.daily); err == nil {
		policy.Daily = d
	}
	if d, err := retention.ParseDuration(want.hourly); err == nil {
		policy.Hourly = d
	}
	var fields []Field
	if before.daily != want.daily {
		fields = append(fields, Field{"Daily", orElse(before.daily, "365d (default)"), orElse(want.daily, "365d (default)")})
	}
	if before.hourly != want.hourly {
		fields = append(fields, Field{"Hourly", orElse(before.hourly, "168h (default)"), orElse(want.hourly, "168h (default)")})
	}
	gone := 0
	for _, d := range retention.Decide(o.Now, o.Stores[c.Name].Backups, policy) {
		if !d.Keep {
			gone++
		}
	}
	p.add(Change{Action: ActionNote, Kind: KindRetention, Name: c.Name, Fields: fields,
		Why: fmt.Sprintf("takes effect with the static pods; then %d of %d backups are removed", gone, len(o.Stores[c.Name].Backups))})
}
