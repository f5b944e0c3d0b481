package gcs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"hash"
	"hash/crc32"
	"io"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/rest"
)

const (
	// chunkTimeout bounds one attempt to send a chunk, so that a connection that hangs is noticed.
	chunkTimeout = 5 * time.Minute
	// chunkTries is how often a chunk is sent without any progress. The body can't be rewound, so nobody else can try again.
	chunkTries = 8
	// maxPause bounds the pause before a chunk is sent again.
	maxPause = 20 * time.Second
	// maxSize is the size of the largest object in bytes.
	maxSize = 5 << 40
)

// large stores first and the rest of body by a resumable upload.
func (w *put) large(ctx context.Context, first []byte, body *bufio.Reader) (object, error) {
	if err := w.precheck(ctx); err != nil {
		return object{}, err
	}
	u := &upload{put: w, sum: crc32.New(crcTable())}
	if err := u.begin(ctx); err != nil {
		return object{}, err
	}
	o, err := u.run(ctx, first, body)
	if err == nil {
		return o, w.verify(ctx, o, u.sent, encodeCRC(u.sum.Sum32()))
	}
	if u.doubt && ctx.Err() == nil {
		// The answer to the end of the upload was lost, and the upload isn't known any more.
		if mine, ok := w.mine(ctx, u.sent, encodeCRC(u.sum.Sum32())); ok {
			return mine, nil
		}
	}
	u.abort(ctx)
	return object{}, err
}

// precheck spares the upload of what will not be taken.
func (w *put) precheck(ctx context.Context) error {
	if !w.conditional() {
		return nil
	}
	o, err := w.s.stat(ctx, w.key)
	absent := rest.Status(err) == http.StatusNotFound
	if absent {
		if err := w.s.absent(ctx, "put", w.key, err); !errors.Is(err, blob.ErrNotFound) {
			return err
		}
	} else if err != nil {
		return err
	}
	if n, _ := generation(w.opts.IfVersion); w.opts.IfAbsent != absent || w.opts.IfVersion != "" && o.Generation != n {
		return &blob.Error{Op: "put", Key: w.s.name(w.key), Kind: blob.ErrPreconditionFailed}
	}
	return nil
}

// upload is one resumable upload.
type upload struct {
	*put
	session string
	// sent is the number of bytes that the server has, sum their checksum.
	sent int64
	sum  hash.Hash32
	// doubt is set once the end was sent and not answered.
	doubt bool
}

func (u *upload) begin(ctx context.Context) error {
	description, err := u.description("")
	if err != nil {
		return err
	}
	req := call(permCreate, http.MethodPost, u.s.upload(u.with("resumable")))
	req.Header.Set("Content-Type", "application/json; charset=UTF-8")
	req.Body = [][]byte{description}
	resp, err := u.s.client.Do(ctx, req)
	if err != nil {
		return err
	}
	rest.Drop(resp)
	if u.session = resp.Header.Get("Location"); !strings.HasPrefix(u.session, "http") {
		return fmt.Errorf("the server began an upload and did not say where (Location %q)", u.session)
	}
	return nil
}

// run sends chunk after chunk. The next one is read while one is sent, so there are two buffers.
func (u *upload) run(ctx context.Context, cur []byte, body *bufio.Reader) (object, error) {
	var spare []byte
	for last := false; ; {
		// A full chunk of which more follows; only the last one may have another length.
		type filled struct {
			data []byte
			end  bool
			err  error
		}
		next := make(chan filled, 1)
		if !last {
			go func() {
				f := filled{}
				f.data, f.end, f.err = blob.Fill(body, spare, u.s.chunk)
				if f.err == nil && !f.end {
					if _, f.err = body.Peek(1); f.err == io.EOF {
						f.end, f.err = true, nil
					}
				}
				next <- f
			}()
		}
		o, err := u.chunk(ctx, cur, last)
		if last {
			return o, err
		}
		f := <-next // the body isn't touched any more when Put returns
		if f.err != nil {
			return object{}, f.err
		}
		if err != nil {
			return object{}, err
		}
		cur, spare, last = f.data, cur, f.end
		if u.sent+int64(len(cur)) > maxSize {
			return object{}, &blob.BodyError{Err: fmt.Errorf("the body is longer than %d bytes", int64(maxSize))}
		}
	}
}

