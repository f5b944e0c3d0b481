package main

import (
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/blob/connect"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
	"github.com/etcd-manager/etcd-manager/pkg/jsonlog"
	"github.com/etcd-manager/etcd-manager/pkg/pki"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	"github.com/etcd-manager/etcd-manager/pkg/prune"
	"github.com/etcd-manager/etcd-manager/pkg/retention"
	"github.com/etcd-manager/etcd-manager/pkg/settings"
	"github.com/etcd-manager/etcd-manager/pkg/spelling"
	"github.com/etcd-manager/etcd-manager/pkg/volume"
	"github.com/etcd-manager/etcd-manager/pkg/volume/external"
	"github.com/etcd-manager/etcd-manager/pkg/webhook"
)

// options are the flags and the environment, parsed and checked.
type options struct {
	systemd     *systemd // who is told how this process does; may be nil
	clusterName string
	backupStore string
	standbyOf   string
	copies      copyOptions
	interval    time.Duration
	changes     time.Duration
	verify      time.Duration
	dataDir     string

	address      string
	etcdAddress  string
	clientURLs   string
	quarantine   string
	peerURLs     string
	grpcPort     int
	pkiDir       string
	insecure     bool
	etcdInsecure bool
	pollInterval time.Duration
	queuePoll    time.Duration
	dnsSuffix    string
	hostsFile    string
	seeds        string

	volumeProvider string
	volumeTags     []string
	volumeNameTag  string
	forceDetach    time.Duration
	encryptedOnly  volume.Encryption
	staticConfig   string
	containerized  bool
	metricsURLs    string
	metricsPort    int
	pageListen     string
	envFile        string
	networkCIDR    string

	compression string
	encryption  []string
	identities  []string
	writing     connect.Writing

	etcdBinaries   string
	defragAt       float64
	defragHours    string
	defragFrom     time.Duration
	defragUntil    time.Duration
	allowUnfenced  bool
	memberDeadline time.Duration
	formGrace      time.Duration
	dev            bool

	webhooks          []string
	webhookSecretFile string
	webhook           *webhook.Sender // nil until the daemon runs, if nobody is told

	etcdAddressGiven bool
	addressGiven     bool
	pageGiven        bool
	page             netip.AddrPort // --page-listen; not valid if there is no page

	logFormat   string
	etcdLogFile string
	etcdLogMost int
	configFile  string
	sources     settings.Sources
	args        []string
	flags       *flag.FlagSet     // those of the process; set before others are read
	envFrom     map[string]string // which variables are of --env-file
	hangups     chan os.Signal    // SIGHUP; nil if it ends the process
	inForce     []settings.Setting
	atStart     func() // called when flags are known; nil if they only are looked at

	static    *staticConfig
	retention prune.Policy
	certs     pki.Policy
	env       map[string]string
}

