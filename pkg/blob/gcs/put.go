package gcs

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"net/http"
	"net/url"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/rest"
)

const (
	// putTries is how often a small object is sent, and crowdedTries how often if there were too many writes of its name.
	putTries, crowdedTries = 3, 5
	// namePause is the pause after too many writes of one name: the API takes about one a second.
	// Source: https://cloud.google.com/storage/quotas#objects
	namePause = time.Second
)

// Put implements blob.Store. A body up to the chunk size is stored by one request; a larger one by a resumable upload, whose
// condition is checked before its first byte is sent and again by its end.
func (s *Store) Put(ctx context.Context, key string, body io.Reader, opts blob.PutOptions) (blob.Info, error) {
	if err := blob.CheckPut(key, opts); err != nil {
		return blob.Info{}, s.invalid("put", key, err)
	}
	if opts.Hide {
		return blob.Info{}, s.hide(ctx, key)
	}
	w := &put{s: s, key: key, opts: opts, mark: rand.Text()}
	condition, ok := w.condition()
	if !ok {
		// No object has ever had such a version.
		return blob.Info{}, &blob.Error{Op: "put", Key: s.name(key), Kind: blob.ErrPreconditionFailed,
			Err: fmt.Errorf("%q is not a generation", opts.IfVersion)}
	}
	w.query = condition
	in := bufio.NewReaderSize(blob.BodyReader(ctx, body), 32<<10)
	first, end, err := blob.Fill(in, nil, s.chunk)
	if err == nil && !end {
		_, err = in.Peek(1)
		end = err == io.EOF
		if end {
			err = nil
		}
	}
	var o object
	switch {
	case err != nil:
	case end:
		o, err = w.small(ctx, first)
	default:
		o, err = w.large(ctx, first, in)
	}
	if err != nil {
		return blob.Info{}, w.fail(ctx, err)
	}
	return o.info(key), nil
}

// put is one Put.
type put struct {
	s    *Store
	key  string
	opts blob.PutOptions
	// mark goes into the object's metadata: it tells our object from another with the same bytes.
	mark  string
	query url.Values
}

// condition is the condition as the API has it; false if it can't be true.
func (w *put) condition() (url.Values, bool) {
	q := url.Values{}
	switch {
	case w.opts.IfAbsent:
		q.Set("ifGenerationMatch", "0")
	case w.opts.IfVersion != "":
		n, ok := generation(w.opts.IfVersion)
		if !ok {
			return nil, false
		}
		q.Set("ifGenerationMatch", n)
	}
	return q, true
}

func (w *put) conditional() bool { return w.opts.IfAbsent || w.opts.IfVersion != "" }

// refused tells whether the condition was found false. That an object isn't there can't be answered to a put without one.
func (w *put) refused(err error) bool {
	var se *rest.StatusError
	if !w.conditional() || !errors.As(err, &se) {
		return false
	}
	return se.Status == http.StatusPreconditionFailed || w.opts.IfVersion != "" && se.Status == http.StatusNotFound && !missingBucket(se)
}

func (w *put) fail(ctx context.Context, err error) error {
	if w.refused(err) {
		return &blob.Error{Op: "put", Key: w.s.name(w.key), Kind: blob.ErrPreconditionFailed, Err: err}
	}
	if rest.Status(err) == http.StatusNotFound {
		err = &blob.Error{Op: "put", Key: w.s.name(w.key), Kind: blob.ErrInvalid,
			Err: fmt.Errorf("the bucket %q does not exist: %w", w.s.bucket, err)}
	}
	return w.s.fail(ctx, "put", permCreate, w.key, err)
}

// with returns the query of a request that stores.
func (w *put) with(kind string) url.Values {
	q := url.Values{"uploadType": {kind}, "fields": {objectFields}, "name": {w.s.prefix + w.key}}
	for name, values := range w.query {
		q[name] = values
	}
	return q
}

// description is what the API is told of the object.
func (w *put) description(sum string) ([]byte, error) {
	d := map[string]any{"name": w.s.prefix + w.key, "contentType": "application/octet-stream",
		"metadata": map[string]string{markField: w.mark}}
	if sum != "" {
		d["crc32c"] = sum
	}
	return json.Marshal(d)
}

