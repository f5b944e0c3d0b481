package harness

import (
	"context"
	"crypto/tls"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/connect"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/pki"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// Options describe a cluster. The zero value is three nodes with TLS everywhere and a file store.
type Options struct {
	// Name is the cluster's; empty means "test". Beside is another cluster whose nodes' addresses
	// this one shares, with ports of its own, as clusters on the same machines do.
	Name   string
	Beside *Cluster
	// Nodes is how many managers there are; 0 means 3.
	Nodes int
	// Spec is written before anything starts; nil means as many members as nodes. NoSpec writes none.
	Spec   *cluster.Spec
	NoSpec bool
	// S3 is the server that holds the store; nil means a file store.
	S3 *servers.S3
	// StoreURL and StoreEnv replace the store: URL for --backup-store and the variables for it.
	StoreURL string
	StoreEnv map[string]string
	// Args are given to every manager behind the usual ones, so that they win. Env are more variables (KEY=VALUE).
	Args []string
	Env  []string
	// BackupInterval defaults to an hour, so that no backup happens but the first and those that the test causes. A negative one gives no
	// flag.
	BackupInterval time.Duration
	// CAs, if not nil, fills the PKI directory in place of pki.CreateCAs.
	CAs func(dir string)
	// Isolated gives every node a network namespace of its own, so that links can be cut; the test
	// is skipped where that can't be had. IsolatedS3 runs versitygw where such nodes reach it, and
	// makes it the store.
	Isolated, IsolatedS3 bool
}

// Ports of every node; each node has an address of its own.
type Ports struct{ Client, Peer, Quarantine, GRPC, Status int }

// Cluster is a number of managers with what they need. Only the test's goroutine may use it, except where said otherwise.
// Many methods, since it is all that a test can do to a cluster, in one place.
type Cluster struct {
	// Dir holds everything: node-<name>/ with the data, node-<name>.log, pki/ and store/.
	Dir     string
	Nodes   []*Node
	Ports   Ports
	Catalog *catalog.Catalog
	// Store is what the catalog works on.
	Store blob.Store
	// StoreURL is the value of --backup-store; StoreEnv what has to be in the environment for it.
	StoreURL string
	StoreEnv map[string]string
	Programs Programs
	// PKI is the directory with the CAs.
	PKI string

	t      testing.TB
	o      Options
	net    string // first three numbers of the addresses
	keeper *pki.Keeper
	// isolation is nil on loopback.
	isolation *isolation
}

// New prepares a cluster and starts nothing.
func New(t testing.TB, o Options) *Cluster {
	t.Helper()
	if o.Nodes == 0 {
		o.Nodes = 3
	}
	if o.Name == "" {
		o.Name = "test"
	}
	if o.BackupInterval == 0 {
		o.BackupInterval = time.Hour
	}
	c := &Cluster{t: t, o: o, Dir: t.TempDir(), Programs: Build(t)}
	c.guard()
	if o.Isolated {
		c.isolate()
	}
	t.Cleanup(c.end)
	c.reserve()
	if o.IsolatedS3 {
		c.o.S3 = servers.StartVersityGW(t, servers.InMemory(), servers.At(c.StoreAddress()))
	}
	c.PKI = filepath.Join(c.Dir, "pki")
	if o.CAs != nil {
		must(t, os.MkdirAll(c.PKI, 0o700))
		o.CAs(c.PKI)
	} else {
		must(t, pki.CreateCAs(c.PKI, time.Now()))
	}
	k, err := pki.NewKeeper(pki.Config{Dir: c.PKI, NodeID: "operator", Etcd: true, Policy: pki.DefaultPolicy()})
	must(t, err)
	c.keeper = k
	c.openStore()
	for i := range o.Nodes {
		c.AddNode(string(rune('a' + i)))
	}
	if o.NoSpec {
		return c
	}
	spec := cluster.Spec{MemberCount: o.Nodes}
	if o.Spec != nil {
		spec = *o.Spec
	}
	_, err = c.Catalog.CreateSpec(t.Context(), spec)
	must(t, err)
	return c
}

// Start is New, then all managers are started, and it waits until all wanted members are healthy.
func Start(t testing.TB, o Options) *Cluster {
	t.Helper()
	c := New(t, o)
	c.StartAll()
	n := len(c.Nodes)
	if o.Spec != nil {
		n = o.Spec.MemberCount
	}
	c.WaitHealthy(n)
	return c
}

// AddNode makes another node, with a data dir and an id, and starts nothing.
func (c *Cluster) AddNode(name string) *Node {
	c.t.Helper()
	n := &Node{Name: name, Address: fmt.Sprintf("%s.%d", c.net, len(c.Nodes)+1), DataDir: filepath.Join(c.Dir, "node-"+name), c: c, t: c.t}
	n.Log = n.DataDir + ".log"
	must(c.t, os.MkdirAll(n.DataDir, 0o700))
	must(c.t, os.WriteFile(filepath.Join(n.DataDir, "myid"), []byte(name), 0o600))
	c.Nodes = append(c.Nodes, n)
	if c.isolation != nil {
		c.isolation.add(n)
	}
	return n
}

// S3 is the server that holds the store, nil if none does.
func (c *Cluster) S3() *servers.S3 { return c.o.S3 }

// Node returns the node of that name.
func (c *Cluster) Node(name string) *Node {
	c.t.Helper()
	for _, n := range c.Nodes {
		if n.Name == name {
			return n
		}
	}
	c.t.Fatalf("there is no node %s", name)
	return nil
}

func (c *Cluster) openStore() {
	c.t.Helper()
	c.StoreURL, c.StoreEnv = c.o.StoreURL, maps.Clone(c.o.StoreEnv)
	if c.StoreEnv == nil {
		c.StoreEnv = map[string]string{}
	}
	switch s := c.o.S3; {
	case c.StoreURL != "":
	case s != nil:
		c.StoreURL = "s3://" + s.Bucket + "/test/backups/etcd/main"
		c.StoreEnv = map[string]string{"S3_ENDPOINT": s.Endpoint, "S3_REGION": s.Region,
			"S3_ACCESS_KEY_ID": s.AccessKeyID, "S3_SECRET_ACCESS_KEY": s.SecretAccessKey}
		if s.CAFile != "" {
			c.StoreEnv["S3_CA_FILE"] = s.CAFile
		}
	default:
		c.StoreURL = filepath.Join(c.Dir, "store")
	}
	s, err := connect.Open(c.t.Context(), c.StoreURL, func(k string) string { return c.StoreEnv[k] })
	must(c.t, err)
	c.Store, c.Catalog = s, catalog.New(s)
}

// firstPort is below the range from which the kernel picks ports.
const firstPort = 20000

// besidePorts is how far the ports of a cluster are from those of the one that it stands beside; every cluster takes ten.
const besidePorts = 5

// reserve finds addresses and ports that are free, and keeps one port as the sign that they are taken.
func (c *Cluster) reserve() {
	c.t.Helper()
	if c.isolation != nil {
		return // nobody else is on that network
	}
	if b := c.o.Beside; b != nil {
		c.net = b.net
		if c.usePorts(b.Ports.Client + besidePorts); !c.free(c.Ports.Client) {
			c.t.Fatalf("the ports behind those of cluster %s are taken", b.o.Name)
		}
		return
	}
	for range 100 {
		c.net = fmt.Sprintf("127.%d.%d", 10+rand.IntN(240), rand.IntN(256))
		base := firstPort + 10*rand.IntN(1000)
		sign, err := net.Listen("tcp", fmt.Sprintf("%s.254:%d", c.net, firstPort-1))
		if err != nil {
			continue
		}
		if !c.free(base) {
			sign.Close()
			continue
		}
		c.t.Cleanup(func() { sign.Close() })
		c.usePorts(base)
		return
	}
	c.t.Fatal("no free ports on loopback")
}

func (c *Cluster) usePorts(base int) {
	c.Ports = Ports{Client: base, Peer: base + 1, Quarantine: base + 2, GRPC: base + 3, Status: base + 4}
}

func (c *Cluster) free(base int) bool {
	for i := range 5 {
		l, err := net.Listen("tcp", fmt.Sprintf("%s.1:%d", c.net, base+i))
		if err != nil {
			return false
		}
		l.Close()
	}
	return true
}

// guard starts a process that ends everything of this cluster when the test binary is gone without having done so itself. All its
// processes carry the cluster's directory in their command lines.
func (c *Cluster) guard() {
	c.t.Helper()
	cmd := exec.Command("sh", "-c",
		`cat; for p in /proc/[0-9]*; do grep -qaF "$GUARDED" "$p/cmdline" 2>/dev/null && kill -9 "${p#/proc/}"; done; true`)
	cmd.Env = append(os.Environ(), "GUARDED="+c.Dir+"/")
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	pipe, err := cmd.StdinPipe()
	must(c.t, err)
	must(c.t, cmd.Start())
	c.t.Cleanup(func() { // runs last, so that it also finds what everything before has missed
		_ = pipe.Close()
		_ = cmd.Wait()
	})
}

// end kills everything and, if the test has failed, prints what the managers have said.
func (c *Cluster) end() {
	for _, n := range c.Nodes {
		n.killQuietly()
	}
	keep := os.Getenv("HARNESS_KEEP_LOGS")
	for _, n := range c.Nodes {
		if keep != "" {
			dir := filepath.Join(keep, strings.ReplaceAll(c.t.Name(), "/", "_"))
			_ = os.MkdirAll(dir, 0o755)
			if data, err := os.ReadFile(n.Log); err == nil {
				_ = os.WriteFile(filepath.Join(dir, filepath.Base(n.Log)), data, 0o644)
			}
		}
		if c.t.Failed() {
			c.t.Logf("the end of the log of node %s:\n%s", n.Name, n.LogTail(60))
		}
	}
}

// StartAll starts every manager that doesn't run.
func (c *Cluster) StartAll() {
	c.t.Helper()
	for _, n := range c.Nodes {
		if !n.Running() {
			n.Start()
		}
	}
}

// TermAll sends SIGTERM to every manager that runs and waits until all have ended; one that doesn't exit with 0 fails the test.
func (c *Cluster) TermAll() {
	c.t.Helper()
	var running []*Node
	for _, n := range c.Nodes {
		if n.Running() {
			n.Signal(syscall.SIGTERM)
			running = append(running, n)
		}
	}
	for _, n := range running {
		if code := n.WaitExit(60 * time.Second); code != 0 {
			c.t.Errorf("manager %s exited with %d after SIGTERM", n.Name, code)
		}
	}
}

// Args are the flags of a node.
func (c *Cluster) Args(n *Node) []string {
	url := func(port int) string { return fmt.Sprintf("https://__address__:%d", port) }
	args := []string{
		"--cluster-name=" + c.o.Name, "--backup-store=" + c.StoreURL, "--data-dir=" + n.DataDir, "--pki-dir=" + c.PKI, "--v=2",
		"--address=" + n.Address, "--etcd-address=" + n.Address,
		"--client-urls=" + url(c.Ports.Client), "--peer-urls=" + url(c.Ports.Peer), "--quarantine-client-urls=" + url(c.Ports.Quarantine),
		fmt.Sprintf("--grpc-port=%d", c.Ports.GRPC), fmt.Sprintf("--etcd-manager-metrics-port=%d", c.Ports.Status),
	}
	if c.o.BackupInterval > 0 {
		args = append(args, "--backup-interval="+c.o.BackupInterval.String())
	}
	return append(append(args, c.o.Args...), n.Args...)
}

// Environ is the environment of a node.
func (c *Cluster) Environ(n *Node) []string {
	env := []string{"PATH=" + os.Getenv("PATH"), "HOME=" + c.Dir, "TMPDIR=" + c.Dir}
	for k, v := range c.StoreEnv {
		env = append(env, k+"="+v)
	}
	return append(append(env, c.o.Env...), n.Env...)
}

// ClientURLs are those of all nodes.
func (c *Cluster) ClientURLs() []string {
	var urls []string
	for _, n := range c.Nodes {
		urls = append(urls, n.ClientURL())
	}
	return urls
}

// TLS is a configuration for clients of etcd. It may be used concurrently.
func (c *Cluster) TLS() *tls.Config {
	var hosts []string
	for _, n := range c.Nodes {
		hosts = append(hosts, n.Address)
	}
	return c.keeper.EtcdClient(hosts...)
}

// Client returns a client of etcd at these URLs, or at all nodes if none are given. It is closed with the test.
func (c *Cluster) Client(urls ...string) *clientv3.Client {
	c.t.Helper()
	if len(urls) == 0 {
		urls = c.ClientURLs()
	}
	client, err := clientv3.New(clientv3.Config{Endpoints: urls, TLS: c.TLS(), Logger: zap.NewNop(),
		DialTimeout: 5 * time.Second, DialKeepAliveTime: 2 * time.Second, DialKeepAliveTimeout: 2 * time.Second})
	must(c.t, err)
	c.t.Cleanup(func() { client.Close() })
	return client
}

// Ctl runs etcd-manager-ctl on the cluster's store.
func (c *Cluster) Ctl(args ...string) (stdout, stderr string, code int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, c.Programs.Ctl, append([]string{"--backup-store=" + c.StoreURL}, args...)...)
	cmd.Env = []string{"PATH=" + os.Getenv("PATH"), "HOME=" + c.Dir}
	for k, v := range c.StoreEnv {
		cmd.Env = append(cmd.Env, k+"="+v)
	}
	var out, errOut strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		c.t.Fatalf("run etcd-manager-ctl: %v", err)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// ClientFiles are certificates of an operator's own, for etcdctl.
func (c *Cluster) ClientFiles() pki.EtcdFiles {
	c.t.Helper()
	files, err := c.keeper.EtcdFiles(filepath.Join(c.Dir, "operator"), pki.EtcdName{Name: "operator"})
	must(c.t, err)
	return files
}
