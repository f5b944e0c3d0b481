package client

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"
)

// Transaction is everything that one revision has changed, in the order in which it did.
type Transaction struct {
	Revision int64
	Events   []*mvccpb.Event
}

// Changes is a stream of all that changes in etcd from a revision on. It is for one goroutine at a time, but AskProgress may be called beside Next.
type Changes struct {
	watch  etcdserverpb.Watch_WatchClient
	wrap   func(string, error) error
	cancel context.CancelFunc
	// cause is why the stream was ended from here; nil if it wasn't.
	cause func() error
	// send is held while something is sent.
	send sync.Mutex
	// from is the revision that was asked for, begun the one with which the watch at the member begins.
	from, begun int64
	// open is the newest revision while its events are not known to be complete.
	open Transaction
	last int64
}

// Batch is what came at once.
type Batch struct {
	// Transactions are whole and ascending, without a gap to those of the batch before.
	Transactions []Transaction
	// Revision is the member's newest when it sent this. Where no transaction came, none was made up to it.
	Revision int64
}

// CompactedError says that what was asked for is not there any more; it wraps ErrCompacted.
type CompactedError struct {
	// Revision is the oldest one that a watch can begin with.
	Revision int64
}

func (e *CompactedError) Error() string {
	return fmt.Sprintf("the revisions before %d are compacted", e.Revision)
}

// Unwrap gives the sentinel.
func (e *CompactedError) Unwrap() error { return ErrCompacted }

// SkippedError says that a member left revisions out of its stream: it will never send them. Some versions of etcd do so with
// a deletion at exactly the compacted revision.
type SkippedError struct {
	// After is the last revision that came, Next the one that came instead of its successor.
	After, Next int64
}

func (e *SkippedError) Error() string {
	return fmt.Sprintf("revision %d came after %d", e.Next, e.After)
}

// WatchAll opens the stream of all changes, beginning with revision from. It ends by itself when the member has no leader, and on a connection of
// Streams.Dial when the member is about to stop: etcd waits for streams until its requests time out. Close must be called in the end.
func (c *Client) WatchAll(ctx context.Context, from int64) (*Changes, error) {
	ctx, end := context.WithCancelCause(clientv3.WithRequireLeader(ctx))
	cancel := func() { end(nil) }
	conn := c.stream.ActiveConnection()
	w, err := etcdserverpb.NewWatchClient(conn).Watch(ctx)
	if err != nil {
		cancel()
		return nil, c.wrap("watch", err)
	}
	s := &Changes{watch: w, wrap: c.wrap, cancel: cancel, cause: func() error { return context.Cause(ctx) }, from: from, last: from - 1}
	// etcd tells no progress to a watch that begins in the future (progressIfSync in its watchable_store.go), and from may not be made for long. So
	// the watch begins with the one before, which is dropped here.
	if err := s.begin(max(from-1, 1)); err != nil {
		cancel()
		return nil, c.wrap("watch", err)
	}
	if c.stream != c.c {
		go endWith(ctx, conn, func() { end(errStops) })
	}
	return s, nil
}

// begin asks the member for what has changed from a revision on.
func (s *Changes) begin(revision int64) error {
	s.send.Lock()
	defer s.send.Unlock()
	s.begun = revision
	// A response in fragments keeps the memory small when much is caught up with.
	return s.watch.Send(&etcdserverpb.WatchRequest{RequestUnion: &etcdserverpb.WatchRequest_CreateRequest{CreateRequest: &etcdserverpb.WatchCreateRequest{
		Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: revision, ProgressNotify: true, Fragment: true,
	}}})
}

var errStops = errors.New("the member stops, or the connection to it is lost")

// endWith calls end when a connection that was established is not any more, as when the other side says that it takes no new requests.
func endWith(ctx context.Context, conn *grpc.ClientConn, end func()) {
	for state, established := conn.GetState(), false; ; state = conn.GetState() {
		if established && state != connectivity.Ready {
			end()
			return
		}
		established = state == connectivity.Ready
		if !conn.WaitForStateChange(ctx, state) {
			return
		}
	}
}