// chunk sends data until the server has all of it. If a connection breaks the server is asked how much it has.
func (u *upload) chunk(ctx context.Context, data []byte, last bool) (object, error) {
	start, end := u.sent, u.sent+int64(len(data))
	u.sum.Write(data)
	u.sent = end
	total := "*"
	if last {
		total = strconv.FormatInt(end, 10)
	}
	pause := 200 * time.Millisecond
	have := start
	for try := 1; ; try++ {
		got, o, err := u.attempt(ctx, data[have-start:], have, total)
		if err != nil {
			u.doubt = u.doubt || last && rest.Unclear(err)
			if ctx.Err() != nil || try >= chunkTries || !u.again(err) {
				return object{}, err
			}
			if blob.Sleep(ctx, pause) != nil {
				return object{}, err
			}
			pause = min(2*pause, maxPause)
			// How far did it get?
			if got, o, err = u.attempt(ctx, nil, -1, total); err != nil {
				if !u.again(err) {
					return object{}, err
				}
				continue
			}
		}
		switch {
		case o != nil && last:
			return *o, nil
		case o != nil:
			return object{}, errors.New("the server took the beginning of the body for the whole")
		case got == end && !last:
			return object{}, nil
		case got < start || got > end:
			return object{}, &blob.Error{Op: "put", Key: u.s.name(u.key), Kind: blob.ErrTransient,
				Err: fmt.Errorf("the server has %d bytes of the upload; between %d and %d were sent", got, start, end)}
		case try >= chunkTries:
			return object{}, &blob.Error{Op: "put", Key: u.s.name(u.key), Kind: blob.ErrTransient,
				Err: fmt.Errorf("the server takes no more than %d bytes of the upload, of %d", got, end)}
		case got > have:
			try = 0 // that is progress
		default:
			if err := blob.Sleep(ctx, pause); err != nil {
				return object{}, err
			}
			pause = min(2*pause, maxPause)
		}
		have = got
	}
}

// attempt sends data, which begins at offset, or without data only asks how far the upload is. It returns the number of bytes
// that the server has, or the object if that is complete.
func (u *upload) attempt(ctx context.Context, data []byte, offset int64, total string) (int64, *object, error) {
	req := call(permCreate, http.MethodPut, u.session)
	req.Tries, req.Timeout = 1, chunkTimeout
	if len(data) > 0 {
		req.Body = [][]byte{data}
		req.Header.Set("Content-Range", fmt.Sprintf("bytes %d-%d/%s", offset, offset+int64(len(data))-1, total))
	} else {
		req.Header.Set("Content-Range", "bytes */"+total)
		req.Timeout = 0
	}
	resp, err := u.s.client.Do(ctx, req)
	if err != nil {
		return 0, nil, err
	}
	if resp.StatusCode == http.StatusPermanentRedirect { // "308 Resume Incomplete"
		rest.Drop(resp)
		return persisted(resp.Header.Get("Range"))
	}
	o, err := readObject(resp)
	if err != nil {
		return 0, nil, err
	}
	return 0, &o, nil
}

// persisted reads "bytes=0-N". Without a header there is nothing yet.
func persisted(header string) (int64, *object, error) {
	if header == "" {
		return 0, nil, nil
	}
	_, to, _ := strings.Cut(strings.TrimPrefix(header, "bytes="), "-")
	n, err := strconv.ParseInt(to, 10, 64)
	if err != nil {
		return 0, nil, fmt.Errorf("the server says that it has the range %q of the upload", header)
	}
	return n + 1, nil, nil
}

// abort drops what was sent, also if ctx has ended. If that fails the server drops it after a week.
func (u *upload) abort(ctx context.Context) {
	ctx, cancel := blob.Cleanup(ctx)
	defer cancel()
	if resp, err := u.s.client.Do(ctx, call(permDelete, http.MethodDelete, u.session)); err == nil {
		rest.Drop(resp)
	}
}
