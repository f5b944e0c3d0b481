package manager

import (
	"cmp"
	"context"
	"errors"
	"io"
	"iter"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/peer"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// world is three nodes without a process and a store in memory. Node a leads, with the real loop;
// what it asks of the nodes is carried out on their statuses. Time passes by itself.
type world struct {
	t       *testing.T
	store   *hooked
	catalog *catalog.Catalog
	manager *Manager

	mu    sync.Mutex
	nodes map[cluster.NodeID]*cluster.NodeStatus
	asked []request
	// meddle, if not nil, is called before a node does something; an error is the node's answer. It
	// may wait.
	meddle func(ctx context.Context, r request) error
	// wakeEvery is how often each node says that something has changed; 0 is never.
	wakeEvery time.Duration
	// verifyEvery is how often backups are verified; 0 is never. verify says what a node finds; nil finds all of them good.
	verifyEvery time.Duration
	verify      func(name string) *protosv1.VerifiedBackup
	// unknownLeases is what a node says of leases when it has proven a backup; nil says nothing.
	unknownLeases func(id cluster.NodeID) string
	// oldManagers say nothing of leases.
	oldManagers map[cluster.NodeID]bool

	term     cluster.Term
	leads    bool
	end      context.CancelCauseFunc
	exceeded []cluster.Term
	over     chan struct{}
}

// request is what a node was asked to do, and when.
type request struct {
	at   time.Time
	node cluster.NodeID
	what string
	term cluster.Term
}

// hooked is a store that asks before each operation. If err isn't nil the operation fails with it:
// instead of taking place or, if done, afterwards.
type hooked struct {
	blob.Store
	mu   sync.Mutex
	hook func(op, key string) (err error, done bool)
}

func (h *hooked) set(hook func(op, key string) (error, bool)) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.hook = hook
}

func (h *hooked) ask(op, key string) (error, bool) {
	h.mu.Lock()
	hook := h.hook
	h.mu.Unlock()
	if hook == nil {
		return nil, false
	}
	return hook(op, key)
}

func (h *hooked) Put(ctx context.Context, key string, body io.Reader, o blob.PutOptions) (blob.Info, error) {
	failure, done := h.ask("put", key)
	if failure != nil && !done {
		return blob.Info{}, failure
	}
	i, err := h.Store.Put(ctx, key, body, o)
	return i, cmp.Or(failure, err)
}

func (h *hooked) Purge(ctx context.Context, prefix string, match func(string) bool) (int, error) {
	failure, done := h.ask("purge", prefix)
	if failure != nil && !done {
		return 0, failure
	}
	n, err := h.Store.Purge(ctx, prefix, match)
	return n, cmp.Or(failure, err)
}

func (h *hooked) Get(ctx context.Context, key string, r blob.Range) (io.ReadCloser, blob.Info, error) {
	if err, _ := h.ask("get", key); err != nil {
		return nil, blob.Info{}, err
	}
	return h.Store.Get(ctx, key, r)
}

func (h *hooked) List(ctx context.Context, prefix string, o blob.ListOptions) iter.Seq2[blob.Entry, error] {
	if err, _ := h.ask("list", prefix); err != nil {
		return func(yield func(blob.Entry, error) bool) { yield(blob.Entry{}, err) }
	}
	return h.Store.List(ctx, prefix, o)
}