// AskProgress has the member tell its revision soon. It answers only when everything before has been sent.
func (s *Changes) AskProgress() error {
	s.send.Lock()
	defer s.send.Unlock()
	err := s.watch.Send(&etcdserverpb.WatchRequest{RequestUnion: &etcdserverpb.WatchRequest_ProgressRequest{ProgressRequest: &etcdserverpb.WatchProgressRequest{}}})
	return s.wrap("watch", err)
}

// Next waits for the next batch. A *CompactedError says that the revision to begin with is gone, a *SkippedError that some were left
// out; what came before those is in the batch all the same.
func (s *Changes) Next() (Batch, error) {
	for {
		r, err := s.watch.Recv()
		if err != nil && errors.Is(s.cause(), errStops) {
			return Batch{}, errStops
		}
		if err != nil {
			return Batch{}, s.wrap("watch", err)
		}
		switch {
		case r.CompactRevision > 0 && r.CompactRevision <= s.from && s.begun < s.from: // only what is dropped is gone
			if err := s.begin(s.from); err != nil {
				return Batch{}, s.wrap("watch", err)
			}
			continue
		case r.CompactRevision > 0:
			return Batch{}, s.wrap("watch", &CompactedError{Revision: r.CompactRevision})
		case r.Canceled:
			return Batch{}, s.wrap("watch", fmt.Errorf("etcd has ended it: %s", r.CancelReason))
		case r.Created:
			continue
		}
		if len(r.Events) > 0 {
			r.Events = slices.DeleteFunc(r.Events, func(e *mvccpb.Event) bool { return e.Kv.ModRevision < s.from })
			if len(r.Events) == 0 {
				continue
			}
		}
		b, err := s.take(r)
		if err != nil {
			return b, s.wrap("watch", err) // what came before a revision that was left out is whole
		}
		if len(b.Transactions) > 0 || len(r.Events) == 0 {
			return b, nil
		}
	}
}

// take puts the events of a response together to transactions. The last one is kept back while more of it may follow.
func (s *Changes) take(r *etcdserverpb.WatchResponse) (Batch, error) {
	b := Batch{Revision: r.Header.GetRevision()}
	flush := func() error {
		if s.open.Revision == 0 {
			return nil
		}
		if s.open.Revision != s.last+1 && s.last > 0 {
			return &SkippedError{After: s.last, Next: s.open.Revision}
		}
		b.Transactions = append(b.Transactions, s.open)
		s.last, s.open = s.open.Revision, Transaction{}
		return nil
	}
	for _, e := range r.Events {
		if rev := e.Kv.ModRevision; rev != s.open.Revision {
			if err := flush(); err != nil {
				return b, err
			}
			s.open.Revision = rev
		}
		s.open.Events = append(s.open.Events, e)
	}
	if r.Fragment {
		return b, nil
	}
	return b, flush()
}

// Close ends the stream. It may be called at any time and more than once.
func (s *Changes) Close() { s.cancel() }

// LeaseTTL asks for how long a lease was granted, in seconds; 0 if there is no such lease any more.
func (c *Client) LeaseTTL(ctx context.Context, id int64) (int64, error) {
	r, err := etcdserverpb.NewLeaseClient(c.c.ActiveConnection()).LeaseTimeToLive(ctx, &etcdserverpb.LeaseTimeToLiveRequest{ID: id})
	if err != nil {
		return 0, c.wrap("read lease", err)
	}
	if r.TTL < 0 {
		return 0, nil
	}
	return r.GrantedTTL, nil
}

// Revision asks for the cluster's newest revision, which needs a quorum, and for the cluster's id.
func (c *Client) Revision(ctx context.Context) (revision int64, clusterID uint64, err error) {
	r, err := c.kv.Range(ctx, &etcdserverpb.RangeRequest{Key: []byte("health"), KeysOnly: true, Limit: 1})
	if err != nil {
		return 0, 0, c.wrap("read revision", err)
	}
	return r.Header.GetRevision(), r.Header.GetClusterId(), nil
}
