package changelog

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"math/rand"
	"os"
	"os/exec"
	"runtime/debug"
	"strings"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/etcd-manager/etcd-manager/pkg/blob/file"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

const forgedLife = catalog.Incarnation("00000000000000aa")

// forgery is a segment of revisions 2 to last that somebody with access to the store has made.
type forgery struct {
	name string
	last int64
	// content writes the entries before the mark at the end; raw leaves the compression out.
	content func(io.Writer)
	raw     bool
	// lie changes the header, which else tells the truth.
	lie func(*protosv1.SegmentHeader)
	// changes is what the header says of them.
	changes int64
	// expect is in the error of a replay; empty if there is none. marks is the same of what only reads the times.
	expect, marks string
}

// field writes a field of a message that holds size bytes.
func field(num protowire.Number, size int64) []byte {
	return protowire.AppendVarint(protowire.AppendTag(nil, num, protowire.BytesType), uint64(size))
}

// transaction writes an entry with one transaction of a revision and so many bytes of changes, which the caller writes then.
func transaction(w io.Writer, revision, size int64) {
	head := protowire.AppendVarint(protowire.AppendTag(nil, transactionRevision, protowire.VarintType), uint64(revision))
	t := int64(len(head)) + size
	b := protowire.AppendVarint(nil, uint64(t+int64(len(field(entryTransaction, t)))))
	_, _ = w.Write(append(append(b, field(entryTransaction, t)...), head...)) // the caller sees it at the end
}

func repeated(w io.Writer, b []byte, n int) {
	block := bytes.Repeat(b, 4096)
	for ; n >= 4096; n -= 4096 {
		_, _ = w.Write(block)
	}
	_, _ = w.Write(block[:n*len(b)])
}

// oneValue writes a transaction with one key and a value of size zeros.
func oneValue(w io.Writer, size int64) {
	key := append(field(1, 1), 'k')
	rest := protowire.AppendVarint(protowire.AppendTag(nil, 4, protowire.VarintType), 1)
	value := field(5, size)
	change := int64(len(key)+len(rest)+len(value)) + size
	head := field(transactionChanges, change)
	transaction(w, 2, int64(len(head))+change)
	_, _ = w.Write(append(append(append(head, key...), rest...), value...))
	repeated(w, []byte{0}, int(size))
}

func forgeries() []forgery {
	oneByteKey := []byte{0x12, 3, 0x0a, 1, 'k'}
	return []forgery{
		{name: "a bomb", last: 2, changes: 1, content: func(w io.Writer) { oneValue(w, 900<<20) },
			expect: "its header says", marks: "its header says"},
		{name: "a bomb whose header lies", last: 2, changes: 1, content: func(w io.Writer) { oneValue(w, 900<<20) },
			lie: func(h *protosv1.SegmentHeader) { h.ContentSize = 4096 }, expect: "more than the 4096 bytes",
			marks: "more than the 4096 bytes"},
		{name: "a record that is too large", last: 2, changes: 1, content: func(w io.Writer) { oneValue(w, 60<<20) },
			expect: "is too large", marks: "is too large"},
		{name: "the largest record", last: 2, changes: 1, content: func(w io.Writer) { oneValue(w, 31<<20) }},
		{name: "a large segment that is what it says", last: 2, changes: 1, raw: true, content: func(w io.Writer) { oneValue(w, 40<<20) }},
		{name: "a huge entry of which nothing comes", last: 2, changes: 1,
			content: func(w io.Writer) { _, _ = w.Write(binary.AppendUvarint(nil, 60<<20)) },
			lie:     func(h *protosv1.SegmentHeader) { h.ContentSize = 61 << 20 }, expect: "can't be read", marks: "can't be read"},
		{name: "changes without number", last: 2, changes: 12 << 20, content: func(w io.Writer) {
			transaction(w, 2, 5*12<<20)
			repeated(w, oneByteKey, 12<<20)
		}, expect: "12582912 changes", marks: "12582912 changes"},
		{name: "changes without number that the header denies", last: 2, changes: 7, content: func(w io.Writer) {
			transaction(w, 2, 5*12<<20)
			repeated(w, oneByteKey, 12<<20)
		}, expect: "more than the 7 changes", marks: "more than the 7 changes"},
		{name: "many small changes", last: 2, changes: 1 << 15, content: func(w io.Writer) {
			transaction(w, 2, 5<<15)
			repeated(w, oneByteKey, 1<<15)
		}},
		{name: "empty changes", last: 2, changes: 1 << 15, content: func(w io.Writer) {
			transaction(w, 2, 2<<15)
			repeated(w, []byte{0x12, 0}, 1<<15)
		}},
		{name: "marks without number", last: 1, content: func(w io.Writer) { repeated(w, []byte{4, 0x12, 2, 0x08, 1}, 1<<20) }},
		{name: "leases without number", last: 1, content: func(w io.Writer) { repeated(w, []byte{4, 0x1a, 2, 0x08, 1}, 2<<20) },
			expect: "leases", marks: "leases"},
		{name: "groups in groups", last: 2, changes: 1, content: func(w io.Writer) {
			_, _ = w.Write(binary.AppendUvarint(nil, 60<<10))
			repeated(w, []byte{0x3b}, 60<<10)
		}, expect: "can't be read", marks: "can't be read"},
		{name: "groups in a large entry", last: 2, changes: 1, content: func(w io.Writer) {
			_, _ = w.Write(binary.AppendUvarint(nil, 30<<20))
			repeated(w, []byte{0x0b}, 30<<20)
		}, expect: "can't be read", marks: "can't be read"},
		{name: "a header of nothing but leases", last: 2, changes: 1, content: func(w io.Writer) { oneValue(w, 10) },
			lie:    func(h *protosv1.SegmentHeader) { h.UnknownLeases = make([]*protosv1.Lease, 300<<10) },
			expect: "header can't be read", marks: "header can't be read"},
	}
}

