package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/adopt"
	"github.com/etcd-manager/etcd-manager/pkg/adopt/source"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/connect"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
	"github.com/etcd-manager/etcd-manager/pkg/spelling"
)

// adoption is one run of "adopt".
type adoption struct {
	o              adopt.Options
	manifest, unit string
	binaries       string
	dryRun, yes    bool
	wait           time.Duration
	flags          []string // etcd's own
	in             io.Reader
	out            io.Writer
}

// newAdoptFlags declares the flags of "adopt". docs/flags.md is made from it.
func newAdoptFlags(a *adoption) *flag.FlagSet {
	f := flag.NewFlagSet("etcd-manager adopt", flag.ContinueOnError)
	f.StringVar(&a.manifest, "manifest", "", "manifest of the static pod that runs etcd, for example /etc/kubernetes/manifests/etcd.yaml")
	f.StringVar(&a.unit, "unit", "", "systemd unit that runs etcd: its name, or the path of its file")
	f.StringVar(&a.o.ClusterName, "cluster-name", "etcd", "name for the cluster")
	f.StringVar(&a.o.StoreURL, "backup-store", "", "where backups and the cluster's records will be kept (required); the same on all nodes")
	f.StringVar(&a.o.DataDir, "data-dir", "", "the manager's directory (required), on the file system of etcd's data dir, for example /var/lib/etcd-manager")
	f.StringVar(&a.o.PKIDir, "pki-dir", "/etc/kubernetes/pki/etcd-manager", "directory to which the CAs are copied")
	f.StringVar(&a.o.Address, "address", "", "own IP address (default: that of etcd's peer URL)")
	f.IntVar(&a.o.GRPCPort, "grpc-port", 8000, "port on which the managers will talk to each other")
	f.IntVar(&a.o.QuarantinePort, "quarantine-port", 8001, "port on which etcd listens while it is quarantined")
	f.StringVar(&a.o.PeersCAKey, "peers-ca-key", "", "key of the CA of etcd's peers (default: beside its certificate)")
	f.StringVar(&a.o.ClientsCAKey, "clients-ca-key", "", "key of the CA of etcd's clients (default: beside its certificate)")
	f.StringVar(&a.o.ClientCert, "client-cert", "",
		"client certificate for requests to the running etcd (default: etcd's own server certificate)")
	f.StringVar(&a.o.ClientKey, "client-key", "", "key of --client-cert")
	f.StringVar(&a.binaries, "etcd-binaries", "/opt",
		"directories that hold etcd-v<version>/etcd, comma separated, best first; only root may be able to write there")
	f.BoolVar(&a.dryRun, "dry-run", false, "only show what would change")
	f.BoolVar(&a.yes, "yes", false, "don't ask")
	f.DurationVar(&a.wait, "wait", 10*time.Minute, "how long to wait until the old etcd is stopped; after that, run the same command again")
	return f
}

// adoptMain takes over an etcd that something else runs.
func adoptMain(args []string) int {
	a := &adoption{in: os.Stdin, out: os.Stdout}
	err := a.parse(args)
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err != nil {
		fmt.Fprintf(os.Stderr, "etcd-manager adopt: %v\n", err)
		return exitUsage
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := a.run(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "etcd-manager adopt: %v\n", err)
		return exitError
	}
	return exitOK
}

func (a *adoption) parse(args []string) error {
	f := newAdoptFlags(a)
	f.Usage = func() {
		fmt.Fprintf(f.Output(), "etcd-manager adopt takes over an etcd that kubeadm, systemd or a person runs.\n\nusage: etcd-manager adopt --manifest=FILE | --unit=NAME [flags]\n       etcd-manager adopt [flags] -- [etcd's own flags]\n\nflags:\n")
		f.PrintDefaults()
	}
	if err := spelling.Parse(f, args); err != nil {
		return err
	}
	a.flags = f.Args()
	given := 0
	for _, is := range []bool{a.manifest != "", a.unit != "", len(a.flags) > 0} {
		if is {
			given++
		}
	}
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own executable: %w", err)
	}
	if err := checkBinaries(a.binaries); err != nil {
		return err
	}
	a.o.Binaries = &process.Binaries{Roots: strings.Split(a.binaries, ","), Self: exe}
	switch {
	case given > 1:
		return errors.New("--manifest, --unit and etcd's own flags each say how etcd is run; give one of them")
	case a.o.DataDir == "" || !filepath.IsAbs(a.o.DataDir):
		return errors.New("--data-dir is missing, or not an absolute path: the manager's directory, for example /var/lib/etcd-manager")
	case a.o.StoreURL == "":
		return errors.New("--backup-store is missing: where backups will be kept, for example s3://bucket/cluster/backups/etcd/main or file:///var/backups/etcd")
	case a.o.GRPCPort < 1 || a.o.GRPCPort > 65535 || a.o.QuarantinePort < 1 || a.o.QuarantinePort > 65535 ||
		a.o.GRPCPort == a.o.QuarantinePort:
		return errors.New("--grpc-port and --quarantine-port must be two ports between 1 and 65535")
	}
	a.o.DataDir, a.o.PKIDir = filepath.Clean(a.o.DataDir), filepath.Clean(a.o.PKIDir)
	return nil
}

