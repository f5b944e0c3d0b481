package changelog

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"slices"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/envelope"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// segmentCost is the decoder's window of 8 MiB and its tables, and what a change of two bytes becomes in memory.
var segmentCost = testutil.Cost{Fixed: 32 << 20, PerByte: 400}

func fuzzSegment(f *testing.F, n int) (catalog.Segment, []byte) {
	b := newBuilder(1)
	for rev := int64(2); rev < int64(2+n); rev++ {
		must(f, b.add(client.Transaction{Revision: rev, Events: []*mvccpb.Event{
			{Kv: &mvccpb.KeyValue{Key: []byte("/registry/pods/k"), Value: []byte("value"), CreateRevision: rev, ModRevision: rev, Version: 1}},
			{Type: mvccpb.DELETE, Kv: &mvccpb.KeyValue{Key: []byte("gone"), ModRevision: rev}},
		}}))
		must(f, b.mark(time.UnixMilli(rev*1000), time.Time{}))
	}
	x, err := b.seal(context.Background(), origin{incarnation: "i", clusterName: "test"}, nil, "a test", nil)
	must(f, err)
	return catalog.Segment{SegmentName: x.name, Incarnation: "i", Size: int64(len(x.data))}, x.data
}

// FuzzSegment reads any bytes as a segment whose name fits its bytes, as a forger would make it.
func FuzzSegment(f *testing.F) {
	s, data := fuzzSegment(f, 3)
	f.Add(data)
	f.Add(data[:len(data)/2])
	f.Add([]byte(magic))
	f.Fuzz(func(t *testing.T, data []byte) {
		s := s
		s.Sum, s.Size = catalog.NewSegmentSum(sumOf(data)), int64(len(data))
		testutil.Untrusted(t, len(data), segmentCost, func() error {
			c, err := readSegment(s, data)
			if err != nil {
				return named(t, err)
			}
			walkErr := c.Walk(t.Context(), nil, func(Entry) error { return nil })
			marksErr := c.Marks(t.Context(), nil, func(*protosv1.Mark) error { return nil })
			if walkErr == nil && marksErr != nil {
				t.Errorf("sound, but its heartbeats can't be read: %v", marksErr)
			}
			return errors.Join(named(t, walkErr), named(t, marksErr))
		})
	})
}

func named(t *testing.T, err error) error {
	var e *Error
	if err != nil && !errors.As(err, &e) && !errors.Is(err, envelope.ErrNoKey) {
		t.Errorf("no error of a segment: %v", err)
	}
	return err
}

// FuzzSegmentContent gives the reader of entries any bytes behind a header that fits them.
func FuzzSegmentContent(f *testing.F) {
	entry := func(e *protosv1.SegmentEntry) []byte {
		b, err := proto.Marshal(e)
		must(f, err)
		return append(binary.AppendUvarint(nil, uint64(len(b))), b...)
	}
	small := entry(&protosv1.SegmentEntry{Entry: &protosv1.SegmentEntry_Transaction{Transaction: &protosv1.Transaction{Revision: 2,
		Changes: []*protosv1.Change{{Key: []byte("k"), Value: []byte("v"), CreateRevision: 2, Version: 1}}}}})
	large := entry(&protosv1.SegmentEntry{Entry: &protosv1.SegmentEntry_Transaction{Transaction: &protosv1.Transaction{Revision: 2,
		Changes: []*protosv1.Change{{Key: []byte("k"), Value: make([]byte, smallEntry)}, {Key: []byte("l"), Deleted: true}}}}})
	mark := entry(&protosv1.SegmentEntry{Entry: &protosv1.SegmentEntry_Mark{Mark: &protosv1.Mark{Revision: 2, UnixMillis: 5}}})
	lease := entry(&protosv1.SegmentEntry{Entry: &protosv1.SegmentEntry_Lease{Lease: &protosv1.Lease{Id: 7, GrantedTtlSeconds: 60}}})
	f.Add(slices.Concat(small, mark, lease), int64(1))
	f.Add(slices.Concat(large, mark), int64(2))
	f.Add(binary.AppendUvarint(nil, maxEntry), int64(1))
	f.Fuzz(func(t *testing.T, content []byte, changes int64) {
		c := &Content{
			Segment: catalog.Segment{SegmentName: catalog.SegmentName{First: 2, Last: 2}},
			Header:  &protosv1.SegmentHeader{LastRevision: 2, EndedUnixMillis: 5, Changes: changes, ContentSize: int64(len(content))},
			stored:  int64(len(content)),
		}
		testutil.Untrusted(t, len(content), segmentCost, func() error {
			_, err := c.parse(bytes.NewReader(content), false, func(e Entry) error {
				_, _, err := e.replayed()
				return err
			})
			_, marksErr := c.parse(bytes.NewReader(content), true, func(Entry) error { return nil })
			if err == nil && marksErr != nil {
				t.Errorf("sound, but its heartbeats can't be read: %v", marksErr)
			}
			return err
		})
	})
}

// FuzzReplayFrames is for the child that gets segments on its standard input.
func FuzzReplayFrames(f *testing.F) {
	s, data := fuzzSegment(f, 3)
	c, err := readSegment(s, data)
	must(f, err)
	for _, needed := range []bool{true, false} {
		head, err := json.Marshal(segmentFrameHead{Name: s.SegmentName.String(), Incarnation: "i", Header: c.header, Stored: s.Size, Needed: needed})
		must(f, err)
		frame := append(binary.AppendUvarint([]byte{segmentFrame}, uint64(len(head))), head...)
		frame = append(binary.AppendUvarint(frame, uint64(len(c.payload))), c.payload...)
		f.Add(append(frame, 0, keepSegment, lastFrame))
		f.Add(append(frame, 0, 'x', lastFrame))
		f.Add(frame)
	}
	f.Add(binary.AppendUvarint([]byte{segmentFrame}, maxFrameHead))
	f.Fuzz(func(t *testing.T, in []byte) {
		testutil.Untrusted(t, len(in), segmentCost, func() error {
			p := newReplayInput(bytes.NewReader(in), 4)
			for {
				if _, err := p.next(); err != nil {
					p.report()
					return err
				}
			}
		})
	})
}
