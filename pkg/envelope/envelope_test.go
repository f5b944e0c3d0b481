package envelope

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/iotest"

	"filippo.io/age"
)

// pair is a new key of age in two files.
type pair struct{ recipient, recipientFile, identityFile string }

func newPair(t *testing.T) pair {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	return pair{
		recipient:     id.Recipient().String(),
		recipientFile: file(t, "recipients", "# who may read\n\n  "+id.Recipient().String()+" \n"),
		identityFile:  file(t, "keys", "# created: today\n"+id.String()+"\n"),
	}
}

func file(t *testing.T, name, content string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

func sealerFor(t *testing.T, specs ...string) Sealer {
	t.Helper()
	s, err := NewSealer(Config{Cluster: "etcd"}, specs)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func openerWith(t *testing.T, specs ...string) Opener {
	t.Helper()
	o, err := NewOpener(Config{}, specs)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func seal(t *testing.T, s Sealer, plain []byte) []byte {
	t.Helper()
	b, err := SealBytes(t.Context(), s, plain, "here")
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestRoundTrip(t *testing.T) {
	a, b := newPair(t), newPair(t)
	s := sealerFor(t, "age:"+a.recipientFile+",age:"+b.recipient)
	if scheme, ids := s.Info(); scheme != "age" || len(ids) != 2 || ids[0] != a.recipient || ids[1] != b.recipient {
		t.Errorf("Info() = %s, %v", scheme, ids)
	}
	for _, size := range []int{0, 1, 64 << 10, 200_000} {
		plain := bytes.Repeat([]byte("x"), size)
		sealed := seal(t, s, plain)
		for _, p := range []pair{a, b} {
			got, err := OpenBytes(t.Context(), openerWith(t, p.identityFile), sealed, "here")
			if err != nil || !bytes.Equal(got, plain) {
				t.Errorf("%d bytes: %d, %v", size, len(got), err)
			}
		}
	}
	if sealed, err := Probe(t.Context(), s, openerWith(t, "age:"+b.identityFile)); !sealed || err != nil {
		t.Errorf("Probe() = %t, %v", sealed, err)
	}
}

// TestOrdinaryAge: age's own code opens it, and what is behind the first line is what was sealed.
func TestOrdinaryAge(t *testing.T) {
	p := newPair(t)
	keys, err := os.ReadFile(p.identityFile)
	if err != nil {
		t.Fatal(err)
	}
	ids, err := age.ParseIdentities(bytes.NewReader(keys))
	if err != nil {
		t.Fatal(err)
	}
	r, err := age.Decrypt(bytes.NewReader(seal(t, sealerFor(t, "age:"+p.recipient), []byte("content\n"))), ids...)
	if err != nil {
		t.Fatal(err)
	}
	if got, err := io.ReadAll(r); err != nil || string(got) != "etcd-manager-sealed/1 here\ncontent\n" {
		t.Errorf("got %q, %v", got, err)
	}
}

// TestWrongKey: what lacks is a key, and it is named.
func TestWrongKey(t *testing.T) {
	a, other := newPair(t), newPair(t)
	sealed := seal(t, sealerFor(t, "age:"+a.recipient), []byte("x"))
	for what, o := range map[string]Opener{"none": openerWith(t), "another": openerWith(t, other.identityFile)} {
		_, err := OpenBytes(t.Context(), o, sealed, "here")
		if !errors.Is(err, ErrNoKey) || errors.Is(err, ErrTampered) || !strings.Contains(err.Error(), a.recipient) {
			t.Errorf("%s: %v", what, err)
		}
	}
	done, err := Probe(t.Context(), sealerFor(t, "age:"+a.recipient), openerWith(t))
	if !done || !errors.Is(err, ErrNoKey) {
		t.Errorf("Probe() = %t, %v", done, err)
	}
}

// TestRotatedAgeKey: the old key goes on opening what it sealed, and the new one doesn't.
func TestRotatedAgeKey(t *testing.T) {
	old, young := newPair(t), newPair(t)
	before, after := seal(t, sealerFor(t, "age:"+old.recipient), []byte("before")),
		seal(t, sealerFor(t, "age:"+young.recipient), []byte("after"))
	both := openerWith(t, old.identityFile, young.identityFile)
	for want, sealed := range map[string][]byte{"before": before, "after": after} {
		if got, err := OpenBytes(t.Context(), both, sealed, "here"); err != nil || string(got) != want {
			t.Errorf("%s: %q, %v", want, got, err)
		}
	}
	if _, err := OpenBytes(t.Context(), openerWith(t, young.identityFile), before, "here"); !errors.Is(err, ErrNoKey) ||
		!strings.Contains(err.Error(), old.recipient) {
		t.Errorf("the new key alone: %v", err)
	}
}

// TestTampering flips every byte of the head and bytes all over the body, cuts at every kind of
// place and appends: nothing is ever read as if it were right.
func TestTampering(t *testing.T) {
	p := newPair(t)
	sealed := seal(t, sealerFor(t, "age:"+p.recipient), bytes.Repeat([]byte("0123456789abcdef"), 10_000))
	o := openerWith(t, p.identityFile)
	check := func(what string, data []byte) {
		t.Helper()
		_, err := OpenBytes(t.Context(), o, data, "here")
		// Only where the head's own list of keys is what was changed can it pass for a missing key.
		if !errors.Is(err, ErrTampered) && !errors.Is(err, ErrNoKey) {
			t.Errorf("%s: %v", what, err)
		}
		if errors.Is(err, ErrNoKey) && strings.Contains(err.Error(), p.recipient) {
			t.Errorf("%s: the key that it names was given: %v", what, err)
		}
	}
	step := 1
	for i := 0; i < len(sealed); i += step {
		if i == 600 {
			step = 997
		}
		data := bytes.Clone(sealed)
		data[i] ^= 1
		check(fmt.Sprintf("byte %d of %d flipped", i, len(sealed)), data)
	}
	for _, n := range []int{0, 1, 100, 400, 65_000, 66_000, 131_072 + 500, len(sealed) - 17, len(sealed) - 1} {
		check(fmt.Sprintf("cut to %d bytes", n), sealed[:n])
	}
	check("appended", append(bytes.Clone(sealed), 0))
	if _, err := OpenBytes(t.Context(), o, sealed, "elsewhere"); !errors.Is(err, ErrWrongContext) ||
		!errors.Is(err, ErrTampered) || !strings.Contains(err.Error(), `"here"`) {
		t.Errorf("moved: %v", err)
	}
}

// TestForeignAge: a file of age's that etcd-manager hasn't written is no object of its.
func TestForeignAge(t *testing.T) {
	p := newPair(t)
	r, err := age.ParseX25519Recipient(p.recipient)
	if err != nil {
		t.Fatal(err)
	}
	for _, plain := range []string{"", "x", strings.Repeat("long line ", 10_000)} {
		var b bytes.Buffer
		w, err := age.Encrypt(&b, r)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(w, plain)
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := OpenBytes(t.Context(), openerWith(t, p.identityFile), b.Bytes(), "here"); !errors.Is(err, ErrTampered) {
			t.Errorf("%.10q: %v", plain, err)
		}
	}
}

// TestErrorsBelow: a source that breaks off or a full destination says nothing of keys or damage.
func TestErrorsBelow(t *testing.T) {
	p := newPair(t)
	broken := errors.New("connection reset")
	s, o := sealerFor(t, "age:"+p.recipient), openerWith(t, p.identityFile)
	sealed := seal(t, s, bytes.Repeat([]byte("x"), 300_000))
	for _, n := range []int{0, 50, 400, 100_000, len(sealed)} {
		r, err := o.Open(t.Context(), io.MultiReader(bytes.NewReader(sealed[:n]), iotest.ErrReader(broken)), "here")
		if err == nil {
			_, err = io.Copy(io.Discard, r)
		}
		if !errors.Is(err, broken) || errors.Is(err, ErrTampered) {
			t.Errorf("after %d bytes: %v", n, err)
		}
	}
	if _, err := s.Seal(t.Context(), errorWriter{broken}, "here"); !errors.Is(err, broken) {
		t.Errorf("seal: %v", err)
	}
}

type errorWriter struct{ err error }

func (w errorWriter) Write([]byte) (int, error) { return 0, w.err }

func TestParse(t *testing.T) {
	p := newPair(t)
	pq, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	const arn = "aws-kms:arn:aws:kms:eu-west-1:111122223333:key/1234"
	for spec, want := range map[string]string{
		"":                                     "",
		"age:" + p.recipient:                   "",
		"age:" + pq.Recipient().String():       "",
		arn:                                    "no key service",
		"aws-kms:1234":                         "is not the ARN",
		"aws-kms:arn:aws:s3:eu-west-1:1:key/x": "is not the ARN",
		"gpg:x":                                "age:FILE",
		"age:/does/not/exist":                  "/does/not/exist",
		"age:age1nonsense":                     "malformed",
		"age:" + p.identityFile:                "holds secret keys",
		"age:" + file(t, "empty", "# none\n"):  "no recipients",
		"age:" + p.recipient + ",age:" + pq.Recipient().String(): "post-quantum",
	} {
		s, err := NewSealer(Config{}, []string{spec})
		if (err == nil) != (want == "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("NewSealer(%q) = %v; want %q", spec, err, want)
		}
		if spec == "" && s != nil {
			t.Error("without recipients there is a sealer")
		}
	}
	for spec, want := range map[string]string{
		"": "", p.identityFile: "", "age:" + p.identityFile: "",
		arn:                               "no key service",
		"aws-kms:arn:aws:kms:x:1:alias/x": "is not the ARN",
		"/does/not/exist":                 "/does/not/exist",
		p.recipientFile:                   "AGE-SECRET-KEY-1",
		"AGE-SECRET-KEY-1QQQ":             "command line",
	} {
		_, err := NewOpener(Config{}, []string{spec})
		if (err == nil) != (want == "") || err != nil && (!strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "QQQ")) {
			t.Errorf("NewOpener(%q) = %v; want %q", spec, err, want)
		}
	}
}

// TestPostQuantum: the recipients of the newer kind round trip, alone and beside a key of the key service.
func TestPostQuantum(t *testing.T) {
	id, err := age.GenerateHybridIdentity()
	if err != nil {
		t.Fatal(err)
	}
	s, err := NewSealer(Config{KMS: fakeKMS{}}, []string{"age:" + file(t, "r", id.Recipient().String()),
		"aws-kms:arn:aws:kms:eu-west-1:111122223333:key/1234"})
	if err != nil {
		t.Fatal(err)
	}
	sealed := seal(t, s, []byte("x"))
	if got, err := OpenBytes(t.Context(), openerWith(t, file(t, "i", id.String())), sealed, "here"); err != nil || string(got) != "x" {
		t.Errorf("got %q, %v", got, err)
	}
	if _, err := OpenBytes(t.Context(), openerWith(t), sealed, "here"); !errors.Is(err, ErrNoKey) || len(err.Error()) > 500 {
		t.Errorf("got %v", err)
	}
}

// fakeKMS gives keys that nobody can unwrap; the real protocol is tried in awskms.
type fakeKMS struct{}

func (fakeKMS) GenerateDataKey(_ context.Context, keyID string, _ map[string]string) (DataKey, error) {
	return DataKey{KeyID: keyID, Plain: make([]byte, 32), Wrapped: []byte("wrapped")}, nil
}

func (fakeKMS) Decrypt(context.Context, string, []byte, map[string]string) ([]byte, error) {
	return nil, &Error{Kind: ErrUnavailable}
}

// zeros is a source without an end of what an envelope's head can have.
type zeros struct{ read int64 }

func (z *zeros) Read(p []byte) (int, error) {
	for i := range p {
		p[i] = 'a'
	}
	z.read += int64(len(p))
	return len(p), nil
}

// TestEndlessHead has an envelope whose head, which is held in memory, doesn't end: it is given up early, whichever part it is.
func TestEndlessHead(t *testing.T) {
	p := newPair(t)
	for name, begin := range map[string]string{
		"a stanza's name":   "age-encryption.org/v1\n-> ",
		"a stanza's body":   "age-encryption.org/v1\n-> X25519 abc\n",
		"not an envelope":   "",
		"the head's digest": "age-encryption.org/v1\n-> X25519 abc\n\n--- ",
	} {
		z := &zeros{}
		_, err := openerWith(t, "age:"+p.identityFile).Open(t.Context(), io.MultiReader(strings.NewReader(begin), z), "a binding")
		if !errors.Is(err, ErrTampered) || z.read > 4<<20 {
			t.Errorf("%s: %d bytes were read: %v", name, z.read, err)
		}
	}
}
