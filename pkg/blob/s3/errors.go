package s3

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"regexp"
	"strings"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// Permissions, as AWS calls them.
const (
	actionPut           = "s3:PutObject"
	actionGet           = "s3:GetObject"
	actionList          = "s3:ListBucket"
	actionListVersions  = "s3:ListBucketVersions"
	actionDelete        = "s3:DeleteObject"
	actionDeleteVersion = "s3:DeleteObjectVersion"
)

// response returns status and header of the answer that err carries; status 0 if there was no answer.
func response(err error) (int, http.Header) {
	var re *smithyhttp.ResponseError
	if errors.As(err, &re) && re.Response != nil && re.Response.Response != nil {
		return re.Response.StatusCode, re.Response.Header
	}
	return 0, http.Header{}
}

// code returns the error code of S3, for example "NoSuchKey", or "".
func code(err error) string {
	var ae smithy.APIError
	if errors.As(err, &ae) {
		return ae.ErrorCode()
	}
	return ""
}

// fail wraps what a request returned. action is the permission that the request needs.
func (s *Store) fail(ctx context.Context, op, action, key string, err error) error {
	return blob.Fail(ctx, op, s.name(key), err, func(e *blob.Error) { s.classify(e, action) })
}

func (s *Store) classify(e *blob.Error, action string) {
	status, header := response(e.Err)
	explain := func(format string, args ...any) {
		e.Err = fmt.Errorf(format+": %w", append(args, e.Err)...)
	}
	switch c := code(e.Err); {
	case status == 0:
		s.classifyUnanswered(e)
	case c == "NoSuchBucket":
		e.Kind = blob.ErrInvalid
		explain("the bucket %q does not exist", s.bucket)
	case c == "RequestTimeTooSkewed":
		e.Kind, e.Action = blob.ErrDenied, "the right time: this machine's clock differs too much from the store's"
	case c == "InvalidAccessKeyId", c == "SignatureDoesNotMatch", c == "ExpiredToken", c == "InvalidToken",
		c == "InvalidClientTokenId", status == http.StatusUnauthorized:
		e.Kind, e.Action = blob.ErrDenied, "valid credentials"
	case status == http.StatusForbidden:
		e.Kind, e.Action = blob.ErrDenied, deniedAction(e.Err, action)
	case strings.HasPrefix(c, "KMS."):
		e.Kind, e.Action = blob.ErrDenied, "a KMS key that can be used"
	case status == http.StatusNotFound:
		e.Kind = blob.ErrNotFound
	case status == http.StatusPreconditionFailed:
		e.Kind = blob.ErrPreconditionFailed
	case status == http.StatusMovedPermanently, status == http.StatusTemporaryRedirect, c == "AuthorizationHeaderMalformed":
		e.Kind = blob.ErrInvalid
		if region := header.Get("X-Amz-Bucket-Region"); region != "" {
			explain("the bucket %q is in region %s: set AWS_REGION", s.bucket, region)
		} else {
			explain("the bucket %q is in another region or at another endpoint", s.bucket)
		}
	case status == http.StatusNotImplemented:
		e.Kind = blob.ErrInvalid
		explain("the server lacks this operation")
	case status >= 500, status == http.StatusTooManyRequests, status == http.StatusRequestTimeout, transientCode(c):
		e.Kind = blob.ErrTransient
	case status >= 400:
		e.Kind = blob.ErrInvalid
	}
}

// classifyUnanswered: no answer came, so the store can't be reached, or the request never left.
func (s *Store) classifyUnanswered(e *blob.Error) {
	var (
		unknownCA x509.UnknownAuthorityError
		params    smithy.InvalidParamsError
		ser       *smithy.SerializationError
		msg       = e.Err.Error()
	)
	switch {
	case errors.As(e.Err, &unknownCA):
		e.Kind, e.Err = blob.ErrInvalid, fmt.Errorf("the server's certificate is signed by a CA that isn't trusted here; name its file in AWS_CA_BUNDLE: %w", e.Err)
	case isCertificateError(e.Err), errors.As(e.Err, &params), errors.As(e.Err, &ser):
		e.Kind = blob.ErrInvalid
	case strings.Contains(msg, "get identity") || strings.Contains(msg, "failed to refresh cached credentials") ||
		strings.Contains(msg, "static credentials are empty"):
		e.Kind, e.Action = blob.ErrDenied, "credentials: there are none in environment, files or instance role"
	default:
		e.Kind = blob.ErrTransient
	}
}

func isCertificateError(err error) bool {
	var verification *tls.CertificateVerificationError
	return errors.As(err, &verification)
}

// transientCode knows the codes of answers that ask to try again although their status does not.
func transientCode(c string) bool {
	switch c {
	case "SlowDown", "InternalError", "ServiceUnavailable", "RequestTimeout", "RequestTimeoutException", "Throttling",
		"ThrottlingException",
		"RequestLimitExceeded", "OperationAborted", "ConditionalRequestConflict", "BadDigest",
		"XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "InvalidDigest", "IncompleteBody":
		return true
	}
	return false
}

// deniedPattern finds the permission in messages such as "… is not authorized to perform: kms:GenerateDataKey on resource …".
var deniedPattern = regexp.MustCompile(`perform:? +([a-z0-9]+:[A-Za-z]+)|\b(kms:[A-Za-z]+)`)

func deniedAction(err error, fallback string) string {
	var ae smithy.APIError
	if errors.As(err, &ae) {
		if m := deniedPattern.FindStringSubmatch(ae.ErrorMessage()); m != nil {
			return m[1] + m[2]
		}
	}
	return fallback
}

// failedPrecondition reports whether a conditional request found another state. AWS answers 404 to If-Match on an object that isn't there.
func failedPrecondition(err error, opts blob.PutOptions) bool {
	status, _ := response(err)
	return status == http.StatusPreconditionFailed || opts.IfVersion != "" && status == http.StatusNotFound &&
		code(err) != "NoSuchBucket" && code(err) != "NoSuchUpload"
}
