package blobtest

import (
	"bytes"
	"context"
	"io"
	"iter"
	"sort"
	"strings"
	"sync/atomic"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// Long is a store with very many objects, which are made up when they are asked for, beside those that are put. Each request, and each
// page of a listing, takes a while.
type Long struct {
	*Memory
	// Count is how many are made up, and Key names them, in the order of keys. What is put has to come behind them.
	Count int
	Key   func(i int) string
	// Body makes up an object; nil says that it isn't one of them.
	Body func(key string) []byte
	// Delay is how long a request takes, Modified when all that is made up was written.
	Delay    time.Duration
	Modified time.Time
	// Requests counts the requests.
	Requests atomic.Int64
}

const longPage = 1000

func (s *Long) wait(ctx context.Context, op, key string) error {
	s.Requests.Add(1)
	select {
	case <-ctx.Done():
		return &blob.Error{Op: op, Key: key, Err: ctx.Err()}
	case <-time.After(s.Delay):
		return nil
	}
}

// Put implements blob.Store.
func (s *Long) Put(ctx context.Context, key string, body io.Reader, opts blob.PutOptions) (blob.Info, error) {
	if err := s.wait(ctx, "put", key); err != nil {
		return blob.Info{}, err
	}
	return s.Memory.Put(ctx, key, body, opts)
}

// Stat implements blob.Store.
func (s *Long) Stat(ctx context.Context, key string) (blob.Info, error) {
	if err := s.wait(ctx, "stat", key); err != nil {
		return blob.Info{}, err
	}
	return s.Memory.Stat(ctx, key)
}

// Get implements blob.Store.
func (s *Long) Get(ctx context.Context, key string, r blob.Range) (io.ReadCloser, blob.Info, error) {
	if err := s.wait(ctx, "get", key); err != nil {
		return nil, blob.Info{}, err
	}
	made := s.Body(key)
	if made == nil {
		return s.Memory.Get(ctx, key, r)
	}
	one := NewMemory()
	if _, err := one.Put(ctx, key, bytes.NewReader(made), blob.PutOptions{}); err != nil {
		return nil, blob.Info{}, err
	}
	return one.Get(ctx, key, r)
}

// List implements blob.Store.
func (s *Long) List(ctx context.Context, prefix string, opts blob.ListOptions) iter.Seq2[blob.Entry, error] {
	return func(yield func(blob.Entry, error) bool) {
		n := 0
		page := func(e blob.Entry) bool {
			if n%longPage == 0 {
				if err := s.wait(ctx, "list", prefix); err != nil {
					yield(blob.Entry{}, err)
					return false
				}
			}
			n++
			return yield(e, nil)
		}
		last := ""
		for i := sort.Search(s.Count, func(i int) bool { k := s.Key(i); return k >= prefix && k > opts.After }); i < s.Count; i++ {
			e := blob.Entry{Info: blob.Info{Key: s.Key(i), Size: 1, Version: "1", Modified: s.Modified}}
			if !strings.HasPrefix(e.Key, prefix) {
				break
			}
			if j := strings.Index(e.Key[len(prefix):], "/"); j >= 0 && opts.Delimiter != "" {
				e = blob.Entry{Info: blob.Info{Key: e.Key[:len(prefix)+j+1]}, Prefix: true}
				// What comes behind it is found without going through it.
				i += sort.Search(s.Count-i, func(j int) bool { k := s.Key(i + j); return k > e.Key && !strings.HasPrefix(k, e.Key) }) - 1
			}
			if e.Key == last || e.Key <= opts.After {
				continue
			}
			last = e.Key
			if !page(e) {
				return
			}
		}
		for e, err := range s.Memory.List(ctx, prefix, opts) {
			if err != nil || !page(e) {
				return
			}
		}
		if n == 0 {
			if err := s.wait(ctx, "list", prefix); err != nil {
				yield(blob.Entry{}, err)
			}
		}
	}
}
