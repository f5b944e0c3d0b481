package backup

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Retries of a download: this many failures in a row without a single byte in between are too many.
const (
	maxFailures    = 8
	firstBackoff   = 200 * time.Millisecond
	longestBackoff = 10 * time.Second
)

// resumingReader reads the stored file of a backup and goes on where it broke off. It is used by one goroutine at a time.
type resumingReader struct {
	ctx     context.Context
	catalog *catalog.Catalog
	name    string
	// file is the name of the backup's data.
	file string
	// pause waits before the n-th retry in a row.
	pause func(ctx context.Context, n int) error

	body    io.ReadCloser
	version string
	// size is the object's, offset what was read of it, in bytes.
	size, offset int64
	failures     int
	meter        *meter
	// err is why reading ended, unless it was the end of the object.
	err error
}

func newResumingReader(ctx context.Context, c *catalog.Catalog, name, file string) *resumingReader {
	return &resumingReader{ctx: ctx, catalog: c, name: name, file: file, pause: backoff}
}

// backoff waits longer each time, or until the context ends.
func backoff(ctx context.Context, n int) error {
	t := time.NewTimer(min(firstBackoff<<(n-1), longestBackoff))
	defer t.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-t.C:
		return nil
	}
}

// open opens the object for the first time, trying again like Read.
func (r *resumingReader) open() error {
	for r.body == nil {
		if err := r.reopen(); err != nil {
			if err := r.fail(err); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *resumingReader) reopen() error {
	body, data, err := r.catalog.OpenBackupData(r.ctx, r.name, r.file, r.offset)
	if err != nil {
		return err
	}
	if r.version == "" && r.offset == 0 {
		r.version, r.size = data.Version, data.Size
	}
	if data.Version != r.version || data.Size != r.size {
		_ = body.Close()
		return &Error{Backup: r.name, Kind: cluster.ErrCorrupt, Where: fmt.Sprintf("%s at byte %d", r.file, r.offset), Err: errors.New("it was replaced while it was read")}
	}
	r.body = body
	return nil
}

// fail takes an error: it returns it if trying again can't help or was tried often enough, else it waits and returns nil.
func (r *resumingReader) fail(err error) error {
	var bad *Error
	if r.ctx.Err() != nil {
		r.err = errors.Join(err, context.Cause(r.ctx))
		return r.err
	}
	permanent := errors.As(err, &bad)
	for _, s := range []error{catalog.ErrNotFound, catalog.ErrDenied, catalog.ErrInvalid} {
		permanent = permanent || errors.Is(err, s)
	}
	r.failures++
	if permanent || r.failures > maxFailures {
		r.err = err
		return err
	}
	if perr := r.pause(r.ctx, r.failures); perr != nil {
		r.err = errors.Join(err, perr)
		return r.err
	}
	return nil
}

// Read returns the next bytes, and io.EOF only after the last byte of the object.
func (r *resumingReader) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for r.err == nil {
		if r.offset == r.size {
			return 0, io.EOF
		}
		if r.body == nil {
			if err := r.reopen(); err != nil {
				if err := r.fail(err); err != nil {
					return 0, err
				}
				continue
			}
		}
		n, err := r.body.Read(p[:min(int64(len(p)), r.size-r.offset)])
		r.offset += int64(n)
		if n > 0 {
			r.failures = 0
			if r.meter != nil {
				r.meter.add(n)
			}
		}
		if err != nil && r.offset < r.size {
			_ = r.body.Close()
			r.body = nil
			if err == io.EOF {
				err = io.ErrUnexpectedEOF
			}
			if err := r.fail(err); err != nil {
				return n, err
			}
		}
		if n > 0 {
			return n, nil
		}
	}
	return 0, r.err
}

// Close closes what is open.
func (r *resumingReader) Close() error {
	if r.body == nil {
		return nil
	}
	err := r.body.Close()
	r.body = nil
	return err
}
