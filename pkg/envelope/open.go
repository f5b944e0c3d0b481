package envelope

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"filippo.io/age"
)

// opener is made by NewOpener.
type opener struct {
	identities []age.Identity
	// own are the ids of the recipients that the identities belong to.
	own []string
	// kms is nil if there is no key service; kmsKeys are the only ones of its keys that are used, if there are any.
	kms     KMS
	kmsKeys []string
}

// Open implements Opener.
func (o *opener) Open(ctx context.Context, src io.Reader, binding string) (io.Reader, error) {
	if err := checkBinding(binding); err != nil {
		return nil, fmt.Errorf("open %q: %w", binding, err)
	}
	in := &reader{r: src, most: maxHead}
	seen := &stanzas{}
	all := append(slices.Clone(o.identities), seen)
	if o.kms != nil {
		all = append(all, &kmsIdentity{ctx: ctx, kms: o.kms, allowed: o.kmsKeys, binding: binding})
	}
	plain, err := age.Decrypt(in, all...)
	if err != nil {
		return nil, o.explain(err, in, seen, binding)
	}
	in.most = 0
	r := bufio.NewReaderSize(&plainReader{r: plain, in: in, binding: binding}, len(preamble)+maxBinding+1)
	line, err := r.ReadSlice('\n')
	if in.err != nil {
		return nil, in.err
	}
	var known *Error
	if errors.As(err, &known) {
		return nil, known
	}
	have, ok := strings.CutPrefix(strings.TrimSuffix(string(line), "\n"), preamble)
	switch {
	case err != nil || !ok:
		return nil, &Error{Op: "open", Binding: binding, Kind: ErrTampered,
			Err: errors.New("it opens, but was not sealed by etcd-manager, or by a newer version")}
	case have != binding:
		return nil, moved(binding, have)
	}
	return r, nil
}

func moved(binding, have string) error {
	return &Error{Op: "open", Binding: binding, Kind: ErrWrongContext, Err: fmt.Errorf("it was sealed as %q", have)}
}

// explain tells why age has refused, which is never a damage if it can be the key.
func (o *opener) explain(err error, in *reader, seen *stanzas, binding string) error {
	if in.err != nil {
		return in.err
	}
	var known *Error
	if errors.As(err, &known) {
		if errors.Is(known, ErrNoKey) && len(known.KeyIDs) == 0 {
			known.KeyIDs = seen.keyIDs()
		}
		return known
	}
	var none *age.NoIdentityMatchError
	if !errors.As(err, &none) {
		return &Error{Op: "open", Binding: binding, Kind: ErrTampered, Err: err}
	}
	ids := seen.keyIDs()
	for _, id := range ids {
		if slices.Contains(o.own, id) {
			return &Error{Op: "open", Binding: binding, Kind: ErrTampered, KeyIDs: ids,
				Err: fmt.Errorf("it names %s, whose identity is here, and that doesn't open it", id)}
		}
	}
	e := &Error{Op: "open", Binding: binding, Kind: ErrNoKey, KeyIDs: ids}
	if len(o.identities) > 0 {
		e.Err = fmt.Errorf("of the %d identities that were given none is among them", len(o.identities))
	}
	return e
}

// maxHead bounds what stands before what is encrypted. That is held in memory: a few KiB, and less
// than 200 KiB for as many keys as there can be.
const maxHead = 1 << 20

var errHead = errors.New("its header doesn't end")

// reader remembers the error of the reader below, unless it is its end.
type reader struct {
	r   io.Reader
	err error
	// most is how many bytes may be read; 0 if that isn't bounded.
	most, read int
}

// Read passes on.
func (r *reader) Read(p []byte) (int, error) {
	if r.most > 0 {
		if r.read >= r.most {
			return 0, errHead
		}
		p = p[:min(len(p), r.most-r.read)]
	}
	n, err := r.r.Read(p)
	r.read += n
	if err != nil && err != io.EOF {
		r.err = err
	}
	return n, err
}

// plainReader tells failures of the source from failures of authentication.
type plainReader struct {
	r       io.Reader
	in      *reader
	binding string
}

// Read returns io.EOF only when everything was authenticated.
func (p *plainReader) Read(b []byte) (int, error) {
	n, err := p.r.Read(b)
	switch {
	case err == nil || err == io.EOF:
		return n, err
	case p.in.err != nil:
		return n, p.in.err
	}
	return n, &Error{Op: "open", Binding: p.binding, Kind: ErrTampered, Err: err}
}

// stanzas is an identity that opens nothing and remembers what it was shown.
type stanzas struct{ list []*age.Stanza }

// Unwrap implements age.Identity.
func (s *stanzas) Unwrap(list []*age.Stanza) ([]byte, error) {
	s.list = list
	return nil, age.ErrIncorrectIdentity
}

// keyIDs are the ids of the keys that the head names.
func (s *stanzas) keyIDs() []string {
	for _, st := range s.list {
		if st.Type == keysStanza {
			return slices.Clone(st.Args)
		}
	}
	return nil
}
