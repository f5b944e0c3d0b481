// Package blob is the contract for object storage: small, with conditional puts and streaming.
//
// Everything that etcd-manager keeps outside of etcd goes through a [Store]. A backend is a package of
// its own (blob/file, blob/s3) and passes the conformance suite in blob/blobtest. The package knows
// nothing of what the objects mean; that is pkg/catalog's duty.
package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"iter"
	"time"
)

// Info describes one stored object.
type Info struct {
	// Key is the object's name relative to the store's base, with "/" between its parts and none in front.
	Key string
	// Size is the number of stored bytes.
	Size int64
	// Version is opaque and changes whenever the object is replaced by other bytes; it is what
	// PutOptions.IfVersion takes. (S3: the ETag, which comes back with the same bytes, so what is
	// replaced conditionally should be its writer's own.) It can be empty in a listing of a backend
	// for which it would cost a request an object.
	Version string
	// Modified is when the object was last written, by the store's clock.
	Modified time.Time
}

// Entry is one row of a listing: an object, or with a delimiter a common prefix.
type Entry struct {
	Info
	// Prefix is true for a common prefix ("directory"); Key then ends with the delimiter and the rest of Info is zero.
	Prefix bool
}

// PutOptions says under which condition a put takes place. The zero value replaces whatever is there.
type PutOptions struct {
	// IfAbsent makes the put fail with ErrPreconditionFailed if the key exists.
	IfAbsent bool
	// IfVersion, if not empty, makes the put fail with ErrPreconditionFailed unless the object exists with this version.
	IfVersion string
	// Hide stores nothing: the key reads as absent afterwards, also where the store has it under lock and keeps what was there as an old
	// version. The body is not read, and no condition goes with it. Remove uses it.
	Hide bool
}

// Range selects bytes of an object. The zero value is the whole object.
type Range struct {
	// Offset is the first byte.
	Offset int64
	// Length is the number of bytes; 0 means to the end.
	Length int64
}

// ListOptions narrows a listing.
type ListOptions struct {
	// Delimiter, if "/", folds all keys that share the part up to the next "/" after the prefix into one Entry with Prefix set.
	Delimiter string
	// After, if not empty, starts the listing behind this key.
	After string
}

// Store is a flat name space of objects below one base. All methods may be called concurrently. Errors are
// *Error values; branch with errors.Is on the sentinels below.
type Store interface {
	// Put stores all of body under key and returns what is stored. Nothing is visible under key before
	// the whole body was read without an error and stored; an error of body or of ctx aborts and leaves
	// nothing behind. A body of unknown length is streamed in bounded memory. Size and checksum of what
	// was stored are checked before Put returns. Calling it twice stores twice.
	Put(ctx context.Context, key string, body io.Reader, opts PutOptions) (Info, error)
	// Get opens an object for reading. The caller closes the reader. Bytes that are cut short or
	// belong to two versions surface as a read error, never as a silent end.
	Get(ctx context.Context, key string, r Range) (io.ReadCloser, Info, error)
	// Stat describes one object.
	Stat(ctx context.Context, key string) (Info, error)
	// List yields all objects whose key starts with prefix, in lexical order of key, page by page. After an error the sequence ends.
	List(ctx context.Context, prefix string, opts ListOptions) iter.Seq2[Entry, error]
	// Purge deletes every version of every object below prefix for which match returns true, in
	// batches, and returns how many objects went. What the store has under lock stays and is
	// reported as a *LockedError. It goes on after objects that could not be deleted and returns
	// what failed, joined. Objects that are gone already, or hidden, are a success. One that is
	// hidden never shows again because of a Purge.
	Purge(ctx context.Context, prefix string, match func(key string) bool) (int, error)
}

// Sentinels to branch on.
var (
	// ErrNotFound: the object does not exist. It is never returned for a store that can't be reached.
	ErrNotFound = errors.New("not found")
	// ErrPreconditionFailed: a conditional put found another state.
	ErrPreconditionFailed = errors.New("precondition failed")
	// ErrDenied: the store refuses; Error.Action names the permission that is missing.
	ErrDenied = errors.New("access denied")
	// ErrLocked: the object must not be deleted now: a retention period or a legal hold is on it. It is a *LockedError.
	ErrLocked = errors.New("locked")
	// ErrTransient: trying again later may help (network, throttling, 5xx).
	ErrTransient = errors.New("store unavailable")
	// ErrInvalid: the request can't be right, whatever the store's state (bad key, no such bucket).
	ErrInvalid = errors.New("invalid")
)

// LockedError says which objects a Purge had to leave, because the store protects them from being deleted.
type LockedError struct {
	// Keys are the objects, relative to the store's base.
	Keys []string
	// Until is when the first one that was asked becomes free; zero if only a legal hold is on it, which somebody has to lift.
	Until time.Time
	// LegalHold is true if one that was asked has one.
	LegalHold bool
}

// Error says how many are locked and until when.
func (e *LockedError) Error() string {
	s := "1 object is locked"
	if n := len(e.Keys); n != 1 {
		s = fmt.Sprintf("%d objects are locked", n)
	}
	if !e.Until.IsZero() {
		s += " until " + e.Until.UTC().Format(time.RFC3339)
	}
	if e.LegalHold {
		s += " (legal hold)"
	}
	return s
}

// Is reports that it is an ErrLocked.
func (e *LockedError) Is(target error) bool { return target == ErrLocked }

// Error is what every method of a Store returns.
type Error struct {
	// Op is the operation ("put", "get", "stat", "list", "purge").
	Op string
	// Key is the object or prefix, as the user would find it (with scheme, bucket and base).
	Key string
	// Kind is one of the sentinels, or nil where none fits (then nothing is known of a retry).
	Kind error
	// Action is the missing permission for ErrDenied, for example "s3:PutObject".
	Action string
	// Keys are the objects, relative to the store's base, that a Purge could not delete while it went on with others; empty if
	// the error isn't about single objects.
	Keys []string
	// Err is the cause.
	Err error
}

// Error says what was tried on which object, which permission is missing if any, and the cause.
func (e *Error) Error() string {
	s := fmt.Sprintf("%s %s", e.Op, e.Key)
	if e.Kind != nil {
		s += ": " + e.Kind.Error()
	}
	if e.Action != "" {
		s += " (needs " + e.Action + ")"
	}
	if e.Err != nil && !errors.Is(e.Kind, e.Err) {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap gives both the sentinel and the cause.
func (e *Error) Unwrap() []error {
	var errs []error
	if e.Kind != nil {
		errs = append(errs, e.Kind)
	}
	if e.Err != nil {
		errs = append(errs, e.Err)
	}
	return errs
}
