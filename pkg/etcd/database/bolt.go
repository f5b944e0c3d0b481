package database

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"io"

	"github.com/etcd-manager/etcd-manager/pkg/etcd"
)

// This file reads bbolt's file format with plain reads and checks every reference, length and order on the
// way, so that a corrupt file yields an error: bbolt itself maps the file and panics, faults or hangs on one.
// It is one pass in key order: pages are checked as they are walked.

func badDB(format string, a ...any) error {
	return fmt.Errorf("%w: %s", etcd.ErrBadDatabase, fmt.Sprintf(format, a...))
}

const (
	boltMagic      = 0xED0CDAED
	boltVersion    = 2
	pageHeaderSize = 16
	metaSize       = 64
	elemSize       = 16
	branchPage     = 0x01
	leafPage       = 0x02
	metaPage       = 0x04
	bucketEntry    = 0x01
	maxDepth       = 64
	// maxPageRun bounds the memory for one page with its overflow; etcd's largest requests are far below.
	maxPageRun = 256 << 20
)

type boltMeta struct {
	pageSize uint32
	root     uint64
	pages    uint64 // high-water mark: pages that are in use or were freed
	txid     uint64
}

type boltFile struct {
	r    io.ReaderAt
	size int64
	meta boltMeta
	// seen has a bit for every page that some tree has reached.
	seen []uint64
	bufs [][]byte // one for each depth
	// used counts the pages reached.
	used int64
	// ahead holds bytes of the file from aheadAt on; lastRead is the offset behind the last page that was asked for.
	ahead             []byte
	aheadAt, lastRead int64
}

// parseMeta returns an error in words that fit behind "meta page 0: ".
func parseMeta(b []byte) (boltMeta, error) {
	le := binary.LittleEndian
	if le.Uint16(b[8:])&metaPage == 0 {
		return boltMeta{}, errors.New("not a meta page")
	}
	m := b[pageHeaderSize:]
	if le.Uint32(m) != boltMagic {
		return boltMeta{}, errors.New("not bbolt's magic number")
	}
	if v := le.Uint32(m[4:]); v != boltVersion {
		return boltMeta{}, fmt.Errorf("unknown format version %d", v)
	}
	h := fnv.New64a()
	h.Write(m[:metaSize-8])
	if h.Sum64() != le.Uint64(m[metaSize-8:]) {
		return boltMeta{}, errors.New("wrong checksum")
	}
	return boltMeta{
		pageSize: le.Uint32(m[8:]), root: le.Uint64(m[16:]), pages: le.Uint64(m[40:]), txid: le.Uint64(m[48:]),
	}, nil
}

// openBolt reads the meta pages of a database of size bytes.
func openBolt(r io.ReaderAt, size int64) (*boltFile, error) {
	var best *boltMeta
	var reasons []error
	try := func(off int64, pageSize uint32) {
		b := make([]byte, pageHeaderSize+metaSize)
		if _, err := r.ReadAt(b, off); err != nil {
			reasons = append(reasons, err)
			return
		}
		m, err := parseMeta(b)
		if err != nil {
			reasons = append(reasons, fmt.Errorf("meta page at %d: %w", off, err))
			return
		}
		if pageSize != 0 && m.pageSize != pageSize {
			return
		}
		if best == nil || m.txid > best.txid {
			best = &m
		}
	}
	try(0, 0)
	if best != nil {
		try(int64(best.pageSize), best.pageSize)
	} else {
		for ps := uint32(1024); ps <= 64<<10 && int64(ps)+pageHeaderSize+metaSize <= size; ps <<= 1 {
			try(int64(ps), ps)
		}
	}
	if best == nil {
		return nil, badDB("no valid meta page (%v)", reasons[0])
	}
	m := *best
	if m.pageSize < etcd.SectorSize || m.pageSize > 64<<10 || m.pageSize&(m.pageSize-1) != 0 {
		return nil, badDB("page size %d", m.pageSize)
	}
	if m.pages < 3 || m.pages > uint64(size)/uint64(m.pageSize) {
		return nil, badDB("the file has %d bytes, but its meta page says %d pages of %d bytes: it is cut short", size, m.pages, m.pageSize)
	}
	return &boltFile{r: r, size: size, meta: m, seen: make([]uint64, m.pages/64+1)}, nil
}

// claim marks pages as reached and fails if one was reached before.
func (f *boltFile) claim(pgid, n uint64) error {
	for p := pgid; p < pgid+n; p++ {
		if f.seen[p/64]&(1<<(p%64)) != 0 {
			return badDB("page %d is referred to twice", p)
		}
		f.seen[p/64] |= 1 << (p % 64)
	}
	f.used += int64(n)
	return nil
}