// inWorld runs f in a world where a cluster of three members serves.
func inWorld(t *testing.T, f func(w *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, store: &hooked{Store: blobtest.NewMemory()}, nodes: map[cluster.NodeID]*cluster.NodeStatus{},
			wakeEvery: 5 * time.Second}
		w.catalog = catalog.New(w.store)
		state := cluster.EtcdState{Token: "old", DesiredSize: 3, EtcdVersion: "3.6.0"}
		for _, id := range []cluster.NodeID{"a", "b", "c"} {
			state.Nodes = append(state.Nodes, cluster.EtcdNode{Name: string(id), PeerURLs: []string{"http://" + string(id) + ":2380"}})
		}
		for _, n := range state.Nodes {
			s := &cluster.NodeStatus{ID: cluster.NodeID(n.Name), Instance: "1", Self: n, Versions: []string{"3.6.0"},
				DiskFree: 1 << 40, DiskTotal: 1 << 40}
			w.nodes[s.ID] = s
			serve(s, state, 100)
		}
		_, err := w.catalog.CreateSpec(t.Context(), cluster.Spec{MemberCount: 3, EtcdVersion: "3.6.0"})
		must(t, err)
		_, err = w.catalog.CreateMarker(t.Context(), catalog.Marker{Phase: catalog.PhaseFormed, Token: "old", Founders: state.Nodes,
			Spec: cluster.Spec{MemberCount: 3, EtcdVersion: "3.6.0"}})
		must(t, err)
		f(w)
		w.stop()
	})
}

// serve makes a status that of a healthy member.
func serve(s *cluster.NodeStatus, state cluster.EtcdState, revision int64) {
	st := state.Clone()
	s.State, s.DataPresent, s.Holding = st, true, false
	s.Etcd = cluster.EtcdStatus{Running: true, Healthy: true, LeaderID: 1, Version: "3.6.0", Revision: revision,
		UpFor: time.Hour, AnsweringFor: time.Hour}
	for i, n := range st.Nodes {
		id := cluster.MemberID(i + 1)
		s.Etcd.Members = append(s.Etcd.Members, cluster.Member{ID: id, Name: n.Name, PeerURLs: n.PeerURLs})
		if n.Name == string(s.ID) {
			s.Etcd.MemberID = id
		}
	}
}

// lead has node a lead, with another process if it did before.
func (w *world) lead(term cluster.Term) {
	w.t.Helper()
	w.stop()
	m, err := New(Config{ClusterName: "test", Self: "a", Instance: "i", Peers: w, Catalog: w.catalog, Policy: model.DefaultPolicy("3.6.0"),
		VerifyInterval: w.verifyEvery, Probe: func(context.Context) (bool, error) { return true, nil }})
	must(w.t, err)
	must(w.t, m.probe(w.t.Context()))
	m.setFirst(nil)
	ctx, end := context.WithCancelCause(w.t.Context())
	w.mu.Lock()
	w.term, w.leads, w.end, w.manager, w.over = term, true, end, m, make(chan struct{})
	over := w.over
	w.mu.Unlock()
	go func() {
		defer close(over)
		m.Lead(ctx, term)
	}()
}

// stop ends the leadership, if there is one.
func (w *world) stop() {
	if w.over == nil {
		return
	}
	w.Exceed(0)
	<-w.over
}

// ends waits for the end of the leadership, which comes by itself.
func (w *world) ends() {
	w.t.Helper()
	w.until("the end of the leadership", func() bool {
		select {
		case <-w.over:
			return true
		default:
			return false
		}
	})
}

// after lets time pass.
func (w *world) after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// until waits for something that has to come within ten minutes.
func (w *world) until(what string, ok func() bool) {
	w.t.Helper()
	for range 6000 {
		if w.after(100 * time.Millisecond); ok() {
			return
		}
	}
	w.t.Fatalf("this never came: %s; the leader says %q; the nodes were asked %v", what, w.manager.Report().Why, w.whats())
}

func (w *world) requests(what string) (list []request) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, r := range w.asked {
		if what == "" || r.what == what {
			list = append(list, r)
		}
	}
	return list
}

func (w *world) whats() (list []string) {
	for _, r := range w.requests("") {
		list = append(list, string(r.node)+" "+r.what)
	}
	return list
}

func (w *world) change(id cluster.NodeID, f func(s *cluster.NodeStatus)) {
	w.mu.Lock()
	defer w.mu.Unlock()
	f(w.nodes[id])
}

func (w *world) set(meddle func(ctx context.Context, r request) error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.meddle = meddle
}

// backUp puts a backup into the store that is this old.
func (w *world) backUp(age time.Duration) string {
	w.t.Helper()
	name, err := w.writeBackup(w.t.Context(), time.Now().Add(-age))
	must(w.t, err)
	return name
}

