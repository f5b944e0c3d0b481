package kops

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"sigs.k8s.io/yaml"
)

// Options are what a cluster file leaves open.
type Options struct {
	// Image is the manager's image for etcd clusters that name none; without either, no static pod is made.
	Image string
	// EtcdImage is etcd's, with %s for the version.
	EtcdImage string
}

// defaultEtcdImage is where Kubernetes publishes etcd.
const defaultEtcdImage = "registry.k8s.io/etcd:v%s"

// clusterName is the name by which a manager knows an etcd cluster.
func clusterName(name string) string {
	if name == "main" {
		return "etcd"
	}
	return "etcd-" + name
}

// hostLog is the log file on the host.
func hostLog(name string) string {
	if name == "main" {
		return "/var/log/etcd.log"
	}
	return "/var/log/etcd-" + name + ".log"
}

// flags are the manager's, in the order in which kOps writes them: by name.
func (f *File) flags(c *EtcdCluster, containerized bool) []string {
	p, _ := portsOf(c.Name)
	flags := []string{
		"--backup-store=" + c.BackupStore,
		fmt.Sprintf("--client-urls=https://__name__:%d", p.client),
		"--cluster-name=" + clusterName(c.Name),
		"--dns-suffix=.internal." + f.Name,
		fmt.Sprintf("--grpc-port=%d", p.grpc),
		fmt.Sprintf("--peer-urls=https://__name__:%d", p.peer),
		fmt.Sprintf("--quarantine-client-urls=https://__name__:%d", p.quarantine),
		fmt.Sprintf("--v=%d", c.Manager.LogLevel),
		"--volume-name-tag=" + tagEtcd + c.Name,
		"--volume-provider=aws",
		"--volume-tag=" + tagEtcd + c.Name,
		"--volume-tag=" + tagControl + "=1",
		"--volume-tag=" + tagOwned + f.Name + "=" + owned,
	}
	if containerized {
		flags = append(flags, "--containerized=true")
	} else {
		flags = append(flags, "--pki-dir="+pkiDir(c.Name))
	}
	for name, value := range map[string]string{"backup-interval": duration(c.Manager.BackupInterval),
		"discovery-poll-interval": duration(c.Manager.DiscoveryPollInterval),
		"listen-metrics-urls":     strings.Join(c.Manager.ListenMetricsURLs, ",")} {
		if value != "" {
			flags = append(flags, "--"+name+"="+value)
		}
	}
	slices.SortStableFunc(flags, func(a, b string) int { return strings.Compare(flagName(a), flagName(b)) })
	return flags
}

func flagName(flag string) string {
	name, _, _ := strings.Cut(flag, "=")
	return name
}

// duration writes a duration in full, so that 15m and 15m0s are the same.
func duration(s string) string {
	d, err := time.ParseDuration(s)
	if err != nil {
		return s
	}
	return d.String()
}

func pkiDir(name string) string { return "/etc/kubernetes/pki/etcd-manager-" + name }

const (
	retentionVar = "ETCD_MANAGER_DAILY_BACKUPS_RETENTION"
	hourlyVar    = "ETCD_MANAGER_HOURLY_BACKUPS_RETENTION"
)

// environment is the manager's, by name.
func (c *EtcdCluster) environment() []EnvVar {
	env := slices.Clone(c.Manager.Env)
	add := func(name, value string) {
		if value != "" && !slices.ContainsFunc(env, func(e EnvVar) bool { return e.Name == name }) {
			env = append(env, EnvVar{name, value})
		}
	}
	if c.Manager.RetentionDays > 0 {
		add(retentionVar, fmt.Sprintf("%dd", c.Manager.RetentionDays))
	}
	add("ETCD_HEARTBEAT_INTERVAL", milliseconds(c.HeartbeatInterval))
	add("ETCD_ELECTION_TIMEOUT", milliseconds(c.LeaderElectionTimeout))
	slices.SortStableFunc(env, func(a, b EnvVar) int { return strings.Compare(a.Name, b.Name) })
	return env
}

