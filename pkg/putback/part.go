package putback

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/klauspost/compress/zstd"
)

// Bounds of a part of a plan: how many entries it has, and how many bytes of keys and values unless a single one has more.
const (
	PartEntries = 1000
	PartBytes   = 4 << 20
)

// maxContent bounds a part that is read: a part of a few stored bytes can't fill the memory. One entry may have a value of etcd's largest
// request, in base64.
const maxContent = 64 << 20

// Entry is what to do with one key.
type Entry struct {
	Key   []byte `json:"key"`
	Value []byte `json:"value,omitempty"`
	// Lease is the lease that the key had; it is attached again if it is alive.
	Lease int64 `json:"lease,omitempty"`
	// Delete removes the key.
	Delete bool `json:"delete,omitempty"`
	// Seen is the modification revision that was seen when it was planned; 0 if there was no such key.
	Seen int64 `json:"seen,omitempty"`
	// Old is how many bytes the value has that is written over or removed, as far as the planner knows. It isn't stored.
	Old int `json:"-"`
}

func (e *Entry) size() int { return len(e.Key) + len(e.Value) }

// Outcome is what becomes of a key.
type Outcome string

// The outcomes. The first three are changes, the others leave the key as it is.
const (
	Created  Outcome = "created"
	Replaced Outcome = "replaced"
	Removed  Outcome = "removed"
	// Same: it is as wanted already.
	Same Outcome = "same"
	// Exists: it has another value, and nothing is to be overwritten.
	Exists Outcome = "exists"
	// Changed: somebody has changed it since it was planned.
	Changed Outcome = "changed"
	// Expired: the lease to which it belonged is gone.
	Expired Outcome = "expired"
	// Skipped: the work was ended before.
	Skipped Outcome = "skipped"
)

func (o Outcome) writes() bool { return o == Created || o == Replaced || o == Removed }

// Words say it to the operator.
func (o Outcome) Words() string {
	switch o {
	case Exists:
		return "exists with another value"
	case Changed:
		return "somebody has changed it since the plan was made"
	case Expired:
		return "its lease has ended"
	case Skipped:
		return "the put-back was ended before"
	}
	return string(o)
}

// Before is what was there before an entry, and what is to be done about it.
type Before struct {
	Outcome Outcome `json:"outcome"`
	// Mod is the modification revision that the transaction compares; 0 for a key that must not be there.
	Mod int64 `json:"mod,omitempty"`
	// Lease is the one to attach; 0 for none.
	Lease int64 `json:"lease,omitempty"`
	// Value and OldLease are what is written over or removed.
	Value    []byte `json:"value,omitempty"`
	OldLease int64  `json:"oldLease,omitempty"`
}

// Result is what has become of an entry. Revision is that of the transaction that changed the key; 0 if none did.
type Result struct {
	Key      []byte  `json:"key"`
	Outcome  Outcome `json:"outcome"`
	Revision int64   `json:"revision,omitempty"`
}

// Encode writes a part: one JSON object a line, compressed by zstd.
func Encode[T Entry | Before | Result](items []T) ([]byte, error) {
	var out bytes.Buffer
	z, err := zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1))
	if err != nil {
		return nil, fmt.Errorf("encode part: %w", err)
	}
	enc := json.NewEncoder(z)
	for i := range items {
		if err := enc.Encode(&items[i]); err != nil {
			return nil, fmt.Errorf("encode part: %w", err)
		}
	}
	if err := z.Close(); err != nil {
		return nil, fmt.Errorf("encode part: %w", err)
	}
	return out.Bytes(), nil
}

// Decode reads what Encode writes. A part always has items: an empty object isn't one.
func Decode[T Entry | Before | Result](data []byte) ([]T, error) {
	if len(data) == 0 {
		return nil, errors.New("decode part: it is empty")
	}
	z, err := zstd.NewReader(bytes.NewReader(data), zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxContent))
	if err != nil {
		return nil, fmt.Errorf("decode part: %w", err)
	}
	defer z.Close()
	limited := &io.LimitedReader{R: z, N: maxContent}
	dec := json.NewDecoder(limited)
	var items []T
	for {
		var x T
		err := dec.Decode(&x)
		switch {
		case errors.Is(err, io.EOF) && limited.N > 0 && len(items) == 0:
			return nil, errors.New("decode part: it has no entries")
		case errors.Is(err, io.EOF) && limited.N > 0:
			return items, nil
		case limited.N <= 0:
			return nil, fmt.Errorf("decode part: it has more than %d bytes", maxContent)
		case err != nil:
			return nil, fmt.Errorf("decode part: %w", err)
		case len(items) >= PartEntries:
			return nil, fmt.Errorf("decode part: it has more than %d entries", PartEntries)
		}
		items = append(items, x)
	}
}

// Split cuts a plan into parts. The order stays.
func Split(entries []Entry) [][]Entry {
	var parts [][]Entry
	begin, size := 0, 0
	for i := range entries {
		n := entries[i].size() + entries[i].Old
		if i > begin && (i-begin >= PartEntries || size+n > PartBytes) {
			parts = append(parts, entries[begin:i])
			begin, size = i, 0
		}
		size += n
	}
	if begin < len(entries) {
		parts = append(parts, entries[begin:])
	}
	return parts
}

// Undo is the part that takes a part back, in the opposite order. What isn't as the transactions have left it
// stays; the plan that is made of such parts is strict about leases.
func Undo(entries []Entry, before []Before, results []Result) ([]Entry, error) {
	if len(before) != len(entries) || len(results) != len(entries) {
		return nil, fmt.Errorf("it has %d entries, %d values from before and %d results", len(entries), len(before), len(results))
	}
	var out []Entry
	for i := len(entries) - 1; i >= 0; i-- {
		key, b, r := entries[i].Key, before[i], results[i]
		if !bytes.Equal(key, r.Key) {
			return nil, fmt.Errorf("entry %d is of key %q, and its result of %q", i, key, r.Key)
		}
		switch r.Outcome {
		case Created:
			out = append(out, Entry{Key: key, Delete: true, Seen: r.Revision})
		case Replaced:
			out = append(out, Entry{Key: key, Value: b.Value, Lease: b.OldLease, Seen: r.Revision})
		case Removed:
			out = append(out, Entry{Key: key, Value: b.Value, Lease: b.OldLease})
		}
	}
	return out, nil
}
