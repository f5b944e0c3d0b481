// Package catalog says what the objects of a backup store mean: the cluster spec, the created marker, the
// leader record, queued commands, operations, backups and discovery records.
//
// Formats that other tools read and write (docs/format.md) are kept to the letter; everything that this project
// adds lives in objects of its own beside them. The package never takes an object that is empty, unreadable or written
// by a newer version for an absent one: such an object is an [ObjectError] that names it and the way out.
// It decides nothing and keeps no state besides the store.
package catalog

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/envelope"
)

// Sentinels of the store, so that users of the catalog need not know the store's package. They are the same values.
var (
	// ErrNotFound: the object does not exist, which the store has said in so many words.
	ErrNotFound = blob.ErrNotFound
	// ErrConflict: somebody else created or replaced the object in between.
	ErrConflict = blob.ErrPreconditionFailed
	// ErrDenied: the store refuses; the message names the missing permission.
	ErrDenied = blob.ErrDenied
	// ErrLocked: the store keeps the objects, by a lock that was put on them, and may not delete them now; see LockedError.
	ErrLocked = blob.ErrLocked
	// ErrTransient: the store can't be reached or is overloaded; trying again later may help.
	ErrTransient = blob.ErrTransient
	// ErrInvalid: the request can't be right (a bad name, no such bucket).
	ErrInvalid = blob.ErrInvalid
)

// LockedError says which objects are locked, and until when.
type LockedError = blob.LockedError

// Keys of single objects and prefixes, relative to the store's base.
const (
	controlPrefix    = "control/"
	specKey          = controlPrefix + "etcd-cluster-spec"
	markerKey        = controlPrefix + "etcd-cluster-created"
	leaderKey        = controlPrefix + "leader"
	operationsPrefix = controlPrefix + "operations/"
	discoveryPrefix  = "discovery/"
	changesPrefix    = "changes/"
)

// maxObject bounds what is read of a small object; anything larger is not what it claims to be.
const maxObject = 1 << 20

// maxReason is how many bytes a message has of what is wrong with an object: that may repeat what somebody has written there.
const maxReason = 500

// Catalog reads and writes the objects of one cluster's store. It is safe for concurrent use.
// Many methods, since each kind of object has its reading, writing and listing here, and nowhere else; they share the store alone.
type Catalog struct {
	store blob.Store
	now   func() time.Time
	// sealer and opener are nil where nothing is sealed, and where there is nothing to open it with.
	sealer envelope.Sealer
	opener envelope.Opener
}

// Option changes how a catalog works.
type Option func(*Catalog)

// WithClock replaces the wall clock, from which names and timestamps are made.
func WithClock(now func() time.Time) Option { return func(c *Catalog) { c.now = now } }

// WithKeys has what is written from now on sealed, and what is sealed opened. Either may be nil: then nothing is sealed, or of what is
// sealed only what stands in the clear is known.
func WithKeys(s envelope.Sealer, o envelope.Opener) Option {
	return func(c *Catalog) { c.sealer, c.opener = s, o }
}

// Sealer seals what is written; it is nil where nothing is to be sealed.
func (c *Catalog) Sealer() envelope.Sealer { return c.sealer }

// Opener opens what is sealed; it is nil if no key was given.
func (c *Catalog) Opener() envelope.Opener { return c.opener }

// New returns a catalog of the store. It sends no request.
func New(store blob.Store, opts ...Option) *Catalog {
	c := &Catalog{store: store, now: time.Now}
	for _, o := range opts {
		o(c)
	}
	return c
}

// ObjectError says that an object exists but can't be used, and what to do about it.
type ObjectError struct {
	// Object is the key, relative to the store's base.
	Object string
	// Kind is cluster.ErrCorrupt or cluster.ErrFuture.
	Kind error
	// Err is what is wrong.
	Err error
	// Way is the way out, in words for the operator.
	Way string
}

// Error names the object, what is wrong with it, and the way out.
func (e *ObjectError) Error() string {
	s := fmt.Sprintf("read %s: %v", e.Object, e.Kind)
	if e.Err != nil {
		s += ": " + cluster.Shown(e.Err.Error(), maxReason)
	}
	if e.Way != "" {
		s += " (" + e.Way + ")"
	}
	return s
}

// Unwrap gives the sentinel and the cause.
func (e *ObjectError) Unwrap() []error {
	if e.Err == nil {
		return []error{e.Kind}
	}
	return []error{e.Kind, e.Err}
}

