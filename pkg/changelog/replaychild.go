package changelog

import (
	"bufio"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/child"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
)

// replayReport is what the child says of the segments that it has read.
type replayReport struct {
	// Fault is the bad segment at which it has ended; nil if that was something else.
	Fault *segmentFault `json:"fault,omitempty"`
	// Notes are of segments that are bad and weren't needed.
	Notes []string `json:"notes,omitempty"`
}

// maxNotes bounds the notes, maxFault what one of them, or a fault, says.
const (
	maxNotes = 8
	maxFault = 300
)

// segmentFault is an *Error that has to pass from one process to another.
type segmentFault struct {
	Segment string `json:"segment"`
	Future  bool   `json:"future,omitempty"`
	Message string `json:"message"`
	Good    int64  `json:"good"`
}

func faultOf(e *Error) *segmentFault {
	f := &segmentFault{Segment: e.Segment, Future: errors.Is(e.Kind, cluster.ErrFuture), Good: e.Good}
	if e.Err != nil {
		f.Message = fmt.Sprintf("%.*s", maxFault, e.Err.Error())
	}
	return f
}

func (f *segmentFault) error() *Error {
	e := &Error{Segment: f.Segment, Kind: cluster.ErrCorrupt, Err: errors.New(f.Message), Good: f.Good}
	if f.Future {
		e.Kind = cluster.ErrFuture
	}
	return e
}

// ReplayCommand is the hidden subcommand that brings a database file forward by segments from its
// standard input: its arguments are the file's path, the revision and, for a file that is
// followed, the revision that it has.
func ReplayCommand() child.Command {
	return child.Command{Name: database.ReplaySubcommand, Main: replayMain}
}

// replayMain is a process of its own that reads segments from its standard input and brings a database file forward
// by what they say. args are those of ReplayCommand. It prints one line of JSON and returns the exit code.
func replayMain(args []string) int {
	var revision, from int64
	var err error
	if len(args) == 2 || len(args) == 3 {
		revision, err = strconv.ParseInt(args[1], 10, 64)
	}
	if len(args) == 3 && err == nil {
		from, err = strconv.ParseInt(args[2], 10, 64)
	}
	if len(args) != 2 && (len(args) != 3 || from < 1) || err != nil {
		fmt.Fprintf(os.Stderr, "usage: %s PATH REVISION [FROM]\n", database.ReplaySubcommand)
		return 2
	}
	p := newReplayInput(os.Stdin, revision)
	return database.ReplayMain(args[0], from, p.next, p.report)
}

// replayInput makes steps of what the parent sends. It reads while the steps before are carried
// out; both together hold two parts of transactions.
type replayInput struct {
	in       *bufio.Reader
	revision int64
	batches  chan []database.Replayed
	rest     []database.Replayed
	// err and rep are the reader's until batches is closed.
	err error
	rep replayReport
	// building is the batch that grows, of so many bytes.
	building []database.Replayed
	size     int
}

func newReplayInput(r io.Reader, revision int64) *replayInput {
	p := &replayInput{in: bufio.NewReaderSize(r, 256<<10), revision: revision, batches: make(chan []database.Replayed)}
	go func() {
		defer close(p.batches)
		if p.err = p.read(); p.err == nil {
			p.err = io.EOF
			p.send()
		}
		var bad *Error
		if errors.As(p.err, &bad) {
			p.rep.Fault = faultOf(bad)
		}
	}()
	return p
}

func (p *replayInput) next() (database.Replayed, error) {
	for len(p.rest) == 0 {
		batch, ok := <-p.batches
		if !ok {
			return database.Replayed{}, p.err
		}
		p.rest = batch
	}
	x := p.rest[0]
	p.rest[0], p.rest = database.Replayed{}, p.rest[1:]
	return x, nil
}

// report is asked for when nothing is read any more.
func (p *replayInput) report() any {
	select {
	case _, open := <-p.batches:
		if !open {
			return p.rep
		}
	default: // the writer has failed, and the reader still waits
	}
	return replayReport{}
}

// send hands on what was read.
func (p *replayInput) send() {
	if len(p.building) > 0 {
		p.batches <- p.building
	}
	p.building, p.size = nil, 0
}

func (p *replayInput) add(x database.Replayed) {
	p.building = append(p.building, x)
	p.size += 64
	for _, r := range x.Records {
		p.size += len(r.KV)
	}
	if p.size >= maxPart {
		p.send()
	}
}

