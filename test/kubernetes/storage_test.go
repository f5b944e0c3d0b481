package kubernetes

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/runtime/serializer/protobuf"
)

// codec encodes objects as API servers store them: "k8s", a zero byte, and a protobuf envelope with group, version and kind.
type codec struct {
	scheme *runtime.Scheme
	s      *protobuf.Serializer
}

func newCodec() *codec {
	scheme := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, coordinationv1.AddToScheme} {
		if err := add(scheme); err != nil {
			panic(err) // the types are compiled in
		}
	}
	return &codec{scheme, protobuf.NewSerializer(scheme, scheme)}
}

func (c *codec) encode(o runtime.Object) (string, error) {
	kinds, _, err := c.scheme.ObjectKinds(o)
	if err != nil {
		return "", err
	}
	o.GetObjectKind().SetGroupVersionKind(kinds[0])
	var b bytes.Buffer
	err = c.s.Encode(o, &b)
	return b.String(), err
}

func (c *codec) decode(data []byte) (runtime.Object, *schema.GroupVersionKind, error) {
	return c.s.Decode(data, nil, nil)
}

// storage reads and writes objects as an API server does.
type storage struct {
	*codec
	client *clientv3.Client
}

// update creates or changes an object under its key, by a transaction that fails if somebody else was faster; then it tries again.
func (s *storage) update(ctx context.Context, key string, o runtime.Object, opts ...clientv3.OpOption) (int64, error) {
	for {
		now, err := s.client.Get(ctx, key)
		if err != nil {
			return 0, err
		}
		var seen int64
		if len(now.Kvs) > 0 {
			seen = now.Kvs[0].ModRevision
		}
		value, err := s.encode(o)
		if err != nil {
			return 0, err
		}
		r, err := s.client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(key), "=", seen)).Then(clientv3.OpPut(key,
			value, opts...)).Commit()
		if err != nil {
			return 0, err
		}
		if r.Succeeded {
			return r.Header.GetRevision(), nil
		}
	}
}

// object is what a watch cache holds of one key.
type object struct {
	runtime.Object
	version int64
}

// list reads everything below prefix in pages, all of one revision.
func (s *storage) list(ctx context.Context, prefix string, page int64) (map[string]object, int64, int, error) {
	items := map[string]object{}
	var revision int64
	pages := 0
	for from := prefix; ; pages++ {
		opts := []clientv3.OpOption{clientv3.WithRange(clientv3.GetPrefixRangeEnd(prefix)), clientv3.WithLimit(page)}
		if revision > 0 {
			opts = append(opts, clientv3.WithRev(revision))
		}
		r, err := s.client.Get(ctx, from, opts...)
		if err != nil {
			return nil, 0, pages, err
		}
		if revision == 0 {
			revision = r.Header.Revision
		}
		for _, kv := range r.Kvs {
			if err := s.keep(items, kv); err != nil {
				return nil, 0, pages, err
			}
			from = string(kv.Key) + "\x00"
		}
		if !r.More {
			return items, revision, pages + 1, nil
		}
	}
}

func (s *storage) keep(items map[string]object, kv *mvccpb.KeyValue) error {
	o, _, err := s.decode(kv.Value)
	if err != nil {
		return fmt.Errorf("decode %s: %w", kv.Key, err)
	}
	items[string(kv.Key)] = object{o, kv.ModRevision}
	return nil
}

// reflector keeps a copy of a prefix by listing and watching, as client-go's and an API server's
// watch cache do: a list in pages, a watch from there, bookmarks that carry its version forward,
// and a new list only when etcd says that the version is compacted.
type reflector struct {
	*storage
	prefix string
	page   int64

	mu    sync.Mutex
	items map[string]object
	// version is that of the newest event, bookmark or list.
	version int64
	counts  counts
	// wrong is what must never happen.
	wrong []string
}

// counts say what a reflector has gone through.
type counts struct{ lists, pages, events, bookmarks, compacted, interrupted int }

