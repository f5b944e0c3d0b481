package awskms

import (
	"bytes"
	"errors"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/envelope"
	"github.com/etcd-manager/etcd-manager/test/awsdouble"
)

// world is a key service, a client of it and one key.
type world struct {
	*awsdouble.KMS
	t   *testing.T
	kms *KMS
	key string
}

func newWorld(t *testing.T) *world {
	t.Helper()
	d := awsdouble.StartKMS(t)
	d.Setenv(t)
	return &world{KMS: d, t: t, kms: New(Config{Endpoint: d.URL, Timeout: 5 * time.Second}), key: d.NewKey()}
}

func (w *world) sealer(recipients ...string) envelope.Sealer {
	w.t.Helper()
	s, err := envelope.NewSealer(envelope.Config{Cluster: "etcd", KMS: w.kms}, recipients)
	if err != nil {
		w.t.Fatal(err)
	}
	return s
}

func (w *world) opener(identities ...string) envelope.Opener {
	w.t.Helper()
	o, err := envelope.NewOpener(envelope.Config{KMS: w.kms}, identities)
	if err != nil {
		w.t.Fatal(err)
	}
	return o
}

func (w *world) seal(recipients ...string) []byte {
	w.t.Helper()
	data, err := envelope.SealBytes(w.t.Context(), w.sealer(recipients...), []byte("plain"), "here")
	if err != nil {
		w.t.Fatal(err)
	}
	return data
}

func (w *world) open(o envelope.Opener, data []byte) error {
	w.t.Helper()
	got, err := envelope.OpenBytes(w.t.Context(), o, data, "here")
	if err == nil && string(got) != "plain" {
		w.t.Fatalf("got %q", got)
	}
	return err
}

func TestRoundTrip(t *testing.T) {
	w := newWorld(t)
	data := w.seal("aws-kms:" + w.key)
	if err := w.open(w.opener(), data); err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(data, []byte("plain")) {
		t.Error("the plaintext shows")
	}
	want := map[string]string{"etcd-manager-cluster": "etcd", "etcd-manager-object": "here"}
	for _, c := range w.Contexts() {
		if !maps.Equal(c, want) {
			t.Errorf("a key is bound to %v, want %v", c, want)
		}
	}
	w.seal("aws-kms:" + w.key)
	if n := w.Calls("GenerateDataKey"); n != 2 {
		t.Errorf("2 objects have %d keys", n)
	}
}

// TestWrongContext: what was sealed for one place opens at no other.
func TestWrongContext(t *testing.T) {
	w := newWorld(t)
	data := w.seal("aws-kms:" + w.key)
	_, err := envelope.OpenBytes(t.Context(), w.opener(), data, "elsewhere")
	if !errors.Is(err, envelope.ErrWrongContext) || !strings.Contains(err.Error(), `"here"`) {
		t.Errorf("moved: %v", err)
	}
	// The service itself refuses what was edited in the head: another cluster, and another place.
	for old, young := range map[string]string{" =ZXRjZA ": " =ZXRjZB ", " =aGVyZQ\n": " =dGhlcmU\n"} {
		if !bytes.Contains(data, []byte(old)) {
			t.Fatalf("%q is not in %s", old, data)
		}
		edited := bytes.ReplaceAll(data, []byte(old), []byte(young))
		binding := "here"
		if strings.HasSuffix(old, "\n") {
			binding = "there"
		}
		_, err := envelope.OpenBytes(t.Context(), w.opener(), edited, binding)
		if !errors.Is(err, envelope.ErrTampered) {
			t.Errorf("%q for %q: %v", young, old, err)
		}
	}
}

// TestWrongKey: an opener that may use only another key says which one lacks.
func TestWrongKey(t *testing.T) {
	w := newWorld(t)
	data := w.seal("aws-kms:" + w.key)
	other := w.NewKey()
	err := w.open(w.opener("aws-kms:"+other), data)
	if !errors.Is(err, envelope.ErrNoKey) || errors.Is(err, envelope.ErrTampered) || !strings.Contains(err.Error(), w.key) {
		t.Errorf("got %v", err)
	}
	if w.Calls("Decrypt") != 0 {
		t.Error("the service was asked for a key that must not be used")
	}
	if err := w.open(w.opener("aws-kms:"+other, "aws-kms:"+w.key), data); err != nil {
		t.Error(err)
	}
	// An object whose head names another key than wrapped it was edited.
	edited := bytes.ReplaceAll(data, []byte(w.key), []byte(other))
	if err := w.open(w.opener(), edited); !errors.Is(err, envelope.ErrTampered) {
		t.Errorf("edited: %v", err)
	}
}

