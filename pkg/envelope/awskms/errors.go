package awskms

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/etcd-manager/etcd-manager/pkg/envelope"
)

// explain turns what the service answered to an action on a key into the error of an envelope. ctx is the caller's.
func explain(ctx context.Context, err error, action, keyID string) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	e := &envelope.Error{KeyIDs: []string{keyID}, Err: err}
	var api smithy.APIError
	if !errors.As(err, &api) {
		unanswered(e)
		return e
	}
	because := func(kind error, format string, args ...any) {
		e.Kind, e.Err = kind, fmt.Errorf(format+": %w", append(args, err)...)
	}
	switch code := api.ErrorCode(); code {
	case "AccessDeniedException":
		e.Kind, e.Action = envelope.ErrKeyDenied, action
	case "DisabledException":
		e.Action = action
		because(envelope.ErrKeyDenied, "the key is disabled; enable it, or give another key that opens the object")
	case "KMSInvalidStateException", "KMSInvalidState":
		e.Action = action
		because(envelope.ErrKeyDenied, "the key can't be used; if it is pending deletion, cancel that at once: what it has sealed is lost with it")
	case "NotFoundException":
		e.Action = action
		because(envelope.ErrKeyDenied, "there is no such key")
	case "InvalidKeyUsageException":
		e.Action = action
		because(envelope.ErrKeyDenied, "the key is not one for symmetric encryption")
	case "UnrecognizedClientException", "InvalidClientTokenId", "InvalidSignatureException", "SignatureDoesNotMatch",
		"IncompleteSignature", "MissingAuthenticationToken",
		"ExpiredTokenException", "ExpiredToken", "OptInRequired":
		e.Action = action
		because(envelope.ErrKeyDenied, "the credentials are not accepted")
	case "InvalidCiphertextException", "IncorrectKeyException":
		because(envelope.ErrTampered, "the key service can't unwrap its key for this object")
	default:
		if transient(err, code) {
			e.Kind = envelope.ErrUnavailable
			return e
		}
		e.Action = action
		because(envelope.ErrKeyDenied, "the key service refuses the request")
	}
	return e
}

// transient knows the answers that ask to come again.
func transient(err error, code string) bool {
	switch code {
	case "ThrottlingException", "Throttling", "LimitExceededException", "RequestLimitExceeded",
		"TooManyRequestsException", "KeyUnavailableException", "DependencyTimeoutException", "KMSInternalException",
		"InternalFailure", "ServiceUnavailable":
		return true
	}
	var re *smithyhttp.ResponseError
	return errors.As(err, &re) && re.Response != nil && re.Response.Response != nil &&
		(re.Response.StatusCode >= http.StatusInternalServerError || re.Response.StatusCode == http.StatusTooManyRequests)
}

// unanswered: no answer came, so the service can't be reached, or there were no credentials to ask it with.
func unanswered(e *envelope.Error) {
	var (
		unknownCA x509.UnknownAuthorityError
		bad       *tls.CertificateVerificationError
		msg       = e.Err.Error()
	)
	switch {
	case errors.As(e.Err, &unknownCA), errors.As(e.Err, &bad):
		e.Kind, e.Err = envelope.ErrUnavailable, fmt.Errorf("the certificate of the key service isn't trusted here; name the file of its CA in AWS_CA_BUNDLE: %w", e.Err)
	case strings.Contains(msg, "get identity"), strings.Contains(msg, "failed to refresh cached credentials"),
		strings.Contains(msg, "static credentials are empty"):
		e.Kind, e.Err = envelope.ErrNoKey, fmt.Errorf("no credentials for the key service were found in environment, files or instance role: %w", e.Err)
	default:
		e.Kind = envelope.ErrUnavailable
	}
}
