package rest

import (
	"errors"
	"fmt"
	"hash"
	"io"
)

// Reader holds the body of an answer to the length that was announced, and a whole object to its checksum.
type Reader struct {
	// Body is the answer's.
	Body io.ReadCloser
	// Left is the number of bytes that are to come.
	Left int64
	// Sum and Want are the running and the expected checksum. A nil Sum checks none.
	Sum  hash.Hash
	Want []byte
	// Fail wraps an error.
	Fail func(err error) error
}

// Read implements io.Reader.
func (r *Reader) Read(p []byte) (int, error) {
	n, err := r.Body.Read(p)
	r.Left -= int64(n)
	if r.Sum != nil {
		r.Sum.Write(p[:n])
	}
	switch {
	case r.Left < 0:
		return 0, r.Fail(errors.New("the server sent more bytes than it announced"))
	case err == nil:
		return n, nil
	case err == io.EOF && r.Left == 0:
		if r.Sum == nil || string(r.Sum.Sum(nil)) == string(r.Want) {
			return n, io.EOF
		}
		err = fmt.Errorf("the object is damaged: its checksum is %x, the store has noted %x", r.Sum.Sum(nil), r.Want)
	case err == io.EOF:
		err = fmt.Errorf("%d bytes are missing: %w", r.Left, io.ErrUnexpectedEOF)
	}
	return n, r.Fail(err)
}

// Close implements io.Closer.
func (r *Reader) Close() error { return r.Body.Close() }