// readAt reads ahead while the pages follow each other closely, as they mostly do.
func (f *boltFile) readAt(b []byte, off int64) error {
	const near, run = 64 << 10, 128 << 10
	end := off + int64(len(b))
	isNear := off >= f.lastRead-near && off <= f.lastRead+near
	f.lastRead = end
	if off >= f.aheadAt && end <= f.aheadAt+int64(len(f.ahead)) {
		copy(b, f.ahead[off-f.aheadAt:])
		return nil
	}
	if !isNear || len(b) >= run {
		_, err := f.r.ReadAt(b, off)
		return err
	}
	if f.ahead == nil {
		f.ahead = make([]byte, run)
	}
	f.ahead = f.ahead[:min(run, f.size-off)]
	f.aheadAt = off
	if _, err := f.r.ReadAt(f.ahead, off); err != nil {
		f.ahead = f.ahead[:0]
		return err
	}
	copy(b, f.ahead)
	return nil
}

// page reads a page with its overflow into the buffer of that depth.
func (f *boltFile) page(pgid uint64, depth int) ([]byte, error) {
	if depth >= maxDepth {
		return nil, badDB("page %d: the tree is deeper than %d", pgid, maxDepth)
	}
	if pgid < 2 || pgid >= f.meta.pages {
		return nil, badDB("reference to page %d, of %d", pgid, f.meta.pages)
	}
	ps := uint64(f.meta.pageSize)
	for len(f.bufs) <= depth {
		f.bufs = append(f.bufs, make([]byte, ps))
	}
	b := f.bufs[depth][:ps]
	if err := f.readAt(b, int64(pgid*ps)); err != nil {
		return nil, fmt.Errorf("read page %d: %w", pgid, err)
	}
	if id := binary.LittleEndian.Uint64(b); id != pgid {
		return nil, badDB("page %d says that it is page %d", pgid, id)
	}
	n := uint64(binary.LittleEndian.Uint32(b[12:])) + 1
	if pgid+n > f.meta.pages || n*ps > maxPageRun {
		return nil, badDB("page %d says that it is %d pages long", pgid, n)
	}
	if err := f.claim(pgid, n); err != nil {
		return nil, err
	}
	if n == 1 {
		return b, nil
	}
	if uint64(cap(b)) < n*ps {
		grown := make([]byte, n*ps)
		copy(grown, b)
		f.bufs[depth] = grown
	}
	b = f.bufs[depth][:n*ps]
	if err := f.readAt(b[ps:], int64((pgid+1)*ps)); err != nil {
		return nil, fmt.Errorf("read page %d: %w", pgid, err)
	}
	return b, nil
}

// visitor gets the entries of a tree in order. k and v are valid during the call only.
type visitor func(isBucket bool, k, v []byte) error

// walk visits the tree below a page. low is the separator that the parent has for it (nil at the root) and
// high the next one.
func (f *boltFile) walk(ctx context.Context, pgid uint64, depth int, low, high []byte, visit visitor) error {
	b, err := f.page(pgid, depth)
	if err != nil {
		return err
	}
	switch kind := binary.LittleEndian.Uint16(b[8:]); kind {
	case branchPage:
		if err := ctx.Err(); err != nil {
			return err
		}
		return f.walkBranch(ctx, b, pgid, depth, low, high, visit)
	case leafPage:
		return walkLeaf(b, pgid, low, high, visit)
	default:
		return badDB("page %d is of kind %#x where a branch or leaf is due", pgid, kind)
	}
}

