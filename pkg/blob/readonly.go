package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
)

// ErrReadOnly says that nothing is written to a store, or deleted in it, by this program.
var ErrReadOnly = errors.New("this store belongs to somebody else: it is only read")

// ReadOnly is a store in which nothing can be changed through it, whatever its credentials permit. A change is an *Error of the
// kind ErrDenied that wraps ErrReadOnly, and no request is sent.
func ReadOnly(s Store) Store { return &readOnly{s} }

type readOnly struct{ store Store }

func refused(op, key string) error {
	return &Error{Op: op, Key: key, Kind: ErrDenied, Err: fmt.Errorf("%w", ErrReadOnly)}
}

// Put implements Store.
func (r *readOnly) Put(_ context.Context, key string, _ io.Reader, _ PutOptions) (Info, error) {
	return Info{}, refused("put", key)
}

// Get implements Store.
func (r *readOnly) Get(ctx context.Context, key string, rng Range) (io.ReadCloser, Info, error) {
	return r.store.Get(ctx, key, rng)
}

// Stat implements Store.
func (r *readOnly) Stat(ctx context.Context, key string) (Info, error) { return r.store.Stat(ctx, key) }

// List implements Store.
func (r *readOnly) List(ctx context.Context, prefix string, opts ListOptions) iter.Seq2[Entry, error] {
	return r.store.List(ctx, prefix, opts)
}

// Purge implements Store.
func (r *readOnly) Purge(_ context.Context, prefix string, _ func(key string) bool) (int, error) {
	return 0, refused("purge", prefix)
}
