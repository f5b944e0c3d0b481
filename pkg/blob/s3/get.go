package s3

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"net/http"
	"slices"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// Stat implements blob.Store. On AWS an object that is absent looks denied to those who may not list the bucket.
func (s *Store) Stat(ctx context.Context, key string) (blob.Info, error) {
	if err := blob.CheckKey(key); err != nil {
		return blob.Info{}, s.invalid("stat", key, err)
	}
	return s.stat(ctx, "stat", key)
}

func (s *Store) stat(ctx context.Context, op, key string) (blob.Info, error) {
	out, err := call(ctx, s, (*awss3.Client).HeadObject, &awss3.HeadObjectInput{Bucket: &s.bucket, Key: s.key(key)})
	if err == nil {
		return blob.Info{Key: key, Size: aws.ToInt64(out.ContentLength), Version: etag(out.ETag), Modified: aws.ToTime(out.LastModified)},
			nil
	}
	if status, _ := response(err); status != http.StatusNotFound && status != http.StatusForbidden {
		return blob.Info{}, s.fail(ctx, op, actionGet, key, err)
	}
	// An answer to HEAD has no body, so it doesn't tell a missing object from a missing bucket, nor which permission
	// is missing. One byte by GET does.
	rc, info, gerr := s.get(ctx, op, key, blob.Range{Length: 1})
	if gerr != nil {
		return blob.Info{}, gerr
	}
	rc.Close()
	return info, nil // It was just made.
}

// Get implements blob.Store. If the object was stored by a single PUT, its checksum is compared at the end of a whole read.
func (s *Store) Get(ctx context.Context, key string, r blob.Range) (io.ReadCloser, blob.Info, error) {
	if err := blob.CheckGet(key, r); err != nil {
		return nil, blob.Info{}, s.invalid("get", key, err)
	}
	return s.get(ctx, "get", key, r)
}

func (s *Store) get(ctx context.Context, op, key string, r blob.Range) (io.ReadCloser, blob.Info, error) {
	in := &awss3.GetObjectInput{Bucket: &s.bucket, Key: s.key(key)}
	if h := r.Header(); h != "" {
		in.Range = &h
	} else {
		in.ChecksumMode = types.ChecksumModeEnabled
	}
	out, err := call(ctx, s, (*awss3.Client).GetObject, in)
	if err != nil {
		status, _ := response(err)
		if status == http.StatusRequestedRangeNotSatisfiable && r.Offset == 0 {
			return s.get(ctx, op, key, blob.Range{}) // The object is empty.
		}
		return nil, blob.Info{}, s.fail(ctx, op, s.getAction(err), key, err)
	}
	info := blob.Info{Key: key, Size: aws.ToInt64(out.ContentLength), Version: etag(out.ETag), Modified: aws.ToTime(out.LastModified)}
	left := info.Size
	if in.Range != nil {
		if info.Size, left, err = blob.CheckContentRange(aws.ToString(out.ContentRange), r); err != nil {
			out.Body.Close()
			return nil, blob.Info{}, s.fail(ctx, op, actionGet, key, err)
		}
	}
	return &reader{ctx: ctx, s: s, op: op, key: key, body: out.Body, left: left}, info, nil
}

// getAction: without the permission to list, AWS answers "denied" for "absent".
func (s *Store) getAction(err error) string {
	if s.custom {
		return actionGet
	}
	if a := deniedAction(err, ""); a != "" {
		return a
	}
	return actionGet + ", or if the object may be absent " + actionList
}

// reader holds the body to the announced length.
type reader struct {
	ctx     context.Context
	s       *Store
	op, key string
	body    io.ReadCloser
	left    int64
}

func (r *reader) Read(p []byte) (int, error) {
	n, err := r.body.Read(p)
	r.left -= int64(n)
	switch {
	case r.left < 0:
		return 0, r.s.fail(r.ctx, r.op, actionGet, r.key, errors.New("the server sent more bytes than it announced"))
	case err == nil:
		return n, nil
	case err == io.EOF && r.left == 0:
		return n, io.EOF
	case err == io.EOF:
		err = fmt.Errorf("%d bytes are missing: %w", r.left, io.ErrUnexpectedEOF)
	}
	return n, r.s.fail(r.ctx, r.op, actionGet, r.key, err)
}

func (r *reader) Close() error { return r.body.Close() }

// List implements blob.Store. Names that could not have been put through this package, such as the folder marks of consoles, are left out.
func (s *Store) List(ctx context.Context, prefix string, opts blob.ListOptions) iter.Seq2[blob.Entry, error] {
	return func(yield func(blob.Entry, error) bool) {
		if err := blob.CheckList(prefix, opts); err != nil {
			yield(blob.Entry{}, s.invalid("list", prefix, err))
			return
		}
		in := &awss3.ListObjectsV2Input{Bucket: &s.bucket, Prefix: s.key(prefix)}
		if opts.Delimiter != "" {
			in.Delimiter = &opts.Delimiter
		}
		if opts.After != "" {
			in.StartAfter = s.key(opts.After)
		}
		for {
			page, err := call(ctx, s, (*awss3.Client).ListObjectsV2, in)
			if err != nil {
				yield(blob.Entry{}, s.fail(ctx, "list", actionList, prefix, err))
				return
			}
			for _, e := range s.entries(page, opts.After) {
				if !yield(e, nil) {
					return
				}
			}
			if !aws.ToBool(page.IsTruncated) {
				return
			}
			if next := aws.ToString(page.NextContinuationToken); next == "" || next == aws.ToString(in.ContinuationToken) {
				yield(blob.Entry{}, s.fail(ctx, "list", actionList, prefix,
					errors.New("the server says that there is more, but not where")))
				return
			}
			in.ContinuationToken = page.NextContinuationToken
		}
	}
}

// entries merges a page's objects and common prefixes in the order of keys. Servers disagree on a common prefix
// that begins before the start of the listing; here it is left out.
func (s *Store) entries(page *awss3.ListObjectsV2Output, after string) []blob.Entry {
	entries := make([]blob.Entry, 0, len(page.Contents)+len(page.CommonPrefixes))
	for _, o := range page.Contents {
		key := strings.TrimPrefix(aws.ToString(o.Key), s.prefix)
		if key > after && blob.CheckKey(key) == nil {
			entries = append(entries, blob.Entry{Info: blob.Info{Key: key, Size: aws.ToInt64(o.Size),
				Version: etag(o.ETag), Modified: aws.ToTime(o.LastModified)}})
		}
	}
	for _, p := range page.CommonPrefixes {
		key := strings.TrimPrefix(aws.ToString(p.Prefix), s.prefix)
		if key > after && blob.CheckPrefix(key) == nil {
			entries = append(entries, blob.Entry{Info: blob.Info{Key: key}, Prefix: true})
		}
	}
	slices.SortFunc(entries, func(a, b blob.Entry) int { return strings.Compare(a.Key, b.Key) })
	return entries
}

func (s *Store) invalid(op, key string, err error) error {
	return &blob.Error{Op: op, Key: s.name(key), Kind: blob.ErrInvalid, Err: err}
}
