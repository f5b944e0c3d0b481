package changelog

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"filippo.io/age"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/envelope"
	"github.com/etcd-manager/etcd-manager/pkg/envelope/awskms"
	"github.com/etcd-manager/etcd-manager/test/awsdouble"
)

// identity makes a key of age: the file with its secret part, and the recipient.
func identity(t *testing.T) (file, recipient string) {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	must(t, err)
	file = filepath.Join(t.TempDir(), "identity")
	must(t, os.WriteFile(file, []byte(id.String()+"\n"), 0o600))
	return file, id.Recipient().String()
}

// keys gives the world's catalog keys. Without recipients nothing is sealed, without identities only what KMS opens is opened.
func (w *world) keys(kms envelope.KMS, recipients, identities []string) {
	w.t.Helper()
	c := envelope.Config{Cluster: "test", KMS: kms}
	s, err := envelope.NewSealer(c, recipients)
	must(w.t, err)
	o, err := envelope.NewOpener(c, identities)
	must(w.t, err)
	w.catalog = catalog.New(w.store, catalog.WithKeys(s, o))
	w.archive = &Archive{Catalog: w.catalog}
}

// TestSealed keeps changes that only who has the key can read: of age, rotated, and of KMS, revoked.
func TestSealed(t *testing.T) {
	double := awsdouble.StartKMS(t)
	double.Setenv(t)
	kms := awskms.New(awskms.Config{Endpoint: double.URL, Timeout: 5 * time.Second})
	arn := double.NewKey()
	mine, recipient := identity(t)
	other, otherRecipient := identity(t)
	w := newWorld(t, "etcd-3.6", "3.6.16")
	const secret = "nobody else is to read this"
	read := func(identities ...string) error {
		w.keys(kms, nil, identities)
		p, err := w.archive.Plan(t.Context(), Target{Latest: true})
		if err != nil {
			return err
		}
		for _, s := range p.Chain.Segments {
			c, err := w.archive.read(t.Context(), s)
			if err != nil {
				return err
			}
			if err := c.Walk(t.Context(), w.catalog.Opener(), func(Entry) error { return nil }); err != nil {
				return err
			}
		}
		return nil
	}
	record := func(recipient string) {
		w.keys(kms, []string{recipient}, []string{mine, other})
		r, stop := w.record(nil)
		if len(w.gaps) > 0 {
			<-w.gaps
		}
		w.backup()
		w.archived(r, w.put("/secret", secret+recipient))
		stop()
	}
	record("age:" + recipient)
	// Nothing of it can be read in the store.
	for e, err := range w.store.List(t.Context(), "", blob.ListOptions{}) {
		must(t, err)
		body, _, err := w.store.Get(t.Context(), e.Key, blob.Range{})
		must(t, err)
		var b bytes.Buffer
		_, err = b.ReadFrom(body)
		must(t, errors.Join(err, body.Close()))
		if bytes.Contains(b.Bytes(), []byte(secret)) {
			t.Errorf("%s has it in the clear", e.Key)
		}
	}
	must(t, read(mine))
	for name, err := range map[string]error{"no key": read(), "another key": read(other)} {
		if !errors.Is(err, envelope.ErrNoKey) || errors.Is(err, cluster.ErrCorrupt) ||
			!errors.Is(err, cluster.ErrPermanent) || !strings.Contains(err.Error(), recipient) {
			t.Errorf("%s: %v", name, err)
		}
	}
	// Another key from now on: with both, everything is read.
	record("age:" + otherRecipient)
	must(t, read(mine, other))
	w.keys(kms, nil, []string{mine, other})
	w.replay(w.plan(Target{Latest: true}), 0)
	// Keys of KMS.
	record("aws-kms:" + arn)
	must(t, read())
	double.SetState(arn, "Disabled")
	if err := read(); !errors.Is(err, envelope.ErrKeyDenied) || errors.Is(err, cluster.ErrCorrupt) {
		t.Errorf("the key is revoked: %v", err)
	}
	double.SetState(arn, "Enabled")
	must(t, read())
}

// TestSealedTampering changes the header of a sealed segment, and the name accordingly: whoever can
// write to the store but has no key can't make a segment say something else.
func TestSealedTampering(t *testing.T) {
	file, recipient := identity(t)
	c := envelope.Config{Cluster: "test"}
	s, err := envelope.NewSealer(c, []string{"age:" + recipient})
	must(t, err)
	o, err := envelope.NewOpener(c, []string{file})
	must(t, err)
	one, data := build(t, s, 2, 3, 4)
	two, moved := build(t, s, 2, 3, 5-1)
	walk := func(seg catalog.Segment, data []byte) error {
		x, err := readSegment(seg, data)
		if err != nil {
			return err
		}
		return x.Walk(t.Context(), o, func(Entry) error { return nil })
	}
	must(t, walk(one, data))
	must(t, walk(two, moved))
	// The header of the one with the content of the other, under a name that fits.
	a, err := readSegment(one, data)
	must(t, err)
	b, err := readSegment(two, moved)
	must(t, err)
	header := data[:len(data)-len(a.payload)]
	changed := bytes.Replace(header, []byte("test"), []byte("tesT"), 1) // the cluster's name
	for name, forged := range map[string][]byte{"content of another": append(bytes.Clone(header), b.payload...),
		"another header": append(changed, a.payload...)} {
		seg := one
		seg.Sum = catalog.NewSegmentSum(sumOf(forged))
		err := walk(seg, forged)
		if name == "content of another" && bytes.Equal(a.header, b.header) {
			continue // they say the same of themselves, so they are the same place
		}
		if !errors.Is(err, cluster.ErrCorrupt) {
			t.Errorf("%s: %v", name, err)
		}
	}
}