// newFlags declares every flag. docs/flags.md is made from it.
func newFlags(o *options) *flag.FlagSet {
	f := flag.NewFlagSet("etcd-manager", flag.ContinueOnError)
	policy := model.DefaultPolicy("")
	f.StringVar(&o.clusterName, "cluster-name", "", "name of the etcd cluster (required); requests of other clusters are refused")
	f.StringVar(&o.backupStore, "backup-store", "",
		"where backups and the cluster's records are kept (required): s3://bucket/prefix, file:///path, an absolute path, or another "+
			"URL of docs/stores.md")
	f.StringVar(&o.standbyOf, "standby-of", "",
		"backup store of another cluster, whose data this node follows; it forms no cluster then, and only reads that store (docs/standby.md)")
	o.copies.flags(f)
	f.DurationVar(&o.interval, "backup-interval", policy.BackupInterval, "time between periodic backups")
	f.DurationVar(&o.changes, "change-log-interval", changelog.DefaultInterval,
		"the longest time before a change is sent to the store; 0 keeps no changes between backups")
	o.retention.Changes = retention.DefaultChanges
	f.Var(retention.Flag{To: &o.retention.Changes}, "change-log-retention",
		"how long every change between backups is kept: 168h, 7d, 1y; 0 means as long as a backup of each hour")
	f.DurationVar(&o.verify, "verify-interval", 24*time.Hour,
		"how often the newest backup that wasn't verified yet is verified: it is read, and reached from the backup before it by the "+
			"changes between; 0 means never")
	f.StringVar(&o.compression, "backup-compression", catalog.DefaultCompression,
		"compression of backups: gzip, which other tools read too, or zstd, which is smaller")
	f.Var(list{&o.encryption}, "backup-encryption",
		"who can read backups: age:FILE with recipients, age:RECIPIENT or aws-kms:ARN; may be repeated, each opens them (default: not encrypted)")
	f.Var(list{&o.identities}, "backup-identity", "file with secret keys of age to read backups, or aws-kms:ARN to use no other "+
		"key of KMS; may be repeated")
	f.StringVar(&o.writing.SSE, "s3-sse", "", "server-side encryption that the S3 store must use: AES256 or aws:kms; nothing is "+
		"written to a server that ignores it")
	f.StringVar(&o.writing.KMSKeyID, "s3-sse-kms-key-id", "", "key for --s3-sse=aws:kms (default: the bucket's or the account's)")
	f.StringVar(&o.writing.StorageClass, "s3-storage-class", "", "storage class of objects in the S3 store, for example STANDARD_IA")
	f.Var(list{&o.writing.Tags}, "s3-tag", "tag (key=value) for objects in the S3 store; may be repeated")
	f.StringVar(&o.dataDir, "data-dir", "", "directory for etcd's data and the state file (required, unless the volume provider sets it)")
	f.StringVar(&o.address, "address", "127.0.0.1",
		"own IP address, at which the other managers reach this one; the volume provider sets it if it sets the data dir")
	f.StringVar(&o.etcdAddress, "etcd-address", "0.0.0.0", "IP address on which etcd listens")
	f.StringVar(&o.clientURLs, "client-urls", "https://__address__:4001",
		"client URLs of etcd, comma separated; __address__ and __name__ are replaced")
	f.StringVar(&o.quarantine, "quarantine-client-urls", "https://__address__:8001", "client URLs while etcd is quarantined")
	f.StringVar(&o.peerURLs, "peer-urls", "https://__address__:2380", "peer URLs of etcd, comma separated")
	f.IntVar(&o.grpcPort, "grpc-port", 8000, "port on which the managers talk to each other")
	f.StringVar(&o.pkiDir, "pki-dir", "/etc/kubernetes/pki/etcd-manager",
		"directory with the CAs: etcd-manager-ca, etcd-peers-ca, etcd-clients-ca (.crt and .key)")
	f.BoolVar(&o.insecure, "insecure", false, "no TLS between the managers (for experiments)")
	f.BoolVar(&o.etcdInsecure, "etcd-insecure", false, "no TLS for etcd; the URLs' scheme becomes http (for experiments)")
	f.DurationVar(&o.queuePoll, "queue-poll-interval", 30*time.Second,
		"how often the leader looks for commands in the store; a restore with --now waits at most that long")
	f.DurationVar(&o.pollInterval, "discovery-poll-interval", time.Minute,
		"how often other managers are searched when all are found; ten times that while another manager leads")
	f.StringVar(&o.dnsSuffix, "dns-suffix", "", "appended to member names; the names are kept resolvable through the hosts file")
	f.StringVar(&o.hostsFile, "hosts-file", "/etc/hosts", "file in which the members' names are kept, if URLs use names")
	f.StringVar(&o.seeds, "seeds-dir", "", "directory with a file for each other manager, its name the node id, its lines host:port")
	f.StringVar(&o.volumeProvider, "volume-provider", "",
		"where the data volume comes from: aws (EBS, by tags), or external (somebody else mounts it at --data-dir, or without "+
			"--data-dir has created /mnt/disks/<volume tag>…/mnt); empty: --data-dir is an ordinary directory")
	f.Var(list{&o.volumeTags}, "volume-tag",
		"tag (key or key=value) that a volume must carry; may be repeated. With --volume-provider=external and no --data-dir: the "+
			"beginning of the directory's name")
	f.StringVar(&o.volumeNameTag, "volume-name-tag", "", "tag with the node's name: the value a/a,b,c makes it <cluster name>-a")
	f.DurationVar(&o.forceDetach, "force-detach-after", 0,
		"how long a volume may be stuck on a machine that doesn't run, or in detaching, before it is detached by force; 0: never")
	f.Var(encryption{&o.encryptedOnly}, "require-encrypted-volume",
		"refuse a volume that isn't encrypted; with the ARN of a KMS key, also a volume with another key")
	f.StringVar(&o.staticConfig, "static-config", "",
		`fixed members as JSON: {"etcdVersion":"3.6.16","nodes":[{"id":"x","ip":["10.0.0.1"]}]}; host names may be used for addresses`)
	f.BoolVar(&o.containerized, "containerized", false, "the host's file system is at /rootfs")
	f.StringVar(&o.metricsURLs, "listen-metrics-urls", "", "passed to etcd")
	f.IntVar(&o.metricsPort, "etcd-manager-metrics-port", 0,
		"port for the manager's metrics, health and status page on its own address; 0 means none")
	f.StringVar(&o.pageListen, "page-listen", defaultPage,
		"IP address and port of the page for people: on a loopback address anybody on the machine can look, elsewhere it takes TLS with "+
			"a client certificate of etcd-clients-ca; empty means no page. Without this flag the first free port of ten is taken")
	f.StringVar(&o.etcdLogFile, "etcd-log-file", "", "file for the log of etcd (default: the manager's standard error, with the manager's own)")
	f.IntVar(&o.etcdLogMost, "etcd-log-file-max-size", defaultEtcdLog,
		"size in MiB at which --etcd-log-file is emptied; what it had stays beside it, as FILE.1")
	f.StringVar(&o.logFormat, "logging-format", jsonlog.Text, jsonlog.Usage)
	f.StringVar(&o.configFile, settings.ConfigFlag, "", "YAML file with flags by their names; what the command line gives wins over it "+
		"(docs/configuration.md)")
	f.StringVar(&o.envFile, "env-file", "", "file with KEY=VALUE lines, set before anything reads the environment")
	f.StringVar(&o.networkCIDR, "network-cidr", "", "accepted for compatibility (openstack)")
	f.StringVar(&o.etcdBinaries, "etcd-binaries", "/opt",
		"directories that hold etcd-v<version>/etcd, comma separated, best first; only root, or the manager's own user, may be able "+
			"to write there")
	f.Float64Var(&o.defragAt, "defrag-threshold", 0,
		"free part of a member's database at which it is defragmented, one member at a time, for example 0.5; 0 means only when etcd "+
			"has reached its quota")
	f.StringVar(&o.defragHours, "defrag-hours", "",
		"hours in UTC at which members are defragmented by --defrag-threshold, for example 22:00-04:00; empty means at any time")
	f.BoolVar(&o.allowUnfenced, "allow-unfenced-store", false,
		"form and restore although the store ignores conditional puts, or doesn't fence between all nodes; then two leaders at the "+
			"same time are possible")
	f.DurationVar(&o.memberDeadline, "member-unhealthy-deadline", policy.MemberDeadline,
		"how long a member may be unhealthy before it is replaced; a member that loads a large database gets the time that it needs")
	f.DurationVar(&o.formGrace, "form-grace", policy.FormGrace, "how long forming waits for all masters when a majority is there")
	f.Var(list{&o.webhooks}, "webhook-url",
		"URL that gets begun, done and failed restores and put-backs, failed backups, and what needs a person, as JSON by POST; may be repeated (docs/webhooks.md)")
	f.StringVar(&o.webhookSecretFile, "webhook-secret-file", "", "file with the secret that signs what is sent to --webhook-url, at least 16 bytes")
	f.BoolVar(&o.dev, "dev", false, "one member on this machine, with CAs, store and data below ./etcd-manager-dev; needs no other flag")
	settings.LogFlags(f, o.flags)
	return f
}

