package s3

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	awss3 "github.com/aws/aws-sdk-go-v2/service/s3"
	"github.com/aws/aws-sdk-go-v2/service/s3/types"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// WriteOptions are what a store is asked for with every object. The zero value leaves all of it to the bucket's settings.
type WriteOptions struct {
	// SSE is the server-side encryption: "AES256", "aws:kms", "aws:kms:dsse" or empty. A server that doesn't confirm it is not written to.
	SSE string
	// KMSKeyID is the key for SSE by a key management service; empty is the bucket's or the account's.
	KMSKeyID string
	// StorageClass is the storage class, for example "STANDARD_IA"; empty is the standard one.
	StorageClass string
	// Tags are "key=value" pairs.
	Tags []string
	// ACL is the canned ACL, for example "bucket-owner-full-control"; empty is the bucket's own.
	ACL string
}

// maxTags is how many tags an object can have.
const maxTags = 10

func (w WriteOptions) check() error {
	switch w.SSE {
	case "", "AES256", "aws:kms", "aws:kms:dsse":
	default:
		return fmt.Errorf("server-side encryption %q is not known: it is AES256 or aws:kms", w.SSE)
	}
	if w.KMSKeyID != "" && !strings.HasPrefix(w.SSE, "aws:kms") {
		return errors.New("a key for server-side encryption needs the server-side encryption aws:kms")
	}
	if len(w.Tags) > maxTags {
		return fmt.Errorf("%d tags are more than the %d that an object can have", len(w.Tags), maxTags)
	}
	seen := map[string]bool{}
	for _, t := range w.Tags {
		k, v, ok := strings.Cut(t, "=")
		if !ok || k == "" || len(k) > 128 || len(v) > 256 {
			return fmt.Errorf("tag %q is not key=value, with at most 128 and 256 bytes", t)
		}
		if seen[k] {
			return fmt.Errorf("tag %q is given twice", k)
		}
		seen[k] = true
	}
	return nil
}

// codeDenied is the error code of a policy that denies.
const codeDenied = "AccessDenied"

func (w WriteOptions) acl() types.ObjectCannedACL { return types.ObjectCannedACL(w.ACL) }

// encrypted sends a request that stores something with the encryption that is asked for. Where none is, the bucket's default holds. A
// bucket may have a policy that denies what doesn't name an encryption; then AES256 is named, which is what S3 uses without any default.
func (s *Store) encrypted(do func(types.ServerSideEncryption) error) error {
	sse := types.ServerSideEncryption(s.write.SSE)
	if sse == "" && s.demanded.Load() {
		sse = types.ServerSideEncryptionAes256
	}
	err := do(sse)
	if status, _ := response(err); sse != "" || status != http.StatusForbidden || code(err) != codeDenied {
		return err
	}
	again := do(types.ServerSideEncryptionAes256)
	switch status, _ := response(again); {
	case again == nil, status == http.StatusPreconditionFailed, status == http.StatusConflict:
		s.demanded.Store(true)
	case status >= 400 && status < 500, status == http.StatusNotImplemented:
		return err // the encryption was not what was lacking
	}
	return again
}

func (w WriteOptions) class() types.StorageClass { return types.StorageClass(w.StorageClass) }

func (w WriteOptions) keyID() *string { return text(w.KMSKeyID) }

// tagging is the tags as a header.
func (w WriteOptions) tagging() *string {
	var pairs []string
	for _, t := range w.Tags {
		k, v, _ := strings.Cut(t, "=")
		pairs = append(pairs, url.QueryEscape(k)+"="+url.QueryEscape(v))
	}
	return text(strings.Join(pairs, "&"))
}

func text(s string) *string {
	if s == "" {
		return nil
	}
	return &s
}

// errNotEncrypted: the server stores in the clear what was to be encrypted.
var errNotEncrypted = errors.New("the server ignores the required server-side encryption")

// confirm holds what an answer says of the encryption to what was asked for.
func (w WriteOptions) confirm(have types.ServerSideEncryption) error {
	if w.SSE == "" || string(have) == w.SSE {
		return nil
	}
	said := "says nothing of it"
	if have != "" {
		said = fmt.Sprintf("says %q", have)
	}
	return fmt.Errorf("%w: %s was required (--s3-sse) and the answer %s; nothing is stored there unencrypted, so use another server, or let the manager encrypt (--backup-encryption) and remove --s3-sse", errNotEncrypted, w.SSE, said)
}

// hide makes a key read as absent. Where the bucket keeps versions this adds a delete marker, which a lock doesn't forbid.
func (s *Store) hide(ctx context.Context, key string) error {
	if _, err := call(ctx, s, (*awss3.Client).DeleteObject, &awss3.DeleteObjectInput{Bucket: &s.bucket, Key: s.key(key)}); err != nil {
		return s.fail(ctx, "put", actionDelete, key, err)
	}
	return nil
}

// withdraw removes an object that was stored just now and must not stay. cause is returned, with what went wrong then.
func (s *Store) withdraw(ctx context.Context, key string, r result, cause error) error {
	ctx, cancel := blob.Cleanup(ctx)
	defer cancel()
	in := &awss3.DeleteObjectInput{Bucket: &s.bucket, Key: s.key(key)}
	if id := aws.ToString(r.versionID); id != "" && id != "null" {
		in.VersionId = &id
	}
	if _, err := call(ctx, s, (*awss3.Client).DeleteObject, in); err != nil {
		return fmt.Errorf("%w (and it could not be removed again: %w)", cause, s.fail(ctx, "put", actionDelete, key, err))
	}
	return cause
}
