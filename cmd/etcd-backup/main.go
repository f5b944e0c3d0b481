// Command etcd-backup is a sidecar that backs up an etcd which someone else runs.
//
//	etcd-backup --cluster-name=main --backup-store=s3://bucket/prefix --client-url=https://127.0.0.1:2379
//
// It streams a snapshot into the store once at the start and then at each interval, keeps every change in between, proves backups and does
// retention. Of several instances one acts: the one beside the etcd leader, if there is one. It changes nothing in etcd.
// "etcd-backup config show" says what is in force. "etcd-backup init" finds the etcd of a machine and writes the manifest or unit that starts this program beside it.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/connect"
	"github.com/etcd-manager/etcd-manager/pkg/buildinfo"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/envelope"
	"github.com/etcd-manager/etcd-manager/pkg/envelope/awskms"
	etcdchild "github.com/etcd-manager/etcd-manager/pkg/etcd/child"
	"github.com/etcd-manager/etcd-manager/pkg/jsonlog"
	"github.com/etcd-manager/etcd-manager/pkg/prune"
	"github.com/etcd-manager/etcd-manager/pkg/retention"
	"github.com/etcd-manager/etcd-manager/pkg/settings"
	"github.com/etcd-manager/etcd-manager/pkg/spelling"
)

// version is set by the linker (-X main.version=…) for releases.
var version string

// Exit codes.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	if code, ok := etcdchild.Dispatch(os.Args[1:], children()...); ok {
		os.Exit(code)
	}
	if args := os.Args[1:]; len(args) == 1 && slices.Contains([]string{"version", "--version", "-version"}, args[0]) {
		fmt.Printf("etcd-backup %s\n", buildinfo.Read(version))
		return
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var code int
	switch args := os.Args[1:]; {
	case len(args) > 0 && args[0] == "init":
		code = initMain(ctx, args[1:], os.Stdout, os.Stderr)
	case len(args) > 0 && args[0] == "config":
		code = configMain(args[1:], os.Environ(), os.Stdout, os.Stderr)
	default:
		code = run(ctx, args, os.Getenv, os.Stderr)
	}
	stop()
	klog.Flush()
	os.Exit(code)
}

// options are the flags.
type options struct {
	clusterName string
	store       string
	dataDir     string
	clientURLs  []string
	user        string              // of etcd, with a password
	password    string              // the file
	env         func(string) string // the environment with what --env-file adds
	interval    time.Duration
	changes     time.Duration
	verify      time.Duration
	address     string
	metricsPort int
	files       tlsFiles
	retention   prune.Policy
	compression string
	encryption  []string
	identities  []string
	writing     connect.Writing
	clientURL   string
	envFile     string
	logFormat   string
	configFile  string
	inForce     []settings.Setting
	args        []string
	environ     func(string) string // the environment alone
	flags       *flag.FlagSet       // those of the process; set before others are read
	hangups     chan os.Signal      // SIGHUP; nil if it ends the process
}

// list is a flag that may be repeated.
type list struct{ values *[]string }

func (l list) String() string { return "" }

// Values are what was given, for settings.List.
func (l list) Values() []string { return *l.values }

func (l list) Set(s string) error {
	*l.values = append(*l.values, s)
	return nil
}

// run is the program; it returns the exit code.
func run(ctx context.Context, args []string, env func(string) string, errOut io.Writer) int {
	o, err := parse(args, env, errOut)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err != nil {
		fmt.Fprintf(errOut, "etcd-backup: %v\n", err)
		return exitUsage
	}
	jsonlog.Use(o.logFormat, os.Stderr)
	service := fromSystemd(env)
	defer o.catchHangups()()
	s, code, err := open(ctx, o, o.env)
	if err != nil {
		o.sayLast(errOut, err)
		return code
	}
	service.Ready() // it is for whoever waits for the unit: the first backup may have to wait for etcd
	stop := context.AfterFunc(ctx, service.Stopping)
	defer stop()
	running, end := context.WithCancel(context.Background())
	defer end()
	go service.Keep(running, s.health)
	err = s.run(ctx)
	if cerr := s.close(); err == nil {
		err = cerr
	}
	if err != nil {
		o.sayLast(errOut, err)
		return exitFailure
	}
	return exitOK
}

// sayLast says why the sidecar can't run, in the format of its log.
func (o *options) sayLast(errOut io.Writer, err error) {
	if o.logFormat == jsonlog.JSON {
		klog.Errorf("etcd-backup: %v", err)
		return
	}
	fmt.Fprintf(errOut, "etcd-backup: %v\n", err)
}

