package envelope

import (
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"

	"filippo.io/age"
)

// DataKey is a key that a key service has made for one object.
type DataKey struct {
	// KeyID is the key that it is wrapped by. It can be another than was asked for, as an alias stands for a key.
	KeyID string
	// Plain is the key itself, of 32 bytes, Wrapped what the service makes it of again.
	Plain, Wrapped []byte
}

// KMS is a key management service. Its methods may be called concurrently and more than once. They
// return an *Error whose Kind is ErrKeyDenied, ErrUnavailable, ErrNoKey (no credentials to ask
// with), or ErrTampered where the service can't unwrap what it is shown.
type KMS interface {
	// GenerateDataKey returns a new key that is wrapped by keyID and bound to the context, which the service may log.
	GenerateDataKey(ctx context.Context, keyID string, bound map[string]string) (DataKey, error)
	// Decrypt unwraps a key with the same context.
	Decrypt(ctx context.Context, keyID string, wrapped []byte, bound map[string]string) ([]byte, error)
}

const (
	// kmsStanza is the type of stanza that holds the file key, wrapped by a data key of the service.
	kmsStanza = "aws-kms"
	// ContextCluster names the cluster in the context that a key is bound to; the key's policy can ask for it.
	ContextCluster = "etcd-manager-cluster"
	// ContextObject names the object there.
	ContextObject = "etcd-manager-object"

	fileKeySize = 16
	dataKeySize = 32
	nonceSize   = 12
)

// boundTo is the context of one object's key. The service takes no empty values.
func boundTo(cluster, binding string) map[string]string {
	m := map[string]string{ContextObject: binding}
	if cluster != "" {
		m[ContextCluster] = cluster
	}
	return m
}

// kmsRecipient wraps the key of one object.
type kmsRecipient struct {
	ctx                     context.Context
	kms                     KMS
	keyID, cluster, binding string
	labels                  []string
}

// WrapWithLabels implements age.RecipientWithLabels. No public key is in play, so it can stand with recipients of any kind.
func (k *kmsRecipient) WrapWithLabels(fileKey []byte) ([]*age.Stanza, []string, error) {
	s, err := k.Wrap(fileKey)
	return s, slices.Clone(k.labels), err
}

// Wrap implements age.Recipient.
func (k *kmsRecipient) Wrap(fileKey []byte) ([]*age.Stanza, error) {
	key, err := k.kms.GenerateDataKey(k.ctx, k.keyID, boundTo(k.cluster, k.binding))
	if err != nil {
		return nil, named(err, "seal", k.binding)
	}
	defer clear(key.Plain)
	st := &age.Stanza{Type: kmsStanza, Args: []string{key.KeyID, encodeArg(k.cluster), encodeArg(k.binding)}}
	aead, err := dataKeyAEAD(key.Plain)
	if err != nil {
		return nil, err
	}
	nonce := make([]byte, nonceSize)
	_, _ = rand.Read(nonce)
	st.Body = binary.BigEndian.AppendUint16(nil, uint16(len(key.Wrapped)))
	st.Body = append(st.Body, key.Wrapped...)
	st.Body = append(st.Body, nonce...)
	st.Body = aead.Seal(st.Body, nonce, fileKey, nil)
	return []*age.Stanza{st}, nil
}

func dataKeyAEAD(key []byte) (cipher.AEAD, error) {
	if len(key) != dataKeySize {
		return nil, fmt.Errorf("the key service gave a data key of %d bytes, not of %d", len(key), dataKeySize)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(block)
}

// encodeArg writes any text as an argument of a stanza, which can't be empty nor have spaces.
func encodeArg(s string) string { return "=" + base64.RawURLEncoding.EncodeToString([]byte(s)) }

func decodeArg(s string) (string, error) {
	if len(s) == 0 || s[0] != '=' {
		return "", errors.New("an argument of its key isn't what it should be")
	}
	b, err := base64.RawURLEncoding.DecodeString(s[1:])
	return string(b), err
}

// named completes an error of a KMS with what it was about.
func named(err error, op, binding string) error {
	var e *Error
	if errors.As(err, &e) {
		c := *e
		c.Op, c.Binding = op, binding
		return &c
	}
	return fmt.Errorf("%s %s: %w", op, binding, err)
}

// kmsIdentity opens one object by the stanzas of a key service in it.
type kmsIdentity struct {
	ctx context.Context
	kms KMS
	// allowed are the only keys that are asked for, if there are any.
	allowed []string
	binding string
}

// Unwrap implements age.Identity.
func (k *kmsIdentity) Unwrap(list []*age.Stanza) ([]byte, error) {
	var worst error
	for _, st := range list {
		if st.Type != kmsStanza || len(st.Args) < 1 || len(k.allowed) > 0 && !slices.Contains(k.allowed, st.Args[0]) {
			continue
		}
		fileKey, err := k.unwrap(st)
		if err == nil {
			return fileKey, nil
		}
		if worst == nil || weight(err) > weight(worst) {
			worst = err
		}
	}
	if worst != nil {
		return nil, worst
	}
	return nil, age.ErrIncorrectIdentity
}

// weight orders the failures of several keys. What may pass decides, then what the operator can mend.
func weight(err error) int {
	for i, kind := range []error{ErrTampered, ErrNoKey, ErrKeyDenied, ErrUnavailable} {
		if errors.Is(err, kind) {
			return i + 1
		}
	}
	return 0
}

func (k *kmsIdentity) unwrap(st *age.Stanza) ([]byte, error) {
	tampered := func(err error) error {
		return &Error{Op: "open", Binding: k.binding, Kind: ErrTampered, KeyIDs: st.Args[:1], Err: err}
	}
	cluster, wrapped, sealed, err := parseStanza(st, k.binding)
	if err != nil {
		if errors.Is(err, ErrWrongContext) {
			return nil, err
		}
		return nil, tampered(err)
	}
	key, err := k.kms.Decrypt(k.ctx, st.Args[0], wrapped, boundTo(cluster, k.binding))
	if err != nil {
		return nil, named(err, "open", k.binding)
	}
	defer clear(key)
	aead, err := dataKeyAEAD(key)
	if err != nil {
		return nil, tampered(err)
	}
	fileKey, err := aead.Open(nil, sealed[:nonceSize], sealed[nonceSize:], nil)
	if err != nil || len(fileKey) != fileKeySize {
		return nil, tampered(errors.New("its key was altered"))
	}
	return fileKey, nil
}

// parseStanza takes a stanza apart; sealed is the nonce and the wrapped file key.
func parseStanza(st *age.Stanza, binding string) (cluster string, wrapped, sealed []byte, err error) {
	malformed := errors.New("the part that holds its key is malformed")
	if len(st.Args) != 3 || len(st.Body) < 2 {
		return "", nil, nil, malformed
	}
	cluster, err = decodeArg(st.Args[1])
	if err != nil {
		return "", nil, nil, malformed
	}
	have, err := decodeArg(st.Args[2])
	if err != nil {
		return "", nil, nil, malformed
	}
	if have != binding {
		return "", nil, nil, moved(binding, have)
	}
	n, rest := int(binary.BigEndian.Uint16(st.Body)), st.Body[2:]
	if n == 0 || len(rest) < n+nonceSize {
		return "", nil, nil, malformed
	}
	return cluster, rest[:n], rest[n:], nil
}
