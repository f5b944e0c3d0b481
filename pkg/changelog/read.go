package changelog

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/klauspost/compress/zstd"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/envelope"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// Content is a segment that was read and whose bytes are those that its name promises.
type Content struct {
	// Segment is the row of the listing, Header what it says of itself.
	Segment catalog.Segment
	Header  *protosv1.SegmentHeader
	header  []byte
	payload []byte
}

// readSegment checks everything that can be checked without a key.
func readSegment(s catalog.Segment, data []byte) (*Content, error) {
	bad := func(format string, args ...any) error {
		return &Error{Segment: s.Key(), Kind: cluster.ErrCorrupt, Err: fmt.Errorf(format, args...), Good: s.First - 1}
	}
	sum := sha256.Sum256(data)
	if have := catalog.NewSegmentSum(sum[:]); have != s.Sum {
		return nil, bad("its %d bytes have a SHA-256 that begins with %s: it was changed, cut short, or is another one", len(data), have)
	}
	if len(data) < len(magic)+4 || string(data[:len(magic)]) != magic {
		if bytes.HasPrefix(data, []byte(magic[:len(magic)-1])) {
			return nil, &Error{Segment: s.Key(), Kind: cluster.ErrFuture, Err: errors.New("its form is not known"), Good: s.First - 1}
		}
		return nil, bad("it is not a segment")
	}
	rest := data[len(magic):]
	n := binary.BigEndian.Uint32(rest)
	rest = rest[4:]
	if n > maxHeader || int(n) > len(rest) {
		return nil, bad("its header is larger than it")
	}
	h := &protosv1.SegmentHeader{}
	if err := proto.Unmarshal(rest[:n], h); err != nil {
		return nil, bad("its header can't be read")
	}
	if h.GetVersion() != segmentVersion {
		return nil, &Error{Segment: s.Key(), Kind: cluster.ErrFuture, Err: fmt.Errorf("it has format version %d, this program knows %d", h.GetVersion(), segmentVersion), Good: s.First - 1}
	}
	switch {
	case h.GetIncarnation() != string(s.Incarnation):
		return nil, bad("it belongs to incarnation %s", h.GetIncarnation())
	case h.GetFirstRevision() != s.First || h.GetLastRevision() != s.Last || h.GetEndedUnixMillis() != s.Ended.UnixMilli():
		return nil, bad("its header names revisions %d to %d", h.GetFirstRevision(), h.GetLastRevision())
	case catalog.NewSegmentSum(h.GetPrevious()) != s.Previous:
		return nil, bad("its header names another predecessor than its name")
	case h.GetContentSize() > maxContent:
		return nil, bad("its header says that it has %d bytes of changes, and none has more than %d", h.GetContentSize(), int64(maxContent))
	case h.GetCompression() != zstdName && h.GetCompression() != "":
		return nil, &Error{Segment: s.Key(), Kind: cluster.ErrFuture, Err: fmt.Errorf("compression %q is not known", h.GetCompression()), Good: s.First - 1}
	}
	return &Content{Segment: s, Header: h, header: rest[:n], payload: rest[n:]}, nil
}

// Entry is one of a segment's content: exactly one of the three is set.
type Entry struct {
	Transaction *protosv1.Transaction
	Mark        *protosv1.Mark
	Lease       *protosv1.Lease
}

// Walk visits all entries in their order. What visit got before is to be trusted only if Walk returns without an error: that no byte is lacking is found
// out in the end. opener may be nil for segments that aren't encrypted.
func (c *Content) Walk(ctx context.Context, opener envelope.Opener, visit func(Entry) error) error {
	corrupt := func(err error) error {
		return &Error{Segment: c.Segment.Key(), Kind: cluster.ErrCorrupt, Err: err, Good: c.Segment.First - 1}
	}
	src, err := c.open(ctx, opener)
	if err != nil {
		return err
	}
	counted := &countingReader{r: src}
	var in io.Reader = counted
	if c.Header.GetCompression() == zstdName {
		z, err := zstd.NewReader(in, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxWindow(8<<20))
		if err != nil {
			return fmt.Errorf("read %s: %w", c.Segment.Key(), err)
		}
		defer z.Close()
		in = z
	}
	w := walker{c: c, in: bufio.NewReaderSize(in, 256<<10), last: c.Segment.First - 1, mark: c.Header.GetStartedUnixMillis()}
	if err := w.run(visit); err != nil {
		if w.visitErr != nil {
			return w.visitErr
		}
		if counted.err != nil && c.Header.GetEncryption() != "" {
			return c.sealed(counted.err)
		}
		return corrupt(err)
	}
	return nil
}