type counter struct{ n int64 }

func (c *counter) Write(p []byte) (int, error) {
	c.n += int64(len(p))
	return len(p), nil
}

// forge puts a forged segment into a store, under a name that fits.
func forge(t testing.TB, c *catalog.Catalog, f forgery) catalog.Segment {
	t.Helper()
	at := time.Unix(1700000000, 0).UTC()
	mark, err := proto.Marshal(&protosv1.SegmentEntry{Entry: &protosv1.SegmentEntry_Mark{Mark: &protosv1.Mark{Revision: f.last,
		UnixMillis: at.UnixMilli()}}})
	must(t, err)
	all := func(w io.Writer) {
		f.content(w)
		_, _ = w.Write(append(binary.AppendUvarint(nil, uint64(len(mark))), mark...))
	}
	size := &counter{}
	all(size)
	h := &protosv1.SegmentHeader{Version: segmentVersion, Incarnation: string(forgedLife), FirstRevision: 2,
		LastRevision: f.last, Begins: "a test",
		EndedUnixMillis: at.UnixMilli(), ContentSize: size.n, Changes: f.changes, Compression: zstdName}
	if f.raw {
		h.Compression = ""
	}
	if f.lie != nil {
		f.lie(h)
	}
	for i := range h.GetUnknownLeases() {
		h.UnknownLeases[i] = &protosv1.Lease{}
	}
	header, err := proto.Marshal(h)
	must(t, err)
	var out bytes.Buffer
	out.WriteString(magic)
	out.Write(binary.BigEndian.AppendUint32(nil, uint32(len(header))))
	out.Write(header)
	if f.raw {
		all(&out)
	} else {
		z, err := zstd.NewWriter(&out, zstd.WithEncoderConcurrency(1), zstd.WithWindowSize(1<<20))
		must(t, err)
		all(z)
		must(t, z.Close())
	}
	sum := sha256.Sum256(out.Bytes())
	n := catalog.SegmentName{First: 2, Last: f.last, Ended: at, Previous: catalog.NewSegmentSum(nil), Sum: catalog.NewSegmentSum(sum[:])}
	must(t, c.PutSegment(t.Context(), forgedLife, n, out.Bytes()))
	return catalog.Segment{SegmentName: n, Incarnation: forgedLife, Size: int64(out.Len())}
}

// readerCommand makes the test binary what reads a store, as the manager or the operator's tool does.
const readerCommand = "read-forged"

// asked is what the reader is to do, and answered what came of it.
type asked struct {
	Store, DB string
	What      string
	Last      int64
}

type answered struct {
	Error string
	// Peak is the most memory that the reader had, Child that of its child.
	Peak, Child int64
}

func readerMain(arg string) int {
	debug.SetMemoryLimit(64 << 20) // as the manager has it
	var q asked
	if err := json.Unmarshal([]byte(arg), &q); err != nil {
		return 2
	}
	var a answered
	if err := q.do(); err != nil {
		a.Error = err.Error()
	}
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return 2
	}
	for line := range strings.Lines(string(status)) {
		if n, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			_, _ = fmt.Sscan(n, &a.Peak) // 0 is found out
		}
	}
	var u unix.Rusage
	if unix.Getrusage(unix.RUSAGE_CHILDREN, &u) == nil {
		a.Child = u.Maxrss << 10
	}
	a.Peak <<= 10
	if json.NewEncoder(os.Stdout).Encode(a) != nil {
		return 2
	}
	return 0
}

