package changelog

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// Content is a segment whose header was read and found right. A small one is in memory, and its
// bytes are those that its name promises; that those of a larger one are is found out when it is
// read.
type Content struct {
	// Segment is the row of the listing, Header what it says of itself.
	Segment catalog.Segment
	Header  *protosv1.SegmentHeader
	header  []byte
	// payload is what stands behind the header; nil if stream yields it.
	payload []byte
	// stored is how many bytes are stored, by the store's word.
	stored int64
	// stream yields the stored bytes from the beginning.
	stream func(context.Context) (io.ReadCloser, error)
}

func corruptSegment(s catalog.Segment, format string, args ...any) *Error {
	return &Error{Segment: s.Key(), Kind: cluster.ErrCorrupt, Err: fmt.Errorf(format, args...), Good: s.First - 1}
}

func wrongSum(s catalog.Segment, n int64, have catalog.SegmentSum) *Error {
	return corruptSegment(s, "its %d bytes have a SHA-256 that begins with %s: it was changed, cut short, or is another one", n, have)
}

// readSegment checks everything that can be checked without a key.
func readSegment(s catalog.Segment, data []byte) (*Content, error) {
	if have := catalog.NewSegmentSum(sumOf(data)); have != s.Sum {
		return nil, wrongSum(s, int64(len(data)), have)
	}
	c, err := readHeader(s, data, int64(len(data)))
	if err != nil {
		return nil, err
	}
	c.payload = data[len(magic)+4+len(c.header):]
	return c, nil
}

// readHeader reads the header at the beginning of a segment of which so many bytes are stored.
func readHeader(s catalog.Segment, data []byte, stored int64) (*Content, error) {
	if len(data) < len(magic)+4 || string(data[:len(magic)]) != magic {
		if bytes.HasPrefix(data, []byte(magic[:len(magic)-1])) {
			return nil, &Error{Segment: s.Key(), Kind: cluster.ErrFuture, Err: errors.New("its form is not known"), Good: s.First - 1}
		}
		return nil, corruptSegment(s, "it is not a segment")
	}
	rest := data[len(magic):]
	n := binary.BigEndian.Uint32(rest)
	rest = rest[4:]
	if n > maxHeader || int(n) > len(rest) {
		return nil, corruptSegment(s, "its header is larger than it")
	}
	return decodeHeader(s, rest[:n], stored)
}

func decodeHeader(s catalog.Segment, header []byte, stored int64) (*Content, error) {
	c := &Content{Segment: s, Header: &protosv1.SegmentHeader{}, header: header, stored: stored}
	if !fewFields(c.header) || proto.Unmarshal(c.header, c.Header) != nil {
		return nil, corruptSegment(s, "its header can't be read")
	}
	return c, c.checkHeader()
}

// fewFields tells that decoding a message can't take a multiple of its size.
func fewFields(b []byte) bool {
	for n := 0; len(b) > 0; n++ {
		_, _, size := protowire.ConsumeField(b)
		if size < 0 || n == maxHeaderFields {
			return false
		}
		b = b[size:]
	}
	return true
}

// checkHeader compares the header with the segment's name and with what a segment can have.
func (c *Content) checkHeader() error {
	s, h := c.Segment, c.Header
	future := func(format string, args ...any) error {
		return &Error{Segment: s.Key(), Kind: cluster.ErrFuture, Err: fmt.Errorf(format, args...), Good: s.First - 1}
	}
	most := boundsOf(c.stored)
	switch {
	case h.GetVersion() != segmentVersion:
		return future("it has format version %d, this program knows %d", h.GetVersion(), segmentVersion)
	case h.GetIncarnation() != string(s.Incarnation):
		return corruptSegment(s, "it belongs to incarnation %.40q", h.GetIncarnation())
	case h.GetFirstRevision() != s.First || h.GetLastRevision() != s.Last || h.GetEndedUnixMillis() != s.Ended.UnixMilli():
		return corruptSegment(s, "its header names revisions %d to %d", h.GetFirstRevision(), h.GetLastRevision())
	case catalog.NewSegmentSum(h.GetPrevious()) != s.Previous:
		return corruptSegment(s, "its header names another predecessor than its name")
	case !most.hold(h.GetContentSize(), 0, h.GetChanges()):
		return corruptSegment(s, "its header says that it has %d changes in %d bytes, and one of %d stored bytes has at most %d in %d",
			h.GetChanges(), h.GetContentSize(), c.stored, most.changes, most.content)
	case h.GetCompression() != zstdName && h.GetCompression() != "":
		return future("compression %.40q is not known", h.GetCompression())
	}
	return nil
}