func (f *boltFile) walkBranch(ctx context.Context, b []byte, pgid uint64, depth int, low, high []byte, visit visitor) error {
	n := int(binary.LittleEndian.Uint16(b[10:]))
	if n == 0 || pageHeaderSize+n*elemSize > len(b) {
		return badDB("branch page %d has %d elements", pgid, n)
	}
	key := func(i int) ([]byte, uint64, error) {
		at := pageHeaderSize + i*elemSize
		pos := uint64(binary.LittleEndian.Uint32(b[at:]))
		size := uint64(binary.LittleEndian.Uint32(b[at+4:]))
		from := uint64(at) + pos
		if from+size > uint64(len(b)) || from < uint64(pageHeaderSize+n*elemSize) {
			return nil, 0, badDB("branch page %d, element %d points outside of the page", pgid, i)
		}
		return b[from : from+size], binary.LittleEndian.Uint64(b[at+8:]), nil
	}
	k, child, err := key(0)
	if err != nil {
		return err
	}
	if low != nil && bytes.Compare(k, low) < 0 {
		return badDB("branch page %d begins before its parent's separator", pgid)
	}
	for i := range n {
		next, nextChild := high, uint64(0)
		if i+1 < n {
			if next, nextChild, err = key(i + 1); err != nil {
				return err
			}
			if bytes.Compare(k, next) >= 0 {
				return badDB("branch page %d: keys out of order at element %d", pgid, i+1)
			}
		}
		if high != nil && bytes.Compare(k, high) >= 0 {
			return badDB("branch page %d, element %d belongs behind its parent's next separator", pgid, i)
		}
		if err := f.walk(ctx, child, depth+1, k, next, visit); err != nil {
			return err
		}
		k, child = next, nextChild
	}
	return nil
}

func walkLeaf(b []byte, pgid uint64, low, high []byte, visit visitor) error {
	n := int(binary.LittleEndian.Uint16(b[10:]))
	if pageHeaderSize+n*elemSize > len(b) {
		return badDB("leaf page %d has %d elements", pgid, n)
	}
	var prev []byte
	for i := range n {
		at := pageHeaderSize + i*elemSize
		flags := binary.LittleEndian.Uint32(b[at:])
		from := uint64(at) + uint64(binary.LittleEndian.Uint32(b[at+4:]))
		ks := uint64(binary.LittleEndian.Uint32(b[at+8:]))
		vs := uint64(binary.LittleEndian.Uint32(b[at+12:]))
		if from+ks+vs > uint64(len(b)) || from < uint64(pageHeaderSize+n*elemSize) || flags > bucketEntry {
			return badDB("leaf page %d, element %d points outside of the page", pgid, i)
		}
		k, v := b[from:from+ks], b[from+ks:from+ks+vs]
		switch {
		case i == 0 && low != nil && bytes.Compare(k, low) < 0:
			return badDB("leaf page %d begins before its parent's separator", pgid)
		case i > 0 && bytes.Compare(prev, k) >= 0:
			return badDB("leaf page %d: keys out of order at element %d", pgid, i)
		case high != nil && bytes.Compare(k, high) >= 0:
			return badDB("leaf page %d, element %d belongs behind its parent's next separator", pgid, i)
		}
		if err := visit(flags == bucketEntry, k, v); err != nil {
			return err
		}
		prev = k
	}
	return nil
}

// bucketRef is where a top-level bucket is: in pages of its own, or inline in its parent.
type bucketRef struct {
	name   string
	root   uint64
	inline []byte
}

// buckets reads the root bucket.
func (f *boltFile) buckets(ctx context.Context) ([]bucketRef, error) {
	var out []bucketRef
	err := f.walk(ctx, f.meta.root, 0, nil, nil, func(isBucket bool, k, v []byte) error {
		if !isBucket {
			return badDB("a plain key %q stands among the buckets", clip(k))
		}
		if len(v) < elemSize {
			return badDB("bucket %q has a header of %d bytes", clip(k), len(v))
		}
		ref := bucketRef{name: string(k), root: binary.LittleEndian.Uint64(v)}
		if ref.root == 0 {
			ref.inline = bytes.Clone(v[elemSize:])
			if len(ref.inline) < pageHeaderSize {
				return badDB("inline bucket %q has %d bytes", clip(k), len(ref.inline))
			}
		}
		out = append(out, ref)
		return nil
	})
	return out, err
}

// walkBucket visits a bucket's entries. etcd has no buckets within buckets.
func (f *boltFile) walkBucket(ctx context.Context, b bucketRef, visit func(k, v []byte) error) error {
	plain := func(isBucket bool, k, v []byte) error {
		if isBucket {
			return badDB("bucket %q holds another bucket", b.name)
		}
		return visit(k, v)
	}
	if b.root != 0 {
		return f.walk(ctx, b.root, 0, nil, nil, plain)
	}
	if kind := binary.LittleEndian.Uint16(b.inline[8:]); kind != leafPage {
		return badDB("inline bucket %q is of kind %#x", b.name, kind)
	}
	return walkLeaf(b.inline, 0, nil, nil, plain)
}

// again makes a second pass possible.
func (f *boltFile) again() {
	clear(f.seen)
	f.used = 0
}

// clip keeps what is shown of a key short.
func clip(b []byte) []byte {
	const most = 60
	if len(b) > most {
		return b[:most]
	}
	return b
}
