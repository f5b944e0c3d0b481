// Package extsort sorts more records than memory holds: what doesn't fit is sorted in parts, which are written to files and merged.
package extsort

import (
	"bufio"
	"bytes"
	"cmp"
	"container/heap"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"os"
	"path/filepath"
	"slices"
)

// Record is what is sorted: by key, then by order, then by when it was added.
type Record struct {
	Key   []byte
	Order int64
	// Value is what belongs to it.
	Value []byte
}

// place is where a record of the part in memory is.
type place struct {
	at, key, value int
	order          int64
}

// Sorter collects records. It must be closed. It isn't safe for concurrent use.
type Sorter struct {
	dir   string
	limit int
	buf   []byte
	list  []place
	parts []string
	// Spilled is how many bytes were written to files.
	Spilled int64
}

// placeBytes is about what a place takes.
const placeBytes = 40

// New makes a sorter that holds about limit bytes in memory, and writes the rest to files in dir.
func New(dir string, limit int) *Sorter { return &Sorter{dir: dir, limit: limit} }

// Add adds a record, which is copied.
func (s *Sorter) Add(r Record) error {
	if len(s.list) > 0 && len(s.buf)+len(r.Key)+len(r.Value)+placeBytes*len(s.list) > s.limit {
		if err := s.spill(); err != nil {
			return err
		}
	}
	s.list = append(s.list, place{len(s.buf), len(r.Key), len(r.Value), r.Order})
	s.buf = append(append(s.buf, r.Key...), r.Value...)
	return nil
}

func (s *Sorter) record(p place) Record {
	k := p.at + p.key
	return Record{Key: s.buf[p.at:k:k], Order: p.order, Value: s.buf[k : k+p.value : k+p.value]}
}

func compare(a, b Record) int {
	return cmp.Or(bytes.Compare(a.Key, b.Key), cmp.Compare(a.Order, b.Order))
}

func (s *Sorter) sort() {
	slices.SortStableFunc(s.list, func(a, b place) int { return compare(s.record(a), s.record(b)) })
}

// spill writes what is in memory to a file.
func (s *Sorter) spill() (err error) {
	s.sort()
	f, err := os.CreateTemp(s.dir, "sorted-")
	if err != nil {
		return fmt.Errorf("sort: %w", err)
	}
	s.parts = append(s.parts, f.Name())
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriterSize(f, 256<<10)
	var head []byte
	for _, p := range s.list {
		r := s.record(p)
		head = binary.AppendUvarint(head[:0], uint64(len(r.Key)))
		head = binary.AppendVarint(head, r.Order)
		head = binary.AppendUvarint(head, uint64(len(r.Value)))
		for _, b := range [][]byte{head, r.Key, r.Value} {
			n, err := w.Write(b)
			s.Spilled += int64(n)
			if err != nil {
				return fmt.Errorf("sort: write %s: %w", filepath.Base(f.Name()), err)
			}
		}
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("sort: write %s: %w", filepath.Base(f.Name()), err)
	}
	s.buf, s.list = s.buf[:0], s.list[:0]
	return nil
}

// Sorted yields all records in their order. A record is valid until the next one. Nothing can be added any more. An error ends the
// sequence.
func (s *Sorter) Sorted() iter.Seq2[Record, error] {
	return func(yield func(Record, error) bool) {
		s.sort()
		h := &merge{}
		defer h.close()
		for i, path := range s.parts {
			f, err := os.Open(path)
			if err != nil {
				yield(Record{}, fmt.Errorf("sort: %w", err))
				return
			}
			h.files = append(h.files, f)
			h.sources = append(h.sources, &source{index: i, in: bufio.NewReaderSize(f, 64<<10)})
		}
		n := 0
		memory := &source{index: len(s.parts), next: func() (Record, bool) {
			if n == len(s.list) {
				return Record{}, false
			}
			n++
			return s.record(s.list[n-1]), true
		}}
		h.sources = append(h.sources, memory)
		if err := h.begin(); err != nil {
			yield(Record{}, err)
			return
		}
		for len(h.sources) > 0 {
			top := h.sources[0]
			if !yield(top.at, nil) {
				return
			}
			more, err := top.advance()
			switch {
			case err != nil:
				yield(Record{}, err)
				return
			case more:
				heap.Fix(h, 0)
			default:
				heap.Pop(h)
			}
		}
	}
}

// Close removes the files.
func (s *Sorter) Close() error {
	var err error
	for _, path := range s.parts {
		err = errors.Join(err, os.Remove(path))
	}
	s.parts, s.buf, s.list = nil, nil, nil
	return err
}

// source is one sorted part.
type source struct {
	index int
	at    Record
	in    *bufio.Reader
	next  func() (Record, bool)
	buf   []byte
}

// advance goes to the next record; false if there is none.
func (s *source) advance() (bool, error) {
	if s.next != nil {
		r, ok := s.next()
		s.at = r
		return ok, nil
	}
	key, err := binary.ReadUvarint(s.in)
	if err == io.EOF {
		return false, nil
	}
	var order int64
	var value uint64
	if err == nil {
		order, err = binary.ReadVarint(s.in)
	}
	if err == nil {
		value, err = binary.ReadUvarint(s.in)
	}
	if err != nil {
		return false, fmt.Errorf("sort: read part %d: %w", s.index, err)
	}
	s.buf = slices.Grow(s.buf[:0], int(key+value))[:key+value]
	if _, err := io.ReadFull(s.in, s.buf); err != nil {
		return false, fmt.Errorf("sort: read part %d: %w", s.index, err)
	}
	s.at = Record{Key: s.buf[:key:key], Order: order, Value: s.buf[key:]}
	return true, nil
}

// merge is a heap of parts, the one with the lowest record first.
type merge struct {
	sources []*source
	files   []*os.File
}

func (m *merge) begin() error {
	var live []*source
	for _, s := range m.sources {
		more, err := s.advance()
		if err != nil {
			return err
		}
		if more {
			live = append(live, s)
		}
	}
	m.sources = live
	heap.Init(m)
	return nil
}

func (m *merge) close() {
	for _, f := range m.files {
		_ = f.Close() // it was only read
	}
}

// Len implements heap.Interface.
func (m *merge) Len() int { return len(m.sources) }

// Less implements heap.Interface.
func (m *merge) Less(i, j int) bool {
	a, b := m.sources[i], m.sources[j]
	return cmp.Or(compare(a.at, b.at), cmp.Compare(a.index, b.index)) < 0
}

// Swap implements heap.Interface.
func (m *merge) Swap(i, j int) { m.sources[i], m.sources[j] = m.sources[j], m.sources[i] }

// Push implements heap.Interface.
func (m *merge) Push(x any) {
	if s, ok := x.(*source); ok {
		m.sources = append(m.sources, s)
	}
}

// Pop implements heap.Interface.
func (m *merge) Pop() any {
	n := len(m.sources) - 1
	s := m.sources[n]
	m.sources = m.sources[:n]
	return s
}
