package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob/connect"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/pki"
	"github.com/etcd-manager/etcd-manager/pkg/spelling"
)

// demo is a cluster of three managers on this machine. The parent does what a kubelet or systemd would: it starts them, and
// starts them again when they end. Everything that it starts ends with it, whatever ends it.
type demo struct {
	dir      string
	port     int
	ownPort  bool // the command line names it
	interval time.Duration
	record   string
	toured   bool
	exe      string
	nodes    []*demoNode
	catalog  *catalog.Catalog
	plain    bool
	out      *os.File
	screen   demoScreen
	writer   demoWriter
	caption  demoCaption
}

type demoNode struct {
	name   string
	client int // client port; peer, quarantine, gRPC and status follow it
	mu     sync.Mutex
	cmd    *exec.Cmd
}

func (n *demoNode) pid() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.cmd == nil || n.cmd.Process == nil {
		return 0
	}
	return n.cmd.Process.Pid
}

const demoPort = 14001

// newDemoFlags are the flags of the demo.
func newDemoFlags(d *demo) *flag.FlagSet {
	f := flag.NewFlagSet("etcd-manager demo", flag.ContinueOnError)
	f.StringVar(&d.dir, "dir", "etcd-manager-demo", "directory for data, store, CAs and logs; the data of an earlier demo are used again")
	f.IntVar(&d.port, "port", demoPort, "first of the ports on 127.0.0.1; 5 for each node, in steps of 10")
	f.DurationVar(&d.interval, "backup-interval", 20*time.Second, "time between backups")
	f.BoolVar(&d.plain, "plain", false, "print changes line by line instead of a live view")
	f.BoolVar(&d.toured, "tour", false,
		"show in about two minutes: a member that is killed, a deleted namespace that comes back, a restore that is undone; then end")
	f.StringVar(&d.record, "record", "", "write what the screen shows to this `file`, as a moving picture (SVG)")
	return f
}

// demoMain runs until Ctrl-C, or until the tour or the output has ended.
func demoMain(args []string) int {
	d := &demo{out: os.Stdout}
	f := newDemoFlags(d)
	if err := spelling.Parse(f, args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return exitOK
		}
		fmt.Fprintf(os.Stderr, "etcd-manager demo: %v\n", err)
		return exitUsage
	}
	if f.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "etcd-manager demo: unexpected argument %q; all settings are flags (see --help)\n", f.Arg(0))
		return exitUsage
	}
	f.Visit(func(x *flag.Flag) { d.ownPort = d.ownPort || x.Name == "port" })
	if _, _, err := windowSize(d.out); err != nil {
		d.plain = true
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
	defer stop()
	// A pipe whose reader is gone must not kill this process before it has stopped the others: a write fails instead.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	if err := d.run(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "etcd-manager demo: %v\n", err)
		return exitError
	}
	return exitOK
}

