package azure

import (
	"context"
	"crypto/md5"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/rest"
)

// markField is the name of our mark in a blob's metadata. Names there are identifiers, without hyphens.
const markField = "X-Ms-Meta-Etcd_manager_put"

// etag strips the quotes of an ETag: what is left is the version.
func etag(header http.Header) string { return strings.Trim(header.Get("ETag"), `"`) }

// infoOf reads the header of an answer about a whole blob.
func infoOf(key string, header http.Header, size int64) (blob.Info, error) {
	info := blob.Info{Key: key, Size: size, Version: etag(header)}
	t, err := http.ParseTime(header.Get("Last-Modified"))
	switch {
	case err != nil:
		return info, fmt.Errorf("the answer has no time: %w", err)
	case info.Version == "":
		return info, errors.New("the answer has no ETag")
	case size < 0:
		return info, errors.New("the answer has no length")
	}
	info.Modified = t
	return info, nil
}

// Stat implements blob.Store.
func (s *Store) Stat(ctx context.Context, key string) (blob.Info, error) {
	if err := blob.CheckKey(key); err != nil {
		return blob.Info{}, s.invalid("stat", key, err)
	}
	info, _, err := s.stat(ctx, key)
	if err != nil {
		return blob.Info{}, s.fail(ctx, "stat", permRead, key, err)
	}
	return info, nil
}

// stat returns errors of the client, unwrapped.
func (s *Store) stat(ctx context.Context, key string) (blob.Info, http.Header, error) {
	resp, err := s.client.Do(ctx, call("GetBlobProperties", http.MethodHead, s.blobURL(s.prefix+key, nil)))
	if err != nil {
		return blob.Info{}, nil, err
	}
	rest.Drop(resp)
	info, err := infoOf(key, resp.Header, resp.ContentLength)
	return info, resp.Header, err
}

// Get implements blob.Store. The checksum is compared at the end of a whole read.
func (s *Store) Get(ctx context.Context, key string, r blob.Range) (io.ReadCloser, blob.Info, error) {
	if err := blob.CheckGet(key, r); err != nil {
		return nil, blob.Info{}, s.invalid("get", key, err)
	}
	return s.get(ctx, key, r)
}

func (s *Store) get(ctx context.Context, key string, r blob.Range) (io.ReadCloser, blob.Info, error) {
	req := call("GetBlob", http.MethodGet, s.blobURL(s.prefix+key, nil))
	if h := r.Header(); h != "" {
		req.Header.Set("Range", h)
	}
	resp, err := s.client.Do(ctx, req)
	if rest.Status(err) == http.StatusRequestedRangeNotSatisfiable && r.Offset == 0 {
		return s.get(ctx, key, blob.Range{}) // The blob is empty.
	}
	if err != nil {
		return nil, blob.Info{}, s.fail(ctx, "get", permRead, key, err)
	}
	size, left := resp.ContentLength, resp.ContentLength
	sum := resp.Header.Get("Content-Md5")
	if req.Header.Get("Range") != "" {
		size, left, err = blob.CheckContentRange(resp.Header.Get("Content-Range"), r)
		sum = resp.Header.Get("X-Ms-Blob-Content-Md5") // The other one, if there is one, is that of the range.
	}
	var info blob.Info
	if err == nil {
		info, err = infoOf(key, resp.Header, size)
	}
	if err != nil {
		resp.Body.Close()
		return nil, blob.Info{}, s.fail(ctx, "get", permRead, key, err)
	}
	reader := &rest.Reader{Body: resp.Body, Left: left, Fail: func(err error) error { return s.fail(ctx, "get", permRead, key, err) }}
	if want, derr := base64.StdEncoding.DecodeString(sum); derr == nil && len(want) == md5.Size && left == size {
		reader.Sum, reader.Want = md5.New(), want
	}
	return reader, info, nil
}
