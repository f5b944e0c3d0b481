package s3

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"
	"github.com/aws/smithy-go/middleware"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// Put implements blob.Store. A body below the part size is read whole and stored by one PUT that
// carries the condition; a larger one by a multipart upload. There the condition is checked before
// the upload and sent with its completion, which not all servers honor (docs/s3-servers.md). A
// conditional put whose answer is lost is not sent again: it fails with ErrTransient, and
// blob.Retry sorts out what happened.
func (s *Store) Put(ctx context.Context, key string, body io.Reader, opts blob.PutOptions) (blob.Info, error) {
	if err := blob.CheckPut(key, opts); err != nil {
		return blob.Info{}, s.invalid("put", key, err)
	}
	if opts.Hide {
		return blob.Info{}, s.hide(ctx, key)
	}
	body = blob.BodyReader(ctx, body)
	first, end, err := blob.Fill(body, nil, s.single)
	if err != nil {
		return blob.Info{}, s.fail(ctx, "put", actionPut, key, err)
	}
	var stored result
	if end {
		stored, err = s.putSmall(ctx, key, first, opts)
	} else {
		stored, err = s.putLarge(ctx, key, first, body, opts)
	}
	if err != nil {
		if failedPrecondition(err, opts) && (opts.IfAbsent || opts.IfVersion != "") {
			return blob.Info{}, &blob.Error{Op: "put", Key: s.name(key), Kind: blob.ErrPreconditionFailed, Err: err}
		}
		return blob.Info{}, s.fail(ctx, "put", actionPut, key, err)
	}
	info, err := s.verify(ctx, key, stored)
	if errors.Is(err, errNotEncrypted) && opts.IfAbsent {
		// It is ours and new, so it can go. What was replaced can't be brought back.
		err = s.withdraw(ctx, key, stored, err)
	}
	return info, err
}

// result is what a put believes to have stored.
type result struct {
	size    int64
	version string
	// versionID is the server's own, where it keeps versions.
	versionID *string
	checksum  string // As S3 writes it: base64 of SHA-256, for a multipart object that of its parts' hashes, with their number.
}

func (s *Store) putSmall(ctx context.Context, key string, data []byte, opts blob.PutOptions) (result, error) {
	sum := sha256.Sum256(data)
	r := result{size: int64(len(data)), checksum: base64.StdEncoding.EncodeToString(sum[:])}
	put := func(c condition, sse types.ServerSideEncryption) error {
		in := &awss3.PutObjectInput{
			Bucket: &s.bucket, Key: s.key(key), Body: bytes.NewReader(data), ContentLength: &r.size, ChecksumSHA256: &r.checksum,
			IfNoneMatch: c.noneMatch, IfMatch: c.match,
			ServerSideEncryption: sse, SSEKMSKeyId: s.write.keyID(), StorageClass: s.write.class(),
			Tagging: s.write.tagging(), ACL: s.write.acl(),
		}
		options := []func(*awss3.Options){signPayload(sum)}
		if c.noneMatch != nil || c.match != nil {
			options = append(options, once)
		}
		out, err := call(ctx, s, (*awss3.Client).PutObject, in, options...)
		if err != nil {
			return err
		}
		r.version, r.versionID = etag(out.ETag), out.VersionId
		return nil
	}
	err := s.conditional(ctx, key, opts, func(c condition) error {
		return s.encrypted(func(sse types.ServerSideEncryption) error { return put(c, sse) })
	})
	return r, err
}

// condition is the condition of one request.
type condition struct{ noneMatch, match *string }

// conditional runs do with the condition of opts until the server gives a clear answer.
func (s *Store) conditional(ctx context.Context, key string, opts blob.PutOptions, do func(condition) error) error {
	var c condition
	switch {
	case opts.IfAbsent:
		c.noneMatch = aws.String("*")
	case opts.IfVersion != "" && s.unquoted.Load():
		c.match = aws.String(opts.IfVersion)
	case opts.IfVersion != "":
		c.match = aws.String(`"` + opts.IfVersion + `"`)
	}
	wait := 50 * time.Millisecond
	for try := 0; ; try++ {
		err := do(c)
		status, _ := response(err)
		// 409: another conditional write was under way, nothing was stored, the outcome is open.
		if status == http.StatusConflict && transientCode(code(err)) && try < 6 && (c.noneMatch != nil || c.match != nil) {
			if err := blob.Sleep(ctx, wait); err != nil {
				return err
			}
			wait *= 2
			continue
		}
		if status != http.StatusPreconditionFailed || c.match == nil || *c.match == opts.IfVersion {
			return err
		}
		// Some servers compare the quotes too. The bare ETag is no less of a condition.
		if info, serr := s.stat(ctx, "put", key); serr != nil || info.Version != opts.IfVersion {
			return err
		}
		bare := do(condition{match: &opts.IfVersion})
		if bare == nil {
			s.unquoted.Store(true)
		}
		return bare
	}
}

