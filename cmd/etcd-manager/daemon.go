package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/adopt"
	"github.com/etcd-manager/etcd-manager/pkg/atomicfile"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/connect"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
	"github.com/etcd-manager/etcd-manager/pkg/manager"
	"github.com/etcd-manager/etcd-manager/pkg/node"
	"github.com/etcd-manager/etcd-manager/pkg/notify"
	"github.com/etcd-manager/etcd-manager/pkg/peer"
	"github.com/etcd-manager/etcd-manager/pkg/pki"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	"github.com/etcd-manager/etcd-manager/pkg/relay"
	"github.com/etcd-manager/etcd-manager/pkg/repeat"
	"github.com/etcd-manager/etcd-manager/pkg/webhook"
)

// newNodeID makes a name that a person recognizes and that no other node has: the host's, and a few random letters.
func newNodeID(path string) (cluster.NodeID, error) {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "node"
	}
	host, _, _ = strings.Cut(strings.ToLower(host), ".")
	id := host + "-" + strings.ToLower(rand.Text()[:4])
	if err := atomicfile.Write(path, []byte(id), 0o644); err != nil {
		return "", fmt.Errorf("write node id: %w", err)
	}
	klog.Infof("this node is new; its id is %s (%s)", id, path)
	return cluster.NodeID(id), nil
}

// daemon is everything that one manager process is made of.
type daemon struct {
	o        *options
	id       cluster.NodeID
	instance string
	self     cluster.EtcdNode
	requests *requestCounter
	store    blob.Store
	hangs    *blob.Hangs // what of the store is without an answer
	catalog  *catalog.Catalog
	// backups is the catalog that the agent reads backups from, through the leader where this node can't reach the store.
	backups *catalog.Catalog
	// copies are the stores of --backup-store-copy.
	copies   []manager.StoreCopy
	keeper   *pki.Keeper
	tuner    *manager.Tuner
	etcdLog  *etcdLog // nil if etcd logs where the manager does
	agent    *node.Agent
	peers    *peer.Peers
	volume   *dataVolume   // nil if the data dir is an ordinary directory
	promised node.Vote     // what this node has promised on a volume that it gave up
	queued   []string      // the commands that this process found at its start, before it gave a volume up; else nil
	giveUp   chan struct{} // closed when the volume is to be given up for another one
	manager  *manager.Manager
	server   *grpc.Server
	listener net.Listener
	said     repeat.Limiter // of what fails again and again
}

// runDaemon puts everything together and runs until ctx ends. It begins anew with another volume when its own was given up.
func runDaemon(ctx context.Context, o *options) error {
	if o.webhook == nil { // the file may name some later
		var err error
		if o.webhook, err = webhook.New(webhook.Config{}); err != nil {
			return err
		}
	}
	if o.standbyOf != "" {
		if err := runStandby(ctx, o); !errors.Is(err, errPromoted) {
			return err
		}
		o.standbyOf = ""
	}
	var promised node.Vote
	var queued []string
	for {
		d := &daemon{o: o, instance: rand.Text()[:12], requests: newRequestCounter(), giveUp: make(chan struct{}),
			promised: promised, queued: queued}
		if err := d.open(ctx); err != nil {
			if ctx.Err() != nil {
				return nil // asked to stop while it waited for something
			}
			return err
		}
		if err := d.run(ctx); err != nil || ctx.Err() != nil {
			return err
		}
		queued = d.manager.Queued()
		var err error
		if promised, err = d.giveUpVolume(ctx); err != nil {
			return err
		}
	}
}

// open builds the parts from the inside out. Nothing runs yet.
func (d *daemon) open(ctx context.Context) error {
	o := d.o
	if err := d.openStore(ctx); err != nil {
		return err
	}
	if err := d.openDataDir(ctx); err != nil {
		return err
	}
	if err := adopt.Check(o.dataDir, o.backupStore); err != nil {
		return err
	}
	if err := d.checkSuperseded(ctx); err != nil {
		return err
	}
	if err := checkCopiesInUse(ctx, d); err != nil {
		return err
	}
	var err error
	if d.self, err = o.self(d.id); err != nil {
		return err
	}
	if err := d.openPKI(); err != nil {
		return err
	}
	if err := d.openAgent(); err != nil {
		return err
	}
	if d.listener, err = listen(o); err != nil {
		return err
	}
	return d.openPeers(ctx)
}

// openDataDir finds the data dir, and by it who this node is.
func (d *daemon) openDataDir(ctx context.Context) (err error) {
	switch d.o.volumeProvider {
	case providerAWS:
		return d.openEBS(ctx)
	case providerExternal:
		return d.openExternal(ctx)
	}
	if err := os.MkdirAll(d.o.dataDir, 0o700); err != nil {
		return fmt.Errorf("--data-dir: %w", err)
	}
	d.id, err = d.o.nodeID(ctx)
	return err
}

