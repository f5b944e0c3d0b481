package changelog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"google.golang.org/protobuf/proto"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/envelope"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
	"go.etcd.io/etcd/api/v3/mvccpb"
)

// seg makes a row of a listing: revisions, own sum, predecessor's sum.
func seg(first, last int64, sum, previous string) catalog.Segment {
	pad := func(s string) catalog.SegmentSum {
		return catalog.SegmentSum(strings.Repeat("0", 16-len(s)) + s)
	}
	return catalog.Segment{Incarnation: "i", SegmentName: catalog.SegmentName{First: first, Last: last,
		Ended: time.UnixMilli(last * 1000).UTC(), Previous: pad(previous), Sum: pad(sum)}}
}

func later(s catalog.Segment) catalog.Segment {
	s.Ended = s.Ended.Add(time.Second)
	return s
}

func sums(c Chain) string {
	var list []string
	for _, s := range c.Segments {
		list = append(list, strings.TrimLeft(string(s.Sum), "0"))
	}
	return strings.Join(list, " ")
}

func TestLink(t *testing.T) {
	for _, x := range []struct {
		name     string
		segments []catalog.Segment
		base     int64
		want     string
		reach    int64
	}{
		{"nothing is kept", nil, 7, "", 7},
		{"one after the other", []catalog.Segment{seg(2, 5, "a", "0"), seg(6, 9, "b", "a"), seg(10, 10, "c", "b")}, 1, "a b c", 10},
		{"the base lies within a segment", []catalog.Segment{seg(2, 5, "a", "0"), seg(6, 9, "b", "a"), seg(10, 12, "c", "b")},
			7, "b c", 12},
		{"the base lies at the end of a segment", []catalog.Segment{seg(2, 5, "a", "0"), seg(6, 9, "b", "a")}, 5, "b", 9},
		{"one is lost", []catalog.Segment{seg(2, 5, "a", "0"), seg(10, 12, "c", "b")}, 1, "a", 5},
		{"a chain begins anew behind the base", []catalog.Segment{seg(2, 5, "a", "0"), seg(9, 12, "c", "0")}, 8, "c", 12},
		{"a chain begins anew, too late for the base", []catalog.Segment{seg(2, 5, "a", "0"), seg(9, 12, "c", "0")}, 4, "a", 5},
		{"nothing happened for a while", []catalog.Segment{seg(2, 5, "a", "0"), seg(6, 5, "m", "a"), seg(6, 8, "b", "m")}, 1, "a m b", 8},
		{"only that nothing happened", []catalog.Segment{seg(6, 5, "m", "a"), later(seg(6, 5, "n", "m"))}, 5, "n", 5},
		{"nothing happened for a while, and the clock went back",
			[]catalog.Segment{seg(2, 5, "a", "0"), seg(6, 5, "n", "m"), later(seg(6, 5, "m", "a")), seg(6, 8, "b", "n")}, 1, "a m n b", 8},
		{"two writers, the one stopped", []catalog.Segment{seg(2, 5, "a", "0"), seg(6, 7, "x", "a"),
			seg(6, 9, "b", "a"), seg(8, 8, "y", "x"), seg(10, 12, "c", "b")}, 1, "a b c", 12},
		{"two writers, the other stopped", []catalog.Segment{seg(2, 5, "a", "0"), seg(6, 7, "x", "a"),
			seg(6, 9, "b", "a"), seg(8, 14, "y", "x")}, 1, "a x y", 14},
		{"one in place of another", []catalog.Segment{seg(2, 5, "a", "0"), seg(6, 9, "b", "f"), seg(10, 12, "c", "b")}, 1, "a", 5},
		{"revisions are lacking although it names the one before", []catalog.Segment{seg(2, 5, "a", "0"), seg(7, 9, "b", "a")}, 1, "a", 5},
	} {
		c := Link(x.segments, x.base)
		if reach, _ := c.Reach(); sums(c) != x.want || reach != x.reach {
			t.Errorf("%s: %q up to %d, want %q up to %d", x.name, sums(c), reach, x.want, x.reach)
		}
		if n := len(c.Segments); n > 0 {
			if to := LinkTo(x.segments, x.base, c.Segments[n-1].SegmentName); sums(to) != x.want {
				t.Errorf("%s: to its end %q, want %q", x.name, sums(to), x.want)
			}
		}
	}
}