// open prepares a sidecar; with an error comes the exit code.
func open(ctx context.Context, o options, env func(string) string) (*sidecar, int, error) {
	store, err := connect.Open(ctx, o.store, env, connect.WriteAs(o.writing))
	if err != nil {
		return nil, exitUsage, err
	}
	store = blob.Retry(blob.WithTimeouts(blob.Detach(store), blob.Timeouts{}), blob.RetryPolicy{})
	sealer, opener, err := keys(o, env)
	if err != nil {
		return nil, exitUsage, err
	}
	s, err := newSidecar(o, store, catalog.New(store, catalog.WithKeys(sealer, opener)), buildinfo.Read(version).Version)
	if err != nil {
		return nil, exitFailure, err
	}
	if err := s.fence.probe(ctx); err != nil {
		klog.Error(err) // the store may be right in a minute
	}
	probeKeys(ctx, sealer, opener)
	return s, exitOK, nil
}

// keys reads the keys that backups are sealed and opened with.
func keys(o options, env func(string) string) (envelope.Sealer, envelope.Opener, error) {
	c := envelope.Config{Cluster: o.clusterName, KMS: awskms.New(awskms.Config{Endpoint: env("KMS_ENDPOINT")})}
	sealer, err := envelope.NewSealer(c, o.encryption)
	if err != nil {
		return nil, nil, fmt.Errorf("--backup-encryption: %w", err)
	}
	opener, err := envelope.NewOpener(c, o.identities)
	if err != nil {
		return nil, nil, fmt.Errorf("--backup-identity: %w", err)
	}
	return sealer, opener, nil
}

