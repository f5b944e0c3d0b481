package azure

import (
	"context"
	"crypto/md5"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/rest"
)

// commitTries is how often what makes a blob visible is sent.
const commitTries = 4

// Put implements blob.Store. A body up to the block size is stored by one request; a larger one in blocks, whose list carries the
// condition and makes the blob visible. The condition is also checked before the first block.
func (s *Store) Put(ctx context.Context, key string, body io.Reader, opts blob.PutOptions) (blob.Info, error) {
	if err := blob.CheckPut(key, opts); err != nil {
		return blob.Info{}, s.invalid("put", key, err)
	}
	if opts.Hide {
		return blob.Info{}, s.hide(ctx, key)
	}
	w := &put{s: s, key: key, opts: opts, mark: rand.Text()}
	body = blob.BodyReader(ctx, body)
	first, end, err := blob.Fill(body, nil, s.block)
	var info blob.Info
	switch {
	case err != nil:
	case end:
		info, err = w.small(ctx, first)
	default:
		info, err = w.large(ctx, first, body)
	}
	if err != nil {
		if w.refused(err) {
			return blob.Info{}, &blob.Error{Op: "put", Key: s.name(key), Kind: blob.ErrPreconditionFailed, Err: err}
		}
		return blob.Info{}, s.fail(ctx, "put", permWrite, key, err)
	}
	return info, nil
}

// put is one Put.
type put struct {
	s    *Store
	key  string
	opts blob.PutOptions
	// mark goes into the blob's metadata: it tells our blob from another with the same bytes.
	mark string
}

func (w *put) conditional() bool { return w.opts.IfAbsent || w.opts.IfVersion != "" }

// condition adds the condition to a request.
func (w *put) condition(req rest.Request) {
	switch {
	case w.opts.IfAbsent:
		req.Header.Set("If-None-Match", "*")
	case w.opts.IfVersion != "":
		req.Header.Set("If-Match", `"`+w.opts.IfVersion+`"`)
	}
}

// refused tells whether the condition was found false. A blob that exists already is a conflict to the service.
func (w *put) refused(err error) bool {
	var se *rest.StatusError
	if !w.conditional() || !errors.As(err, &se) {
		return false
	}
	return se.Status == http.StatusPreconditionFailed || w.opts.IfAbsent && se.Code == codeExists ||
		w.opts.IfVersion != "" && se.Status == http.StatusNotFound && se.Code != codeNoContainer
}

// small stores data by one request at a time.
func (w *put) small(ctx context.Context, data []byte) (blob.Info, error) {
	sum := md5.Sum(data)
	checksum := base64.StdEncoding.EncodeToString(sum[:])
	req := call("PutBlob", http.MethodPut, w.s.blobURL(w.s.prefix+w.key, nil))
	req.Header.Set("X-Ms-Blob-Type", "BlockBlob")
	req.Header.Set("Content-Type", "application/octet-stream")
	req.Header.Set("Content-Md5", checksum) // The service compares it, and keeps it with the blob.
	req.Body = [][]byte{data}
	return w.commit(ctx, req, int64(len(data)), checksum)
}

// commit sends what makes the blob visible. The condition, if there is one, makes the second attempt fail if the first one was
// taken, and then the mark tells whose blob is there.
func (w *put) commit(ctx context.Context, req rest.Request, size int64, checksum string) (blob.Info, error) {
	w.condition(req)
	req.Header.Set(markField, w.mark)
	req.Tries = 1
	pause := 200 * time.Millisecond
	doubt := false
	var err error
	for try := 1; ; try++ {
		var resp *http.Response
		if resp, err = w.s.client.Do(ctx, req); err == nil {
			rest.Drop(resp)
			return w.stored(ctx, resp.Header, size, checksum)
		}
		if doubt && (w.refused(err) || rest.Code(err) == codeBlockList) {
			// The list of blocks isn't valid any more once it was taken.
			if info, ok := w.mine(ctx, size, checksum); ok {
				return info, nil
			}
			return blob.Info{}, err
		}
		doubt = doubt || rest.Unclear(err)
		if ctx.Err() != nil || try >= commitTries || !w.again(err) || blob.Sleep(ctx, pause) != nil {
			break
		}
		pause *= 2
	}
	if doubt && ctx.Err() == nil {
		if info, ok := w.mine(ctx, size, checksum); ok {
			return info, nil
		}
	}
	return blob.Info{}, err
}

func (w *put) again(err error) bool {
	e := &blob.Error{Err: err}
	w.s.classify(e, permWrite)
	return e.Kind == blob.ErrTransient && !w.refused(err) //nolint:errorlint // a kind is a sentinel
}

// stored compares what the service says that it has stored with what was sent. The answer to a list of blocks has no checksum of the
// whole, and none has the size: then the blob is looked at.
func (w *put) stored(ctx context.Context, header http.Header, size int64, checksum string) (blob.Info, error) {
	info, err := infoOf(w.key, header, size)
	if err != nil {
		return blob.Info{}, err
	}
	if header.Get("Content-Md5") == checksum {
		return info, nil
	}
	seen, now, err := w.s.stat(ctx, w.key)
	switch {
	case rest.Status(err) == http.StatusNotFound, err == nil && seen.Version != info.Version:
		return info, nil // Replaced or removed by somebody since; what we stored was accepted.
	case err != nil:
		return blob.Info{}, err
	case seen.Size != size || now.Get("Content-Md5") != checksum:
		return blob.Info{}, w.damaged(ctx, info.Version,
			fmt.Errorf("%d bytes with MD5 %s were sent, %d bytes with %s are stored", size, checksum, seen.Size, now.Get("Content-Md5")))
	}
	return seen, nil
}

// damaged reports a blob that was stored wrongly. A new one is removed.
func (w *put) damaged(ctx context.Context, version string, cause error) error {
	err := &blob.Error{Op: "put", Key: w.s.name(w.key), Kind: blob.ErrTransient, Err: fmt.Errorf("the blob was stored wrongly: %w", cause)}
	if !w.opts.IfAbsent {
		return err
	}
	ctx, cancel := blob.Cleanup(ctx)
	defer cancel()
	req := call("DeleteBlob", http.MethodDelete, w.s.blobURL(w.s.prefix+w.key, nil))
	req.Header.Set("If-Match", `"`+version+`"`)
	resp, derr := w.s.client.Do(ctx, req)
	if derr != nil {
		err.Err = fmt.Errorf("%w (and it could not be removed: %w)", err.Err, derr)
		return err
	}
	rest.Drop(resp)
	return err
}

// mine reads back what is there, and tells whether it is what this put has stored.
func (w *put) mine(ctx context.Context, size int64, checksum string) (blob.Info, bool) {
	info, header, err := w.s.stat(ctx, w.key)
	return info, err == nil && header.Get(markField) == w.mark && info.Size == size && header.Get("Content-Md5") == checksum
}

// hide deletes the blob that readers see. An account that keeps versions keeps it as an old one.
func (s *Store) hide(ctx context.Context, key string) error {
	err := s.deleteBlob(ctx, s.prefix+key, "")
	if rest.Status(err) == http.StatusNotFound && rest.Code(err) != codeNoContainer {
		return nil
	}
	if err != nil {
		return s.fail(ctx, "put", permDelete, key, err)
	}
	return nil
}