// TestLinkDumb compares Link with a search of all paths, on listings of several writers that were cut at random.
func TestLinkDumb(t *testing.T) {
	r := newRand(t)
	for range 3000 {
		var all []catalog.Segment
		heads := []catalog.Segment{seg(1, 0, "0", "0")}
		for i := range 12 {
			h := heads[r.IntN(len(heads))]
			n := seg(h.Last+1, h.Last+int64(r.IntN(3)), fmt.Sprintf("%x", 100+i), strings.TrimLeft(string(h.Sum), "0"))
			if r.IntN(9) == 0 {
				n = seg(h.Last+2, h.Last+3, fmt.Sprintf("%x", 100+i), "0")
			}
			all, heads = append(all, n), append(heads, n)
		}
		slices.SortFunc(all, func(a, b catalog.Segment) int { return strings.Compare(a.SegmentName.String(), b.SegmentName.String()) })
		for range r.IntN(3) {
			i := r.IntN(len(all))
			all = slices.Delete(all, i, i+1)
		}
		base := int64(r.IntN(6))
		got, _ := Link(all, base).Reach()
		if want := dumbReach(all, base); got != want {
			t.Fatalf("from %d: reached %d, want %d: %v", base, got, want, all)
		}
		for _, s := range all {
			c := LinkTo(all, base, s.SegmentName)
			if !reaches(all, base, s) {
				if len(c.Segments) > 0 {
					t.Fatalf("from %d to %v there is a way: %v", base, s, c.Segments)
				}
				continue
			}
			if err := hangsTogether(c, base); err != "" || c.Segments[len(c.Segments)-1].SegmentName != s.SegmentName {
				t.Fatalf("from %d to %v: %v: %s, of %v", base, s, c.Segments, err, all)
			}
		}
	}
}

// reaches tells whether there is a way from a base to a segment.
func reaches(all []catalog.Segment, base int64, to catalog.Segment) bool {
	if to.First <= base+1 && to.Last >= base {
		return true
	}
	return slices.ContainsFunc(all, func(s catalog.Segment) bool {
		return s.Sum == to.Previous && s.Last == to.First-1 && s.SegmentName != to.SegmentName && reaches(all, base, s)
	})
}

// hangsTogether says why a chain doesn't.
func hangsTogether(c Chain, base int64) string {
	for i, s := range c.Segments {
		switch {
		case i == 0 && (s.First > base+1 || s.Last < base):
			return "it doesn't begin with the base"
		case i > 0 && (s.Previous != c.Segments[i-1].Sum || s.First != c.Segments[i-1].Last+1):
			return fmt.Sprintf("%v doesn't follow", s)
		}
	}
	if len(c.Segments) == 0 {
		return "it is empty"
	}
	return ""
}

// dumbReach tries every path.
func dumbReach(all []catalog.Segment, base int64) int64 {
	best := base
	var walk func(s catalog.Segment)
	walk = func(s catalog.Segment) {
		best = max(best, s.Last)
		for _, n := range all {
			if n.Previous == s.Sum && n.First == s.Last+1 && n.SegmentName != s.SegmentName {
				walk(n)
			}
		}
	}
	for _, s := range all {
		if s.First <= base+1 && s.Last >= base {
			walk(s)
		}
	}
	return best
}

// build makes one segment.
func build(t *testing.T, s envelope.Sealer, revisions ...int64) (catalog.Segment, []byte) {
	t.Helper()
	b := newBuilder(revisions[0] - 1)
	for _, rev := range revisions {
		must(t, b.add(client.Transaction{Revision: rev, Events: []*mvccpb.Event{
			{Kv: &mvccpb.KeyValue{Key: []byte("k"), Value: fmt.Appendf(nil, "value %d", rev), CreateRevision: rev,
				ModRevision: rev, Version: 1}},
			{Type: mvccpb.DELETE, Kv: &mvccpb.KeyValue{Key: []byte("gone"), ModRevision: rev}},
		}}))
		must(t, b.mark(time.UnixMilli(rev*1000), time.Time{}))
	}
	x, err := b.seal(t.Context(), origin{incarnation: "i", clusterName: "test"}, nil, "a test", s)
	must(t, err)
	return catalog.Segment{SegmentName: x.name, Incarnation: "i", Size: int64(len(x.data))}, x.data
}