func (q asked) do() error {
	ctx := context.Background()
	store, err := file.New(q.Store)
	if err != nil {
		return err
	}
	a := &Archive{Catalog: catalog.New(store)}
	chain := Chain{Base: 1}
	for s, err := range a.Catalog.Segments(ctx, forgedLife, 1) {
		if err != nil {
			return err
		}
		chain.Segments = append(chain.Segments, s)
	}
	p := &Plan{Base: "a backup", Incarnation: forgedLife, Chain: chain, Revision: q.Last, Reach: q.Last}
	switch q.What {
	case "replay":
		exe, err := os.Executable()
		if err != nil {
			return err
		}
		_, err = a.Replay(ctx, exe, q.DB, chain, q.Last, nil)
		return err
	case "at a time":
		_, err := a.crossing(ctx, p, Target{Time: time.Unix(1700000001, 0)}, 0)
		return err
	case "record on":
		r := &Recorder{origin: origin{incarnation: forgedLife}, cfg: Config{Catalog: a.Catalog}}
		_, _, _, err := r.digestOf(ctx, newOutbox(a.Catalog, forgedLife, "", 0), chain.Segments[0].SegmentName)
		return err
	case "history":
		for _, err := range a.History(ctx, Range{}) {
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func (q asked) ask(t *testing.T) answered {
	t.Helper()
	b, err := json.Marshal(q)
	must(t, err)
	cmd := exec.CommandContext(t.Context(), self(t), readerCommand, string(b))
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("%s: %v: %s", q.What, err, stderr.String())
	}
	var a answered
	must(t, json.Unmarshal(out, &a))
	if a.Peak == 0 {
		t.Fatal("the memory isn't known")
	}
	return a
}

// TestForgedSegments has everything that reads segments read some that say as much as possible in
// as little as possible: the manager stays small, its child and the operator's tool take no more
// than what is in proportion, and the message names the segment.
func TestForgedSegments(t *testing.T) {
	for _, f := range forgeries() {
		t.Run(f.name, func(t *testing.T) {
			dir := t.TempDir()
			store, err := file.New(dir)
			must(t, err)
			s := forge(t, catalog.New(store), f)
			for what, expect := range map[string]string{"replay": f.expect, "at a time": f.marks, "record on": "", "history": f.marks} {
				q := asked{Store: dir, DB: bareDB(t), What: what, Last: f.last}
				if what == "replay" && f.last == 1 || what == "history" && f.last == 1 {
					expect = "" // it isn't needed
				}
				a := q.ask(t)
				t.Logf("%d bytes, %s: %d MiB, child %d MiB, %s", s.Size, what, a.Peak>>20, a.Child>>20, a.Error)
				most := int64(100 << 20)
				if what == "history" { // the operator's tool holds the events of a segment
					most = 700 << 20
				}
				if a.Peak > most || a.Child > 500<<20 {
					t.Errorf("%s took %d MiB, and its child %d MiB", what, a.Peak>>20, a.Child>>20)
				}
				if expect == "" && a.Error != "" || !strings.Contains(a.Error, expect) || expect != "" &&
					!strings.Contains(a.Error, s.Key()) {
					t.Errorf("%s of %s: %q, want %q", what, s.Key(), a.Error, expect)
				}
			}
		})
	}
}

func transactionOf(revision int64, n int, value func(int) []byte) client.Transaction {
	tx := client.Transaction{Revision: revision}
	for i := range n {
		tx.Events = append(tx.Events, &mvccpb.Event{Kv: &mvccpb.KeyValue{
			Key: fmt.Appendf(nil, "/key/%06d", i), Value: value(i), CreateRevision: revision, ModRevision: revision, Version: 1,
		}})
	}
	return tx
}

// TestLargeTransactions has segments with a transaction that is larger than what is held at once
// read as they were written, whatever they compress to.
func TestLargeTransactions(t *testing.T) {
	rnd := rand.New(rand.NewSource(3))
	for name, value := range map[string]func(int) []byte{
		"the same": func(int) []byte { return make([]byte, 3<<10) },
		"random": func(int) []byte {
			b := make([]byte, 3<<10)
			_, _ = rnd.Read(b) // it never fails
			return b
		},
	} {
		t.Run(name, func(t *testing.T) {
			const n = 30000 // 90 MiB
			b := newBuilder(1)
			tx := transactionOf(2, n, value)
			must(t, b.add(tx))
			must(t, b.mark(time.Unix(1700000000, 0), time.Time{}))
			s, err := b.seal(t.Context(), origin{incarnation: forgedLife}, nil, "a test", nil)
			must(t, err)
			c, err := readSegment(catalog.Segment{SegmentName: s.name, Incarnation: forgedLife}, s.data)
			must(t, err)
			seen, parts := 0, 0
			must(t, c.Walk(t.Context(), nil, func(e Entry) error {
				if e.Transaction == nil {
					return nil
				}
				if e.Sub != seen {
					t.Fatalf("a part begins with change %d, want %d", e.Sub, seen)
				}
				for _, x := range e.Transaction.GetChanges() {
					if !bytes.Equal(x.GetKey(), tx.Events[seen].Kv.Key) || !bytes.Equal(x.GetValue(), tx.Events[seen].Kv.Value) {
						t.Fatalf("change %d is another one", seen)
					}
					seen++
				}
				parts++
				return nil
			}))
			if seen != n || parts < 10 {
				t.Errorf("%d changes in %d parts", seen, parts)
			}
			t.Logf("%d bytes of changes, %d stored, compression %q", c.Header.GetContentSize(), len(s.data), c.Header.GetCompression())
		})
	}
}