// parseOptions reads flags, env file and environment. What it returns can be run.
func parseOptions(args, environ []string) (*options, error) {
	o := &options{env: map[string]string{}}
	f := newFlags(o)
	f.Usage = func() {
		fmt.Fprintf(f.Output(), "etcd-manager runs the etcd cluster of Kubernetes: it forms, backs up, restores and heals "+
			"it.\n\nusage: etcd-manager [flags]\n       etcd-manager check [flags]\n       etcd-manager demo [--tour] [--port=N] [--dir=PATH]\n   "+
			"    etcd-manager adopt [flags]\n       etcd-manager config show|schema [flags]\n       etcd-manager version\n\nflags:\n")
		f.PrintDefaults()
	}
	if err := spelling.Parse(f, args); err != nil {
		return nil, err
	}
	if f.NArg() > 0 {
		return nil, fmt.Errorf("unexpected argument %q; all settings are flags (see --help)", f.Arg(0))
	}
	o.args = args
	o.atStart = func() { jsonlog.Use(o.logFormat, os.Stderr) }
	return o, o.complete(f, environ)
}

// complete adds the environment, the env file and what follows from flags, and checks everything.
func (o *options) complete(f *flag.FlagSet, environ []string) error {
	for _, kv := range environ {
		if k, v, ok := strings.Cut(kv, "="); ok {
			o.env[k] = v
		}
	}
	var errs []error
	var err error
	if o.sources, err = settings.FromFile(f); err != nil {
		errs = append(errs, err)
	}
	if o.atStart != nil {
		o.atStart()
	}
	if again := o.flags != nil; o.envFile != "" && !again {
		errs = append(errs, o.useEnvFile())
	}
	o.flags = f
	given := map[string]bool{}
	f.Visit(func(x *flag.Flag) { given[x.Name] = true })
	if o.dev {
		errs = append(errs, o.devDefaults(given))
	}
	o.etcdAddressGiven, o.addressGiven = given["etcd-address"], given["address"]
	errs = append(errs, o.validate(given))
	o.inForce = o.sources.Settings(f)
	return errors.Join(errs...)
}

