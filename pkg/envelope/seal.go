package envelope

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"filippo.io/age"
)

const (
	// keysStanza names the keys that open an object. age's own stanzas don't tell whom they are for.
	keysStanza = "etcd-manager-keys"
	// preamble begins the plaintext, before the binding and the end of the line.
	preamble = "etcd-manager-sealed/1 "
	// maxBinding is how long a binding may be, in bytes. Keys of S3 have at most 1024.
	maxBinding = 4096
	// maxKeyID is how many bytes of a key's id are shown: all but the post-quantum recipients of age are shorter.
	maxKeyID = 128
)

// sealer is made by NewSealer.
type sealer struct {
	cluster    string
	recipients []age.Recipient
	// kmsKeys are the ids of the keys of kms among the recipients.
	kms     KMS
	kmsKeys []string
	keyIDs  []string
	// labels are what age has to see on every recipient, so that they can stand together.
	labels []string
}

// Info implements Sealer.
func (s *sealer) Info() (scheme string, keyIDs []string) { return Scheme, slices.Clone(s.keyIDs) }

// Seal implements Sealer.
func (s *sealer) Seal(ctx context.Context, dst io.Writer, binding string) (io.WriteCloser, error) {
	if err := checkBinding(binding); err != nil {
		return nil, fmt.Errorf("seal %q: %w", binding, err)
	}
	out := &writer{w: dst}
	all := append([]age.Recipient{&keyList{ids: s.keyIDs, labels: s.labels}}, s.recipients...)
	for _, id := range s.kmsKeys {
		all = append(all, &kmsRecipient{ctx: ctx, kms: s.kms, keyID: id, cluster: s.cluster, binding: binding, labels: s.labels})
	}
	w, err := age.Encrypt(out, all...)
	if err == nil {
		_, err = io.WriteString(w, preamble+binding+"\n")
	}
	if out.err != nil {
		return nil, out.err
	}
	var known *Error
	if errors.As(err, &known) {
		return nil, known
	}
	if err != nil {
		return nil, fmt.Errorf("seal %s: %w", binding, err)
	}
	return w, nil
}

func checkBinding(binding string) error {
	if binding == "" || len(binding) > maxBinding || strings.ContainsAny(binding, "\n\r") {
		return fmt.Errorf("a binding is one line of 1 to %d bytes", maxBinding)
	}
	return nil
}

// writer remembers the error of the writer below.
type writer struct {
	w   io.Writer
	err error
}

// Write passes on.
func (w *writer) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	if err != nil {
		w.err = err
	}
	return n, err
}

// keyList is a recipient that wraps nothing: it leaves the ids of the others. The head's authentication covers them.
type keyList struct{ ids, labels []string }

// Wrap implements age.Recipient.
func (k *keyList) Wrap([]byte) ([]*age.Stanza, error) {
	return []*age.Stanza{{Type: keysStanza, Args: k.ids}}, nil
}

// WrapWithLabels implements age.RecipientWithLabels.
func (k *keyList) WrapWithLabels(fileKey []byte) ([]*age.Stanza, []string, error) {
	s, err := k.Wrap(fileKey)
	return s, slices.Clone(k.labels), err
}

// shortID is the id of a key as it is stored and shown.
func shortID(id string) string { return id[:min(len(id), maxKeyID)] }
