package chaos

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/etcd-manager/etcd-manager/test/harness"
)

// kind is what a request does.
type kind string

const (
	put  kind = "put"
	get  kind = "get"
	del  kind = "delete"
	swap kind = "swap" // a transaction: put Value if the key's value is Old
)

// request is one request of a client, and what became of it. Times are nanoseconds since the history's beginning.
type request struct {
	Client       int
	Kind         kind
	Key          string
	Value, Old   string
	Call, Return int64
	// Unknown is true if no answer came: a write may have happened, or happen yet.
	Unknown bool
	// Found is what a get has read, "" if nothing; Swapped whether a swap's condition held.
	Found   string
	Swapped bool
	// Revision and Cluster are of the answer's header.
	Revision int64
	Cluster  uint64
}

// writes tells whether the request has, or may have, changed its key.
func (r *request) writes() bool {
	return r.Kind == put || r.Kind == del || r.Kind == swap && (r.Swapped || r.Unknown)
}

// history is what all clients did.
type history struct {
	began time.Time

	mu       sync.Mutex
	requests []request
}

func newHistory() *history { return &history{began: time.Now()} }

// now is the time since the history's beginning, in nanoseconds.
func (h *history) now() int64 { return int64(time.Since(h.began)) }

func (h *history) add(r request) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.requests = append(h.requests, r)
}

// copy returns the requests so far.
func (h *history) copy() []request {
	h.mu.Lock()
	defer h.mu.Unlock()
	return append([]request(nil), h.requests...)
}

const (
	prefix = "/chaos/"
	// keys is how many keys are written at a time. After window another set is, which bounds the history that has to be judged as one.
	keys   = 6
	window = 700 * time.Millisecond
	// requestTimeout is how long a client waits for an answer.
	requestTimeout = 2 * time.Second
)

// clients are two for each node: one connection that knows that member alone.
type clients struct {
	h    *history
	stop context.CancelFunc
	wg   sync.WaitGroup
	next atomic.Int64
}

func startClients(c *harness.Cluster, h *history, seed uint64) *clients {
	ctx, cancel := context.WithCancel(context.Background())
	cl := &clients{h: h, stop: cancel}
	for i, n := range c.Nodes {
		for j := range 2 {
			id := 2*i + j
			cl.wg.Go(func() { cl.work(ctx, c, n, id, rand.New(rand.NewPCG(seed, uint64(id)))) })
		}
	}
	return cl
}

func (cl *clients) end() {
	cl.stop()
	cl.wg.Wait()
}

// work makes requests until ctx ends.
func (cl *clients) work(ctx context.Context, c *harness.Cluster, n *harness.Node, id int, r *rand.Rand) {
	conn, err := clientv3.New(clientv3.Config{Endpoints: []string{n.ClientURL()}, TLS: c.TLS(), Logger: zap.NewNop(),
		DialTimeout: requestTimeout, DialKeepAliveTime: time.Second, DialKeepAliveTimeout: time.Second})
	if err != nil {
		return // the certificates can't be read: the other clients have none either, and the test finds no history
	}
	defer conn.Close()
	seen := map[string]string{}
	for ctx.Err() == nil {
		key := fmt.Sprintf("%s%06d/%d", prefix, cl.h.now()/int64(window), r.IntN(keys))
		q := request{Client: id, Kind: pick(r), Key: key, Old: seen[key]}
		if q.Kind == put || q.Kind == swap {
			q.Value = fmt.Sprintf("%d-%d", id, cl.next.Add(1))
		}
		ok := cl.do(ctx, conn, &q)
		if q.Kind == get && ok {
			seen[key] = q.Found
		}
		pause := 4 * time.Millisecond
		if !ok {
			pause = 100 * time.Millisecond
		}
		select {
		case <-ctx.Done():
		case <-time.After(pause):
		}
	}
}

func pick(r *rand.Rand) kind {
	switch n := r.IntN(100); {
	case n < 45:
		return put
	case n < 80:
		return get
	case n < 87:
		return del
	}
	return swap
}

// do sends a request and writes down what became of it. A read without an answer says nothing, and isn't written down.
func (cl *clients) do(ctx context.Context, conn *clientv3.Client, q *request) bool {
	rctx, cancel := context.WithTimeout(ctx, requestTimeout)
	defer cancel()
	q.Call = cl.h.now()
	err := send(rctx, conn, q)
	q.Return = cl.h.now()
	if err != nil {
		if q.Kind == get {
			return false
		}
		q.Unknown = true
	}
	cl.h.add(*q)
	return err == nil
}

func send(ctx context.Context, conn *clientv3.Client, q *request) error {
	switch q.Kind {
	case put:
		r, err := conn.Put(ctx, q.Key, q.Value)
		if err != nil {
			return err
		}
		q.Revision, q.Cluster = r.Header.Revision, r.Header.ClusterId
	case get:
		r, err := conn.Get(ctx, q.Key)
		if err != nil {
			return err
		}
		q.Revision, q.Cluster = r.Header.Revision, r.Header.ClusterId
		if len(r.Kvs) == 1 {
			q.Found = string(r.Kvs[0].Value)
		}
	case del:
		r, err := conn.Delete(ctx, q.Key)
		if err != nil {
			return err
		}
		q.Revision, q.Cluster = r.Header.Revision, r.Header.ClusterId
	case swap:
		cond := clientv3.Compare(clientv3.Value(q.Key), "=", q.Old)
		if q.Old == "" {
			cond = clientv3.Compare(clientv3.ModRevision(q.Key), "=", 0)
		}
		r, err := conn.Txn(ctx).If(cond).Then(clientv3.OpPut(q.Key, q.Value)).Commit()
		if err != nil {
			return err
		}
		q.Swapped, q.Revision, q.Cluster = r.Succeeded, r.Header.Revision, r.Header.ClusterId
	}
	return nil
}
