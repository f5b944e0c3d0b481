package blobtest

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// Fault says what goes wrong with which operations of a Faulty. Of several that fit, the one added first takes effect.
type Fault struct {
	// Op is "put", "get", "stat", "list" or "purge"; "" fits all.
	Op string
	// Match decides by key or prefix; nil fits all.
	Match func(key string) bool
	// Skip is the number of fitting operations that pass before the fault begins.
	Skip int
	// Times is the number of operations that are hit; 0 means all.
	Times int

	// Latency is waited before the operation, unless the context ends.
	Latency time.Duration
	// Hang blocks the operation until the channel is closed or the context ends.
	Hang <-chan struct{}
	// Err, if not nil, is the operation's result. Denied and Transient make suitable ones.
	Err error
	// After lets the operation take place before Err is returned: the answer is lost.
	After bool
	// AfterEntries lets a List yield that many entries before Err.
	AfterEntries int
	// IgnoreConditions makes a Put forget its condition: the store lies.
	IgnoreConditions bool
	// Truncate ends a Get's reader without an error after that many bytes, if positive.
	Truncate int64
	// BreakAfter ends a Get's reader with Err after that many bytes, if positive, instead of failing the Get.
	BreakAfter int64
	// FlipBit inverts the lowest bit of the byte at that offset of what a Get reads, if positive.
	FlipBit int64
}

// Transient returns an error as a store gives it that is busy or out of reach.
func Transient(op, key string) error {
	return &blob.Error{Op: op, Key: key, Kind: blob.ErrTransient, Err: errors.New("injected fault")}
}

// Denied returns an error as a store gives it to those who lack a permission.
func Denied(op, key, action string) error {
	return &blob.Error{Op: op, Key: key, Kind: blob.ErrDenied, Action: action, Err: errors.New("injected fault")}
}

// Call is one operation that Faulty has seen.
type Call struct {
	// Op and Key are as in Fault.
	Op, Key string
}

// Faulty wraps a store and lets operations fail as they are told to. All methods may be called concurrently.
type Faulty struct {
	blob.Store

	mu     sync.Mutex
	faults []*armed
	calls  []Call
}

// armed is a fault with the count of the operations that fitted.
type armed struct {
	Fault
	seen    int
	removed bool
}

// NewFaulty wraps s. Without faults it changes nothing.
func NewFaulty(s blob.Store) *Faulty { return &Faulty{Store: s} }

// Add makes f happen from now on and returns what ends it.
func (f *Faulty) Add(fault Fault) (remove func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	a := &armed{Fault: fault}
	f.faults = append(f.faults, a)
	return func() {
		f.mu.Lock()
		defer f.mu.Unlock()
		a.removed = true
	}
}

// Heal ends all faults.
func (f *Faulty) Heal() {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, a := range f.faults {
		a.removed = true
	}
	f.faults = nil
}

// Calls returns the operations so far, oldest first.
func (f *Faulty) Calls() []Call {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// find notes the call and returns the fault that hits it, or the zero Fault.
func (f *Faulty) find(op, key string) Fault {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, Call{op, key})
	for _, a := range f.faults {
		if a.removed || a.Op != "" && a.Op != op || a.Match != nil && !a.Match(key) {
			continue
		}
		a.seen++
		if n := a.seen - a.Skip; n > 0 && (a.Times == 0 || n <= a.Times) {
			return a.Fault
		}
	}
	return Fault{}
}

// before waits as the fault says and returns the error that takes the operation's place.
func (fault Fault) before(ctx context.Context, op, key string) error {
	canceled := func() error { return &blob.Error{Op: op, Key: key, Err: ctx.Err()} }
	if fault.Latency > 0 {
		t := time.NewTimer(fault.Latency)
		defer t.Stop()
		select {
		case <-t.C:
		case <-ctx.Done():
			return canceled()
		}
	}
	if fault.Hang != nil {
		select {
		case <-fault.Hang:
		case <-ctx.Done():
			return canceled()
		}
	}
	if fault.After || fault.BreakAfter > 0 || op == "list" {
		return nil
	}
	return fault.Err
}

// Put implements blob.Store.
func (f *Faulty) Put(ctx context.Context, key string, body io.Reader, opts blob.PutOptions) (blob.Info, error) {
	fault := f.find("put", key)
	if err := fault.before(ctx, "put", key); err != nil {
		return blob.Info{}, err
	}
	if fault.IgnoreConditions {
		opts = blob.PutOptions{}
	}
	info, err := f.Store.Put(ctx, key, body, opts)
	if err == nil && fault.After && fault.Err != nil {
		return blob.Info{}, fault.Err
	}
	return info, err
}

// Get implements blob.Store.
func (f *Faulty) Get(ctx context.Context, key string, r blob.Range) (io.ReadCloser, blob.Info, error) {
	fault := f.find("get", key)
	if err := fault.before(ctx, "get", key); err != nil {
		return nil, blob.Info{}, err
	}
	rc, info, err := f.Store.Get(ctx, key, r)
	if err != nil {
		return rc, info, err
	}
	return &faultyReader{ReadCloser: rc, fault: fault}, info, nil
}

type faultyReader struct {
	io.ReadCloser
	fault Fault
	pos   int64
}

func (r *faultyReader) Read(p []byte) (int, error) {
	if end := max(r.fault.Truncate, r.fault.BreakAfter); end > 0 {
		if r.pos >= end && r.fault.Truncate > 0 {
			return 0, io.EOF
		}
		if r.pos >= end {
			return 0, r.fault.Err
		}
		p = p[:min(int64(len(p)), end-r.pos)]
	}
	n, err := r.ReadCloser.Read(p)
	if i := r.fault.FlipBit - r.pos; r.fault.FlipBit > 0 && i >= 0 && i < int64(n) {
		p[i] ^= 1
	}
	r.pos += int64(n)
	return n, err
}

// Stat implements blob.Store.
func (f *Faulty) Stat(ctx context.Context, key string) (blob.Info, error) {
	fault := f.find("stat", key)
	if err := fault.before(ctx, "stat", key); err != nil {
		return blob.Info{}, err
	}
	info, err := f.Store.Stat(ctx, key)
	if err == nil && fault.Err != nil {
		return blob.Info{}, fault.Err
	}
	return info, err
}

// List implements blob.Store.
func (f *Faulty) List(ctx context.Context, prefix string, opts blob.ListOptions) iter.Seq2[blob.Entry, error] {
	return func(yield func(blob.Entry, error) bool) {
		fault := f.find("list", prefix)
		if err := fault.before(ctx, "list", prefix); err != nil {
			yield(blob.Entry{}, err)
			return
		}
		n := 0
		for e, err := range f.Store.List(ctx, prefix, opts) {
			if fault.Err != nil && n == fault.AfterEntries {
				break
			}
			n++
			if !yield(e, err) || err != nil {
				return
			}
		}
		if fault.Err != nil {
			yield(blob.Entry{}, fault.Err)
		}
	}
}

// Purge implements blob.Store.
func (f *Faulty) Purge(ctx context.Context, prefix string, match func(string) bool) (int, error) {
	fault := f.find("purge", prefix)
	if err := fault.before(ctx, "purge", prefix); err != nil {
		return 0, err
	}
	n, err := f.Store.Purge(ctx, prefix, match)
	if err == nil && fault.Err != nil {
		return n, fault.Err
	}
	return n, err
}

// String names the wrapped store.
func (f *Faulty) String() string { return fmt.Sprintf("faulty %v", f.Store) }
