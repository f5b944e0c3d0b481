package s3

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// putLarge stores first and the rest of body by a multipart upload.
func (s *Store) putLarge(ctx context.Context, key string, first []byte, body io.Reader, opts blob.PutOptions) (result, error) {
	if err := s.precheck(ctx, key, opts); err != nil {
		return result{}, err
	}
	var created *awss3.CreateMultipartUploadOutput
	err := s.encrypted(func(sse types.ServerSideEncryption) (err error) {
		created, err = call(ctx, s, (*awss3.Client).CreateMultipartUpload, &awss3.CreateMultipartUploadInput{
			Bucket: &s.bucket, Key: s.key(key), ChecksumAlgorithm: types.ChecksumAlgorithmSha256,
			ServerSideEncryption: sse, SSEKMSKeyId: s.write.keyID(), StorageClass: s.write.class(),
			Tagging: s.write.tagging(), ACL: s.write.acl(),
		})
		return err
	})
	if err != nil {
		return result{}, err
	}
	// Some servers say it of the upload, some only of its parts. Either way nothing is stored that is not confirmed.
	u := &upload{s: s, key: key, id: created.UploadId, encrypted: s.write.confirm(created.ServerSideEncryption) == nil}
	r, err := u.run(ctx, first, body, opts)
	if err != nil {
		if aerr := u.abort(ctx); aerr != nil {
			err = fmt.Errorf("%w (and the upload could not be aborted, its parts stay in the bucket: %v)", err, aerr)
		}
	}
	return r, err
}

// precheck spares the upload of what will not be taken, and is all there is on servers that ignore the condition of a completion.
func (s *Store) precheck(ctx context.Context, key string, opts blob.PutOptions) error {
	if !opts.IfAbsent && opts.IfVersion == "" {
		return nil
	}
	info, err := s.stat(ctx, "put", key)
	absent := errors.Is(err, blob.ErrNotFound)
	if err != nil && !absent {
		return err
	}
	if opts.IfAbsent != absent || opts.IfVersion != "" && info.Version != opts.IfVersion {
		return &blob.Error{Op: "put", Key: s.name(key), Kind: blob.ErrPreconditionFailed}
	}
	return nil
}

// upload is one multipart upload.
type upload struct {
	s    *Store
	key  string
	id   *string
	size int64
	// encrypted is true if the server has confirmed the encryption, or none was asked for.
	encrypted bool

	mu    sync.Mutex
	parts []part
}

type part struct {
	types.CompletedPart
	sum [sha256.Size]byte
}

func (u *upload) run(ctx context.Context, first []byte, body io.Reader, opts blob.PutOptions) (result, error) {
	if err := u.sendAll(ctx, first, body); err != nil {
		return result{}, err
	}
	slices.SortFunc(u.parts, func(a, b part) int { return int(*a.PartNumber) - int(*b.PartNumber) })
	whole := sha256.New()
	completed := make([]types.CompletedPart, len(u.parts))
	for i, p := range u.parts {
		whole.Write(p.sum[:])
		completed[i] = p.CompletedPart
	}
	r := result{size: u.size, checksum: fmt.Sprintf("%s-%d", base64.StdEncoding.EncodeToString(whole.Sum(nil)), len(u.parts))}
	err := u.complete(ctx, &r, completed, opts)
	return r, err
}

// sendAll sends first and the rest of body in parts.
func (u *upload) sendAll(ctx context.Context, first []byte, body io.Reader) (err error) {
	p := blob.Parts{Size: u.s.partSize, Most: maxParts, AtOnce: uploads, Send: func(ctx context.Context, number int, data []byte) error {
		return u.send(ctx, int32(number), data)
	}}
	u.size, _, err = p.SendAll(ctx, first, body)
	return err
}