// Problem is one object of a listing that can't be used. It is reported beside what can.
type Problem struct {
	// Name is what the object is called in its listing: a command, an operation, a node.
	Name string
	// Object is its key, relative to the store's base.
	Object string
	// Err is an *ObjectError, or what the store said.
	Err error
}

// read returns a small object and its version. An empty or oversized object is corrupt.
func (c *Catalog) read(ctx context.Context, key, way string) ([]byte, blob.Info, error) {
	r, info, err := c.store.Get(ctx, key, blob.Range{})
	if err != nil {
		return nil, blob.Info{}, fmt.Errorf("read %s: %w", key, err)
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxObject+1))
	if err != nil {
		return nil, blob.Info{}, fmt.Errorf("read %s: %w", key, err)
	}
	if len(data) > maxObject {
		return nil, info, &ObjectError{Object: key, Kind: cluster.ErrCorrupt,
			Err: fmt.Errorf("it is larger than %d bytes", maxObject), Way: way}
	}
	if len(bytes.TrimSpace(data)) == 0 {
		return nil, info, &ObjectError{Object: key, Kind: cluster.ErrCorrupt, Err: errors.New("it is empty"), Way: way}
	}
	return data, info, nil
}

// write stores a small object and returns its new version.
func (c *Catalog) write(ctx context.Context, key string, data []byte, opts blob.PutOptions) (string, error) {
	info, err := c.store.Put(ctx, key, bytes.NewReader(data), opts)
	if err != nil {
		return "", fmt.Errorf("write %s: %w", key, err)
	}
	return info.Version, nil
}

// ifVersion makes the condition of a compare-and-swap. An empty version would be no condition at all, so it is refused.
func ifVersion(key, version string) (blob.PutOptions, error) {
	if version == "" {
		return blob.PutOptions{}, fmt.Errorf("replace %s: the version to replace is not known: %w", key, blob.ErrInvalid)
	}
	return blob.PutOptions{IfVersion: version}, nil
}

// corrupt makes the error for an object that can't be read as what it should be.
func corrupt(key, way string, err error) error {
	return &ObjectError{Object: key, Kind: cluster.ErrCorrupt, Err: plainError(err), Way: way}
}

// plainError takes the decoration (and the deliberately unstable white space) out of protobuf's messages.
func plainError(err error) error {
	if err == nil {
		return nil
	}
	s := strings.ReplaceAll(err.Error(), "\u00a0", " ")
	t := strings.TrimSpace(strings.TrimPrefix(s, "proto:"))
	if t == err.Error() {
		return err
	}
	return errors.New(t)
}

// futureWay is the way out of an object that a newer version has written.
const futureWay = "run the version of etcd-manager that wrote it, or a newer one"

// decodeOwn reads one of this project's own JSON objects. They carry a version, which is raised only when a reader that
// doesn't know what is new would do the wrong thing; unknown fields of a known version are ignored.
func decodeOwn(key, way string, data []byte, max int, out any) error {
	var v struct {
		Version *int `json:"version"`
	}
	if err := json.Unmarshal(data, &v); err != nil {
		return corrupt(key, way, err)
	}
	switch {
	case v.Version == nil || *v.Version < 1:
		return corrupt(key, way, errors.New("it names no format version"))
	case *v.Version > max:
		return &ObjectError{Object: key, Kind: cluster.ErrFuture,
			Err: fmt.Errorf("it has format version %d, this program knows up to %d", *v.Version, max), Way: futureWay}
	}
	if err := json.Unmarshal(data, out); err != nil {
		return corrupt(key, way, err)
	}
	return nil
}

// encodeOwn writes one of this project's own JSON objects so that a person can read it too.
func encodeOwn(v any) ([]byte, error) {
	data, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		return nil, fmt.Errorf("encode %T: %w", v, err)
	}
	return append(data, '\n'), nil
}

// validName refuses what would not be one path element.
func validName(kind, name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\\\x00\n") {
		return invalidf("%s %.200q is not a valid name", kind, name)
	}
	return nil
}

// invalidError says in its own words what can't be right; errors.Is(err, ErrInvalid) holds.
type invalidError string

func (e invalidError) Error() string        { return string(e) }
func (e invalidError) Is(target error) bool { return target == ErrInvalid }

func invalidf(format string, args ...any) error { return invalidError(fmt.Sprintf(format, args...)) }

// stamp makes something that changes when the object does. The store's version does, where a listing has one.
func stamp(i blob.Info) string {
	if i.Version != "" {
		return i.Version
	}
	return fmt.Sprintf("%d-%d", i.Size, i.Modified.UnixNano())
}
