package changelog

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/klauspost/compress/zstd"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/envelope"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// magic begins every segment; the last byte is the version of what follows up to the header.
const magic = "ETCDCHG\x01"

const (
	segmentVersion = 1
	zstdName       = "zstd"
)

// Error says what is wrong with a segment. Trying again with the same one can't help:
// errors.Is(err, cluster.ErrPermanent) holds beside the kind.
type Error struct {
	// Segment is its key, relative to the store's base.
	Segment string
	// Kind is cluster.ErrCorrupt, cluster.ErrFuture or catalog.ErrNotFound.
	Kind error
	Err  error
	// Good is the last revision before it, up to which everything was found right.
	Good int64
}

// Error names the segment, what was found, and up to where all is well.
func (e *Error) Error() string {
	s := fmt.Sprintf("segment %s: %v", e.Segment, e.Kind)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	if e.Good > 0 {
		s += fmt.Sprintf(" (everything up to revision %d can be reached: --to-revision=%d)", e.Good, e.Good)
	}
	return s
}

// Unwrap gives the kind, cluster.ErrPermanent and the cause.
func (e *Error) Unwrap() []error {
	errs := []error{e.Kind, cluster.ErrPermanent}
	if e.Err != nil {
		errs = append(errs, e.Err)
	}
	return errs
}

// builder collects the entries of a segment.
type builder struct {
	content bytes.Buffer
	first   int64
	last    int64
	changes int64
	// largest is the size of the largest change, or a little more.
	largest int64
	started time.Time
	ended   time.Time
	// marked is the revision of the newest mark that was written.
	marked int64
	// quiet is until when nothing has come behind that mark; it is written only if it is the last thing that is known.
	quiet *protosv1.Mark
	// unknown are the leases whose TTL is still to be learned.
	unknown []*protosv1.Lease
}

// newBuilder begins a segment behind revision last.
func newBuilder(last int64) *builder {
	return &builder{first: last + 1, last: last, marked: -1}
}

// newBuilderAt begins a segment behind revision last in a chain that tells of what happened up to a moment: its times begin there.
func newBuilderAt(last int64, ended time.Time) *builder {
	b := newBuilder(last)
	b.ended = ended
	return b
}

func (b *builder) empty() bool { return b.last < b.first }

func (b *builder) entry(e *protosv1.SegmentEntry) error {
	n := proto.Size(e)
	b.content.Grow(n + binary.MaxVarintLen64)
	out := binary.AppendUvarint(b.content.AvailableBuffer(), uint64(n))
	out, err := proto.MarshalOptions{UseCachedSize: true}.MarshalAppend(out, e)
	if err != nil {
		return fmt.Errorf("encode segment: %w", err)
	}
	b.content.Write(out)
	return nil
}

// changeRest is more than what a change takes beside its key and its value.
const changeRest = 64

// add appends a transaction, which must follow on the last one.
func (b *builder) add(t client.Transaction) error {
	if t.Revision != b.last+1 {
		return fmt.Errorf("%w: revision %d can't follow %d", etcd.ErrGap, t.Revision, b.last)
	}
	p := &protosv1.Transaction{Revision: t.Revision, Changes: make([]*protosv1.Change, 0, len(t.Events))}
	for _, e := range t.Events {
		c := &protosv1.Change{Key: e.Kv.Key}
		if e.Type == mvccpb.DELETE {
			c.Deleted = true
		} else {
			c.CreateRevision, c.Version, c.Value, c.Lease = e.Kv.CreateRevision, e.Kv.Version, e.Kv.Value, e.Kv.Lease
		}
		p.Changes = append(p.Changes, c)
		b.largest = max(b.largest, int64(len(c.GetKey())+len(c.GetValue())+changeRest))
	}
	b.last = t.Revision
	b.changes += int64(len(p.Changes))
	return b.entry(&protosv1.SegmentEntry{Entry: &protosv1.SegmentEntry_Transaction{Transaction: p}})
}

// lease notes for how many seconds a lease was granted, or that it isn't known.
func (b *builder) lease(l *protosv1.Lease) error {
	return b.entry(&protosv1.SegmentEntry{Entry: &protosv1.SegmentEntry_Lease{Lease: l}})
}