// openStore composes the store: the backend, then what counts, limits and retries around it.
func (d *daemon) openStore(ctx context.Context) error {
	getenv := func(k string) string { return d.o.env[k] }
	s, err := connect.Open(ctx, d.o.backupStore, getenv, connect.OnRequest(d.requests.add), connect.WriteAs(d.o.writing))
	if err != nil {
		return fmt.Errorf("--backup-store: %w", err)
	}
	s, d.hangs = blob.WatchHangs(blob.WithTimeouts(blob.Detach(s), blob.Timeouts{}))
	keys, err := d.openKeys()
	if err != nil {
		return err
	}
	d.store = blob.Retry(s, blob.RetryPolicy{})
	d.catalog = catalog.New(d.store, keys)
	d.backups = catalog.New(blob.Retry(relay.Fallback(s, d.o.clusterName, d.leader), blob.RetryPolicy{}), keys)
	d.copies, err = openCopies(ctx, d.o, d.requests, keys)
	return err
}

// leader is whom backups are read through if this node can't reach the store. It is called only once everything runs.
func (d *daemon) leader() (relay.Leader, error) {
	id, _ := d.peers.Leader()
	switch id {
	case "":
		return relay.Leader{}, errors.New("no leader is known")
	case d.id:
		return relay.Leader{}, relay.ErrSelf
	}
	conn, err := d.peers.Conn(id)
	return relay.Leader{Node: id, Conn: conn}, err
}

func (d *daemon) openPKI() error {
	o := d.o
	if o.insecure && o.etcdInsecure {
		return nil
	}
	if o.dev {
		if err := pki.CreateCAs(o.pkiDir, time.Now()); err != nil {
			return err
		}
	}
	k, err := pki.NewKeeper(pki.Config{Dir: o.pkiDir, NodeID: string(d.id), Managers: !o.insecure,
		Etcd: !o.etcdInsecure, Page: o.pageAddresses(), Policy: o.certs, MinVersion: process.TLSMinVersion(o.env)})
	if err != nil {
		return fmt.Errorf("--pki-dir: %w", err)
	}
	d.keeper = k
	return nil
}

func (d *daemon) openAgent() error {
	o := d.o
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find own executable: %w", err)
	}
	if o.etcdLogFile != "" {
		if d.etcdLog, err = openEtcdLog(o.etcdLogFile, int64(o.etcdLogMost)<<20); err != nil {
			return err
		}
	}
	cfg := node.Config{
		ClusterName: o.clusterName, Instance: d.instance, DataDir: o.dataDir, Self: d.self, Address: o.address,
		ListenAddress: o.etcdAddress,
		MetricsURLs:   o.etcdMetricsURLs(), EtcdEnv: o.etcdEnv(),
		Binaries: &process.Binaries{Roots: strings.Split(o.etcdBinaries, ","), Self: exe}, Catalog: d.backups,
		Executable: exe, Stdout: os.Stdout, Stderr: os.Stderr, Version: build().Version, Compression: o.compression, Fence: d.fence,
		Direct: d.catalog, StoreName: o.backupStore,
	}
	if d.etcdLog != nil {
		cfg.Stdout, cfg.Stderr = d.etcdLog.file, d.etcdLog.file
	}
	if !o.etcdInsecure {
		cfg.Certificates = d.keeper
	}
	if d.keeper != nil {
		cfg.Endings = d.keeper.Endings
	}
	if d.volume != nil {
		cfg.Ready = d.volume.check
		if d.volume.ebs != nil {
			cfg.Release = d.release
		}
	}
	d.agent, err = node.New(cfg)
	return err
}

// fence says why a leadership that asks this node for something is over: a higher term was seen in the election, or it is this node's own
// and its lease has ended. It is called only once everything runs.
func (d *daemon) fence(term cluster.Term, leader cluster.NodeID) error {
	_, seen := d.peers.Leader()
	switch {
	case !term.Reaches(seen):
		return fmt.Errorf("term %d of %s and term %d, which node %s has seen in elections, are too far apart: one of them is corrupt: %w",
			term, leader, seen, d.id, cluster.ErrPermanent)
	case term < seen:
		return fmt.Errorf("term %d of %s, node %s has seen term %d in elections: %w", term, leader, d.id, seen, cluster.ErrLowerTerm)
	case leader == d.id && !d.peers.Leads(term):
		return fmt.Errorf("the lease of node %s for term %d has ended: %w", d.id, term, cluster.ErrLowerTerm)
	}
	return nil
}

