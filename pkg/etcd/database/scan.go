package database

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"hash/maphash"
	"io"
	"math"

	"go.etcd.io/etcd/server/v3/lease/leasepb"
	"go.etcd.io/etcd/server/v3/storage/schema"
)

const (
	revLen  = 17 // main, '_', sub
	markLen = 18 // and 't' for a deletion
)

// revKey is a key of the bucket "key".
type revKey struct {
	main, sub int64
	tombstone bool
}

func parseRevKey(k []byte) (revKey, error) {
	if len(k) != revLen && len(k) != markLen || k[8] != '_' || len(k) == markLen && k[revLen] != 't' {
		return revKey{}, badDB("%x is not a revision", clip(k))
	}
	r := revKey{int64(binary.BigEndian.Uint64(k)), int64(binary.BigEndian.Uint64(k[9:])), len(k) == markLen}
	if r.main < 0 || r.sub < 0 {
		return revKey{}, badDB("negative revision %d/%d", r.main, r.sub)
	}
	return r, nil
}

// keyValue is the part of mvccpb.KeyValue that is looked at; key points into the parsed bytes.
type keyValue struct {
	key                         []byte
	create, mod, version, lease int64
	valueSize                   int
}

// parseKeyValue is a strict reader of the protocol buffer, without allocation.
func parseKeyValue(b []byte) (keyValue, error) {
	var kv keyValue
	bad := errors.New("not a key-value record")
	for len(b) > 0 {
		tag, n := binary.Uvarint(b)
		if n <= 0 {
			return kv, bad
		}
		b = b[n:]
		x, n := binary.Uvarint(b)
		if n <= 0 {
			return kv, bad
		}
		b = b[n:]
		switch tag {
		case 1<<3 | 2, 5<<3 | 2:
			if x > uint64(len(b)) {
				return kv, bad
			}
			if tag>>3 == 1 {
				kv.key = b[:x]
			} else {
				kv.valueSize = int(x)
			}
			b = b[x:]
		case 2 << 3:
			kv.create = int64(x)
		case 3 << 3:
			kv.mod = int64(x)
		case 4 << 3:
			kv.version = int64(x)
		case 6 << 3:
			kv.lease = int64(x)
		default:
			return kv, bad
		}
	}
	return kv, nil
}

// keyTable remembers, for the hash of every key, which record is its newest. 12 bytes a slot, no pointers.
type keyTable struct {
	seed maphash.Seed
	hash []uint64
	last []uint32 // ordinal of the newest record, and flags; valid where hash is not 0
	n    int
}

const (
	tombFlag   = 1 << 31
	leaseFlag  = 1 << 30
	ordinalMax = leaseFlag - 1
)

func newKeyTable() *keyTable {
	return &keyTable{seed: maphash.MakeSeed(), hash: make([]uint64, 1<<12), last: make([]uint32, 1<<12)}
}

func (t *keyTable) slot(h uint64) int {
	i := h & uint64(len(t.hash)-1)
	for t.hash[i] != 0 && t.hash[i] != h {
		i = (i + 1) & uint64(len(t.hash)-1)
	}
	return int(i)
}

func (t *keyTable) hashOf(key []byte) uint64 { return maphash.Bytes(t.seed, key) | 1 }

func (t *keyTable) set(key []byte, v uint32) {
	h := t.hashOf(key)
	i := t.slot(h)
	if t.hash[i] == 0 {
		if t.n++; t.n*4 > len(t.hash)*3 {
			t.grow()
			i = t.slot(h)
		}
		t.hash[i] = h
	}
	t.last[i] = v
}

func (t *keyTable) get(key []byte) (uint32, bool) {
	i := t.slot(t.hashOf(key))
	return t.last[i], t.hash[i] != 0
}

func (t *keyTable) grow() {
	oh, ol := t.hash, t.last
	t.hash, t.last = make([]uint64, 2*len(oh)), make([]uint32, 2*len(ol))
	for i, h := range oh {
		if h != 0 {
			j := t.slot(h)
			t.hash[j], t.last[j] = h, ol[i]
		}
	}
}

// scan is what one pass over a database finds out.
type scan struct {
	f       *boltFile
	buckets []bucketRef

	table     *keyTable
	ordinals  uint32
	last      revKey
	finished  int64 // revision of the last finished compaction; -1 if there was none
	scheduled int64 // and of the last that was begun; -1 likewise

	meta    map[string][]byte
	cluster map[string][]byte
	leases  leaseScan
	alarms  int
	members int

	// watched are keys with one of the prefixes, and whether they are there in the end.
	prefixes [][]byte
	watched  map[string]bool
}