// TestSegmentDamage cuts, flips and prolongs a segment at every byte: it must never be taken for a sound one.
func TestSegmentDamage(t *testing.T) {
	s, data := build(t, nil, 2, 3, 4)
	read := func(data []byte) error {
		c, err := readSegment(s, data)
		if err != nil {
			return err
		}
		return c.Walk(t.Context(), nil, func(Entry) error { return nil })
	}
	must(t, read(data))
	if err := read(append(bytes.Clone(data), 0)); !errors.Is(err, cluster.ErrCorrupt) {
		t.Error(err)
	}
	for i := range data {
		flipped := bytes.Clone(data)
		flipped[i] ^= 1 << (i % 8)
		for _, bad := range [][]byte{data[:i], flipped} {
			err := read(bad)
			var e *Error
			if !errors.As(err, &e) || !errors.Is(err, cluster.ErrCorrupt) || !errors.Is(err, cluster.ErrPermanent) || e.Good != 1 {
				t.Fatalf("byte %d: %v", i, err)
			}
		}
		// Also if somebody has made a name that fits.
		forged := s
		forged.Sum = catalog.NewSegmentSum(sumOf(flipped))
		if c, err := readSegment(forged, flipped); err == nil {
			err = c.Walk(t.Context(), nil, func(Entry) error { return nil })
			if err == nil && !harmless(c, s) {
				t.Fatalf("byte %d can be changed", i)
			}
		}
	}
}

// harmless tells that nothing but what is only shown differs in a header.
func harmless(c *Content, s catalog.Segment) bool {
	h := c.Header
	return h.GetFirstRevision() == s.First && h.GetLastRevision() == s.Last && h.GetIncarnation() == string(s.Incarnation)
}

// damage is something that happens to a stored segment.
type damage struct {
	name   string
	do     func(w *world, list []catalog.Segment, i int)
	expect string
}

func damages() []damage {
	data := func(w *world, s catalog.Segment) []byte {
		r, _, err := w.catalog.OpenSegment(w.t.Context(), s)
		must(w.t, err)
		defer r.Close()
		b, err := io.ReadAll(r)
		must(w.t, err)
		return b
	}
	replace := func(w *world, s catalog.Segment, b []byte) {
		_, err := w.store.Put(w.t.Context(), s.Key(), bytes.NewReader(b), blob.PutOptions{})
		must(w.t, err)
	}
	return []damage{
		{"lost", func(w *world, list []catalog.Segment, i int) {
			_, err := w.catalog.DeleteSegments(w.t.Context(), list[i].Incarnation, []catalog.SegmentName{list[i].SegmentName})
			must(w.t, err)
		}, "lost"},
		{"truncated", func(w *world, list []catalog.Segment, i int) {
			b := data(w, list[i])
			replace(w, list[i], b[:len(b)*2/3])
		}, "SHA-256"},
		{"a bit flipped", func(w *world, list []catalog.Segment, i int) {
			b := data(w, list[i])
			b[len(b)-20] ^= 4
			replace(w, list[i], b)
		}, "SHA-256"},
		{"swapped with another", func(w *world, list []catalog.Segment, i int) {
			a, b := data(w, list[i]), data(w, list[i+1])
			replace(w, list[i], b)
			replace(w, list[i+1], a)
		}, "SHA-256"},
		{"of another incarnation", func(w *world, list []catalog.Segment, i int) {
			// With the name that fits: only its header tells.
			b := newBuilder(list[i].First - 1)
			for rev := list[i].First; rev <= list[i].Last; rev++ {
				must(w.t, b.add(client.Transaction{Revision: rev,
					Events: []*mvccpb.Event{{Kv: &mvccpb.KeyValue{Key: []byte("k"), ModRevision: rev}}}}))
			}
			must(w.t, b.mark(list[i].Ended, time.Time{}))
			x, err := b.seal(w.t.Context(), origin{incarnation: "another"}, bytes.Repeat([]byte{1}, 32), "", nil)
			must(w.t, err)
			x.name.Previous = list[i].Previous
			damages()[0].do(w, list, i)
			must(w.t, w.catalog.PutSegment(w.t.Context(), list[i].Incarnation, x.name, x.data))
		}, "belongs to incarnation"},
		{"a bomb", func(w *world, list []catalog.Segment, i int) {
			s := list[i]
			var buf bytes.Buffer
			c, err := readSegment(s, data(w, s))
			must(w.t, err)
			buf.Write(data(w, s)[:len(magic)+4+len(c.header)])
			z, err := zstd.NewWriter(&buf)
			must(w.t, err)
			oneValue(z, 300<<20)
			must(w.t, z.Close())
			damages()[0].do(w, list, i)
			s.Sum = catalog.NewSegmentSum(sumOf(buf.Bytes()))
			list[i] = s
			must(w.t, w.catalog.PutSegment(w.t.Context(), s.Incarnation, s.SegmentName, buf.Bytes()))
			// What follows on it has to name it.
			rechain(w, list, i+1, sumOf(buf.Bytes()))
		}, "that its header says"},
	}
}

