package operator

import (
	"bytes"
	"hash/maphash"
	"iter"

	"github.com/etcd-manager/etcd-manager/pkg/operator/extsort"
)

// states reads the keys of a sort that are there in the end, one after the other; nil behind the last.
func states(s *extsort.Sorter) (next func() (*state, error), stop func()) {
	pull, stop := iter.Pull2(s.Sorted())
	var ahead *state
	return func() (*state, error) {
		for {
			at := ahead
			ahead = nil
			for ahead == nil {
				r, err, ok := pull()
				if err != nil {
					return nil, err
				}
				if !ok {
					break
				}
				x := stateOf(r)
				if at != nil && !bytes.Equal(at.key, x.key) {
					ahead = &x
				} else {
					at = &x
				}
			}
			if at == nil || !at.deleted {
				return at, nil
			}
			if ahead == nil {
				return nil, nil
			}
		}
	}, stop
}

// latest finds keys in a sort, each behind the one before. It is nil for one that isn't there in the end.
func latest(s *extsort.Sorter) (find func(key []byte) (*state, error), stop func()) {
	next, stop := states(s)
	var at *state
	began := false
	return func(key []byte) (_ *state, err error) {
		for !began || at != nil && bytes.Compare(at.key, key) < 0 {
			began = true
			if at, err = next(); err != nil {
				return nil, err
			}
		}
		if at != nil && bytes.Equal(at.key, key) {
			return at, nil
		}
		return nil, nil
	}, stop
}

// filterBits is how many bits a filter has: 8 MiB. With a million keys about one of 10,000 others passes.
const filterBits = 1 << 26

// keyFilter remembers keys, and a few more: those of which it says no were not added.
type keyFilter struct {
	bits  []uint64
	seeds [6]maphash.Seed
}

func newKeyFilter() *keyFilter {
	f := &keyFilter{bits: make([]uint64, filterBits/64)}
	for i := range f.seeds {
		f.seeds[i] = maphash.MakeSeed()
	}
	return f
}

func (f *keyFilter) add(key []byte) {
	for _, s := range f.seeds {
		h := maphash.Bytes(s, key) % filterBits
		f.bits[h/64] |= 1 << (h % 64)
	}
}

func (f *keyFilter) has(key []byte) bool {
	for _, s := range f.seeds {
		if h := maphash.Bytes(s, key) % filterBits; f.bits[h/64]&(1<<(h%64)) == 0 {
			return false
		}
	}
	return true
}
