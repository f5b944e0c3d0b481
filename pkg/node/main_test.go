package node

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	mathrand "math/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"

	"github.com/etcd-manager/etcd-manager/pkg/blob/file"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/child"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/datadir"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/salvage"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// managerSubcommand runs an agent in a process of its own, which a test can kill.
const managerSubcommand = "run-agent"

// TestMain makes the test binary what the manager is: able to run as etcd, as the checkers, and as a manager that has nothing but an agent.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		code, ok := child.Dispatch(os.Args[1:], process.EtcdCommand(), database.CheckCommand(), datadir.StageCommand(), salvage.Command())
		if ok {
			os.Exit(code)
		}
		if os.Args[1] == managerSubcommand {
			if err := runAgent(os.Args[2]); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
			os.Exit(0)
		}
	}
	os.Exit(m.Run())
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(60 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("still not: %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// freePort is below the range from which the kernel takes ports for connections, so that none takes it meanwhile.
func freePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		port := 12000 + mathrand.Intn(20000)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			must(t, l.Close())
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// setup is how a test runs one node.
type setup struct {
	Cluster string
	Dir     string
	Store   string
	// Roots hold further etcd binaries.
	Roots []string
	Self  cluster.EtcdNode
	// KeepTrash is handed on.
	KeepTrash int
	Socket    string
}

// runAgent is the manager under test. It ends with its standard input, or when it is killed.
func runAgent(config string) error {
	var s setup
	if err := json.Unmarshal([]byte(config), &s); err != nil {
		return err
	}
	exe, err := os.Executable()
	if err != nil {
		return err
	}
	store, err := file.New(s.Store)
	if err != nil {
		return err
	}
	log, err := os.OpenFile(filepath.Join(filepath.Dir(s.Socket), "etcd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	a, err := New(s.config(exe, catalog.New(store), log))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	return s.serve(ctx, a)
}

func (s *setup) config(exe string, c *catalog.Catalog, log *os.File) Config {
	return Config{
		ClusterName: s.Cluster, Instance: fmt.Sprint(os.Getpid()), DataDir: s.Dir, Self: s.Self, Address: "127.0.0.1", ListenAddress: "127.0.0.1",
		Binaries: &process.Binaries{Roots: s.Roots, Self: exe}, Catalog: c, Executable: exe, Stdout: log, Stderr: log,
		KeepTrash: s.KeepTrash, Version: "test", EtcdEnv: map[string]string{"ETCD_HEARTBEAT_INTERVAL": "50", "ETCD_ELECTION_TIMEOUT": "500"},
	}
}

// serve runs an agent and its service until ctx ends.
func (s *setup) serve(ctx context.Context, a *Agent) error {
	_ = os.Remove(s.Socket)
	l, err := net.Listen("unix", s.Socket)
	if err != nil {
		return err
	}
	srv := grpc.NewServer()
	a.Register(srv)
	go func() { _ = srv.Serve(l) }()
	defer srv.Stop()
	return a.Run(ctx)
}

// node is a node under test: its files, and the manager that runs on them now.
type node struct {
	t     *testing.T
	s     setup
	l     layout
	cmd   *exec.Cmd
	stdin io.Closer
	conn  *grpc.ClientConn
	api   protosv1.NodeServiceClient
	term  uint64
	cat   *catalog.Catalog
}

// newNode lays out a node and starts its manager.
func newNode(t *testing.T, name string, change ...func(*setup)) *node {
	t.Helper()
	url := func() []string { return []string{fmt.Sprintf("http://127.0.0.1:%d", freePort(t))} }
	// Paths of sockets are short.
	run, err := os.MkdirTemp("", "node")
	must(t, err)
	t.Cleanup(func() { must(t, os.RemoveAll(run)) })
	s := setup{
		Cluster: "test", Dir: t.TempDir(), Store: t.TempDir(), Roots: []string{t.TempDir()}, Socket: filepath.Join(run, "s"),
		Self: cluster.EtcdNode{Name: name, PeerURLs: url(), ClientURLs: url(), QuarantinedClientURLs: url()},
	}
	for _, c := range change {
		c(&s)
	}
	store, err := file.New(s.Store)
	must(t, err)
	n := &node{t: t, s: s, l: layout(s.Dir), cat: catalog.New(store), term: 1}
	t.Cleanup(n.clear)
	n.start()
	return n
}

// start starts a manager on what lies there.
func (n *node) start() {
	n.t.Helper()
	exe, err := os.Executable()
	must(n.t, err)
	config, err := json.Marshal(n.s)
	must(n.t, err)
	n.cmd = exec.Command(exe, managerSubcommand, string(config))
	n.cmd.Env = append(os.Environ(), "GORACE=halt_on_error=1") // a race found there is a crash, which the test sees
	n.cmd.Stderr = n.log()
	n.stdin, err = n.cmd.StdinPipe()
	must(n.t, err)
	must(n.t, n.cmd.Start())
	n.connect(n.cmd.Process.Pid)
}

func (n *node) connect(pid int) {
	n.t.Helper()
	var err error
	n.conn, err = grpc.NewClient("unix:"+n.s.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	must(n.t, err)
	n.api = protosv1.NewNodeServiceClient(n.conn)
	eventually(n.t, "the manager answers", func() bool {
		s, err := n.api.Observe(n.t.Context(), &protosv1.ObserveRequest{})
		return err == nil && s.GetInstance() == fmt.Sprint(pid)
	})
}

// serveHere runs an agent in the process of the test, on the node's catalog.
func (n *node) serveHere() *Agent {
	n.t.Helper()
	exe, err := os.Executable()
	must(n.t, err)
	a, err := New(n.s.config(exe, n.cat, n.log()))
	must(n.t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- n.s.serve(ctx, a) }()
	n.t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			n.t.Error(err)
		}
	})
	n.connect(os.Getpid())
	return a
}

func (n *node) log() *os.File {
	f, err := os.OpenFile(filepath.Join(filepath.Dir(n.s.Socket), "manager.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(n.t, err)
	n.t.Cleanup(func() { f.Close() })
	return f
}

func (n *node) logged() string {
	b, _ := os.ReadFile(filepath.Join(filepath.Dir(n.s.Socket), "manager.log"))
	return string(b)
}

// crash kills the manager; etcd goes on.
func (n *node) crash() {
	n.t.Helper()
	must(n.t, n.cmd.Process.Kill())
	_ = n.cmd.Wait() // it was killed
	_ = n.conn.Close()
	n.cmd = nil
}

// restart kills the manager and starts another.
func (n *node) restart() {
	n.t.Helper()
	n.crash()
	n.start()
}

// clear ends everything of the node.
func (n *node) clear() {
	if n.cmd != nil {
		n.crash()
	}
	n.killEtcd()
	if n.t.Failed() {
		n.t.Logf("manager of %s:\n%s", n.s.Self.Name, n.logged())
	}
}

// killEtcd kills the node's etcd if it runs, and tells whether it did.
func (n *node) killEtcd() bool {
	pid := n.etcdPID()
	if pid != 0 {
		_ = syscall.Kill(pid, syscall.SIGKILL)
	}
	return pid != 0
}

// etcdPID is the process that holds the pid file's place; 0 if there is none that lives.
func (n *node) etcdPID() int {
	b, err := os.ReadFile(n.l.pid())
	if err != nil {
		return 0
	}
	var info process.Info
	if json.Unmarshal(b, &info) != nil || syscall.Kill(info.PID, 0) != nil {
		return 0
	}
	return info.PID
}

func (n *node) status() cluster.NodeStatus {
	n.t.Helper()
	s, err := n.api.Observe(n.t.Context(), &protosv1.ObserveRequest{})
	must(n.t, err)
	return wire.StatusFromProto(s)
}

// staged is what the node says of the operation's data.
func (n *node) staged() cluster.StagedDir {
	n.t.Helper()
	if s := n.status(); len(s.Staged) == 1 {
		return s.Staged[0]
	}
	return cluster.StagedDir{}
}

// try has the node perform an action. The phases that it reported are returned too.
func (n *node) try(req *protosv1.PerformRequest) (*protosv1.PerformEvent, []string, error) {
	n.t.Helper()
	req.Term, req.Leader, req.ClusterName = n.term, "leader", n.s.Cluster
	ctx, cancel := context.WithTimeout(n.t.Context(), 2*time.Minute)
	defer cancel()
	stream, err := n.api.Perform(ctx, req)
	must(n.t, err)
	var phases []string
	for {
		e, err := stream.Recv()
		if err != nil {
			return nil, phases, err
		}
		if e.GetDone() {
			return e, phases, nil
		}
		phases = append(phases, e.GetPhase())
	}
}

func (n *node) do(req *protosv1.PerformRequest) *protosv1.PerformEvent {
	n.t.Helper()
	e, _, err := n.try(req)
	must(n.t, err)
	return e
}

// refused has the node perform an action that it refuses for good, in these words.
func (n *node) refused(req *protosv1.PerformRequest, words ...string) {
	n.t.Helper()
	_, _, err := n.try(req)
	if status.Code(err) != codes.DataLoss {
		n.t.Fatalf("got %v, want a refusal for good", err)
	}
	for _, w := range words {
		if !strings.Contains(err.Error(), w) {
			n.t.Errorf("%q doesn't say %q", err, w)
		}
	}
}

func (n *node) state(token cluster.Token, members ...*node) *cluster.EtcdState {
	s := &cluster.EtcdState{Token: token, EtcdVersion: etcd.CompiledVersion}
	if len(members) == 0 {
		members = []*node{n}
	}
	for _, m := range members {
		s.Nodes = append(s.Nodes, m.s.Self)
	}
	s.DesiredSize = len(s.Nodes)
	return s
}

// found makes a cluster of the nodes.
func found(token cluster.Token, nodes ...*node) {
	for _, n := range nodes {
		s := n.state(token, nodes...)
		s.NewCluster = true
		n.do(startAction(s))
	}
	for _, n := range nodes {
		n.healthy()
	}
}

func (n *node) healthy() {
	n.t.Helper()
	eventually(n.t, n.s.Self.Name+" is healthy", func() bool { return n.status().Etcd.Healthy })
}

func (n *node) client() *client.Client {
	n.t.Helper()
	c, err := client.Dial(n.s.Self.ClientURLs, nil)
	must(n.t, err)
	n.t.Cleanup(func() { must(n.t, c.Close()) })
	return c
}

func (n *node) ctx() context.Context {
	ctx, cancel := context.WithTimeout(n.t.Context(), 20*time.Second)
	n.t.Cleanup(cancel)
	return ctx
}

func (n *node) put(key, value string) {
	n.t.Helper()
	_, err := n.client().Raw().Put(n.ctx(), key, value)
	must(n.t, err)
}

// get reads a key, "" if it isn't there.
func (n *node) get(key string) string {
	n.t.Helper()
	r, err := n.client().Raw().Get(n.ctx(), key)
	must(n.t, err)
	if len(r.Kvs) == 0 {
		return ""
	}
	return string(r.Kvs[0].Value)
}

// journalled changes the journal of a node whose manager is dead.
func (n *node) journalled(change func(*journal)) {
	n.t.Helper()
	if n.cmd != nil {
		n.t.Fatal("the manager runs")
	}
	j, err := readJournal(n.l.journal(), n.s.Cluster)
	must(n.t, err)
	change(&j)
	must(n.t, j.write(n.l.journal()))
}

// The actions.
func startAction(s *cluster.EtcdState) *protosv1.PerformRequest {
	return &protosv1.PerformRequest{Action: &protosv1.PerformRequest_StartEtcd{StartEtcd: &protosv1.StartEtcd{State: wire.StateToProto(s), MayBeEmpty: true, Restart: true}}}
}

func backupAction(name, reason string) *protosv1.PerformRequest {
	return &protosv1.PerformRequest{Action: &protosv1.PerformRequest_TakeBackup{TakeBackup: &protosv1.TakeBackup{
		Name: name, Reason: reason, Spec: &protosv1.ClusterSpec{MemberCount: 1, EtcdVersion: etcd.CompiledVersion}}}}
}

const bump = 1_000_000_000

func proveAction(op, backup string) *protosv1.PerformRequest {
	return &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Prove{Prove: &protosv1.Prove{
		Operation: op, Backup: backup, BumpRevision: bump, DropPrefixes: []string{"/drop/"}, EtcdVersion: etcd.CompiledVersion}}}
}

func stageAction(op, backup string, s *cluster.EtcdState) *protosv1.PerformRequest {
	return &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Stage{Stage: &protosv1.Stage{
		Operation: op, Backup: backup, State: wire.StateToProto(s), BumpRevision: bump, DropPrefixes: []string{"/drop/"}}}}
}

func stopAction(op, record string) *protosv1.PerformRequest {
	return &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Stop{Stop: &protosv1.Stop{Operation: op, Record: []byte(record)}}}
}

func switchAction(op string, s *cluster.EtcdState) *protosv1.PerformRequest {
	return &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Switch{Switch: &protosv1.Switch{Operation: op, State: wire.StateToProto(s)}}}
}

func haltAction(op string) *protosv1.PerformRequest {
	return &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Halt{Halt: &protosv1.Halt{Operation: op}}}
}

func rollbackAction(op string) *protosv1.PerformRequest {
	return &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Rollback{Rollback: &protosv1.Rollback{Operation: op}}}
}

func verifyAction(op string) *protosv1.PerformRequest {
	return &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Verify{Verify: &protosv1.Verify{Operation: op}}}
}

func discardAction(op string) *protosv1.PerformRequest {
	return &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Discard{Discard: &protosv1.Discard{Operation: op}}}
}

func asideAction(token cluster.Token) *protosv1.PerformRequest {
	return &protosv1.PerformRequest{Action: &protosv1.PerformRequest_SetAside{SetAside: &protosv1.SetAside{Token: string(token), Reason: "test"}}}
}

func salvageAction(op string, token cluster.Token, name, reason string) *protosv1.PerformRequest {
	return &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Salvage{Salvage: &protosv1.Salvage{
		Operation: op, Token: string(token), Name: name, Reason: reason, Spec: &protosv1.ClusterSpec{MemberCount: 1, EtcdVersion: etcd.CompiledVersion}}}}
}