// mark notes that at this time the last revision was the newest. Times never go back, not from the
// segment before to this one either. since is zero unless the revisions since the last mark came
// late.
func (b *builder) mark(at, since time.Time) error {
	if at.Before(b.ended) {
		at = b.ended
	}
	if b.started.IsZero() {
		b.started = at
	}
	b.ended = at
	m := &protosv1.Mark{Revision: b.last, UnixMillis: at.UnixMilli()}
	if b.last == b.marked {
		b.quiet = m
		return nil
	}
	if !since.IsZero() && since.Before(at) {
		m.SinceUnixMillis = since.UnixMilli()
	}
	b.marked, b.quiet = b.last, nil
	return b.entry(&protosv1.SegmentEntry{Entry: &protosv1.SegmentEntry_Mark{Mark: m}})
}

// sealed is a segment as it is stored.
type sealed struct {
	name catalog.SegmentName
	data []byte
	// sum is the whole SHA-256 of data.
	sum []byte
}

// origin is what all segments of a recorder have in common.
type origin struct {
	incarnation catalog.Incarnation
	clusterName string
	clusterID   uint64
	node        cluster.NodeID
	term        cluster.Term
	toolVersion string
}

// seal ends the segment. previous is the SHA-256 of the one before, or nil with the reason why a
// chain begins. The builder is of no use afterwards.
func (b *builder) seal(ctx context.Context, o origin, previous []byte, begins string, s envelope.Sealer) (sealed, error) {
	if b.started.IsZero() {
		return sealed{}, errors.New("seal segment: it has no heartbeat")
	}
	if q := b.quiet; q != nil {
		if err := b.entry(&protosv1.SegmentEntry{Entry: &protosv1.SegmentEntry_Mark{Mark: q}}); err != nil {
			return sealed{}, err
		}
	}
	h := &protosv1.SegmentHeader{
		Version: segmentVersion, Incarnation: string(o.incarnation), ClusterName: o.clusterName, ClusterId: o.clusterID,
		FirstRevision: b.first, LastRevision: b.last, Previous: previous, Begins: begins,
		StartedUnixMillis: b.started.UnixMilli(), EndedUnixMillis: b.ended.UnixMilli(),
		Changes: b.changes, ContentSize: int64(b.content.Len()), Compression: zstdName, Node: string(o.node),
		Term: uint64(o.term), ToolVersion: o.toolVersion,
		UnknownLeases: b.unknown,
	}
	if s != nil {
		h.Encryption, h.KeyIds = s.Info()
	}
	data, err := b.encode(ctx, h, s)
	// What readers would take for too much in too little is stored as it is.
	if err == nil && !boundsOf(int64(len(data))).hold(h.GetContentSize(), b.largest, b.changes) {
		h.Compression = ""
		data, err = b.encode(ctx, h, s)
	}
	if err != nil {
		return sealed{}, err
	}
	sum := sumOf(data)
	return sealed{data: data, sum: sum, name: catalog.SegmentName{
		First: b.first, Last: b.last, Ended: time.UnixMilli(b.ended.UnixMilli()).UTC(),
		Previous: catalog.NewSegmentSum(previous), Sum: catalog.NewSegmentSum(sum),
	}}, nil
}

// encode makes the stored bytes.
func (b *builder) encode(ctx context.Context, h *protosv1.SegmentHeader, s envelope.Sealer) ([]byte, error) {
	header, err := proto.Marshal(h)
	if err != nil {
		return nil, fmt.Errorf("encode segment: %w", err)
	}
	var out bytes.Buffer
	out.WriteString(magic)
	out.Write(binary.BigEndian.AppendUint32(nil, uint32(len(header))))
	out.Write(header)
	if err := b.pack(ctx, &out, h.GetCompression(), header, s); err != nil {
		return nil, fmt.Errorf("seal segment: %w", err)
	}
	return out.Bytes(), nil
}

// pack compresses the content, and encrypts it.
func (b *builder) pack(ctx context.Context, out io.Writer, compression string, header []byte, s envelope.Sealer) error {
	var end io.Closer
	if s != nil {
		w, err := s.Seal(ctx, out, binding(header))
		if err != nil {
			return err
		}
		out, end = w, w
	}
	if compression == "" {
		_, err := out.Write(b.content.Bytes())
		if err != nil || end == nil {
			return err
		}
		return end.Close()
	}
	z, err := zstd.NewWriter(out, zstd.WithEncoderLevel(zstd.SpeedFastest), zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
	if err != nil {
		return err
	}
	if _, err := z.Write(b.content.Bytes()); err != nil {
		return errors.Join(err, z.Close())
	}
	if err := z.Close(); err != nil || end == nil {
		return err
	}
	return end.Close()
}

// binding ties encrypted content to its header.
func binding(header []byte) string {
	sum := sha256.Sum256(header)
	return "segment " + hex.EncodeToString(sum[:])
}