// probeKeys says early what the keys lack. Who only backs up needs none to read with, so that alone is no fault.
func probeKeys(ctx context.Context, s envelope.Sealer, o envelope.Opener) {
	if s == nil {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	sealed, err := envelope.Probe(ctx, s, o)
	switch {
	case err == nil, sealed && errors.Is(err, envelope.ErrNoKey):
	case sealed:
		klog.Warningf("backups are encrypted, but this instance has no key to open them: %v", err)
	default:
		klog.Errorf("backups can't be encrypted, so none is taken until this is repaired: %v", err)
	}
}

// newFlags declares every flag.
func newFlags(o *options) *flag.FlagSet {
	o.retention = prune.Policy{Backups: retention.Default(), Changes: retention.DefaultChanges}
	f := flag.NewFlagSet("etcd-backup", flag.ContinueOnError)
	f.StringVar(&o.clusterName, "cluster-name", "", "name of the etcd cluster (required)")
	f.StringVar(&o.store, "backup-store", "/backups", "where backups are kept: s3://bucket/prefix, file:///path, an absolute path, or another URL of docs/stores.md")
	f.StringVar(&o.dataDir, "data-dir", "/data", "directory in which changes wait while the store can't be reached, and backups are verified")
	f.StringVar(&o.clientURL, "client-url", "http://127.0.0.1:4001",
		"client URL of the local etcd member: http, https, unix:///path or unixs:///path; several with commas, of which the etcd leader's is used")
	f.DurationVar(&o.interval, "interval", 15*time.Minute, "time between backups")
	f.DurationVar(&o.changes, "change-log-interval", changelog.DefaultInterval,
		"the longest time before a change is sent to the store; 0 keeps no changes between backups")
	f.DurationVar(&o.verify, "verify-interval", 24*time.Hour,
		"how often the newest backup is verified by replaying the changes since the backup before it; 0 means never")
	f.StringVar(&o.address, "address", "", "address for --metrics-port (default: all)")
	f.IntVar(&o.metricsPort, "metrics-port", 0, "port for metrics, health and status page; 0 means none")
	f.Var(retention.Flag{To: &o.retention.Changes}, "change-log-retention",
		"how long every change between backups is kept: 168h, 7d, 1y; 0 means as long as a backup of each hour")
	f.StringVar(&o.files.ca, "client-ca-file", "", "CA that signed the certificate of etcd")
	f.StringVar(&o.files.cert, "client-cert-file", "", "certificate to show to etcd")
	f.StringVar(&o.files.key, "client-key-file", "", "key of that certificate")
	f.StringVar(&o.user, "client-user", "", "user of etcd, where it has users (auth enable) and the certificate's name is none of them")
	f.StringVar(&o.password, "client-password-file", "", "file with the password of --client-user; it is read whenever etcd wants the password")
	f.StringVar(&o.logFormat, "logging-format", jsonlog.Text, jsonlog.Usage)
	f.StringVar(&o.configFile, settings.ConfigFlag, "",
		"YAML file with flags by their names; what the command line gives wins over it (docs/configuration.md)")
	f.StringVar(&o.envFile, "env-file", "", "file with lines KEY=VALUE for the environment, such as the store's credentials")
	f.StringVar(&o.compression, "backup-compression", catalog.DefaultCompression,
		"compression of backups: gzip, which other tools read too, or zstd, which is smaller")
	f.Var(list{&o.encryption}, "backup-encryption",
		"who can read backups: age:FILE with recipients, age:RECIPIENT or aws-kms:ARN; may be repeated, each opens them (default: not encrypted)")
	f.Var(list{&o.identities}, "backup-identity", "file with secret keys of age to read backups, or aws-kms:ARN to use no other key of KMS; may be repeated")
	f.StringVar(&o.writing.SSE, "s3-sse", "", "server-side encryption that the S3 store must use: AES256 or aws:kms; nothing is written to a server that ignores it")
	f.StringVar(&o.writing.KMSKeyID, "s3-sse-kms-key-id", "", "key for --s3-sse=aws:kms (default: the bucket's or the account's)")
	f.StringVar(&o.writing.StorageClass, "s3-storage-class", "", "storage class of objects in the S3 store, for example STANDARD_IA")
	f.Var(list{&o.writing.Tags}, "s3-tag", "tag (key=value) for objects in the S3 store; may be repeated")
	settings.LogFlags(f, o.flags)
	return f
}

func parse(args []string, env func(string) string, errOut io.Writer) (options, error) {
	o := options{args: args, environ: env}
	f := newFlags(&o)
	f.SetOutput(errOut)
	if err := spelling.Parse(f, args); err != nil {
		return o, err
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	err := o.complete(f)
	return o, err
}

// complete adds the files and the environment, and checks everything.
func (o *options) complete(f *flag.FlagSet) (err error) {
	again := o.flags != nil
	o.flags = f
	sources, err := settings.FromFile(f)
	o.inForce = sources.Settings(f)
	if err != nil {
		return err
	}
	o.clientURLs = strings.Split(o.clientURL, ",")
	switch {
	case o.clusterName == "":
		return errors.New("--cluster-name is required")
	case backup.CheckCompression(o.compression) != nil:
		return fmt.Errorf("--backup-compression: %w", backup.CheckCompression(o.compression))
	case jsonlog.Check(o.logFormat) != nil:
		return jsonlog.Check(o.logFormat)
	case o.interval <= 0:
		return fmt.Errorf("--interval=%s must be positive", o.interval)
	case o.changes != 0 && o.changes < 100*time.Millisecond || o.verify < 0:
		return fmt.Errorf("--change-log-interval=%s must be at least 100ms, or 0 to keep no changes, and --verify-interval=%s not negative", o.changes, o.verify)
	case o.metricsPort < 0 || o.metricsPort > 65535:
		return fmt.Errorf("--metrics-port=%d: want a port from 1 to 65535, or 0 for none", o.metricsPort)
	case (o.files.cert == "") != (o.files.key == ""):
		return errors.New("--client-cert-file and --client-key-file belong together")
	case (o.user == "") != (o.password == ""):
		return errors.New("--client-user and --client-password-file belong together")
	}
	if !again {
		if o.env = o.environ; o.envFile != "" {
			if o.env, err = withFile(o.environ, o.envFile); err != nil {
				return err
			}
		}
	}
	for name, to := range map[string]*time.Duration{
		"ETCD_MANAGER_HOURLY_BACKUPS_RETENTION": &o.retention.Backups.Hourly,
		"ETCD_MANAGER_DAILY_BACKUPS_RETENTION":  &o.retention.Backups.Daily,
	} {
		if v := o.env(name); v != "" {
			d, err := retention.ParseDuration(v)
			if err != nil {
				return fmt.Errorf("environment variable %s: %w", name, err)
			}
			*to = d
		}
	}
	return nil
}

// withFile is the environment with a file's variables, which win.
func withFile(env func(string) string, path string) (func(string) string, error) {
	vars, err := settings.ReadEnv(path)
	if err != nil {
		return nil, err
	}
	for k, v := range vars {
		if err := os.Setenv(k, v); err != nil { // libraries read the process's own environment
			return nil, fmt.Errorf("--env-file %s: %s: %w", path, k, err)
		}
	}
	return func(k string) string {
		if v, ok := vars[k]; ok {
			return v
		}
		return env(k)
	}, nil
}