func (o *options) validate(given map[string]bool) error {
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	if o.clusterName == "" {
		bad("--cluster-name is missing: the name of the etcd cluster, for example --cluster-name=etcd")
	}
	if o.backupStore == "" {
		bad("--backup-store is missing: where backups are kept, for example s3://bucket/cluster/backups/etcd/main or file:///var/backups/etcd")
	}
	errs = append(errs, o.checkVolume())
	if o.dataDir != "" && !strings.HasPrefix(o.dataDir, "/") {
		bad("--data-dir=%s must be an absolute path", o.dataDir)
	}
	if err := backup.CheckCompression(o.compression); err != nil {
		bad("--backup-compression: %w", err)
	}
	if o.interval <= 0 {
		bad("--backup-interval=%s must be positive", o.interval)
	}
	if o.memberDeadline < time.Second || o.formGrace < 0 || o.pollInterval <= 0 || o.queuePoll <= 0 {
		bad("--member-unhealthy-deadline (at least 1s), --form-grace, --discovery-poll-interval and --queue-poll-interval must be positive")
	}
	for _, a := range []struct{ flag, value string }{{"address", o.address}, {"etcd-address", o.etcdAddress}} {
		if _, err := netip.ParseAddr(a.value); err != nil {
			bad("--%s=%s is not an IP address", a.flag, a.value)
		}
	}
	errs = append(errs, jsonlog.Check(o.logFormat), checkEtcdLog(o))
	if o.defragAt < 0 || o.defragAt >= 1 {
		bad("--defrag-threshold=%g must be at least 0 and less than 1", o.defragAt)
	}
	if !strings.HasPrefix(o.etcdBinaries, "/") {
		bad("--etcd-binaries=%s must be absolute paths, comma separated", o.etcdBinaries)
	} else if given["etcd-binaries"] {
		errs = append(errs, checkBinaries(o.etcdBinaries))
	}
	errs = append(errs, o.parseHours())
	if o.grpcPort < 1 || o.grpcPort > 65535 || o.metricsPort < 0 || o.metricsPort > 65535 {
		bad("--grpc-port and --etcd-manager-metrics-port must be between 1 and 65535")
	}
	if o.insecure && !o.etcdInsecure && given["insecure"] {
		klog.Warningf("--insecure: the managers use no TLS; anyone who reaches port %d can command them", o.grpcPort)
	}
	if o.changes < 0 || o.changes > 0 && o.changes < 100*time.Millisecond || o.verify < 0 {
		bad("--change-log-interval=%s must be at least 100ms, or 0 to keep no changes, and --verify-interval=%s not negative",
			o.changes, o.verify)
	}
	errs = append(errs, o.checkStandby(), o.checkCopies(), o.parsePage(given["page-listen"]), o.checkURLs(), o.parseWebhooks(), o.parseStatic(),
		o.parseEnv(), process.CheckEnv(o.etcdEnv()))
	return errors.Join(errs...)
}

