package changelog

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/envelope"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// Entry is one of a segment's content, or a part of a large transaction: exactly one of the three is set.
type Entry struct {
	Transaction *protosv1.Transaction
	Mark        *protosv1.Mark
	Lease       *protosv1.Lease
	// Sub is how many changes of the transaction came before: a large one comes in parts.
	Sub int
}

// Walk visits all entries in their order. What visit got before is to be trusted only if Walk
// returns without an error: that no byte is lacking is found out in the end. opener may be nil for
// segments that aren't encrypted.
func (c *Content) Walk(ctx context.Context, opener envelope.Opener, visit func(Entry) error) error {
	return c.walk(ctx, opener, false, visit)
}

// Marks is Walk for marks alone: large transactions are checked and passed over without anything of them being held.
func (c *Content) Marks(ctx context.Context, opener envelope.Opener, visit func(*protosv1.Mark) error) error {
	return c.walk(ctx, opener, true, func(e Entry) error {
		if e.Mark == nil {
			return nil
		}
		return visit(e.Mark)
	})
}

func (c *Content) walk(ctx context.Context, opener envelope.Opener, marks bool, visit func(Entry) error) error {
	raw, plain, err := c.open(ctx, opener)
	if err != nil {
		return err
	}
	defer raw.Close()
	own, err := c.parse(plain, marks, visit)
	if own != nil {
		return own
	}
	if err == nil {
		_, err = io.Copy(io.Discard, plain) // so that the end is seen by whoever checks it there
	}
	return c.explain(raw, plain, err)
}

// explain says why the content couldn't be read, which is nil if it could.
func (c *Content) explain(raw *source, plain *countingReader, err error) error {
	switch {
	case raw.err != nil:
		return raw.failure(err)
	case plain.err != nil:
		return c.sealed(plain.err)
	case err != nil:
		return corruptSegment(c.Segment, "%w", err)
	}
	return nil
}

// parse decompresses the content and visits its entries. own is what visit has failed with.
func (c *Content) parse(in io.Reader, marks bool, visit func(Entry) error) (own, err error) {
	if c.Header.GetCompression() == zstdName {
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20), zstd.WithDecoderLowmem(true))
		if err != nil {
			return nil, err
		}
		defer z.Close()
		in = z
	}
	w := walker{
		c: c, in: bufio.NewReaderSize(in, smallEntry), last: c.Segment.First - 1, mark: c.Header.GetStartedUnixMillis(),
		most: boundsOf(c.stored), marks: marks, visit: visit,
	}
	err = w.run()
	return w.visitErr, err
}

// open yields the content as it was before it was encrypted.
func (c *Content) open(ctx context.Context, opener envelope.Opener) (*source, *countingReader, error) {
	if c.Header.GetEncryption() != "" && opener == nil {
		return nil, nil, fmt.Errorf("read %s: %w: one of %s opens it (--backup-identity of the managers, --identity of etcd-manager-ctl): %w",
			c.Segment.Key(), envelope.ErrNoKey, cluster.Shown(strings.Join(c.Header.GetKeyIds(), ", "), 500), cluster.ErrPermanent)
	}
	raw, err := c.bytes(ctx)
	if err != nil || c.Header.GetEncryption() == "" {
		return raw, &countingReader{r: raw}, err
	}
	r, err := opener.Open(ctx, raw, binding(c.header))
	if err != nil {
		if raw.err != nil {
			return nil, nil, errors.Join(raw.failure(err), raw.Close())
		}
		return nil, nil, errors.Join(c.sealed(err), raw.Close())
	}
	return raw, &countingReader{r: r}, nil
}

// sealed explains what the decryption said. A key that is missing or refused is no fault of the
// segment, but trying again with the same ones can't help.
func (c *Content) sealed(err error) error {
	switch {
	case errors.Is(err, envelope.ErrTampered):
		return &Error{Segment: c.Segment.Key(), Kind: cluster.ErrCorrupt, Err: err, Good: c.Segment.First - 1}
	case errors.Is(err, envelope.ErrUnavailable):
		return fmt.Errorf("read %s: %w", c.Segment.Key(), err)
	}
	return fmt.Errorf("read %s: %w: %w", c.Segment.Key(), err, cluster.ErrPermanent)
}

// countingReader remembers what the decryption said, which is told apart from what decompression makes of it.
type countingReader struct {
	r   io.Reader
	err error
}

func (c *countingReader) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	if err != nil && err != io.EOF {
		c.err = err
	}
	return n, err
}

// replayed makes the step of a replay of an entry; false if it is none.
func (e Entry) replayed() (database.Replayed, bool, error) {
	switch {
	case e.Lease != nil:
		return database.Replayed{LeaseID: e.Lease.GetId(), LeaseTTL: e.Lease.GetGrantedTtlSeconds(), LeaseFrom: e.Lease.GetFromRevision()},
			true, nil
	case e.Transaction == nil:
		return database.Replayed{}, false, nil
	}
	t := e.Transaction
	x := database.Replayed{Revision: t.GetRevision(), Sub: e.Sub, Records: make([]database.Record, 0, len(t.GetChanges()))}
	for _, c := range t.GetChanges() {
		r, err := database.NewRecord(&mvccpb.KeyValue{
			Key: c.GetKey(), CreateRevision: c.GetCreateRevision(), ModRevision: t.GetRevision(),
			Version: c.GetVersion(), Value: c.GetValue(), Lease: c.GetLease(),
		}, c.GetDeleted())
		if err != nil {
			return x, false, err
		}
		x.Records = append(x.Records, r)
	}
	return x, true, nil
}

// at is a mark's time, and since is zero unless its revisions came late.
func markTimes(m *protosv1.Mark) (at, since time.Time) {
	at = time.UnixMilli(m.GetUnixMillis()).UTC()
	if s := m.GetSinceUnixMillis(); s != 0 {
		since = time.UnixMilli(s).UTC()
	}
	return at, since
}
