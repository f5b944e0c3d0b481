package blob

import (
	"context"
	"io"
)

// BodyError is an error that came from the body of a put and not from the store. Backends wrap it into an *Error without
// a Kind: whatever sentinel it may carry says nothing of the object that was to be stored.
type BodyError struct {
	// Err is what the body returned.
	Err error
}

// Error says that the body failed, and how.
func (e *BodyError) Error() string { return "read body: " + e.Err.Error() }

// Unwrap gives the cause.
func (e *BodyError) Unwrap() error { return e.Err }

// BodyReader wraps the body of a put: it ends with the error of ctx once that is done, and marks errors of the body as
// *BodyError. Backends use it.
func BodyReader(ctx context.Context, body io.Reader) io.Reader { return bodyReader{ctx, body} }

type bodyReader struct {
	ctx  context.Context
	body io.Reader
}

func (b bodyReader) Read(p []byte) (int, error) {
	if err := b.ctx.Err(); err != nil {
		return 0, err
	}
	n, err := b.body.Read(p)
	if err != nil && err != io.EOF {
		err = &BodyError{err}
	}
	return n, err
}