// checkBinaries refuses directories that hold executables of who knows whom.
func checkBinaries(dirs string) error {
	var errs []error
	for dir := range strings.SplitSeq(dirs, ",") {
		if err := process.CheckRoot(dir); err != nil {
			errs = append(errs, fmt.Errorf("--etcd-binaries=%s: %w; the manager would run it with all its rights: use a directory in "+
				"which only root can write", dir, err))
		}
	}
	return errors.Join(errs...)
}

// providers of volumes.
const (
	providerAWS      = "aws"
	providerExternal = "external"
)

// checkVolume checks where the data dir comes from.
func (o *options) checkVolume() error {
	var errs []error
	bad := func(format string, a ...any) { errs = append(errs, fmt.Errorf(format, a...)) }
	switch o.volumeProvider {
	case providerAWS:
		if len(o.volumeTags) == 0 {
			bad("--volume-tag is missing: --volume-provider=aws takes the volumes with these tags, for example " +
				"--volume-tag=k8s.io/etcd/main --volume-tag=kubernetes.io/cluster/example.com=owned")
		}
		if o.staticConfig != "" {
			bad("--static-config and --volume-provider=aws both define the nodes; give one of them")
		}
	case "", providerExternal:
		if o.dataDir == "" && !o.prepared() {
			bad("--data-dir is missing: where etcd's data live, for example --data-dir=/var/lib/etcd-manager")
		}
		if o.prepared() && (len(o.volumeTags) != 1 || !isFileName(o.volumeTags[0])) {
			bad("--volume-provider=external without --data-dir needs one --volume-tag, the beginning of a directory's name below %s, for example "+
				"--volume-tag=example.com--main--", external.Disks)
		}
		if o.encryptedOnly.Required {
			bad("--require-encrypted-volume needs --volume-provider=aws: for other volumes, it isn't known whether they are encrypted")
		}
	default:
		bad("--volume-provider=%s is not one of this version's (aws, external); mount the volume and give its path with --data-dir",
			o.volumeProvider)
	}
	if o.forceDetach < 0 {
		bad("--force-detach-after=%s must not be negative", o.forceDetach)
	}
	return errors.Join(errs...)
}