func (c counts) String() string {
	return fmt.Sprintf("%d lists in %d pages, %d events, %d bookmarks, %d times compacted, %d times interrupted",
		c.lists, c.pages, c.events, c.bookmarks, c.compacted, c.interrupted)
}

// run goes on until the context ends.
func (r *reflector) run(ctx context.Context) {
	for ctx.Err() == nil {
		items, version, pages, err := r.list(ctx, r.prefix, r.page)
		if err != nil {
			r.interrupted(ctx)
			continue // a list whose version is compacted between two pages starts over
		}
		r.mu.Lock()
		if version < r.version {
			r.wrong = append(r.wrong, fmt.Sprintf("a list of revision %d after revision %d was seen", version, r.version))
		}
		r.items, r.version, r.counts.lists, r.counts.pages = items, version, r.counts.lists+1, r.counts.pages+pages
		r.mu.Unlock()
		for ctx.Err() == nil {
			if err := r.watch(ctx); errors.Is(err, rpctypes.ErrCompacted) {
				break
			}
			r.interrupted(ctx)
		}
	}
}

func (r *reflector) interrupted(ctx context.Context) {
	r.mu.Lock()
	r.counts.interrupted++
	r.mu.Unlock()
	select {
	case <-ctx.Done():
	case <-time.After(50 * time.Millisecond):
	}
}

// watch follows from the reflector's version until the watch ends, and says why it did.
func (r *reflector) watch(ctx context.Context) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	go r.askForBookmarks(ctx)
	for answer := range r.client.Watch(ctx, r.prefix, clientv3.WithPrefix(), clientv3.WithRev(r.seen()+1),
		clientv3.WithPrevKV(), clientv3.WithProgressNotify()) {
		if err := answer.Err(); err != nil {
			if errors.Is(err, rpctypes.ErrCompacted) {
				r.mu.Lock()
				r.counts.compacted++
				r.mu.Unlock()
			}
			return err
		}
		r.take(answer)
	}
	return errors.New("the watch has ended")
}

func (r *reflector) askForBookmarks(ctx context.Context) {
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			_ = r.client.RequestProgress(ctx) // the watch itself says what is wrong
		}
	}
}

func (r *reflector) take(answer clientv3.WatchResponse) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if answer.IsProgressNotify() {
		r.counts.bookmarks++
		r.version = max(r.version, answer.Header.Revision)
		return
	}
	for _, e := range answer.Events {
		key := string(e.Kv.Key)
		if e.Kv.ModRevision <= r.version && r.items[key].version != e.Kv.ModRevision {
			r.wrong = append(r.wrong, fmt.Sprintf("the event of %s at revision %d came after a bookmark of %d", key,
				e.Kv.ModRevision, r.version))
		}
		r.counts.events++
		if e.Type == mvccpb.DELETE {
			delete(r.items, key)
		} else if err := r.keep(r.items, e.Kv); err != nil {
			r.wrong = append(r.wrong, err.Error())
		}
	}
	if n := len(answer.Events); n > 0 {
		r.version = max(r.version, answer.Events[n-1].Kv.ModRevision)
	}
}

func (r *reflector) seen() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.version
}

// differs compares the copy with what is in etcd; "" if they are the same.
func (r *reflector) differs(truth map[string]object) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	for key, o := range truth {
		if mine, ok := r.items[key]; !ok {
			return key + " is missing"
		} else if mine.version != o.version {
			return fmt.Sprintf("%s is of revision %d, in etcd %d", key, mine.version, o.version)
		} else if name(mine) != name(o) {
			return fmt.Sprintf("%s is %s, in etcd %s", key, name(mine), name(o))
		}
	}
	for key := range r.items {
		if _, ok := truth[key]; !ok {
			return key + " doesn't exist in etcd"
		}
	}
	return ""
}

func name(o object) string {
	m, err := meta.Accessor(o.Object)
	if err != nil {
		return err.Error()
	}
	return m.GetNamespace() + "/" + m.GetName()
}