func (d *daemon) managerConfig() manager.Config {
	o := d.o
	policy := model.DefaultPolicy(etcd.CompiledVersion)
	policy.BackupInterval, policy.MemberDeadline, policy.FormGrace, policy.AllowUnfenced = o.interval, o.memberDeadline,
		o.formGrace, o.allowUnfenced
	policy.DefragThreshold, policy.DefragFrom, policy.DefragUntil = o.defragAt, o.defragFrom, o.defragUntil
	cfg := manager.Config{
		ClusterName: o.clusterName, Self: d.id, Instance: d.instance, Peers: d.peers, Catalog: d.catalog, Policy: policy,
		VerifyInterval: o.verify, StoreName: o.backupStore, Queued: d.queued,
		Changes: manager.Changes{Interval: o.changes, Dir: filepath.Join(o.dataDir, "etcd-manager", "changes"),
			ToolVersion: build().Version},
		Retention: o.retention, Poll: o.queuePoll, DropPrefixes: []string{"/registry/masterleases/"},
		Probe: func(ctx context.Context) (bool, error) {
			if err := d.catalog.RefuseCopy(ctx, o.backupStore); err != nil {
				return false, err
			}
			r, err := blob.Probe(ctx, d.store, string(d.id))
			klog.V(2).Infof("backup store %s: %s", o.backupStore, r)
			d.probeKeys(ctx)
			return r.Fenced(), err
		},
	}
	for _, c := range d.copies {
		c.Retention = o.copyRetention()
		cfg.Copies = append(cfg.Copies, c)
	}
	cfg.Etcd, cfg.Told, cfg.Local = d.agent.LastStatus, d.agent.Summary, d.certificateAttention
	cfg.Tell, d.tuner = o.webhook.Tell, &manager.Tuner{}
	cfg.Tuner = d.tuner
	cfg.StoreHangs, cfg.Node = d.hangs.Problem, d.agent.Status
	if !o.etcdInsecure {
		cfg.ClientTLS = d.keeper.EtcdClient
	}
	if o.static != nil {
		cfg.Spec = &cluster.Spec{MemberCount: len(o.static.Nodes), EtcdVersion: o.static.EtcdVersion}
		please := filepath.Join(o.dataDir, "please-create-new-cluster")
		cfg.MayCreate = func() bool { _, err := os.Stat(please); return err == nil }
		cfg.Created = func() {
			if err := os.Remove(please); err != nil {
				klog.Warningf("remove %s: %v", please, err)
			}
		}
	}
	return cfg
}

// run starts everything and stops it in order: leadership first, then etcd, then the rest.
func (d *daemon) run(ctx context.Context) error {
	klog.Infof("etcd-manager %s: cluster %s, node %s, data dir %s, store %s, managers on %s", build().Version, d.o.clusterName,
		d.id, d.o.dataDir, d.o.backupStore, d.listener.Addr())
	if d.o.dev {
		if err := d.prepareDev(ctx); err != nil {
			return err
		}
	}
	work, cancel := context.WithCancelCause(context.WithoutCancel(ctx))
	defer cancel(nil)
	agentCtx, stopAgent := context.WithCancel(work)
	defer stopAgent()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var failed error
	part := func(name string, ctx context.Context, f func(context.Context) error) <-chan struct{} {
		done := make(chan struct{})
		wg.Go(func() {
			defer close(done)
			err := f(ctx)
			if err == nil && ctx.Err() == nil {
				err = errors.New("ended by itself")
			}
			if err != nil && ctx.Err() == nil {
				mu.Lock()
				failed = errors.Join(failed, fmt.Errorf("%s: %w", name, err))
				mu.Unlock()
				cancel(err)
			}
		})
		return done
	}
	wg.Go(func() { _ = d.server.Serve(peer.Limit(d.listener)) })
	// Ready means that the others get answers. etcd may have to wait for them, and what waits for this unit must not wait for that.
	d.o.systemd.runs(func() notify.Health { return healthOf(d) })
	agentDone := part("node agent", agentCtx, d.agent.Run)
	part("peers", work, d.peers.Run)
	part("manager", work, d.manager.Run)
	if d.keeper != nil {
		part("certificates", work, d.keeper.Run)
	}
	if d.o.usesNames() {
		part("hosts file", work, d.keepHosts)
	}
	if d.volume != nil {
		part("volume", work, d.keepVolume)
	}
	if d.etcdLog != nil {
		defer d.etcdLog.file.Close()
		part("etcd's log", work, d.etcdLog.keep)
	}
	if d.o.metricsPort != 0 {
		part("status", work, d.serveStatus)
	}
	if d.o.page.IsValid() {
		part("page", work, (&pageServer{d}).run)
	}
	part("webhooks", work, func(ctx context.Context) error { d.o.webhook.Run(ctx); return nil })
	part("configuration", work, func(ctx context.Context) error { return reload(ctx, d.o, d.tuner) })
	if d.o.dev {
		part("dev", work, d.announceDev)
	}
	why := "asked to stop"
	select {
	case <-ctx.Done():
	case <-d.giveUp:
		why = "the volume is released"
	case <-work.Done():
	}
	d.o.systemd.rests("stopping: " + why)
	if work.Err() == nil {
		klog.Infof("%s: leadership is moved away, then etcd is stopped", why)
		resign, stop := context.WithTimeout(work, 2*time.Second)
		if err := d.peers.Resign(resign); err != nil {
			klog.V(2).Infof("move leadership away: %v", err)
		}
		stop()
	}
	stopAgent()
	<-agentDone
	cancel(nil)
	d.server.Stop()
	wg.Wait()
	return failed
}