func (d *demo) run(ctx context.Context) error {
	release, err := d.clearWay()
	if err != nil {
		return err
	}
	defer release()
	if err := d.prepare(ctx); err != nil {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, n := range d.nodes {
		wg.Go(func() { d.keep(ctx, n) })
	}
	wg.Go(func() { d.write(ctx) })
	if d.toured {
		wg.Go(func() { cancel(d.tour(ctx)) })
	}
	shown := d.showUntil(ctx)
	cancel(shown)
	if shown == nil {
		d.tell("\nstopping: leadership is moved away, etcd is stopped gracefully ...")
	}
	wg.Wait()
	if shown == nil {
		d.tell(fmt.Sprintf("stopped. The data stay in %s; the same command continues with them.", d.dir))
	}
	if d.record != "" && shown == nil {
		if err := os.WriteFile(d.record, d.screen.svg(), 0o644); err != nil { //nolint:gosec // a picture for everybody
			return fmt.Errorf("--record: %w", err)
		}
	}
	if err := context.Cause(ctx); err != nil && !errors.Is(err, context.Canceled) && !errors.Is(err, errOutputGone) {
		return err
	}
	return nil
}

// stuckAfter is how long the output may take nothing before the demo ends without it.
const stuckAfter = 5 * time.Second

// tell prints a line at the end, if somebody reads it.
func (d *demo) tell(line string) {
	told := make(chan struct{})
	go func() {
		defer close(told)
		_, _ = fmt.Fprintln(d.out, line) // nothing can be said about it any more
	}()
	select {
	case <-told:
	case <-time.After(stuckAfter):
	}
}

// showUntil shows until ctx ends. A reader that reads no more must not keep the demo from ending.
func (d *demo) showUntil(ctx context.Context) error {
	ended := make(chan error, 1)
	go func() { ended <- d.show(ctx) }()
	select {
	case err := <-ended:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-ended:
		return err
	case <-time.After(stuckAfter):
		return errOutputGone
	}
}

// prepare makes directories, CAs, a client certificate and the spec.
func (d *demo) prepare(ctx context.Context) error {
	var err error
	if d.exe, err = os.Executable(); err != nil {
		return err
	}
	for i, name := range []string{"a", "b", "c"} {
		n := &demoNode{name: name, client: d.port + 10*i}
		d.nodes = append(d.nodes, n)
		if err := os.MkdirAll(d.data(n), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(d.data(n), "myid"), []byte(name), 0o600); err != nil {
			return err
		}
	}
	pkiDir := filepath.Join(d.dir, "pki")
	if err := pki.CreateCAs(pkiDir, time.Now()); err != nil {
		return err
	}
	k, err := pki.NewKeeper(pki.Config{Dir: pkiDir, NodeID: "demo", Etcd: true, Policy: pki.DefaultPolicy()})
	if err != nil {
		return err
	}
	if _, err := k.EtcdFiles(filepath.Join(d.dir, "client"), pki.EtcdName{Name: "demo"}); err != nil {
		return err
	}
	s, err := connect.Open(ctx, d.store(), os.Getenv)
	if err != nil {
		return err
	}
	d.catalog = catalog.New(s)
	if _, err := d.catalog.CreateSpec(ctx, cluster.Spec{MemberCount: len(d.nodes)}); err != nil && !errors.Is(err, catalog.ErrConflict) {
		return err
	}
	return d.writeEnv()
}

func (d *demo) data(n *demoNode) string { return filepath.Join(d.dir, "node-"+n.name) }
func (d *demo) store() string           { return filepath.Join(d.dir, "store") }

func (d *demo) args(n *demoNode) []string {
	url := func(port int) string { return fmt.Sprintf("https://127.0.0.1:%d", port) }
	return []string{
		"--cluster-name=demo", "--backup-store=" + d.store(), "--data-dir=" + d.data(n), "--pki-dir=" + filepath.Join(d.dir, "pki"),
		"--address=127.0.0.1", "--etcd-address=127.0.0.1", "--backup-interval=" + d.interval.String(), "--v=2",
		"--client-urls=" + url(n.client), "--peer-urls=" + url(n.client+1), "--quarantine-client-urls=" + url(n.client+2),
		fmt.Sprintf("--grpc-port=%d", n.client+3), fmt.Sprintf("--etcd-manager-metrics-port=%d", n.client+4),
		"--discovery-poll-interval=15s", "--queue-poll-interval=3s", "--member-unhealthy-deadline=15s", "--page-listen=",
	}
}

// keep runs one manager, again and again until ctx ends.
func (d *demo) keep(ctx context.Context, n *demoNode) {
	runtime.LockOSThread() // a child ends with the thread that has started it, so this one must last
	defer runtime.UnlockOSThread()
	log, err := os.OpenFile(d.data(n)+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		fmt.Fprintf(os.Stderr, "node %s: %v\n", n.name, err)
		return
	}
	defer log.Close()
	for ctx.Err() == nil {
		cmd := exec.Command(d.exe, d.args(n)...)
		cmd.Stdout, cmd.Stderr = log, log
		cmd.SysProcAttr = endWithParent(&syscall.SysProcAttr{Setpgid: true}) // Ctrl-C is for the parent, which stops them in order
		n.mu.Lock()
		err := cmd.Start()
		n.cmd = cmd
		n.mu.Unlock()
		if err != nil {
			fmt.Fprintf(os.Stderr, "node %s: %v\n", n.name, err)
			return
		}
		ended := make(chan struct{})
		go func() {
			select {
			case <-ctx.Done():
				_ = cmd.Process.Signal(syscall.SIGTERM)
			case <-ended:
			}
		}()
		_ = cmd.Wait()
		close(ended)
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}