// small stores data by one request at a time. Nothing is sent twice without knowing what became of it: the condition, if there
// is one, makes the second attempt fail if the first one was taken, and then the mark tells whose object is there.
func (w *put) small(ctx context.Context, data []byte) (object, error) {
	sum := encodeCRC(crc32.Checksum(data, crcTable()))
	description, err := w.description(sum)
	if err != nil {
		return object{}, err
	}
	const boundary = "etcd-manager-part"
	req := call(permCreate, http.MethodPost, w.s.upload(w.with("multipart")))
	req.Tries = 1
	req.Header.Set("Content-Type", "multipart/related; boundary="+boundary)
	head := "--" + boundary + "\r\nContent-Type: application/json; charset=UTF-8\r\n\r\n" + string(description) +
		"\r\n--" + boundary + "\r\nContent-Type: application/octet-stream\r\n\r\n"
	req.Body = [][]byte{[]byte(head), data, []byte("\r\n--" + boundary + "--\r\n")}
	var o object
	doubt := false
	pause := 200 * time.Millisecond
	for try := 1; ; try++ {
		o, err = w.send(ctx, req)
		if err == nil {
			return o, w.verify(ctx, o, int64(len(data)), sum)
		}
		if doubt && w.refused(err) {
			if mine, ok := w.mine(ctx, int64(len(data)), sum); ok {
				return mine, nil
			}
			return object{}, err
		}
		doubt = doubt || rest.Unclear(err)
		tries := putTries
		if rest.Status(err) == http.StatusTooManyRequests {
			tries, pause = crowdedTries, max(pause, namePause)
		}
		if ctx.Err() != nil || try >= tries || !w.again(err) || blob.Sleep(ctx, pause) != nil {
			break
		}
		pause *= 2
	}
	if doubt && ctx.Err() == nil {
		if mine, ok := w.mine(ctx, int64(len(data)), sum); ok {
			return mine, nil
		}
	}
	return object{}, err
}

func (w *put) again(err error) bool {
	e := &blob.Error{Err: err}
	w.s.classify(e, permCreate)
	return e.Kind == blob.ErrTransient //nolint:errorlint // a kind is a sentinel
}

func (w *put) send(ctx context.Context, req rest.Request) (object, error) {
	resp, err := w.s.client.Do(ctx, req)
	if err != nil {
		return object{}, err
	}
	return readObject(resp)
}

// mine reads back what is there, and tells whether it is what this put has stored.
func (w *put) mine(ctx context.Context, size int64, sum string) (object, bool) {
	o, err := w.s.stat(ctx, w.key)
	return o, err == nil && o.Metadata[markField] == w.mark && o.Size == size && o.CRC32C == sum
}

// verify compares what the API says that it has stored with what was sent. A new object that is wrong is removed.
func (w *put) verify(ctx context.Context, o object, size int64, sum string) error {
	if o.Size == size && (o.CRC32C == sum || o.CRC32C == "") {
		return nil
	}
	err := &blob.Error{Op: "put", Key: w.s.name(w.key), Kind: blob.ErrTransient,
		Err: fmt.Errorf("the object was stored wrongly: %d bytes with CRC32C %s were sent, %d bytes with %s are stored", size, sum,
			o.Size, o.CRC32C)}
	if w.opts.IfAbsent {
		ctx, cancel := blob.Cleanup(ctx)
		defer cancel()
		resp, derr := w.s.client.Do(ctx, call(permDelete, http.MethodDelete, w.s.object(w.key, url.Values{"generation": {o.Generation}})))
		if derr != nil {
			err.Err = fmt.Errorf("%w (and it could not be removed: %w)", err.Err, derr)
			return err
		}
		rest.Drop(resp)
	}
	return err
}

// hide deletes the object that readers see. In a bucket that keeps versions it stays as an old one.
func (s *Store) hide(ctx context.Context, key string) error {
	resp, err := s.client.Do(ctx, call(permDelete, http.MethodDelete, s.object(key, nil)))
	if rest.Status(err) == http.StatusNotFound {
		err = s.absent(ctx, "put", key, err)
		if errors.Is(err, blob.ErrNotFound) {
			return nil
		}
	}
	if err != nil {
		return s.fail(ctx, "put", permDelete, key, err)
	}
	rest.Drop(resp)
	return nil
}
