package azure

import (
	"context"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/rest"
)

const (
	// uploads is the number of blocks under way at once. A put needs memory for one block more.
	uploads = 2
	// blockTimeout bounds one attempt to send a block, so that a connection that hangs is noticed.
	blockTimeout = 5 * time.Minute
	// blockTries is how often a block is sent: the body can't be rewound, so nobody else can try again.
	blockTries = 8
)

// large stores first and the rest of body in blocks. What is not in the list in the end the service drops after a week.
func (w *put) large(ctx context.Context, first []byte, body io.Reader) (blob.Info, error) {
	if err := w.precheck(ctx); err != nil {
		return blob.Info{}, err
	}
	u := &upload{put: w, sum: md5.New()}
	if err := u.sendAll(ctx, first, body); err != nil {
		return blob.Info{}, err
	}
	var list strings.Builder
	list.WriteString(`<?xml version="1.0" encoding="utf-8"?><BlockList>`)
	for n := range u.blocks {
		list.WriteString("<Uncommitted>" + u.id(n) + "</Uncommitted>")
	}
	list.WriteString("</BlockList>")
	data := []byte(list.String())
	sum := md5.Sum(data)
	checksum := base64.StdEncoding.EncodeToString(u.sum.Sum(nil))
	req := call("PutBlockList", http.MethodPut, w.s.blobURL(w.s.prefix+w.key, url.Values{"comp": {"blocklist"}}))
	req.Header.Set("Content-Md5", base64.StdEncoding.EncodeToString(sum[:])) // Of the list itself.
	req.Header.Set("X-Ms-Blob-Content-Md5", checksum)
	req.Header.Set("X-Ms-Blob-Content-Type", "application/octet-stream")
	req.Body = [][]byte{data}
	info, err := w.commit(ctx, req, u.size, checksum)
	if rest.Code(err) == codeBlockList {
		return info, w.overtaken(ctx, err)
	}
	return info, err
}

// precheck spares the upload of what will not be taken.
func (w *put) precheck(ctx context.Context) error {
	if !w.conditional() {
		return nil
	}
	info, _, err := w.s.stat(ctx, w.key)
	absent := rest.Status(err) == http.StatusNotFound && rest.Code(err) != codeNoContainer
	if err != nil && !absent {
		return err
	}
	if w.opts.IfAbsent != absent || w.opts.IfVersion != "" && info.Version != w.opts.IfVersion {
		return &blob.Error{Op: "put", Key: w.s.name(w.key), Kind: blob.ErrPreconditionFailed}
	}
	return nil
}

// overtaken: somebody has written the blob meanwhile, and with that all blocks that were not in its list are gone.
func (w *put) overtaken(ctx context.Context, err error) error {
	if w.conditional() {
		if perr := w.precheck(ctx); errors.Is(perr, blob.ErrPreconditionFailed) {
			return perr
		}
	}
	return &blob.Error{Op: "put", Key: w.s.name(w.key), Kind: blob.ErrTransient,
		Err: fmt.Errorf("another writer has stored the blob during the upload: %w", err)}
}

// upload is one upload in blocks.
type upload struct {
	*put
	size   int64
	blocks int
	sum    hash.Hash
}

// id names a block. All ids of a blob have the same length, and those of two uploads differ.
func (u *upload) id(n int) string {
	return base64.StdEncoding.EncodeToString(fmt.Appendf(nil, "%s-%06d", u.mark, n))
}

// sendAll sends first and the rest of body in blocks.
func (u *upload) sendAll(ctx context.Context, first []byte, body io.Reader) (err error) {
	p := blob.Parts{Size: u.s.block, Most: maxBlocks, AtOnce: uploads, Read: func(data []byte) { u.sum.Write(data) },
		Send: func(ctx context.Context, number int, data []byte) error { return u.send(ctx, u.id(number-1), data) }}
	u.size, u.blocks, err = p.SendAll(ctx, first, body)
	return err
}

// send sends one block. To send it twice does no harm: the second one takes the place of the first.
func (u *upload) send(ctx context.Context, id string, data []byte) error {
	sum := md5.Sum(data)
	req := call("PutBlock", http.MethodPut, u.s.blobURL(u.s.prefix+u.key, url.Values{"comp": {"block"}, "blockid": {id}}))
	req.Header.Set("Content-Md5", base64.StdEncoding.EncodeToString(sum[:]))
	req.Body, req.Tries, req.Timeout = [][]byte{data}, blockTries, blockTimeout
	resp, err := u.s.client.Do(ctx, req)
	if err != nil {
		return err
	}
	rest.Drop(resp)
	return nil
}
