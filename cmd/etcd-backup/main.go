// Command etcd-backup is a sidecar that backs up an etcd which someone else runs.
//
//	etcd-backup --cluster-name=main --backup-store=s3://bucket/prefix --client-url=https://127.0.0.1:2379
//
// It streams a snapshot into the store once at the start and then at each interval, and does retention. Of several instances
// only the one beside the etcd leader acts. It changes nothing in etcd.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/connect"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/plan"
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
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], os.Getenv, os.Stderr)
	stop()
	klog.Flush()
	os.Exit(code)
}

// options are the flags.
type options struct {
	clusterName string
	store       string
	dataDir     string
	clientURL   string
	interval    time.Duration
	files       tlsFiles
	retention   plan.RetentionPolicy
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
	store, err := connect.Open(ctx, o.store, env)
	if err != nil {
		fmt.Fprintf(errOut, "etcd-backup: %v\n", err)
		return exitUsage
	}
	s, err := newSidecar(o, catalog.New(store), toolVersion())
	if err != nil {
		fmt.Fprintf(errOut, "etcd-backup: %v\n", err)
		return exitFailure
	}
	probe(ctx, store)
	err = s.run(ctx)
	if cerr := s.close(); err == nil {
		err = cerr
	}
	if err != nil {
		fmt.Fprintf(errOut, "etcd-backup: %v\n", err)
		return exitFailure
	}
	return exitOK
}

// probe says early what the store lacks. It stops nothing: the store may be right in a minute.
func probe(ctx context.Context, store blob.Store) {
	owner, err := os.Hostname()
	if err != nil {
		owner = "etcd-backup"
	}
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	if r, err := blob.Probe(ctx, store, owner); err != nil {
		klog.Errorf("the store is not usable as it is (%s), backups will fail until that is mended: %v", r, err)
	}
}

func parse(args []string, env func(string) string, errOut io.Writer) (options, error) {
	o := options{retention: plan.DefaultRetention()}
	f := flag.NewFlagSet("etcd-backup", flag.ContinueOnError)
	f.SetOutput(errOut)
	f.StringVar(&o.clusterName, "cluster-name", "", "name of the etcd cluster (required)")
	f.StringVar(&o.store, "backup-store", "/backups", "where backups go: s3://bucket/prefix, file:///path or an absolute path")
	f.StringVar(&o.dataDir, "data-dir", "/data", "accepted for compatibility; nothing is written to disk")
	f.StringVar(&o.clientURL, "client-url", "http://127.0.0.1:4001", "client URL of the local etcd member")
	f.DurationVar(&o.interval, "interval", 15*time.Minute, "time between backups")
	f.StringVar(&o.files.ca, "client-ca-file", "", "CA that signed the certificate of etcd")
	f.StringVar(&o.files.cert, "client-cert-file", "", "certificate to show to etcd")
	f.StringVar(&o.files.key, "client-key-file", "", "key of that certificate")
	klog.InitFlags(f)
	if err := f.Parse(args); err != nil {
		return o, err
	}
	switch {
	case f.NArg() > 0:
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	case o.clusterName == "":
		return o, errors.New("--cluster-name is required")
	case o.interval <= 0:
		return o, fmt.Errorf("--interval=%s: want more than 0", o.interval)
	case (o.files.cert == "") != (o.files.key == ""):
		return o, errors.New("--client-cert-file and --client-key-file belong together")
	}
	for name, to := range map[string]*time.Duration{
		"ETCD_MANAGER_HOURLY_BACKUPS_RETENTION": &o.retention.Hourly, "ETCD_MANAGER_DAILY_BACKUPS_RETENTION": &o.retention.Daily,
	} {
		if v := env(name); v != "" {
			d, err := plan.ParseRetention(v)
			if err != nil {
				return o, fmt.Errorf("environment variable %s: %w", name, err)
			}
			*to = d
		}
	}
	return o, nil
}

// toolVersion is the linker's version, else what Go knows of the module.
func toolVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