func (c *Content) open(ctx context.Context, opener envelope.Opener) (io.Reader, error) {
	src := io.Reader(bytes.NewReader(c.payload))
	if c.Header.GetEncryption() == "" {
		return src, nil
	}
	if opener == nil {
		return nil, fmt.Errorf("read %s: %w: one of %s opens it (--backup-identity of the managers, --identity of etcd-manager-ctl): %w", c.Segment.Key(), envelope.ErrNoKey, strings.Join(c.Header.GetKeyIds(), ", "), cluster.ErrPermanent)
	}
	r, err := opener.Open(ctx, src, binding(c.header))
	if err != nil {
		return nil, c.sealed(err)
	}
	return r, nil
}

// sealed explains what the decryption said. A key that is missing or refused is no fault of the segment, but trying again with the same ones can't help.
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

type walker struct {
	c        *Content
	in       *bufio.Reader
	last     int64
	mark     int64
	changes  int64
	size     int64
	visitErr error
	buf      []byte
}

func (w *walker) run(visit func(Entry) error) error {
	for {
		e, err := w.next()
		if err == io.EOF {
			break
		}
		if err != nil {
			return err
		}
		if err := w.check(e); err != nil {
			return err
		}
		if err := visit(e); err != nil {
			w.visitErr = err
			return err
		}
	}
	h := w.c.Header
	switch {
	case w.last != h.GetLastRevision() || w.mark != h.GetEndedUnixMillis():
		return fmt.Errorf("it ends with revision %d, its header says %d", w.last, h.GetLastRevision())
	case w.changes != h.GetChanges() || w.size != h.GetContentSize():
		return fmt.Errorf("it has %d changes in %d bytes, its header says %d in %d", w.changes, w.size, h.GetChanges(), h.GetContentSize())
	}
	return nil
}

func (w *walker) next() (Entry, error) {
	n, err := binary.ReadUvarint(w.in)
	if err != nil {
		return Entry{}, err
	}
	if n > maxEntry {
		return Entry{}, fmt.Errorf("an entry of %d bytes is too large", n)
	}
	w.size += int64(len(binary.AppendUvarint(nil, n))) + int64(n)
	if most := w.c.Header.GetContentSize(); w.size > most { // a little can be decompressed to very much
		return Entry{}, fmt.Errorf("it has more than the %d bytes that its header says", most)
	}
	if uint64(cap(w.buf)) < n {
		w.buf = make([]byte, n+n/2)
	}
	b := w.buf[:n]
	if _, err := io.ReadFull(w.in, b); err != nil {
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		return Entry{}, err
	}
	var p protosv1.SegmentEntry
	if err := proto.Unmarshal(b, &p); err != nil {
		return Entry{}, errors.New("an entry can't be read")
	}
	return Entry{Transaction: p.GetTransaction(), Mark: p.GetMark(), Lease: p.GetLease()}, nil
}

// check makes sure that revisions follow on each other and that times don't go back.
func (w *walker) check(e Entry) error {
	switch {
	case e.Transaction != nil:
		if e.Transaction.GetRevision() != w.last+1 {
			return fmt.Errorf("revision %d stands behind %d", e.Transaction.GetRevision(), w.last)
		}
		w.last++
		w.changes += int64(len(e.Transaction.GetChanges()))
	case e.Mark != nil:
		if e.Mark.GetRevision() != w.last || e.Mark.GetUnixMillis() < w.mark {
			return fmt.Errorf("a mark of revision %d stands behind revision %d", e.Mark.GetRevision(), w.last)
		}
		w.mark = e.Mark.GetUnixMillis()
	}
	return nil
}

// replayed makes the step of a replay of an entry; false if it is none.
func (e Entry) replayed() (etcd.Replayed, bool, error) {
	switch {
	case e.Lease != nil:
		return etcd.Replayed{LeaseID: e.Lease.GetId(), LeaseTTL: e.Lease.GetGrantedTtlSeconds(), LeaseFrom: e.Lease.GetFromRevision()}, true, nil
	case e.Transaction == nil:
		return etcd.Replayed{}, false, nil
	}
	t := e.Transaction
	x := etcd.Replayed{Revision: t.GetRevision(), Records: make([]etcd.Record, 0, len(t.GetChanges()))}
	for _, c := range t.GetChanges() {
		r, err := etcd.NewRecord(&mvccpb.KeyValue{
			Key: c.GetKey(), CreateRevision: c.GetCreateRevision(), ModRevision: t.GetRevision(), Version: c.GetVersion(), Value: c.GetValue(), Lease: c.GetLease(),
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