// verify looks at what is stored. It looks twice before it complains: some servers read size and checksum of two
// versions while the object is replaced once more.
func (s *Store) verify(ctx context.Context, key string, want result) (blob.Info, error) {
	var info blob.Info
	var err error
	for try := range 3 {
		if try > 0 {
			if serr := blob.Sleep(ctx, 20*time.Millisecond); serr != nil {
				break
			}
		}
		var again bool
		if info, again, err = s.compare(ctx, key, want); !again {
			break
		}
	}
	return info, err
}

// compare reports with again that what is stored is not what was sent.
func (s *Store) compare(ctx context.Context, key string, want result) (info blob.Info, again bool, err error) {
	out, err := call(ctx, s, (*awss3.Client).HeadObject,
		&awss3.HeadObjectInput{Bucket: &s.bucket, Key: s.key(key), ChecksumMode: types.ChecksumModeEnabled})
	if status, _ := response(err); status == http.StatusNotFound {
		return info, false, &blob.Error{Op: "put", Key: s.name(key), Kind: blob.ErrTransient,
			Err: fmt.Errorf("the object was stored and then could not be found: %w", err)}
	}
	if err != nil {
		return info, false, s.fail(ctx, "put", actionGet, key, err)
	}
	info = blob.Info{Key: key, Size: want.size, Version: want.version, Modified: aws.ToTime(out.LastModified)}
	if want.version != "" && etag(out.ETag) != want.version {
		return info, false, nil // Replaced by somebody since; what we stored was accepted.
	}
	if got := aws.ToInt64(out.ContentLength); got != want.size {
		return blob.Info{}, true, s.damaged(key, "%d bytes were sent, %d are stored", want.size, got)
	}
	if err := s.write.confirm(out.ServerSideEncryption); err != nil {
		return blob.Info{}, false, &blob.Error{Op: "put", Key: s.name(key), Err: err}
	}
	if got := aws.ToString(out.ChecksumSHA256); got != "" && !sameChecksum(got, want.checksum) {
		return blob.Info{}, true, s.damaged(key, "SHA-256 %s was sent, %s is stored", want.checksum, got)
	}
	info.Version = etag(out.ETag)
	return info, false, nil
}

// sameChecksum compares what the server says with what was sent. Some servers leave the number of parts away.
func sameChecksum(got, want string) bool {
	if got == want {
		return true
	}
	const sumLength = 44 // Of SHA-256 in base64.
	return len(got) == sumLength && len(want) > sumLength && got == want[:sumLength]
}

func (s *Store) damaged(key, format string, args ...any) error {
	return &blob.Error{Op: "put", Key: s.name(key), Kind: blob.ErrTransient,
		Err: fmt.Errorf("the object was stored wrongly: "+format, args...)}
}

// signPayload makes the payload's hash part of the signature. It is known already, and servers that
// ignore the checksum header check this one.
func signPayload(sum [sha256.Size]byte) func(*awss3.Options) {
	hash := hex.EncodeToString(sum[:])
	return awss3.WithAPIOptions(func(stack *middleware.Stack) error {
		return stack.Initialize.Add(middleware.InitializeMiddlewareFunc("SignPayload",
			func(ctx context.Context, in middleware.InitializeInput,
				next middleware.InitializeHandler) (middleware.InitializeOutput, middleware.Metadata, error) {
				return next.HandleInitialize(v4.SetPayloadHash(ctx, hash), in)
			}), middleware.Before)
	})
}

// rewind makes the body of a request that was sent ready to be sent again.
func rewind(in any) error {
	var body io.Reader
	switch in := in.(type) {
	case *awss3.PutObjectInput:
		body = in.Body
	case *awss3.UploadPartInput:
		body = in.Body
	}
	if seeker, ok := body.(io.Seeker); ok {
		if _, err := seeker.Seek(0, io.SeekStart); err != nil {
			return fmt.Errorf("rewind body: %w", err)
		}
	}
	return nil
}