func (w *world) writeBackup(ctx context.Context, at time.Time) (string, error) {
	name, err := w.catalog.NextBackupName(ctx, at)
	if err != nil {
		return "", err
	}
	return name, w.putBackup(ctx, name, at)
}

func (w *world) putBackup(ctx context.Context, name string, at time.Time) error {
	digest := catalog.Digest{Size: 1, SHA256: strings.Repeat("0", 64)}
	m := &catalog.Manifest{Backup: name, ClusterName: "test", ClusterID: 1, MemberID: 1, EtcdVersion: "3.6.0", Revision: 50, Raw: digest,
		Stored: digest, Compression: catalog.CompressionGzip, Reason: "periodic", Started: at, Finished: at, ToolVersion: "x"}
	_, err := w.catalog.PutBackupData(ctx, name, catalog.DataFile, strings.NewReader("x"))
	return errors.Join(err, w.catalog.PutManifest(ctx, m),
		w.catalog.CommitBackup(ctx, name, catalog.BackupInfo{EtcdVersion: "3.6.0", Time: at}))
}

// What follows is Peers.

func (w *world) Peers() (list []peer.Peer) {
	for _, id := range []cluster.NodeID{"b", "c"} {
		list = append(list, peer.Peer{Info: peer.Info{ID: id}, Connected: true})
	}
	return list
}

func (w *world) Conn(id cluster.NodeID) (grpc.ClientConnInterface, error) {
	return &nodeConn{w, id}, nil
}

func (w *world) Leader() (cluster.NodeID, cluster.Term) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return "a", w.term
}

func (w *world) Leads(term cluster.Term) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.leads && term == w.term
}

func (w *world) Addresses(cluster.NodeID) []string { return nil }
func (w *world) Forget(cluster.NodeID)             {}
func (w *world) Changed() <-chan struct{}          { return nil }
func (w *world) SetWanted(int)                     {}

// Exceed ends the leadership, as the election does.
func (w *world) Exceed(term cluster.Term) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.leads = false
	if term > 0 {
		w.exceeded = append(w.exceeded, term)
	}
	w.end(errors.New("it is over"))
}

// nodeConn is a connection to a node.
type nodeConn struct {
	w  *world
	id cluster.NodeID
}

func (c *nodeConn) Invoke(ctx context.Context, method string, req, resp any, _ ...grpc.CallOption) error {
	switch method[strings.LastIndexByte(method, '/')+1:] {
	case "Observe":
		c.w.mu.Lock()
		defer c.w.mu.Unlock()
		proto.Merge(resp.(proto.Message), wire.StatusToProto(*c.w.nodes[c.id]))
		return nil
	case "Witness":
		q, r := req.(*protosv1.WitnessRequest), resp.(*protosv1.WitnessResponse)
		t := blob.Witness(ctx, c.w.store, blob.Question{Key: q.GetKey(), Value: q.GetValue(), Reply: q.GetReply(), Lock: q.GetLock()})
		r.Problem, r.Found, r.Held, r.Replaced = t.Problem, t.Found, t.Held, t.Replaced
		return nil
	}
	return status.Error(codes.Unimplemented, method)
}

func (c *nodeConn) NewStream(ctx context.Context, _ *grpc.StreamDesc, method string, _ ...grpc.CallOption) (grpc.ClientStream, error) {
	return &nodeStream{c: c, ctx: ctx, watch: strings.HasSuffix(method, "/Watch")}, nil
}

// nodeStream answers Perform with its end, and Watch with an event now and then.
type nodeStream struct {
	c     *nodeConn
	ctx   context.Context //nolint:containedctx // it is one call
	watch bool
	req   *protosv1.PerformRequest
}

func (s *nodeStream) Header() (metadata.MD, error) { return nil, nil }
func (s *nodeStream) Trailer() metadata.MD         { return nil }
func (s *nodeStream) CloseSend() error             { return nil }
func (s *nodeStream) Context() context.Context     { return s.ctx }

