// Package envelope encrypts what is stored, so that whoever can read the store can't read the keys and values of etcd.
//
// The stream is an age file (age-encryption.org/v1) whatever kind of keys opens it: age recipients,
// keys of a key management service, or both. What opens it is named in its head, in the clear. Its
// plaintext begins with a line that says what it is and where it belongs, so that one object can't
// be put in the place of another. The exact format is in docs/format.md.
//
// The package keeps apart what operators confuse at their peril: a key that is missing ([ErrNoKey])
// or refused ([ErrKeyDenied]), a key service that doesn't answer ([ErrUnavailable]), and an object
// that was altered ([ErrTampered]) or moved ([ErrWrongContext]). It must never call the first three
// a damage, and never let a plaintext end silently before its last byte was authenticated.
package envelope

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Scheme names the format of everything that a Sealer writes.
const Scheme = "age"

// Sealer encrypts. A nil Sealer stands for "not encrypted"; nothing here takes one. Its methods may be called concurrently.
type Sealer interface {
	// Seal returns a writer whose plaintext goes to dst encrypted, and that is complete only when
	// Close has returned without an error; Close leaves dst open. Without Close dst holds nothing
	// that can be opened. binding says where the object belongs, by a name that only it has; it is
	// readable in what is stored. ctx bounds the asking for keys, which is over when Seal returns.
	Seal(ctx context.Context, dst io.Writer, binding string) (io.WriteCloser, error)
	// Info returns the scheme and which keys open what is sealed, for the operator to recognize.
	Info() (scheme string, keyIDs []string)
}

// Opener decrypts. Its methods may be called concurrently.
type Opener interface {
	// Open returns the plaintext of what Seal has written with the same binding. Only when the reader has returned io.EOF was everything
	// authenticated; what came before is not to be trusted. An error of src is passed on as it is.
	Open(ctx context.Context, src io.Reader, binding string) (io.Reader, error)
}

// Sentinels to branch on.
var (
	// ErrNoKey: no key that was given opens it. The error names those that would.
	ErrNoKey = errors.New("no key to open it was given")
	// ErrKeyDenied: the key service refuses: the permission is lacking, or the key is disabled or gone.
	ErrKeyDenied = errors.New("the key is refused")
	// ErrUnavailable: the key service doesn't answer or asks to come again. Trying later may help.
	ErrUnavailable = errors.New("the key service is not available")
	// ErrTampered: what was read is not what was sealed: it was altered, cut short, or moved here from another place.
	ErrTampered = errors.New("altered since it was sealed")
	// ErrWrongContext: it is whole, but was sealed for another place. Then errors.Is(err, ErrTampered) holds too.
	ErrWrongContext = errors.New("sealed for another place")
)

// Error is what a Sealer and an Opener return, except for the errors of the reader or writer that they were given.
type Error struct {
	// Op is "seal" or "open".
	Op string
	// Binding is the object's.
	Binding string
	// Kind is one of the sentinels.
	Kind error
	// KeyIDs are those of the keys that would open it, where that could be read, or of the key that is refused.
	KeyIDs []string
	// Action is the permission that is lacking, for example "kms:Decrypt".
	Action string
	// Err is the cause; it may be nil.
	Err error
}

// Error says what was tried on which object, which key and permission it needs, and the cause.
func (e *Error) Error() string {
	s := fmt.Sprintf("%s %s: %v", e.Op, e.Binding, e.Kind)
	switch {
	case e.Action != "":
		s += fmt.Sprintf(" (needs %s on %s)", e.Action, list(e.KeyIDs))
	case errors.Is(e.Kind, ErrNoKey) && len(e.KeyIDs) > 0:
		s += "; one of these opens it: " + list(e.KeyIDs)
	}
	if e.Err != nil {
		s += ": " + cluster.Shown(e.Err.Error(), maxReason)
	}
	return s
}

// What stands in the head of an object can be anybody's: a message has at most so many bytes of a reason, and so many ids of so many bytes.
const (
	maxReason = 500
	maxIDs    = 10
	maxID     = 200
)

func list(ids []string) string {
	var shown []string
	for i, id := range ids {
		if i == maxIDs {
			shown = append(shown, fmt.Sprintf("and %d more", len(ids)-i))
			break
		}
		shown = append(shown, cluster.Shown(id, maxID))
	}
	return strings.Join(shown, ", ")
}

// Unwrap gives the kind and the cause. What was moved counts as tampered with, too.
func (e *Error) Unwrap() []error {
	errs := []error{e.Kind}
	if errors.Is(e.Kind, ErrWrongContext) {
		errs = append(errs, ErrTampered)
	}
	if e.Err != nil {
		errs = append(errs, e.Err)
	}
	return errs
}

// SealBytes seals something small.
func SealBytes(ctx context.Context, s Sealer, plain []byte, binding string) ([]byte, error) {
	var b bytes.Buffer
	w, err := s.Seal(ctx, &b, binding)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(plain); err != nil {
		return nil, fmt.Errorf("seal %s: %w", binding, err)
	}
	if err := w.Close(); err != nil {
		return nil, fmt.Errorf("seal %s: %w", binding, err)
	}
	return b.Bytes(), nil
}

// OpenBytes opens something small. What it returns was authenticated to the end.
func OpenBytes(ctx context.Context, o Opener, sealed []byte, binding string) ([]byte, error) {
	r, err := o.Open(ctx, bytes.NewReader(sealed), binding)
	if err != nil {
		return nil, err
	}
	return io.ReadAll(r)
}

// probeBinding belongs to no object.
const probeBinding = "probe"

// Probe seals a few bytes and opens them again, which finds keys that are denied, disabled or don't
// fit each other before anything depends on them. sealed tells whether sealing worked: if it did,
// the error is that of opening.
func Probe(ctx context.Context, s Sealer, o Opener) (sealed bool, err error) {
	want := []byte("probe of the keys")
	data, err := SealBytes(ctx, s, want, probeBinding)
	if err != nil {
		return false, err
	}
	got, err := OpenBytes(ctx, o, data, probeBinding)
	if err == nil && !bytes.Equal(got, want) {
		err = &Error{Op: "open", Binding: probeBinding, Kind: ErrTampered}
	}
	return true, err
}