// scanDB walks every page of the database and checks what it holds. The error wraps ErrBadDatabase unless
// reading failed or ctx ended.
func scanDB(ctx context.Context, r io.ReaderAt, size int64, prefixes [][]byte) (*scan, error) {
	f, err := openBolt(r, size)
	if err != nil {
		return nil, err
	}
	s := &scan{
		f: f, table: newKeyTable(), finished: -1, scheduled: -1, prefixes: prefixes, watched: map[string]bool{},
		meta: map[string][]byte{}, cluster: map[string][]byte{}, leases: newLeaseScan(),
	}
	if s.buckets, err = f.buckets(ctx); err != nil {
		return nil, err
	}
	have := map[string]bool{}
	for _, b := range s.buckets {
		have[b.name] = true
		if err := f.walkBucket(ctx, b, s.visitor(b.name)); err != nil {
			return nil, fmt.Errorf("bucket %q: %w", b.name, err)
		}
	}
	for _, need := range []string{string(schema.Key.Name()), string(schema.Meta.Name())} {
		if !have[need] {
			return nil, badDB("it is a bbolt database, but has no bucket %q: not etcd's", need)
		}
	}
	return s, s.finish()
}

func (s *scan) visitor(bucket string) func(k, v []byte) error {
	keep := func(m map[string][]byte) func(k, v []byte) error {
		return func(k, v []byte) error {
			m[string(k)] = bytes.Clone(v)
			return nil
		}
	}
	count := func(n *int) func(k, v []byte) error {
		return func(_, _ []byte) error { *n++; return nil }
	}
	switch bucket {
	case string(schema.Key.Name()):
		return s.visitKey
	case string(schema.Meta.Name()):
		return keep(s.meta)
	case string(schema.Cluster.Name()):
		return keep(s.cluster)
	case string(schema.Lease.Name()):
		return s.visitLease
	case string(schema.Alarm.Name()):
		return count(&s.alarms)
	case string(schema.Members.Name()):
		return count(&s.members)
	}
	return func(_, _ []byte) error { return nil }
}

func (s *scan) visitLease(k, v []byte) error {
	var l leasepb.Lease
	if err := l.Unmarshal(v); err != nil {
		return badDB("lease %x can't be read: %v", clip(k), err)
	}
	if len(k) != 8 || int64(binary.BigEndian.Uint64(k)) != l.ID {
		return badDB("lease %x says that its id is %x", clip(k), l.ID)
	}
	s.leases.ttls[l.ID] = l.TTL
	return nil
}

func (s *scan) visitKey(k, v []byte) error {
	r, err := parseRevKey(k)
	if err != nil {
		return err
	}
	kv, err := parseKeyValue(v)
	if err != nil {
		return badDB("revision %d/%d: %v", r.main, r.sub, err)
	}
	switch {
	case r.tombstone && (kv.mod != 0 || kv.valueSize != 0):
		return badDB("revision %d/%d: a deletion with a value", r.main, r.sub)
	// A raised revision is a record without anything in it.
	case !r.tombstone && len(v) > 0 && (kv.mod != r.main || kv.create > kv.mod || kv.create <= 0 || kv.version <= 0):
		return badDB("revision %d/%d: the record is of revision %d (created %d, version %d)", r.main, r.sub, kv.mod, kv.create, kv.version)
	}
	if s.ordinals == ordinalMax {
		return badDB("more than %d records", ordinalMax)
	}
	val := s.ordinals
	if r.tombstone {
		val |= tombFlag
	}
	if kv.lease != 0 {
		val |= leaseFlag
	}
	s.table.set(kv.key, val)
	s.leases.see(s.table, kv, r.tombstone)
	s.ordinals++
	s.last = r
	for _, p := range s.prefixes {
		if bytes.HasPrefix(kv.key, p) && len(kv.key) > 0 {
			if r.tombstone {
				delete(s.watched, string(kv.key))
			} else {
				s.watched[string(kv.key)] = true
			}
			break
		}
	}
	return nil
}