// parseHours reads --defrag-hours.
func (o *options) parseHours() error {
	if o.defragHours == "" {
		return nil
	}
	from, until, ok := strings.Cut(o.defragHours, "-")
	for _, x := range []struct {
		text string
		to   *time.Duration
	}{{from, &o.defragFrom}, {until, &o.defragUntil}} {
		t, err := time.Parse("15:04", x.text)
		if err != nil || !ok {
			return fmt.Errorf("--defrag-hours=%s must be like 22:00-04:00", o.defragHours)
		}
		*x.to = time.Duration(t.Hour())*time.Hour + time.Duration(t.Minute())*time.Minute
	}
	if o.defragFrom == o.defragUntil {
		return fmt.Errorf("--defrag-hours=%s begins and ends at the same time; leave it out for any time", o.defragHours)
	}
	return nil
}

// checkURLs checks the templates, and that no two of them want one port.
func (o *options) checkURLs() error {
	ports := map[string]string{fmt.Sprint(o.grpcPort): "--grpc-port"}
	if o.metricsPort != 0 {
		if ports[fmt.Sprint(o.metricsPort)] != "" {
			return fmt.Errorf("--etcd-manager-metrics-port and --grpc-port both want port %d", o.metricsPort)
		}
		ports[fmt.Sprint(o.metricsPort)] = "--etcd-manager-metrics-port"
	}
	for _, t := range []struct{ flag, value string }{{"peer-urls", o.peerURLs}, {"client-urls", o.clientURLs},
		{"quarantine-client-urls", o.quarantine}} {
		urls, err := o.expand(t.value, "name")
		if err != nil {
			return fmt.Errorf("--%s: %w", t.flag, err)
		}
		for _, s := range urls {
			u, _ := url.Parse(s)
			if other := ports[u.Port()]; other != "" && other != "--"+t.flag {
				return fmt.Errorf("--%s and %s both want port %s", t.flag, other, u.Port())
			}
			ports[u.Port()] = "--" + t.flag
		}
	}
	return o.checkMetricsPorts(ports)
}

// checkMetricsPorts refuses metrics URLs of etcd on ports that are taken on the same address.
func (o *options) checkMetricsPorts(ports map[string]string) error {
	const name = "ETCD_LISTEN_METRICS_URLS"
	for _, t := range []struct {
		setting string
		urls    []string
	}{{"--listen-metrics-urls", o.etcdMetricsURLs()}, {name, strings.Split(o.env[name], ",")}} {
		for _, s := range t.urls {
			u, err := url.Parse(strings.TrimSpace(s))
			if err != nil {
				return fmt.Errorf("%s: %q is not a URL: %w", t.setting, s, err)
			}
			if other := ports[u.Port()]; other != "" && sameListener(u.Hostname(), o.address, o.etcdAddress) {
				return fmt.Errorf("%s and %s both want port %s", t.setting, other, u.Port())
			}
		}
	}
	return nil
}

// sameListener tells whether who listens on a host takes ports of one of the addresses.
func sameListener(host string, addresses ...string) bool {
	a, err := netip.ParseAddr(host)
	return err == nil && slices.ContainsFunc(addresses, func(s string) bool {
		b, err := netip.ParseAddr(s)
		return err == nil && (a == b || a.IsUnspecified() || b.IsUnspecified())
	})
}

// parseEnv reads the manager's own variables.
func (o *options) parseEnv() error {
	o.retention.Backups, o.certs = retention.Default(), pki.DefaultPolicy()
	var errs []error
	for _, v := range []struct {
		name string
		to   *time.Duration
	}{
		{"ETCD_MANAGER_HOURLY_BACKUPS_RETENTION", &o.retention.Backups.Hourly},
		{"ETCD_MANAGER_DAILY_BACKUPS_RETENTION", &o.retention.Backups.Daily},
		{"ETCD_MANAGER_CERT_DURATION", &o.certs.Duration},
		{"ETCD_MANAGER_CERT_MIN_TIME_LEFT", &o.certs.MinTimeLeft},
	} {
		s := o.env[v.name]
		if s == "" {
			continue
		}
		d, err := retention.ParseDuration(s)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", v.name, err))
			continue
		}
		*v.to = d
	}
	if len(errs) == 0 {
		errs = append(errs, o.certs.Validate())
	}
	return errors.Join(errs...)
}
