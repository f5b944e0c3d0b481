package blob

import (
	"context"
	"io"
	"iter"
	"strings"
)

// Below is the part of a store below a directory, as a store of its own. An empty directory is the store itself. Keys in errors stay as the
// user finds them.
func Below(s Store, dir string) Store {
	if dir = strings.Trim(dir, "/"); dir == "" {
		return s
	}
	return &below{store: s, prefix: dir + "/"}
}

type below struct {
	store  Store
	prefix string
}

func (b *below) cut(i Info) Info {
	i.Key = strings.TrimPrefix(i.Key, b.prefix)
	return i
}

// Put implements Store.
func (b *below) Put(ctx context.Context, key string, body io.Reader, opts PutOptions) (Info, error) {
	i, err := b.store.Put(ctx, b.prefix+key, body, opts)
	return b.cut(i), err
}

// Get implements Store.
func (b *below) Get(ctx context.Context, key string, r Range) (io.ReadCloser, Info, error) {
	body, i, err := b.store.Get(ctx, b.prefix+key, r)
	return body, b.cut(i), err
}

// Stat implements Store.
func (b *below) Stat(ctx context.Context, key string) (Info, error) {
	i, err := b.store.Stat(ctx, b.prefix+key)
	return b.cut(i), err
}

// List implements Store.
func (b *below) List(ctx context.Context, prefix string, opts ListOptions) iter.Seq2[Entry, error] {
	if opts.After != "" {
		opts.After = b.prefix + opts.After
	}
	return func(yield func(Entry, error) bool) {
		for e, err := range b.store.List(ctx, b.prefix+prefix, opts) {
			e.Info = b.cut(e.Info)
			if !yield(e, err) {
				return
			}
		}
	}
}

// Purge implements Store.
func (b *below) Purge(ctx context.Context, prefix string, match func(key string) bool) (int, error) {
	return b.store.Purge(ctx, b.prefix+prefix, func(key string) bool { return match(strings.TrimPrefix(key, b.prefix)) })
}