func (a *adoption) run(ctx context.Context) error {
	p, err := adopt.Load(a.o.DataDir)
	if err != nil {
		return err
	}
	if p == nil {
		source, err := a.source()
		if err != nil {
			return err
		}
		if p, err = adopt.Make(ctx, source, a.o); err != nil {
			return err
		}
	} else if !p.Done {
		fmt.Fprintf(a.out, "The adoption of %s was begun before and continues.\n", p.OldDataDir)
	}
	if p.Done {
		fmt.Fprintf(a.out, "%s is already adopted.\n", p.OldDataDir)
		a.start(p)
		return nil
	}
	a.show(p)
	if a.dryRun {
		fmt.Fprintf(a.out, "\nNothing was changed (--dry-run).\n")
		return nil
	}
	if err := a.confirm(); err != nil {
		return err
	}
	s, err := connect.Open(ctx, a.o.StoreURL, os.Getenv)
	if err != nil {
		return fmt.Errorf("--backup-store: %w", err)
	}
	store := blob.Retry(blob.WithTimeouts(blob.Detach(s), blob.Timeouts{}), blob.RetryPolicy{})
	if _, err := blob.Probe(ctx, store, p.Node); err != nil {
		return fmt.Errorf("--backup-store: %w", err)
	}
	if err := p.Prepare(ctx, catalog.New(store)); err != nil {
		return err
	}
	if err := a.move(ctx, p); err != nil {
		return err
	}
	fmt.Fprintf(a.out, "\nThe data of member %s are the manager's now.\n", p.Node)
	a.start(p)
	return nil
}

func (a *adoption) source() (*source.Source, error) {
	switch {
	case a.manifest != "":
		return source.FromManifest(a.manifest)
	case a.unit != "":
		return source.FromUnit(a.unit, source.UnitPaths())
	case len(a.flags) > 0:
		return source.FromFlags(a.flags)
	}
	return nil, errors.New("nothing says how etcd is run: give --manifest=/etc/kubernetes/manifests/etcd.yaml, --unit=etcd, or etcd's own flags after --")
}

// show prints the plan.
func (a *adoption) show(p *adopt.Plan) {
	w := func(format string, x ...any) { fmt.Fprintf(a.out, format+"\n", x...) }
	w("Running: etcd %s, member %s of cluster %s, data dir %s", p.Running, p.Node, p.ClusterID, p.OldDataDir)
	for _, n := range p.State.Nodes {
		w("  member %s: peers %s, clients %s", n.Name, strings.Join(n.PeerURLs, ","), strings.Join(n.ClientURLs, ","))
	}
	w("\nWhat is written:")
	w("  %s: a rename of %s, when its etcd is stopped", p.NewDataDir(), p.OldDataDir)
	w("  %s: %d members, token %s, etcd %s", filepath.Join(p.DataDir, "state"), len(p.State.Nodes), p.State.Token, p.State.EtcdVersion)
	w("  %s: %s", filepath.Join(p.DataDir, "myid"), p.Node)
	for _, c := range p.Authorities {
		w("  %s.crt and .key: copies of %s and %s", filepath.Join(p.PKIDir, c.Name), c.Cert, c.Key)
	}
	w("  %s: the managers' own CA, created if it is missing", filepath.Join(p.PKIDir, "etcd-manager-ca"))
	w("  in the store %s: control/etcd-cluster-spec (%d members) and control/etcd-cluster-created, if they are missing",
		a.o.StoreURL, p.Spec().MemberCount)
	w("\nWhat changes:")
	for _, s := range p.Changes {
		w("  %s", s)
	}
	a.start(p)
}

// start prints how the manager is started.
func (a *adoption) start(p *adopt.Plan) {
	fmt.Fprintf(a.out, "\nThe manager is started with:\n  etcd-manager")
	for _, s := range p.Flags {
		fmt.Fprintf(a.out, " \\\n    %s", s)
	}
	fmt.Fprintln(a.out)
	if len(p.Env) > 0 {
		fmt.Fprintf(a.out, "and, for settings of etcd that have no flag here, in its environment (or --env-file):\n  %s\n",
			strings.Join(p.Env, "\n  "))
	}
}

// confirm asks.
func (a *adoption) confirm() error {
	if a.yes {
		return nil
	}
	fmt.Fprintf(a.out, "\nType yes to do this: ")
	line, err := bufio.NewReader(a.in).ReadString('\n')
	if strings.TrimSpace(line) != "yes" {
		return errors.Join(errors.New("nothing was changed"), err)
	}
	return nil
}

// stopPoll is how often it is looked whether the old etcd has ended.
const stopPoll = 200 * time.Millisecond

// move moves the data once nothing uses them any more.
func (a *adoption) move(ctx context.Context, p *adopt.Plan) error {
	err := p.Move()
	if !errors.Is(err, adopt.ErrRuns) {
		return err
	}
	fmt.Fprintf(a.out, "\nEverything is prepared. Stop the old etcd now, for good:\n  %s\n", strings.Join(p.Stop, "\n  "))
	for deadline := time.Now().Add(a.wait); errors.Is(err, adopt.ErrRuns) && time.Now().Before(deadline); err = p.Move() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; stop it, then run the same command again", err)
		case <-time.After(stopPoll):
		}
	}
	if errors.Is(err, adopt.ErrRuns) {
		return fmt.Errorf("%w; stop it, then run the same command again", err)
	}
	return err
}
