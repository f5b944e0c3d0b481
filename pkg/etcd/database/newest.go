package database

import (
	"context"
	"encoding/binary"
	"os"

	"go.etcd.io/etcd/server/v3/storage/schema"
)

// NewestRevision reads the last key of the bucket that has the revisions.
func NewestRevision(ctx context.Context, path string) (int64, error) {
	r, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	fi, err := r.Stat()
	if err != nil {
		return 0, err
	}
	f, err := openBolt(r, fi.Size())
	if err != nil {
		return 0, err
	}
	return f.newestRevision(ctx)
}

func (f *boltFile) newestRevision(ctx context.Context) (int64, error) {
	buckets, err := f.buckets(ctx)
	if err != nil {
		return 0, err
	}
	f.again()
	for _, b := range buckets {
		if b.name != string(schema.Key.Name()) {
			continue
		}
		k, err := f.lastKey(b)
		if err != nil {
			return 0, err
		}
		if k == nil {
			return 1, nil
		}
		rev, err := parseRevKey(k)
		return rev.main, err
	}
	return 0, badDB("no bucket %q", schema.Key.Name())
}

// lastKey goes down the right edge of a bucket's tree; nil if it is empty.
func (f *boltFile) lastKey(b bucketRef) ([]byte, error) {
	page, pgid := b.inline, b.root
	for depth := 0; ; depth++ {
		if pgid != 0 {
			var err error
			if page, err = f.page(pgid, depth); err != nil {
				return nil, err
			}
		}
		n := int(binary.LittleEndian.Uint16(page[10:]))
		if n == 0 {
			return nil, nil
		}
		at := pageHeaderSize + (n-1)*elemSize
		if at+elemSize > len(page) {
			return nil, badDB("page %d has %d elements", pgid, n)
		}
		switch kind := binary.LittleEndian.Uint16(page[8:]); kind {
		case branchPage:
			from := pgid
			if pgid = binary.LittleEndian.Uint64(page[at+8:]); pgid == 0 { // else this page would be read again and again
				return nil, badDB("branch page %d refers to page 0", from)
			}
		case leafPage:
			from := uint64(at) + uint64(binary.LittleEndian.Uint32(page[at+4:]))
			size := uint64(binary.LittleEndian.Uint32(page[at+8:]))
			if from+size > uint64(len(page)) {
				return nil, badDB("leaf page %d points outside of the page", pgid)
			}
			return page[from : from+size], nil
		default:
			return nil, badDB("page %d is of kind %#x", pgid, kind)
		}
	}
}

// UsedSize is the size of a database without the space behind it that etcd has taken in advance.
func UsedSize(path string) (int64, error) {
	f, size, _, err := openDB(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	b, err := openBolt(f, size)
	if err != nil {
		return 0, err
	}
	return int64(b.meta.pages) * int64(b.meta.pageSize), nil
}
