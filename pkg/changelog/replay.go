package changelog

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
)

// ahead is how many segments are fetched before they are needed.
const ahead = 4

// Replay brings the snapshot file at path, which is that of the chain's base, to a revision.
// selfExe is the manager's executable: a process of its own decompresses and reads the changes and
// writes to the file; this one fetches and decrypts, and holds a few small segments. A bad segment
// is an *Error; where the snapshot is ahead of the revision already, or not as far as the chain
// begins, it is an *UnreachableError. progress, which may be nil, gets the stored bytes of the
// segments that were handed on.
func (a *Archive) Replay(ctx context.Context, selfExe, path string, c Chain, revision int64,
	progress func(bytes int64)) (database.ReplayResult, error) {
	return a.replay(ctx, selfExe, path, c, revision, progress, strconv.FormatInt(revision, 10))
}

// Follow is Replay for a file that is brought forward again and again, as database.FollowFile does: from is the revision that it was
// brought to, or that of the backup. After a failure it is of use all the same, from the same revision on.
func (a *Archive) Follow(ctx context.Context, selfExe, path string, c Chain, from, revision int64) (database.ReplayResult, error) {
	return a.replay(ctx, selfExe, path, c, revision, nil, strconv.FormatInt(revision, 10), strconv.FormatInt(from, 10))
}

func (a *Archive) replay(ctx context.Context, selfExe, path string, c Chain, revision int64, progress func(bytes int64),
	args ...string) (database.ReplayResult, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	in, out := io.Pipe()
	fed := make(chan error, 1)
	go func() {
		err := a.feed(ctx, out, c, revision, progress)
		fed <- err
		_ = out.CloseWithError(err) // it returns nil
	}()
	var rep replayReport
	res, err := database.Replay(ctx, selfExe, path, in, &rep, args...)
	cancel()
	_ = in.CloseWithError(errChildEnded) // it returns nil
	ferr := <-fed
	switch {
	case rep.Fault != nil: // it lies before all that couldn't be fetched
		err = rep.Fault.error()
	// the child knows only that its input was cut
	case ferr != nil && !errors.Is(ferr, errChildEnded) && !errors.Is(ferr, context.Canceled):
		err = ferr
	}
	for _, note := range rep.Notes {
		klog.Warningf("changes: what a segment says of leases isn't known: %s", note)
	}
	if err != nil {
		return res, fmt.Errorf("replay changes: %w", err)
	}
	if res.Revision != revision {
		return res, fmt.Errorf("replay changes: %w",
			unreachable(Target{Revision: revision}, "the backup has revision %d and its changes lead to %d", res.From, res.Revision))
	}
	return res, nil
}

// errChildEnded means that nobody reads any more.
var errChildEnded = errors.New("the process that replays has ended")

type fetched struct {
	content *Content
	err     error
}

// feed writes the segments for the child, and fetches ahead.
func (a *Archive) feed(ctx context.Context, w io.Writer, c Chain, revision int64, progress func(bytes int64)) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	out := bufio.NewWriterSize(w, 64<<10)
	var done int64
	next := a.fetchAhead(ctx, c.Segments)
	for _, s := range c.Segments {
		x := next()
		err := x.err
		if err == nil {
			err = a.pour(ctx, out, x.content, hasChanges(s, revision))
		}
		var bad *Error
		if errors.As(err, &bad) && !hasChanges(s, revision) {
			klog.Warningf("changes: what it says of leases isn't known: %v", err)
			err = nil
		}
		if err != nil {
			return err
		}
		done += s.Size
		if progress != nil {
			progress(done)
		}
	}
	return errors.Join(out.WriteByte(lastFrame), out.Flush())
}

// fetchAhead returns a function that yields the segments in their order, however fast each one is.
func (a *Archive) fetchAhead(ctx context.Context, segments []catalog.Segment) func() fetched {
	places := make(chan chan fetched, ahead)
	go func() {
		for _, s := range segments {
			place := make(chan fetched, 1)
			select {
			case places <- place:
			case <-ctx.Done():
				return
			}
			go func() {
				content, err := a.read(ctx, s)
				place <- fetched{content, err}
			}()
		}
	}()
	return func() (x fetched) {
		select {
		case place := <-places:
			return <-place // reading ends with ctx
		case <-ctx.Done():
			return fetched{err: context.Cause(ctx)}
		}
	}
}

// Frames of what the child is sent: a segment, and the end.
const (
	segmentFrame byte = 's'
	lastFrame    byte = 'e'
)

// What stands behind the last chunk of a segment: all of it was found right, or it is to be forgotten.
const (
	keepSegment byte = 'k'
	dropSegment byte = 'd'
)

// segmentFrameHead says what comes: the content as it was before it was encrypted, in chunks.
type segmentFrameHead struct {
	Incarnation catalog.Incarnation `json:"incarnation"`
	Name        string              `json:"name"`
	Header      []byte              `json:"header"`
	Stored      int64               `json:"stored"`
	// Needed is false where the segment tells only of leases: then replay goes on without what it says if it is bad.
	Needed bool `json:"needed"`
}

// pour hands a segment on. What is bad in it, and can be told without decompressing it, is an error.
func (a *Archive) pour(ctx context.Context, out *bufio.Writer, c *Content, needed bool) error {
	raw, plain, err := c.open(ctx, a.Catalog.Opener())
	if err != nil {
		return err
	}
	defer raw.Close()
	head, err := json.Marshal(segmentFrameHead{
		Incarnation: c.Segment.Incarnation, Name: c.Segment.SegmentName.String(), Header: c.header, Stored: c.stored, Needed: needed,
	})
	if err != nil {
		return fmt.Errorf("replay changes: %w", err)
	}
	chunks := &chunkWriter{out: out}
	_ = out.WriteByte(segmentFrame) // a later write says the same
	if _, err := chunks.Write(head); err != nil {
		return err
	}
	_, err = io.CopyBuffer(chunks, struct{ io.Reader }{plain}, make([]byte, 64<<10))
	if chunks.err != nil {
		return chunks.err
	}
	bad := c.explain(raw, plain, err)
	end := keepSegment
	if bad != nil {
		end = dropSegment
	}
	_, err = out.Write([]byte{0, end})
	return errors.Join(bad, err)
}

// chunkWriter writes chunks that begin with their length.
type chunkWriter struct {
	out *bufio.Writer
	err error
}

func (w *chunkWriter) Write(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	_, err := w.out.Write(binary.AppendUvarint(nil, uint64(len(p))))
	if err == nil {
		_, err = w.out.Write(p)
	}
	if w.err = err; err != nil {
		return 0, err
	}
	return len(p), nil
}