func (u *upload) send(ctx context.Context, number int32, data []byte) error {
	pctx, cancel := context.WithTimeout(ctx, partTimeout)
	defer cancel()
	sum := sha256.Sum256(data)
	checksum := base64.StdEncoding.EncodeToString(sum[:])
	out, err := call(pctx, u.s, (*awss3.Client).UploadPart, &awss3.UploadPartInput{
		Bucket: &u.s.bucket, Key: u.s.key(u.key), UploadId: u.id, PartNumber: &number,
		Body: bytes.NewReader(data), ContentLength: aws.Int64(int64(len(data))), ChecksumSHA256: &checksum,
	}, signPayload(sum), patient)
	if err != nil {
		if ctx.Err() == nil && pctx.Err() != nil {
			err = &blob.Error{Op: "put", Key: u.s.name(u.key), Kind: blob.ErrTransient,
				Err: fmt.Errorf("part %d took longer than %s: %w", number, partTimeout, err)}
		}
		return err
	}
	if err := u.s.write.confirm(out.ServerSideEncryption); err != nil && !u.encrypted {
		return &blob.Error{Op: "put", Key: u.s.name(u.key), Err: err}
	}
	if got := aws.ToString(out.ChecksumSHA256); got != "" && got != checksum {
		return u.s.damaged(u.key, "part %d has SHA-256 %s, %s is stored", number, checksum, got)
	}
	u.mu.Lock()
	defer u.mu.Unlock()
	u.parts = append(u.parts, part{types.CompletedPart{ETag: out.ETag, PartNumber: &number, ChecksumSHA256: &checksum}, sum})
	return nil
}

// complete makes the object visible. If the answer is lost, the object itself says whether it is there.
func (u *upload) complete(ctx context.Context, r *result, parts []types.CompletedPart, opts blob.PutOptions) error {
	doubt := false
	wait := 200 * time.Millisecond
	for try := 0; ; try++ {
		err := u.s.conditional(ctx, u.key, opts, func(c condition) error {
			out, err := call(ctx, u.s, (*awss3.Client).CompleteMultipartUpload, &awss3.CompleteMultipartUploadInput{
				Bucket: &u.s.bucket, Key: u.s.key(u.key), UploadId: u.id, MultipartUpload: &types.CompletedMultipartUpload{Parts: parts},
				IfNoneMatch: c.noneMatch, IfMatch: c.match,
			}, once)
			if err == nil {
				r.version = etag(out.ETag)
			}
			return err
		})
		if err == nil {
			return nil
		}
		status, _ := response(err)
		if doubt && (status == http.StatusNotFound || status == http.StatusPreconditionFailed) && u.stored(ctx, r) {
			return nil
		}
		if status != 0 && status < 500 || ctx.Err() != nil || try == 3 {
			return err
		}
		doubt = true
		if u.stored(ctx, r) {
			return nil
		}
		if serr := blob.Sleep(ctx, wait); serr != nil {
			return err
		}
		wait *= 2
	}
}

// stored reports whether the object is there with exactly our bytes, for which the server's checksum is the only proof.
func (u *upload) stored(ctx context.Context, r *result) bool {
	out, err := call(ctx, u.s, (*awss3.Client).HeadObject,
		&awss3.HeadObjectInput{Bucket: &u.s.bucket, Key: u.s.key(u.key), ChecksumMode: types.ChecksumModeEnabled})
	if err != nil || aws.ToInt64(out.ContentLength) != r.size || !sameChecksum(aws.ToString(out.ChecksumSHA256), r.checksum) {
		return false
	}
	r.version = etag(out.ETag)
	return true
}

// abort drops the parts, also if ctx has ended. A part that the server was still taking in when it was given up may come
// to lie there after the first abort, so it asks until the server knows nothing of the upload any more.
func (u *upload) abort(ctx context.Context) error {
	ctx, cancel := blob.Cleanup(ctx)
	defer cancel()
	wait := 50 * time.Millisecond
	for try := 0; ; try++ {
		_, err := call(ctx, u.s, (*awss3.Client).AbortMultipartUpload,
			&awss3.AbortMultipartUploadInput{Bucket: &u.s.bucket, Key: u.s.key(u.key), UploadId: u.id})
		status, _ := response(err)
		if status == http.StatusNotFound {
			return nil
		}
		if try == 7 || status == http.StatusForbidden || blob.Sleep(ctx, wait) != nil {
			return err
		}
		wait *= 2
	}
}
