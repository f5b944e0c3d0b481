package blobtest

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"iter"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// Memory is a blob.Store in memory with honest conditional puts, for fast tests. It passes the
// conformance suite. Make one with NewMemory.
type Memory struct {
	mu      sync.Mutex
	objects map[string]object
	version int64
}

type object struct {
	data []byte
	info blob.Info
}

// NewMemory returns an empty store.
func NewMemory() *Memory { return &Memory{objects: map[string]object{}} }

func (m *Memory) fail(op, key string, kind, err error) error {
	return &blob.Error{Op: op, Key: "memory:" + key, Kind: kind, Err: err}
}

// Put implements blob.Store.
func (m *Memory) Put(ctx context.Context, key string, body io.Reader, opts blob.PutOptions) (blob.Info, error) {
	if err := blob.CheckPut(key, opts); err != nil {
		return blob.Info{}, m.fail("put", key, blob.ErrInvalid, err)
	}
	if opts.Hide {
		_, err := m.Purge(ctx, key, func(k string) bool { return k == key })
		return blob.Info{}, err
	}
	data, err := io.ReadAll(blob.BodyReader(ctx, body))
	if err != nil {
		return blob.Info{}, m.fail("put", key, nil, err)
	}
	if err := ctx.Err(); err != nil {
		return blob.Info{}, m.fail("put", key, nil, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	old, exists := m.objects[key]
	if opts.IfAbsent && exists || opts.IfVersion != "" && old.info.Version != opts.IfVersion {
		return blob.Info{}, m.fail("put", key, blob.ErrPreconditionFailed, nil)
	}
	m.version++
	info := blob.Info{Key: key, Size: int64(len(data)), Version: strconv.FormatInt(m.version, 10), Modified: time.Now()}
	m.objects[key] = object{data, info}
	return info, nil
}

// Get implements blob.Store.
func (m *Memory) Get(ctx context.Context, key string, r blob.Range) (io.ReadCloser, blob.Info, error) {
	o, err := m.get(ctx, "get", key)
	if err != nil {
		return nil, blob.Info{}, err
	}
	n, err := blob.CheckRange(r, o.info.Size)
	if err != nil {
		return nil, blob.Info{}, m.fail("get", key, blob.ErrInvalid, err)
	}
	body := blob.BodyReader(ctx, bytes.NewReader(o.data[r.Offset:r.Offset+n]))
	return io.NopCloser(body), o.info, nil
}

// Stat implements blob.Store.
func (m *Memory) Stat(ctx context.Context, key string) (blob.Info, error) {
	o, err := m.get(ctx, "stat", key)
	return o.info, err
}

func (m *Memory) get(ctx context.Context, op, key string) (object, error) {
	if err := blob.CheckKey(key); err != nil {
		return object{}, m.fail(op, key, blob.ErrInvalid, err)
	}
	if err := ctx.Err(); err != nil {
		return object{}, m.fail(op, key, nil, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.objects[key]
	if !ok {
		return object{}, m.fail(op, key, blob.ErrNotFound, nil)
	}
	return o, nil
}

// List implements blob.Store. It yields the state at the time of the call.
func (m *Memory) List(ctx context.Context, prefix string, opts blob.ListOptions) iter.Seq2[blob.Entry, error] {
	return func(yield func(blob.Entry, error) bool) {
		if err := blob.CheckList(prefix, opts); err != nil {
			yield(blob.Entry{}, m.fail("list", prefix, blob.ErrInvalid, err))
			return
		}
		m.mu.Lock()
		var entries []blob.Entry
		last := ""
		for _, key := range slices.Sorted(maps.Keys(m.objects)) {
			if !strings.HasPrefix(key, prefix) {
				continue
			}
			e := blob.Entry{Info: m.objects[key].info}
			if i := strings.Index(key[len(prefix):], "/"); i >= 0 && opts.Delimiter != "" {
				e = blob.Entry{Info: blob.Info{Key: key[:len(prefix)+i+1]}, Prefix: true}
			}
			if e.Key > opts.After && e.Key != last {
				entries = append(entries, e)
				last = e.Key
			}
		}
		m.mu.Unlock()
		for _, e := range entries {
			if err := ctx.Err(); err != nil {
				yield(blob.Entry{}, m.fail("list", prefix, nil, err))
				return
			}
			if !yield(e, nil) {
				return
			}
		}
	}
}

// Purge implements blob.Store.
func (m *Memory) Purge(ctx context.Context, prefix string, match func(string) bool) (int, error) {
	if err := blob.CheckPrefix(prefix); err != nil {
		return 0, m.fail("purge", prefix, blob.ErrInvalid, err)
	}
	if err := ctx.Err(); err != nil {
		return 0, m.fail("purge", prefix, nil, err)
	}
	m.mu.Lock()
	keys := slices.Sorted(maps.Keys(m.objects))
	m.mu.Unlock()
	n := 0
	for _, key := range keys {
		if !strings.HasPrefix(key, prefix) || !match(key) {
			continue
		}
		m.mu.Lock()
		if _, ok := m.objects[key]; ok {
			delete(m.objects, key)
			n++
		}
		m.mu.Unlock()
	}
	return n, nil
}

// Corrupt changes the stored bytes of key in place, as a failing disk would: the version stays. It reports whether the key exists.
func (m *Memory) Corrupt(key string, change func(data []byte) []byte) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	o, ok := m.objects[key]
	if ok {
		o.data = change(bytes.Clone(o.data))
		o.info.Size = int64(len(o.data))
		m.objects[key] = o
	}
	return ok
}

// String lists keys and sizes, one a line, for messages of failed tests.
func (m *Memory) String() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(m.objects)) {
		fmt.Fprintf(&b, "%s (%d bytes)\n", key, m.objects[key].info.Size)
	}
	return b.String()
}