// TestRotated: new material under the same key, and a new key under the same alias, leave the old backups readable.
func TestRotated(t *testing.T) {
	w := newWorld(t)
	alias := w.Alias("backups", w.key)
	before := w.seal("aws-kms:" + alias)
	w.Rotate(w.key)
	between := w.seal("aws-kms:" + alias)
	w.Alias("backups", w.NewKey())
	after := w.seal("aws-kms:" + alias)
	for what, data := range map[string][]byte{"before": before, "between": between, "after": after} {
		if err := w.open(w.opener(), data); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	if !bytes.Contains(before, []byte("aws-kms "+w.key)) || bytes.Contains(after, []byte("aws-kms "+w.key)) {
		t.Error("what is stored doesn't name the key itself")
	}
}

// TestRevoked: whatever the service refuses is neither damage nor a missing key, and is named.
func TestRevoked(t *testing.T) {
	for what, c := range map[string]struct {
		do   func(w *world)
		seal string
		open string
	}{
		"disabled":         {func(w *world) { w.SetState(w.key, "Disabled") }, "disabled", "disabled"},
		"pending deletion": {func(w *world) { w.SetState(w.key, "PendingDeletion") }, "pending deletion", "pending deletion"},
		"deleted":          {func(w *world) { w.Delete(w.key) }, "no such key", "no such key"},
		"no permission": {func(w *world) { w.Deny("kms:Decrypt", true); w.Deny("kms:GenerateDataKey", true) },
			"needs kms:GenerateDataKey on", "needs kms:Decrypt on"},
		"credentials": {func(w *world) { w.t.Setenv("AWS_ACCESS_KEY_ID", "AKIAOTHER") },
			"credentials are not accepted", "credentials are not accepted"},
	} {
		t.Run(what, func(t *testing.T) {
			w := newWorld(t)
			data := w.seal("aws-kms:" + w.key)
			c.do(w)
			w.kms = New(Config{Endpoint: w.URL})
			err := w.open(w.opener(), data)
			if !errors.Is(err, envelope.ErrKeyDenied) || errors.Is(err, envelope.ErrTampered) ||
				errors.Is(err, envelope.ErrNoKey) || !strings.Contains(err.Error(), c.open) || !strings.Contains(err.Error(), w.key) {
				t.Errorf("open: %v", err)
			}
			sealed, err := envelope.Probe(t.Context(), w.sealer("aws-kms:"+w.key), w.opener())
			if sealed || !errors.Is(err, envelope.ErrKeyDenied) || !strings.Contains(err.Error(), c.seal) ||
				!strings.Contains(err.Error(), w.key) {
				t.Errorf("probe: %t, %v", sealed, err)
			}
		})
	}
	t.Run("given back", func(t *testing.T) {
		w := newWorld(t)
		data := w.seal("aws-kms:" + w.key)
		w.SetState(w.key, "Disabled")
		if err := w.open(w.opener(), data); !errors.Is(err, envelope.ErrKeyDenied) {
			t.Error(err)
		}
		w.SetState(w.key, "Enabled")
		if err := w.open(w.opener(), data); err != nil {
			t.Error(err)
		}
	})
}

// TestUnavailable: a service that throttles for a moment is asked again; one that doesn't answer is not taken for a refusal.
func TestUnavailable(t *testing.T) {
	testutil.Long(t)
	w := newWorld(t)
	data := w.seal("aws-kms:" + w.key)
	w.Throttle(2)
	if err := w.open(w.opener(), data); err != nil {
		t.Errorf("throttled for a moment: %v", err)
	}
	w.Throttle(1000)
	if err := w.open(w.opener(), data); !errors.Is(err, envelope.ErrUnavailable) {
		t.Errorf("throttled: %v", err)
	}
	w.Throttle(0)
	w.Slow(time.Minute)
	w.kms = New(Config{Endpoint: w.URL, Timeout: 200 * time.Millisecond})
	if err := w.open(w.opener(), data); !errors.Is(err, envelope.ErrUnavailable) || errors.Is(err, envelope.ErrTampered) {
		t.Errorf("slow: %v", err)
	}
	w.kms = New(Config{Endpoint: "http://127.0.0.1:1", Timeout: 5 * time.Second})
	if err := w.open(w.opener(), data); !errors.Is(err, envelope.ErrUnavailable) {
		t.Errorf("away: %v", err)
	}
}

// TestNoCredentials: that there are none is said as such.
func TestNoCredentials(t *testing.T) {
	w := newWorld(t)
	data := w.seal("aws-kms:" + w.key)
	t.Setenv("AWS_ACCESS_KEY_ID", "")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "")
	w.kms = New(Config{Endpoint: w.URL})
	if err := w.open(w.opener(), data); !errors.Is(err, envelope.ErrNoKey) ||
		!strings.Contains(err.Error(), "no credentials") || !strings.Contains(err.Error(), w.key) {
		t.Errorf("got %v", err)
	}
}

// TestBothKinds: each of several recipients opens alone, and age's without the service.
func TestBothKinds(t *testing.T) {
	w := newWorld(t)
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(path, []byte(id.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	second := w.NewKey()
	data := w.seal("age:"+id.Recipient().String(), "aws-kms:"+w.key, "aws-kms:"+second)
	if err := w.open(w.opener(), data); err != nil {
		t.Errorf("by the service: %v", err)
	}
	w.SetState(w.key, "Disabled")
	if err := w.open(w.opener(), data); err != nil {
		t.Errorf("by its second key: %v", err)
	}
	w.SetState(second, "Disabled")
	if err := w.open(w.opener(), data); !errors.Is(err, envelope.ErrKeyDenied) {
		t.Errorf("by none: %v", err)
	}
	calls := w.Calls("Decrypt")
	if err := w.open(w.opener(path), data); err != nil || w.Calls("Decrypt") != calls {
		t.Errorf("by age's key: %v, asked the service %d times", err, w.Calls("Decrypt")-calls)
	}
}