// rechain has the segments from the i-th on follow on one with another SHA-256.
func rechain(w *world, list []catalog.Segment, i int, previous []byte) {
	for ; i < len(list); i++ {
		s := list[i]
		r, _, err := w.catalog.OpenSegment(w.t.Context(), s)
		must(w.t, err)
		old, err := io.ReadAll(r)
		must(w.t, errors.Join(err, r.Close()))
		c, err := readSegment(s, old)
		must(w.t, err)
		c.Header.Previous = previous
		header, err := proto.Marshal(c.Header)
		must(w.t, err)
		out := append([]byte(magic), binary.BigEndian.AppendUint32(nil, uint32(len(header)))...)
		out = append(append(out, header...), c.payload...)
		_, err = w.catalog.DeleteSegments(w.t.Context(), s.Incarnation, []catalog.SegmentName{s.SegmentName})
		must(w.t, err)
		s.Previous, s.Sum = catalog.NewSegmentSum(previous), catalog.NewSegmentSum(sumOf(out))
		must(w.t, w.catalog.PutSegment(w.t.Context(), s.Incarnation, s.SegmentName, out))
		list[i], previous = s, sumOf(out)
	}
}

// TestDamage damages a segment in the midst of a chain: verifying and planning find it and name the last good point, which can be reached.
func TestDamage(t *testing.T) {
	testutil.Long(t)
	for _, d := range damages() {
		t.Run(d.name, func(t *testing.T) {
			w := newWorld(t, "etcd-3.6", "3.6.16")
			ctx := t.Context()
			r, stop := w.record(func(c *Config) { c.Interval = 100 * time.Millisecond })
			w.put("/first", "1")
			w.backup()
			var last int64
			for i := range 12 {
				for j := range 20 {
					last = w.put(fmt.Sprintf("/key/%d", j), fmt.Sprint(i))
				}
				w.archived(r, last)
			}
			newest := w.backup()
			w.archived(r, w.put("/last", "1"))
			stop()
			v, err := w.archive.Verify(ctx, newest.Backup, VerifyOptions{Executable: self(t), Dir: t.TempDir() + "/verify"})
			must(t, err)
			if v.Base == "" || v.ChainProblem != "" || v.Segments < 5 {
				t.Fatalf("before the damage: %+v", v)
			}
			var list []catalog.Segment
			for s, err := range w.catalog.Segments(ctx, v.Incarnation, 0) {
				must(t, err)
				if s.Last >= s.First {
					list = append(list, s)
				}
			}
			i := len(list) / 2
			d.do(w, list, i)
			v, err = w.archive.Verify(ctx, newest.Backup, VerifyOptions{Executable: self(t), Dir: t.TempDir() + "/verify"})
			if err != nil || !strings.Contains(v.ChainProblem, d.expect) {
				t.Errorf("verify: %+v, %v", v, err)
			}
			good := list[i].First - 1
			if offer := fmt.Sprintf("--to-revision=%d", good); !strings.Contains(v.ChainProblem, offer) {
				t.Errorf("%q doesn't offer %s", v.ChainProblem, offer)
			}
			w.replay(w.plan(Target{Revision: good}), 0)
			// What lies behind the newest backup can still be reached from that one, what lies between can't.
			w.replay(w.plan(Target{Latest: true}), 0)
			err = w.tryReplay(Target{Revision: list[i].Last + 1})
			if err == nil || !errors.Is(err, cluster.ErrPermanent) ||
				!strings.Contains(err.Error(), fmt.Sprintf("--to-revision=%d", good)) {
				t.Errorf("restore: %v", err)
			}
		})
	}
}
