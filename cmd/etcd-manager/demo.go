package main

import (
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob/connect"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/pki"
	"github.com/etcd-manager/etcd-manager/pkg/status"
)

// demo is a cluster of three managers on this machine. The parent does what a kubelet or systemd would: it starts them, and
// starts them again when they end.
type demo struct {
	dir      string
	port     int
	interval time.Duration
	exe      string
	nodes    []*demoNode
	catalog  *catalog.Catalog
	plain    bool
	last     string
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

// newDemoFlags are the flags of the demo.
func newDemoFlags(d *demo) *flag.FlagSet {
	f := flag.NewFlagSet("etcd-manager demo", flag.ContinueOnError)
	f.StringVar(&d.dir, "dir", "etcd-manager-demo", "directory for data, store, CAs and logs; the data of an earlier demo are used again")
	f.IntVar(&d.port, "port", 14001, "first of the ports on 127.0.0.1; 5 for each node, in steps of 10")
	f.DurationVar(&d.interval, "backup-interval", 10*time.Second, "time between backups")
	f.BoolVar(&d.plain, "plain", false, "print changes line by line instead of a live view")
	return f
}

// demoMain runs until Ctrl-C.
func demoMain(args []string) int {
	d := &demo{}
	f := newDemoFlags(d)
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			return exitOK
		}
		return exitUsage
	}
	if info, err := os.Stdout.Stat(); err != nil || info.Mode()&os.ModeCharDevice == 0 {
		d.plain = true
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if err := d.run(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "etcd-manager demo: %v\n", err)
		return exitError
	}
	return exitOK
}

func (d *demo) run(ctx context.Context) error {
	if err := d.prepare(ctx); err != nil {
		return err
	}
	var wg sync.WaitGroup
	for _, n := range d.nodes {
		wg.Go(func() { d.keep(ctx, n) })
	}
	d.show(ctx)
	fmt.Println("\nstopping: leadership is moved away, etcd is stopped gracefully ...")
	wg.Wait()
	fmt.Printf("stopped. The data stay in %s; the same command continues with them.\n", d.dir)
	return nil
}

// prepare makes directories, CAs, a client certificate and the spec.
func (d *demo) prepare(ctx context.Context) error {
	var err error
	if d.dir, err = filepath.Abs(d.dir); err != nil {
		return err
	}
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
	return nil
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
		"--discovery-poll-interval=15s", "--member-unhealthy-deadline=15s",
	}
}