func (s *nodeStream) SendMsg(m any) error {
	s.req, _ = m.(*protosv1.PerformRequest)
	return nil
}

func (s *nodeStream) RecvMsg(m any) error {
	if s.watch {
		s.c.w.mu.Lock()
		every := s.c.w.wakeEvery
		s.c.w.mu.Unlock()
		select {
		case <-s.ctx.Done():
			return status.FromContextError(s.ctx.Err()).Err()
		case <-time.After(every):
			return nil
		}
	}
	if s.req == nil {
		return io.EOF
	}
	e, err := s.c.perform(s.ctx, s.req)
	s.req = nil
	if err != nil {
		return err
	}
	e.Done = true
	proto.Merge(m.(proto.Message), e)
	return nil
}

// perform is what a node does when it is asked to.
func (c *nodeConn) perform(ctx context.Context, req *protosv1.PerformRequest) (*protosv1.PerformEvent, error) {
	w := c.w
	what := string(req.ProtoReflect().WhichOneof(req.ProtoReflect().Descriptor().Oneofs().ByName("action")).Name())
	r := request{time.Now(), c.id, what, cluster.Term(req.GetTerm())}
	w.mu.Lock()
	w.asked = append(w.asked, r)
	meddle := w.meddle
	w.mu.Unlock()
	if meddle != nil {
		if err := meddle(ctx, r); err != nil {
			return nil, err
		}
	}
	if b := req.GetTakeBackup(); b != nil {
		return &protosv1.PerformEvent{Backup: b.GetName()}, w.putBackup(ctx, b.GetName(), catalog.BackupTime(b.GetName()))
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	return c.obey(w.nodes[c.id], req)
}

// obey changes the node's status. The world is locked.
func (c *nodeConn) obey(s *cluster.NodeStatus, req *protosv1.PerformRequest) (*protosv1.PerformEvent, error) {
	e := &protosv1.PerformEvent{}
	switch a := req.GetAction().(type) {
	case *protosv1.PerformRequest_StartEtcd:
		serve(s, *wire.StateFromProto(a.StartEtcd.GetState()), 100)
	case *protosv1.PerformRequest_Prove:
		s.Operation = a.Prove.GetOperation()
		e.Facts = &protosv1.Facts{Revision: 50}
		if c.w.unknownLeases != nil {
			e.Facts.UnknownLeases, e.Facts.LeasesTold = c.w.unknownLeases(c.id), !c.w.oldManagers[c.id]
			if c.w.oldManagers[c.id] {
				e.Facts.UnknownLeases = ""
			}
		}
	case *protosv1.PerformRequest_Stage:
		token := wire.StateFromProto(a.Stage.GetState()).Token
		s.Staged = []cluster.StagedDir{{Operation: a.Stage.GetOperation(), Token: token, Revision: a.Stage.GetAtLeastRevision() + 1,
			Hash: 7, SizeBytes: 1000}}
	case *protosv1.PerformRequest_Stop:
		s.Holding, s.OperationRecord, s.Etcd = true, a.Stop.GetRecord(), cluster.EtcdStatus{}
	case *protosv1.PerformRequest_Switch:
		serve(s, *wire.StateFromProto(a.Switch.GetState()), s.Staged[0].Revision)
		s.Staged[0].Switched = true
	case *protosv1.PerformRequest_Discard:
		s.Operation, s.Staged, s.OperationRecord = "", nil, nil
	case *protosv1.PerformRequest_Verify:
		if !slices.ContainsFunc(s.Staged, func(d cluster.StagedDir) bool { return d.Switched }) {
			return nil, status.Error(codes.FailedPrecondition, "nothing was switched")
		}
	case *protosv1.PerformRequest_VerifyBackup:
		e.Verified = &protosv1.VerifiedBackup{Revision: 50}
		if c.w.verify != nil {
			e.Verified = c.w.verify(a.VerifyBackup.GetName())
		}
	default:
		return nil, status.Errorf(codes.Unimplemented, "no node of this test does %T", a)
	}
	return e, nil
}