func (s *scan) finish() error {
	for name, dst := range map[string]*int64{
		string(schema.FinishedCompactKeyName):  &s.finished,
		string(schema.ScheduledCompactKeyName): &s.scheduled,
	} {
		if b, ok := s.meta[name]; ok {
			r, err := parseRevKey(b)
			if err != nil {
				return fmt.Errorf("%s: %w", name, err)
			}
			*dst = r.main
		}
	}
	if b, ok := s.meta[string(schema.MetaConsistentIndexKeyName)]; ok && len(b) != 8 {
		return badDB("the consistent index has %d bytes", len(b))
	}
	return nil
}

// revision is the store's current revision, as etcd would find it.
func (s *scan) revision() int64 { return max(s.last.main, s.finished, s.scheduled, 1) }

// compactRevision is the revision up to which etcd, once started, says that history is compacted; -1 if none.
func (s *scan) compactRevision() int64 {
	if s.scheduled > s.finished {
		return s.scheduled
	}
	return s.finished
}

// live counts keys and keys with a lease. The key of a raised revision, which has no name, isn't counted.
func (s *scan) live() (keys, leased int64) {
	for i, h := range s.table.hash {
		if h != 0 && s.table.last[i]&tombFlag == 0 {
			keys++
			if s.table.last[i]&leaseFlag != 0 {
				leased++
			}
		}
	}
	if v, ok := s.table.get(nil); ok && v&tombFlag == 0 {
		keys--
	}
	return keys, leased
}

// hashKV computes what etcd's HashKV would answer for the newest revision, in a second pass: for records up
// to the compaction only the newest of each key that still exists counts. dropped keys are taken as deleted
// by a later revision, and extra records come at the end.
func (s *scan) hashKV(ctx context.Context, compact int64, dropped map[string]bool, extra ...[2][]byte) (uint32, error) {
	keep := make([]uint64, s.ordinals/64+1)
	keys := 0
	for i, h := range s.table.hash {
		if h != 0 && s.table.last[i]&tombFlag == 0 {
			o := s.table.last[i] & ordinalMax
			keep[o/64] |= 1 << (o % 64)
			keys++
		}
	}
	unset := func(key []byte) {
		if v, ok := s.table.get(key); ok && v&tombFlag == 0 {
			o := v & ordinalMax
			keep[o/64] &^= 1 << (o % 64)
			keys--
		}
	}
	for k := range dropped {
		unset([]byte(k))
	}
	for _, e := range extra {
		r, err := parseRevKey(e[0])
		if err != nil {
			return 0, err
		}
		kv, err := parseKeyValue(e[1])
		if err != nil {
			return 0, err
		}
		if !r.tombstone {
			unset(kv.key)
			keys++
		}
	}
	table := crc32.MakeTable(crc32.Castagnoli)
	sum := crc32.Update(0, table, schema.Key.Name())
	var ordinal uint32
	visit := func(kept bool, k, v []byte) error {
		r, err := parseRevKey(k)
		if err != nil {
			return err
		}
		if r.main <= compact && keys > 0 && !kept || r.main == compact && r.tombstone {
			return nil
		}
		sum = crc32.Update(sum, table, k)
		sum = crc32.Update(sum, table, v)
		return nil
	}
	s.f.again()
	for _, b := range s.buckets {
		if b.name != string(schema.Key.Name()) {
			continue
		}
		err := s.f.walkBucket(ctx, b, func(k, v []byte) error {
			o := ordinal
			ordinal++
			if o >= s.ordinals {
				return badDB("the file changed while it was read")
			}
			return visit(keep[o/64]&(1<<(o%64)) != 0, k, v)
		})
		if err != nil {
			return 0, err
		}
	}
	for _, e := range extra {
		r, _ := parseRevKey(e[0]) // parsed above
		if err := visit(!r.tombstone, e[0], e[1]); err != nil {
			return 0, err
		}
	}
	return sum, nil
}

// revBytes is the key of a record.
func revBytes(main, sub int64, tombstone bool) []byte {
	b := make([]byte, revLen, markLen)
	binary.BigEndian.PutUint64(b, uint64(main))
	b[8] = '_'
	binary.BigEndian.PutUint64(b[9:], uint64(sub))
	if tombstone {
		b = append(b, 't')
	}
	return b
}

// revisionFits refuses revisions that are near the end of the number range.
func revisionFits(rev int64) bool { return rev > 0 && rev < math.MaxInt64/2 }
