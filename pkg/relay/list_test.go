package relay

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

const segments = "changes/0000000000000001/"

// fill stores empty segments and returns their keys in order.
func (w *world) fill(n int) []string {
	w.t.Helper()
	var keys []string
	for i := range int64(n) {
		s := catalog.Segment{Incarnation: "0000000000000001",
			SegmentName: catalog.SegmentName{First: i + 1, Last: i + 1, Ended: time.Unix(i, 0).UTC(),
				Previous: catalog.NewSegmentSum(nil), Sum: catalog.NewSegmentSum(fmt.Appendf(nil, "%032d", i))}}
		keys = append(keys, s.Key())
		_, err := w.files.Put(w.t.Context(), s.Key(), strings.NewReader("x"), blob.PutOptions{})
		must(w.t, err)
	}
	return keys
}

func (w *world) listed(prefix, after string) (keys []string, err error) {
	for e, err := range w.fallback.List(w.t.Context(), prefix, blob.ListOptions{After: after}) {
		if err != nil {
			return keys, err
		}
		if e.Size != 1 {
			return keys, fmt.Errorf("%s has %d bytes", e.Key, e.Size)
		}
		keys = append(keys, e.Key)
	}
	return keys, nil
}

// TestListThroughTheLeader has a node list segments that it can't list itself, from the beginning
// or from where its own listing has broken off.
func TestListThroughTheLeader(t *testing.T) {
	testutil.Long(t)
	w := newWorld(t, 1)
	want := w.fill(2*entriesSent + 7)
	for _, after := range []int{0, 1, entriesSent, len(want) - 1} {
		w.primary.Heal()
		w.primary.Add(blobtest.Fault{Op: "list", AfterEntries: after, Err: blobtest.Transient("list", segments)})
		got, err := w.listed(segments, "")
		if err != nil || !slices.Equal(got, want) {
			t.Errorf("broken off behind %d: %d keys, want %d: %v", after, len(got), len(want), err)
		}
	}
	if got, err := w.listed(segments, want[100]); err != nil || !slices.Equal(got, want[101:]) {
		t.Errorf("behind a key: %d keys, want %d: %v", len(got), len(want)-101, err)
	}
	for e, err := range w.fallback.List(t.Context(), segments, blob.ListOptions{}) { // one who has enough
		if must(t, err); e.Key == want[5] {
			break
		}
	}
	w.leader.store.Add(blobtest.Fault{Err: blobtest.Transient("list", "leader")})
	if _, err := w.listed(segments, ""); !errors.Is(err, blob.ErrTransient) || !strings.Contains(err.Error(), "directly") {
		t.Errorf("both broken: %v", err)
	}
}

// TestListIsForSegmentsOnly: nothing else is listed for another node.
func TestListIsForSegmentsOnly(t *testing.T) {
	w := newWorld(t, 1)
	client := protosv1.NewRelayServiceClient(w.leader.conn)
	for _, prefix := range []string{"", "control/", "changes/", "changes/x", "changes/x/y/", "changes/../control/",
		"changes//", name + "/", "discovery/"} {
		s, err := client.List(t.Context(), &protosv1.RelayListRequest{ClusterName: clusterName, Prefix: prefix})
		must(t, err)
		if _, err := s.Recv(); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%q: got %v", prefix, err)
		}
	}
	if calls := w.leader.store.Calls(); len(calls) != 0 {
		t.Errorf("the store was asked: %v", calls)
	}
}

// forger answers with names of its own.
type forger struct {
	protosv1.UnimplementedRelayServiceServer
	entries []*protosv1.RelayEntry
}

func (f *forger) List(_ *protosv1.RelayListRequest, s grpc.ServerStreamingServer[protosv1.RelayListResponse]) error {
	return s.Send(&protosv1.RelayListResponse{Entries: f.entries})
}

// TestForgedListing: names that nobody asked for, or that go back, end the listing.
func TestForgedListing(t *testing.T) {
	for _, keys := range [][]string{{"control/leader"}, {segments + "b", segments + "a"}, {segments + "a", segments + "a"}} {
		f := &forger{}
		_, conn := serve(t, clusterName, func(r grpc.ServiceRegistrar) { protosv1.RegisterRelayServiceServer(r, f) })
		for _, k := range keys {
			f.entries = append(f.entries, &protosv1.RelayEntry{Key: k, SizeBytes: 1})
		}
		r := remote{leader: Leader{Node: "x", Conn: conn}, clusterName: clusterName}
		var err error
		for _, e := range r.list(t.Context(), segments, blob.ListOptions{}) {
			if e != nil {
				err = e
			}
		}
		if err == nil {
			t.Errorf("%v was believed", keys)
		}
	}
	// The largest message is far from gRPC's limit of 4 MiB.
	page := &protosv1.RelayListResponse{}
	for range entriesSent {
		page.Entries = append(page.Entries, &protosv1.RelayEntry{Key: strings.Repeat("x", 1024), SizeBytes: 1 << 40})
	}
	if n := proto.Size(page); n > 2<<20 {
		t.Errorf("a message of %d names of 1 KiB has %d bytes", entriesSent, n)
	}
}