// read fetches a segment, or the beginning of a large one, and checks what can be checked of that without a key.
func (a *Archive) read(ctx context.Context, s catalog.Segment) (*Content, error) {
	open := func(ctx context.Context) (io.ReadCloser, int64, error) {
		r, size, err := a.Catalog.OpenSegment(ctx, s)
		if errors.Is(err, catalog.ErrNotFound) {
			err = &Error{Segment: s.Key(), Kind: catalog.ErrNotFound, Err: errors.New("it is gone"), Good: s.First - 1}
		}
		return r, size, err
	}
	r, size, err := open(ctx)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, keepAtOnce+1))
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", s.Key(), err)
	}
	if len(data) <= keepAtOnce {
		return readSegment(s, data)
	}
	c, err := readHeader(s, data, size)
	if err != nil {
		return nil, err
	}
	c.header = bytes.Clone(c.header) // the rest of data is let go
	c.stream = func(ctx context.Context) (io.ReadCloser, error) {
		r, now, err := open(ctx)
		if err == nil && now != size {
			err = errors.Join(corruptSegment(s, "it had %d bytes, and now it has %d", size, now), r.Close())
		}
		return r, err
	}
	return c, nil
}

// whole reads all of a segment, so that it is known that its bytes are those that its name promises.
func (c *Content) whole(ctx context.Context) error {
	src, err := c.bytes(ctx)
	if err != nil {
		return err
	}
	defer src.Close()
	_, err = io.Copy(io.Discard, src)
	return src.failure(err)
}

// source yields what stands behind the header. In the end it finds out whether all the bytes are those that the segment's name promises.
type source struct {
	c    *Content
	r    io.Reader
	end  io.Closer
	sum  hash.Hash
	read int64
	// err is what reading has failed with.
	err error
}

func (c *Content) bytes(ctx context.Context) (*source, error) {
	if c.stream == nil {
		return &source{c: c, r: bytes.NewReader(c.payload), end: io.NopCloser(nil)}, nil
	}
	r, err := c.stream(ctx)
	if err != nil {
		return nil, err
	}
	s := &source{c: c, r: io.LimitReader(r, c.stored+1), end: r, sum: sha256.New()}
	head := make([]byte, len(magic)+4+len(c.header))
	if _, err := io.ReadFull(s, head); err != nil {
		return nil, errors.Join(s.failure(err), s.Close())
	}
	if !bytes.Equal(head[len(magic)+4:], c.header) {
		return nil, errors.Join(corruptSegment(c.Segment, "its header was another one a moment ago"), s.Close())
	}
	return s, nil
}

// Read fails at the end if the bytes aren't the right ones.
func (s *source) Read(p []byte) (int, error) {
	n, err := s.r.Read(p)
	if s.sum != nil {
		s.sum.Write(p[:n])
	}
	s.read += int64(n)
	if err == io.EOF && s.sum != nil {
		if have := catalog.NewSegmentSum(s.sum.Sum(nil)); have != s.c.Segment.Sum || s.read != s.c.stored {
			err = wrongSum(s.c.Segment, s.read, have)
		}
	}
	if err != nil && err != io.EOF {
		s.err = err
	}
	return n, err
}

// Close ends the stream.
func (s *source) Close() error { return s.end.Close() }

// failure explains what reading has failed with, or returns err if it hasn't.
func (s *source) failure(err error) error {
	var known *Error
	switch {
	case s.err == nil:
		return err
	case errors.As(s.err, &known):
		return s.err
	}
	return fmt.Errorf("read %s: %w", s.c.Segment.Key(), s.err)
}

// digest reads all of a stream, and returns its SHA-256 and its beginning, with room for a header.
func digest(r io.Reader) (sum, head []byte, size int64, err error) {
	h := sha256.New()
	in := io.TeeReader(r, h)
	if head, err = io.ReadAll(io.LimitReader(in, int64(len(magic)+4+maxHeader))); err != nil {
		return nil, nil, 0, err
	}
	n, err := io.Copy(io.Discard, in)
	return h.Sum(nil), head, int64(len(head)) + n, err
}