// keep runs one manager, again and again until ctx ends.
func (d *demo) keep(ctx context.Context, n *demoNode) {
	log, err := os.OpenFile(d.data(n)+".log", os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		fmt.Fprintf(os.Stderr, "node %s: %v\n", n.name, err)
		return
	}
	defer log.Close()
	for ctx.Err() == nil {
		cmd := exec.Command(d.exe, d.args(n)...)
		cmd.Stdout, cmd.Stderr = log, log
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true} // Ctrl-C is for the parent, which stops them in order
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

// self is how this program is called from a shell while the demo runs.
func self(name string) string {
	exe, err := os.Executable()
	if err != nil || strings.Contains(exe, "go-build") {
		return "go run ./cmd/" + name
	}
	return filepath.Join(filepath.Dir(exe), name)
}

func (d *demo) help() string {
	c := filepath.Join(d.dir, "client", "clients")
	var endpoints, pids []string
	for _, n := range d.nodes {
		endpoints = append(endpoints, fmt.Sprintf("https://127.0.0.1:%d", n.client))
		pids = append(pids, fmt.Sprint(n.pid()))
	}
	ctl := self("etcd-manager-ctl") + " --backup-store=" + d.store()
	etcdctl := self("etcd-manager") + " etcdctl"
	var b strings.Builder
	fmt.Fprintf(&b, "In another terminal, in this directory:\n\n")
	fmt.Fprintf(&b, "  export ETCDCTL_ENDPOINTS=%s ETCDCTL_CACERT=%s/ca.crt ETCDCTL_CERT=%s/server.crt ETCDCTL_KEY=%s/server.key\n",
		strings.Join(endpoints, ","), c, c, c)
	fmt.Fprintf(&b, "  look        %s endpoint status -w table\n", etcdctl)
	fmt.Fprintf(&b, "  write       %s put greeting hello\n", etcdctl)
	fmt.Fprintf(&b, "  read        %s get greeting\n", etcdctl)
	fmt.Fprintf(&b, "  backups     %s list-backups\n", ctl)
	fmt.Fprintf(&b, "  restore     %s restore-backup NAME\n", ctl)
	fmt.Fprintf(&b, "  ... starts  kill %s        (the managers restart, and the queued restore begins)\n", strings.Join(pids, " "))
	fmt.Fprintf(&b, "  see         %s history --since=5m --show-values\n", ctl)
	fmt.Fprintf(&b, "  any second  %s restore-backup --to-time=30s --dry-run     (or --now --wait)\n", ctl)
	fmt.Fprintf(&b, "  break       kill -9 %s     (a manager dies; its etcd keeps serving, and the next manager reattaches to it)\n",
		pids[0])
	fmt.Fprintf(&b, "  status      curl http://127.0.0.1:%d/status\n", d.nodes[0].client+4)
	fmt.Fprintf(&b, "\nCtrl-C stops everything. Logs: %s/node-*.log\n", d.dir)
	return b.String()
}

// show redraws the view until ctx ends.
func (d *demo) show(ctx context.Context) {
	fmt.Printf("etcd-manager demo: three managers on this machine, etcd compiled in, backups every %s into %s\n\n", d.interval, d.store())
	helped := false
	for {
		text, serving := d.picture(ctx)
		switch {
		case !d.plain:
			fmt.Print("\x1b[H\x1b[2J" + text + "\n" + d.help())
		case text != d.last:
			fmt.Println(text)
			if serving && !helped {
				helped = true
				fmt.Println(d.help())
			}
		}
		d.last = text
		select {
		case <-ctx.Done():
			return
		case <-time.After(time.Second):
		}
	}
}

// picture is the state of the cluster in a few lines.
func (d *demo) picture(ctx context.Context) (text string, serving bool) {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 4, 3, ' ', 0)
	fmt.Fprintln(w, "NODE\tMANAGER\tETCD\tREVISION\tDB")
	var leader *status.View
	for _, n := range d.nodes {
		v, err := fetchStatus(ctx, fmt.Sprintf("http://127.0.0.1:%d/status.json", n.client+4))
		if err != nil {
			fmt.Fprintf(w, "%s\tstarting\t\t\t\n", n.name)
			continue
		}
		role, etcd := "follows", "not running"
		if v.Leading {
			role, leader = fmt.Sprintf("leads (term %d)", v.Term), v
		}
		switch {
		case v.Etcd.Healthy && v.Etcd.Quarantined:
			etcd = "healthy, quarantined"
		case v.Etcd.Healthy && v.Etcd.MemberID == v.Etcd.LeaderID:
			etcd, serving = "healthy, leader", true
		case v.Etcd.Healthy:
			etcd = "healthy"
		case v.Etcd.Running:
			etcd = "starting"
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%d KiB\n", n.name, role, etcd, v.Etcd.Revision, v.Etcd.DBSize>>10)
	}
	_ = w.Flush()
	if leader != nil {
		fmt.Fprintf(&b, "now: %s\n", leader.Doing)
		if leader.Restore != "" {
			fmt.Fprintf(&b, "restore: %s\n", leader.Restore)
		}
		if !leader.NewestBackup.IsZero() {
			fmt.Fprintf(&b, "newest backup: %s (%d in the store)\n", leader.NewestBackup.UTC().Format(time.RFC3339), leader.Backups)
		}
		if c := leader.Changes; c != nil && !c.Until.IsZero() {
			fmt.Fprintf(&b, "changes: in the store up to revision %d, %s\n", c.Archived, c.Until.UTC().Format(time.RFC3339))
		}
		for _, s := range leader.Waiting {
			fmt.Fprintf(&b, "waiting: %s\n", s)
		}
		if !d.plain {
			fmt.Fprintf(&b, "\nwhat it did:\n")
			for _, e := range leader.Recent[max(0, len(leader.Recent)-8):] {
				text := []rune(e.Text)
				fmt.Fprintf(&b, "  %s  %s\n", e.At.Format("15:04:05"), string(text[:min(len(text), 150)]))
			}
		}
	}
	return b.String(), serving
}

func fetchStatus(ctx context.Context, url string) (*status.View, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var v status.View
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil {
		return nil, err
	}
	return &v, nil
}
