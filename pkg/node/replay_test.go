package node

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// TestSegmentsAreListedHere: a leader names the two ends of very many segments in a small request, and the node finds those between by
// itself, in few requests. One that is missing is an error.
func TestSegmentsAreListedHere(t *testing.T) {
	const segments, gone = 50_000, 31_000
	name := func(i int) catalog.SegmentName {
		sum := func(i int) catalog.SegmentSum { return catalog.SegmentSum(fmt.Sprintf("%016x", i)) }
		return catalog.SegmentName{First: int64(i)*10 + 101, Last: int64(i)*10 + 110, Ended: time.UnixMilli(int64(i)),
			Previous: sum(i), Sum: sum(i + 1)}
	}
	key := func(i int) string { return "changes/0000000000000001/" + name(i).String() }
	store := func(n int, key func(int) string) *blobtest.Long {
		return &blobtest.Long{Memory: blobtest.NewMemory(), Count: n, Key: key, Body: func(string) []byte { return nil }}
	}
	for _, n := range []int{1, 1000, segments} {
		r := &protosv1.Replay{Incarnation: "0000000000000001", BaseRevision: 100, Revision: int64(100 + n*10), Head: name(n - 1).String()}
		req := &protosv1.PerformRequest{Action: &protosv1.PerformRequest_Prove{Prove: &protosv1.Prove{
			Operation: "2026-01-29T02:02:03Z-000000", Backup: "2026-01-29T01:02:03Z-000000", Replay: r}}}
		if size := proto.Size(req); size > 500 {
			t.Errorf("%d segments: a request of %d bytes", n, size)
		}
		s := store(segments, key)
		f := fetcher{replay: r}
		chain, err := f.chain(t.Context(), &changelog.Archive{Catalog: catalog.New(s)})
		if err != nil || len(chain.Segments) != n || chain.Segments[n-1].SegmentName.String() != name(n-1).String() {
			t.Errorf("%d segments: the node finds %d: %v", n, len(chain.Segments), err)
		}
		if most := int64(n/1000 + 3); s.Requests.Load() > most {
			t.Errorf("%d segments: it took %d requests", n, s.Requests.Load())
		}
	}
	s := store(segments-1, func(i int) string {
		if i >= gone {
			i++
		}
		return key(i)
	})
	f := fetcher{replay: &protosv1.Replay{Incarnation: "0000000000000001", BaseRevision: 100, Revision: 100 + segments*10,
		Head: name(segments - 1).String()}}
	_, err := f.chain(t.Context(), &changelog.Archive{Catalog: catalog.New(s)})
	if err == nil || !strings.Contains(err.Error(), "is gone") {
		t.Errorf("a segment is missing: %v", err)
	}
}