func milliseconds(s string) string {
	d, err := time.ParseDuration(s)
	if err != nil {
		return ""
	}
	return fmt.Sprint(d.Milliseconds())
}

// The part of a pod that a manager's manifest consists of.
type pod struct {
	APIVersion string   `json:"apiVersion"`
	Kind       string   `json:"kind"`
	Metadata   metadata `json:"metadata"`
	Spec       podSpec  `json:"spec"`
}

type metadata struct {
	Annotations map[string]string `json:"annotations,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Name        string            `json:"name"`
	Namespace   string            `json:"namespace"`
}

type podSpec struct {
	Containers        []container         `json:"containers"`
	HostNetwork       bool                `json:"hostNetwork"`
	HostPID           bool                `json:"hostPID"`
	PriorityClassName string              `json:"priorityClassName"`
	Tolerations       []map[string]string `json:"tolerations"`
	Volumes           []podVolume         `json:"volumes"`
}

type container struct {
	Args            []string                     `json:"args,omitempty"`
	Command         []string                     `json:"command"`
	Env             []EnvVar                     `json:"env,omitempty"`
	Image           string                       `json:"image"`
	Name            string                       `json:"name"`
	Resources       map[string]map[string]string `json:"resources,omitempty"`
	SecurityContext map[string]bool              `json:"securityContext"`
	VolumeMounts    []mount                      `json:"volumeMounts"`
}

type mount struct {
	MountPath string `json:"mountPath"`
	Name      string `json:"name"`
}

type podVolume struct {
	HostPath *hostPath         `json:"hostPath,omitempty"`
	Image    map[string]string `json:"image,omitempty"`
	Name     string            `json:"name"`
}

type hostPath struct {
	Path string `json:"path"`
	Type string `json:"type"`
}

// image is the manager's for an etcd cluster, empty if nobody names one.
func (o Options) image(c *EtcdCluster) string {
	if c.Manager.Image != "" {
		return c.Manager.Image
	}
	return o.Image
}

// pod is the static pod that runs the manager of an etcd cluster.
func (f *File) pod(c *EtcdCluster, o Options) *pod {
	name := "etcd-manager-" + c.Name
	requests := map[string]string{}
	for resource, amount := range map[string]string{"cpu": orElse(c.CPURequest, "100m"), "memory": orElse(c.MemoryRequest, "100Mi")} {
		requests[resource] = amount
	}
	manager := container{
		Command: []string{"/go-runner"}, Args: slices.Concat([]string{"--log-file=/var/log/etcd.log", "--also-stdout",
			"/ko-app/etcd-manager"}, f.flags(c, true)),
		Env: c.environment(), Image: o.image(c), Name: "etcd-manager",
		Resources: map[string]map[string]string{"requests": requests}, SecurityContext: map[string]bool{"privileged": true},
	}
	p := &pod{
		APIVersion: "v1", Kind: "Pod", Metadata: metadata{Labels: map[string]string{"k8s-app": name}, Name: name, Namespace: "kube-system"},
		Spec: podSpec{HostNetwork: true, HostPID: true, PriorityClassName: "system-cluster-critical",
			Tolerations: []map[string]string{{"key": "CriticalAddonsOnly", "operator": "Exists"}}},
	}
	add := func(v podVolume, path string) {
		p.Spec.Volumes = append(p.Spec.Volumes, v)
		manager.VolumeMounts = append(manager.VolumeMounts, mount{path, v.Name})
	}
	add(podVolume{Name: "rootfs", HostPath: &hostPath{"/", "Directory"}}, "/rootfs")
	add(podVolume{Name: "run", HostPath: &hostPath{"/run", "DirectoryOrCreate"}}, "/run")
	add(podVolume{Name: "pki", HostPath: &hostPath{pkiDir(c.Name), "DirectoryOrCreate"}}, "/etc/kubernetes/pki/etcd-manager")
	add(podVolume{Name: "varlogetcd", HostPath: &hostPath{hostLog(c.Name), "FileOrCreate"}}, "/var/log/etcd.log")
	p.Spec.Containers = []container{manager}
	p.mountEtcd(c.Version, orElse(c.Image, o.EtcdImage))
	return p
}

const etcdMount = "/opt/etcd-v"

// mountEtcd adds the image of one version of etcd, unless the version is empty or there already.
func (p *pod) mountEtcd(version, image string) {
	if version == "" {
		return
	}
	image = strings.ReplaceAll(orElse(image, defaultEtcdImage), "%s", version)
	p.mount(podVolume{Name: "etcd-v" + strings.ReplaceAll(version, ".", "-"),
		Image: map[string]string{"pullPolicy": "IfNotPresent", "reference": image}}, etcdMount+version)
}

func (p *pod) mount(v podVolume, path string) {
	c := &p.Spec.Containers[0]
	if slices.ContainsFunc(c.VolumeMounts, func(m mount) bool { return m.MountPath == path }) {
		return
	}
	p.Spec.Volumes = append(p.Spec.Volumes, v)
	c.VolumeMounts = append(c.VolumeMounts, mount{path, v.Name})
}

// keepEtcd adds the versions of etcd that another manifest has: what runs is needed until the managers have changed it.
func (p *pod) keepEtcd(have *pod) {
	for _, c := range have.Spec.Containers {
		for _, m := range c.VolumeMounts {
			i := slices.IndexFunc(have.Spec.Volumes, func(v podVolume) bool { return v.Name == m.Name })
			if i >= 0 && strings.HasPrefix(m.MountPath, etcdMount) {
				p.mount(have.Spec.Volumes[i], m.MountPath)
			}
		}
	}
}

func orElse(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

func (p *pod) encode() ([]byte, error) { return yaml.Marshal(p) }

// podPath is where kOps keeps a static pod below the configuration's base.
func podPath(cluster, group string) string {
	return "manifests/etcd/" + cluster + "-" + group + ".yaml"
}

// comparePod says what differs between two manifests in what matters to a manager. Whoever wrote the old one may have written more.
func comparePod(have, want *pod) []Field {
	var a, b container
	if len(have.Spec.Containers) > 0 {
		a = have.Spec.Containers[0]
	}
	b = want.Spec.Containers[0]
	var fields []Field
	differ := func(name, from, to string) {
		if from != to {
			fields = append(fields, Field{name, from, to})
		}
	}
	differ("Image", a.Image, b.Image)
	line := func(c container) []string { return slices.Concat(c.Command, c.Args) }
	fields = append(fields, listFields("Argument", line(a), line(b))...)
	variables := func(c container) []string {
		var out []string
		for _, e := range c.Env {
			out = append(out, e.Name+"="+e.Value)
		}
		return out
	}
	fields = append(fields, listFields("Variable", variables(a), variables(b))...)
	for _, r := range []string{"cpu", "memory"} {
		differ("Request "+r, a.Resources["requests"][r], b.Resources["requests"][r])
	}
	mounts := func(p *pod) []string {
		sources := map[string]string{}
		for _, v := range p.Spec.Volumes {
			if v.HostPath != nil {
				sources[v.Name] = v.HostPath.Path
			} else {
				sources[v.Name] = v.Image["reference"]
			}
		}
		var out []string
		for _, c := range p.Spec.Containers {
			for _, m := range c.VolumeMounts {
				out = append(out, sources[m.Name]+" at "+m.MountPath)
			}
		}
		return out
	}
	return append(fields, listFields("Mount", mounts(have), mounts(want))...)
}

// listFields are the entries that only one of two lists has.
func listFields(name string, have, want []string) []Field {
	var fields []Field
	for _, e := range have {
		if !slices.Contains(want, e) {
			fields = append(fields, Field{Name: name, From: e})
		}
	}
	for _, e := range want {
		if !slices.Contains(have, e) {
			fields = append(fields, Field{Name: name, To: e})
		}
	}
	return fields
}
