package changelog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/protobuf/proto"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// edit changes the entries of all stored segments of a life, each of which follows on the one before again.
func edit(w *world, life catalog.Incarnation, change func(*protosv1.SegmentEntry)) {
	w.t.Helper()
	ctx := w.t.Context()
	var list []catalog.Segment
	for s, err := range w.catalog.Segments(ctx, life, 0) {
		must(w.t, err)
		list = append(list, s)
	}
	var previous []byte
	for _, s := range list {
		r, _, err := w.catalog.OpenSegment(ctx, s)
		must(w.t, err)
		old, err := io.ReadAll(r)
		must(w.t, errors.Join(err, r.Close()))
		c, err := readSegment(s, old)
		must(w.t, err)
		content := c.payload
		if c.Header.GetCompression() == zstdName {
			z, err := zstd.NewReader(bytes.NewReader(c.payload))
			must(w.t, err)
			content, err = io.ReadAll(z)
			must(w.t, err)
			z.Close()
		}
		var edited []byte
		for len(content) > 0 {
			n, size := binary.Uvarint(content)
			var e protosv1.SegmentEntry
			must(w.t, proto.Unmarshal(content[size:size+int(n)], &e))
			content = content[size+int(n):]
			if change(&e); e.Entry == nil {
				continue // it is left out
			}
			b, err := proto.Marshal(&e)
			must(w.t, err)
			edited = append(binary.AppendUvarint(edited, uint64(len(b))), b...)
		}
		c.Header.ContentSize, c.Header.Compression, c.Header.Previous = int64(len(edited)), "", previous
		header, err := proto.Marshal(c.Header)
		must(w.t, err)
		out := append([]byte(magic), binary.BigEndian.AppendUint32(nil, uint32(len(header)))...)
		out = append(append(out, header...), edited...)
		_, err = w.catalog.DeleteSegments(ctx, life, []catalog.SegmentName{s.SegmentName})
		must(w.t, err)
		s.Previous, s.Sum = catalog.NewSegmentSum(previous), catalog.NewSegmentSum(sumOf(out))
		must(w.t, w.catalog.PutSegment(ctx, life, s.SegmentName, out))
		previous = sumOf(out)
	}
}

// TestProofComparesLeases has a chain whose changes give a lease another TTL, leave it out, or attach fewer keys to it: each is reported.
func TestProofComparesLeases(t *testing.T) {
	w := newWorld(t, "etcd-3.6", "3.6.16")
	ctx := t.Context()
	w.put("/first", "1")
	r, stop := w.record(nil)
	w.began(r)
	w.backup()
	g, err := w.client.Grant(ctx, 4321)
	must(t, err)
	w.put("/leased/1", "1", clientv3.WithLease(g.ID))
	last := w.put("/leased/2", "2", clientv3.WithLease(g.ID))
	w.archived(r, last)
	newest := w.backup()
	w.archived(r, w.put("/last", "1"))
	stop()
	life := r.Status().Incarnation
	verify := func() (Verified, error) {
		return w.archive.Verify(ctx, newest.Backup, VerifyOptions{Executable: self(t), Dir: t.TempDir() + "/verify"})
	}
	if v, err := verify(); err != nil || v.Base == "" || v.ChainProblem != "" {
		t.Fatalf("before: %+v, %v", v, err)
	}
	ttl := func(seconds int64) func(*protosv1.SegmentEntry) {
		return func(e *protosv1.SegmentEntry) {
			if l := e.GetLease(); l.GetId() == int64(g.ID) {
				l.GrantedTtlSeconds = seconds
			}
		}
	}
	for _, c := range []struct {
		name, expect string
		change       func(*protosv1.SegmentEntry)
	}{
		{"another TTL", "ids, TTLs or keys differ", ttl(60)},
		{"an unknown TTL", "1 leases is unknown", ttl(0)},
	} {
		edit(w, life, c.change)
		if v, err := verify(); err != nil || v.Base == "" || !strings.Contains(v.ChainProblem, c.expect) {
			t.Errorf("%s: %+v, %v", c.name, v, err)
		}
	}
	edit(w, life, ttl(4321))
	if v, err := verify(); err != nil || v.ChainProblem != "" {
		t.Errorf("as it was: %+v, %v", v, err)
	}
	edit(w, life, func(e *protosv1.SegmentEntry) {
		if e.GetLease().GetId() == int64(g.ID) {
			e.Entry = nil
		}
	})
	if v, err := verify(); err != nil || v.Base == "" || !strings.Contains(v.ChainProblem, "1 leases is unknown") {
		t.Errorf("left out: %+v, %v", v, err)
	}
	// A key without its lease is another record, so HashKV differs already.
	edit(w, life, func(e *protosv1.SegmentEntry) {
		for _, c := range e.GetTransaction().GetChanges() {
			if string(c.GetKey()) == "/leased/2" {
				c.Lease = 0
			}
		}
	})
	var mismatch *MismatchError
	if v, err := verify(); !errors.As(err, &mismatch) {
		t.Errorf("fewer keys: %+v, %v", v, err)
	}
}