// read reads all frames. An input that is cut is io.ErrUnexpectedEOF.
func (p *replayInput) read() error {
	for {
		kind, err := p.in.ReadByte()
		switch {
		case err != nil:
			return cut(err)
		case kind == lastFrame:
			return nil
		case kind != segmentFrame:
			return fmt.Errorf("unknown frame %q", kind)
		}
		if err := p.segment(); err != nil {
			return err
		}
	}
}

// maxFrameHead is more than a header can take.
const maxFrameHead = 2*maxHeader + 64<<10

func (p *replayInput) segment() error {
	n, err := binary.ReadUvarint(p.in)
	if err != nil || n > maxFrameHead {
		return errors.Join(errors.New("not a segment"), cut(err))
	}
	b := make([]byte, n)
	if _, err := io.ReadFull(p.in, b); err != nil {
		return cut(err)
	}
	var head segmentFrameHead
	if err := json.Unmarshal(b, &head); err != nil {
		return fmt.Errorf("read what segment comes: %w", err)
	}
	chunks := &chunkReader{in: p.in}
	err = p.content(head, chunks)
	var bad *Error
	if errors.As(err, &bad) && !head.Needed && len(p.rep.Notes) < maxNotes {
		p.rep.Notes = append(p.rep.Notes, faultOf(bad).error().Error())
	}
	if bad == nil && err != nil || bad != nil && head.Needed {
		return err
	}
	_, err = io.Copy(io.Discard, chunks)
	if errors.Is(err, errDropped) && !head.Needed { // the parent has said so
		err = nil
	}
	return err
}

// content makes steps of a segment's content. Those of one that isn't needed come only when all of it was found right.
func (p *replayInput) content(head segmentFrameHead, chunks *chunkReader) error {
	name, err := catalog.ParseSegmentName(head.Name)
	if err != nil {
		return err
	}
	c, err := decodeHeader(catalog.Segment{SegmentName: name, Incarnation: head.Incarnation, Size: head.Stored}, head.Header, head.Stored)
	if err != nil {
		return err
	}
	var leases []database.Replayed
	own, err := c.parse(chunks, false, func(e Entry) error {
		x, ok, err := e.replayed()
		switch {
		case err != nil:
			return corruptSegment(c.Segment, "%w", err)
		case !ok || x.Revision > p.revision || x.LeaseFrom > p.revision:
			return nil
		case head.Needed:
			p.add(x)
		case x.Revision == 0:
			if leases = append(leases, x); len(leases) > maxLateLeases {
				return corruptSegment(c.Segment, "it has more than %d leases", maxLateLeases)
			}
		}
		return nil
	})
	switch {
	case own != nil:
		return own
	case errors.Is(chunks.err, errDropped) && !head.Needed:
		return nil
	case chunks.err != nil && chunks.err != io.EOF:
		return chunks.err
	case err != nil:
		return corruptSegment(c.Segment, "%w", err)
	}
	// The segment ends with what the parent has found.
	if _, err := io.Copy(io.Discard, chunks); err != nil {
		if errors.Is(err, errDropped) && !head.Needed {
			return nil
		}
		return err
	}
	for _, x := range leases {
		p.add(x)
	}
	return nil
}

// maxLateLeases is how many leases a segment after the target can tell of.
const maxLateLeases = 4 * maxLeases

// errDropped means that the parent has found the segment bad.
var errDropped = errors.New("the segment is to be forgotten")

// chunkReader reads the chunks of a segment.
type chunkReader struct {
	in   *bufio.Reader
	left int64
	err  error
}

func (r *chunkReader) Read(p []byte) (int, error) {
	if r.err != nil {
		return 0, r.err
	}
	n, err := r.read(p)
	r.err = err
	return n, err
}

func (r *chunkReader) read(p []byte) (int, error) {
	if r.left == 0 {
		n, err := binary.ReadUvarint(r.in)
		if err != nil {
			return 0, cut(err)
		}
		if n == 0 {
			return 0, r.end()
		}
		if n > maxChunk {
			return 0, errors.New("not a chunk")
		}
		r.left = int64(n)
	}
	n, err := r.in.Read(p[:min(int64(len(p)), r.left)])
	r.left -= int64(n)
	return n, cut(err)
}

// maxChunk is more than a chunk has.
const maxChunk = 1 << 20

func (r *chunkReader) end() error {
	b, err := r.in.ReadByte()
	switch {
	case err != nil:
		return cut(err)
	case b == keepSegment:
		return io.EOF
	}
	return errDropped
}
