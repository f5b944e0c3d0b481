package rest

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net/http"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// maxSkew is how much clocks may differ before that is the likeliest reason of a refusal. Azure takes 15 minutes, Google's tokens a few.
const maxSkew = 4 * time.Minute

// Status returns the status of the answer that err carries; 0 if there was none.
func Status(err error) int {
	var e *StatusError
	if errors.As(err, &e) {
		return e.Status
	}
	return 0
}

// Code returns the provider's code of the answer that err carries; empty if there was none.
func Code(err error) string {
	var e *StatusError
	if errors.As(err, &e) {
		return e.Code
	}
	return ""
}

// Unclear tells whether err leaves open if the server has done what it was asked for.
func Unclear(err error) bool {
	if err == nil {
		return false
	}
	var te *TokenError
	if errors.As(err, &te) || isCertificateError(err) {
		return false
	}
	status := Status(err)
	return status == 0 || status >= 500 || status == http.StatusRequestTimeout
}

// Classify sets the kind of e by HTTP's own rules. action is the permission that the request needs.
func Classify(e *blob.Error, action string) {
	var te *TokenError
	if errors.As(e.Err, &te) {
		e.Kind, e.Action = blob.ErrDenied, te.Need
		if te.Transient {
			e.Kind, e.Action = blob.ErrTransient, ""
		}
		return
	}
	var se *StatusError
	if !errors.As(e.Err, &se) {
		classifyUnanswered(e)
		return
	}
	switch status := se.Status; {
	case status == http.StatusUnauthorized || status == http.StatusForbidden:
		e.Kind, e.Action = blob.ErrDenied, action
		if status == http.StatusUnauthorized {
			e.Action = "valid credentials"
		}
		if skew := se.Skew(); skew.Abs() > maxSkew {
			e.Action = RightTime(skew)
		}
	case status == http.StatusNotFound:
		e.Kind = blob.ErrNotFound
	case status == http.StatusPreconditionFailed:
		e.Kind = blob.ErrPreconditionFailed
	case status == http.StatusNotImplemented:
		e.Kind, e.Err = blob.ErrInvalid, fmt.Errorf("the server lacks this operation: %w", e.Err)
	case se.Transient():
		e.Kind = blob.ErrTransient
	default:
		e.Kind = blob.ErrInvalid
	}
}

// RightTime is what is needed where the clock is the reason.
func RightTime(skew time.Duration) string {
	direction := "ahead of"
	if skew < 0 {
		direction = "behind"
	}
	return fmt.Sprintf("the right time: this machine's clock is %s %s the store's", skew.Abs(), direction)
}

// classifyUnanswered: no answer came, so the store can't be reached, or the request never left.
func classifyUnanswered(e *blob.Error) {
	var unknownCA x509.UnknownAuthorityError
	switch {
	case errors.As(e.Err, &unknownCA):
		e.Kind = blob.ErrInvalid
		e.Err = fmt.Errorf("the server's certificate is signed by a CA that isn't trusted here; name its file in SSL_CERT_FILE: %w", e.Err)
	case isCertificateError(e.Err):
		e.Kind = blob.ErrInvalid
	default:
		e.Kind = blob.ErrTransient
	}
}

func isCertificateError(err error) bool {
	var verification *tls.CertificateVerificationError
	return errors.As(err, &verification)
}
