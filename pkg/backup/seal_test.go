package backup

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"filippo.io/age"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/envelope"
)

// key is a new key of age: who has the sealer can write, who has the opener can read.
type key struct {
	id     string
	sealer envelope.Sealer
	opener envelope.Opener
}

func newKey(t testing.TB) key {
	t.Helper()
	id, err := age.GenerateX25519Identity()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "keys")
	if err := os.WriteFile(path, []byte(id.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	k := key{id: id.Recipient().String()}
	if k.sealer, err = envelope.NewSealer(envelope.Config{Cluster: "etcd"}, []string{"age:" + k.id}); err != nil {
		t.Fatal(err)
	}
	if k.opener, err = envelope.NewOpener(envelope.Config{}, []string{path}); err != nil {
		t.Fatal(err)
	}
	return k
}

// sealed is the catalog of a store with both sides of a key.
func (k key) sealed(s blob.Store) *catalog.Catalog {
	return catalog.New(s, catalog.WithKeys(k.sealer, k.opener))
}

func writeAs(t *testing.T, c *catalog.Catalog, name, compression string, raw []byte) *catalog.Manifest {
	t.Helper()
	m, err := NewWriter(c, Options{Compression: compression, BlockSize: 64 << 10}).Write(t.Context(), name, facts, stream(raw), nil)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestFormatsRoundTrip(t *testing.T) {
	k, raw := newKey(t), snapshot(300)
	for _, f := range []struct {
		compression string
		seal        bool
		file        string
	}{
		{"gzip", false, "etcd.backup.gz"}, {"zstd", false, "etcd.backup.zst"}, {"gzip", true, "etcd.backup.gz.age"}, {"zstd", true, "etcd.backup.zst.age"},
	} {
		t.Run(f.file, func(t *testing.T) {
			s := blobtest.NewMemory()
			c := catalog.New(s)
			if f.seal {
				c = k.sealed(s)
			}
			m := writeAs(t, c, name, f.compression, raw)
			if have, want := names(t, s), []string{metaKey, manifest, name + "/" + f.file}; !slices.Equal(have, want) {
				t.Errorf("stored %v, want %v", have, want)
			}
			l, err := c.Backups(t.Context())
			if err != nil || len(l.Backups) != 1 || l.Backups[0].DataFile != f.file || l.Backups[0].Size != m.Stored.Size {
				t.Errorf("listed %+v, %v", l, err)
			}
			var b bytes.Buffer
			if res, err := Fetch(t.Context(), c, name, &b, nil); err != nil || !bytes.Equal(b.Bytes(), raw) || res.Raw != m.Raw || res.Manifest.Reason != facts.Reason || res.Manifest.Node != facts.Node {
				t.Errorf("fetched %d bytes, %+v, %v", b.Len(), res, err)
			}
			if !catalog.IsBackupFile(name + "/" + f.file) {
				t.Error("the relay would not give it out")
			}
			if f.seal {
				for _, file := range []string{f.file, "_etcd_manager_manifest.json"} {
					data := object(t, s, name+"/"+file)
					for _, secret := range []string{"\x00\x00\x00\x00key=", m.Raw.SHA256, facts.Reason} {
						if bytes.Contains(data, []byte(secret)) {
							t.Errorf("%s shows %q", file, secret)
						}
					}
				}
			}
			data := object(t, s, name+"/"+f.file)
			for _, n := range []int{len(data) / 2, len(data) - 1} {
				s.Corrupt(name+"/"+f.file, func([]byte) []byte { return data[:n] })
				if _, err := Fetch(t.Context(), c, name, io.Discard, nil); !errors.Is(err, ErrTruncated) {
					t.Errorf("cut to %d bytes: %v", n, err)
				}
			}
			for _, at := range []int{300, len(data) / 2, len(data) - 1} {
				s.Corrupt(name+"/"+f.file, func([]byte) []byte { d := bytes.Clone(data); d[at] ^= 1; return d })
				var bad *Error
				if _, err := Fetch(t.Context(), c, name, io.Discard, nil); !errors.As(err, &bad) {
					t.Errorf("byte %d flipped: %v", at, err)
				}
			}
		})
	}
}

// TestWithoutKey: what can be listed can be listed, and what lacks is said to be the key.
func TestWithoutKey(t *testing.T) {
	k, other, s := newKey(t), newKey(t), blobtest.NewMemory()
	written := writeAs(t, k.sealed(s), name, "gzip", snapshot(10))
	for what, c := range map[string]*catalog.Catalog{"none": catalog.New(s), "another": other.sealed(s)} {
		m, err := c.Manifest(t.Context(), name)
		if err != nil || m.Revision != facts.Revision || m.ClusterName != facts.ClusterName || m.Stored != written.Stored || m.Reason != "" || !slices.Equal(m.Encryption.KeyIDs, []string{k.id}) {
			t.Errorf("%s: manifest %+v, %v", what, m, err)
		}
		if !errors.Is(m.Locked, envelope.ErrNoKey) {
			t.Errorf("%s: locked by %v", what, m.Locked)
		}
		_, err = Fetch(t.Context(), c, name, io.Discard, nil)
		var bad *Error
		if !errors.Is(err, envelope.ErrNoKey) || !errors.Is(err, cluster.ErrPermanent) || errors.As(err, &bad) || errors.Is(err, cluster.ErrCorrupt) {
			t.Errorf("%s: %v", what, err)
		}
		for _, want := range []string{k.id, "--backup-identity", "--identity"} {
			if !strings.Contains(fmt.Sprint(err), want) {
				t.Errorf("%s: %v lacks %q", what, err, want)
			}
		}
	}
}

// TestTampering: whatever is exchanged or edited among sealed backups is found out.
func TestTampering(t *testing.T) {
	k := newKey(t)
	const other = "2026-01-30T01:02:04Z-000000"
	for what, edit := range map[string]func(s *blobtest.Memory){
		"data of another backup": func(s *blobtest.Memory) {
			data := object(t, s, other+"/etcd.backup.gz.age")
			s.Corrupt(name+"/etcd.backup.gz.age", func([]byte) []byte { return data })
		},
		"data and manifest of another, renamed": func(s *blobtest.Memory) {
			for _, file := range []string{"etcd.backup.gz.age", "_etcd_manager_manifest.json"} {
				data := bytes.ReplaceAll(object(t, s, other+"/"+file), []byte(other), []byte(name))
				s.Corrupt(name+"/"+file, func([]byte) []byte { return data })
			}
		},
		"revision edited":    replaceIn(manifest, `"revision": 42`, `"revision": 43`),
		"cluster edited":     replaceIn(manifest, `"clusterName": "etcd"`, `"clusterName": "evil"`),
		"version edited":     replaceIn(manifest, `"etcdVersion": "3.6.16"`, `"etcdVersion": "3.5.16"`),
		"field added":        replaceIn(manifest, `"revision": 42`, `"revision": 42, "extra": 1`),
		"compression edited": replaceIn(manifest, `"gzip"`, `"zstd"`),
		"key ids edited":     replaceIn(manifest, k.id, "age1other"),
		"unsealed":           replaceIn(manifest, `"version": 2`, `"version": 1`),
	} {
		t.Run(what, func(t *testing.T) {
			s := blobtest.NewMemory()
			c := k.sealed(s)
			writeAs(t, c, name, "gzip", snapshot(10))
			writeAs(t, c, other, "gzip", snapshot(11))
			if _, err := Fetch(t.Context(), c, name, io.Discard, nil); err != nil {
				t.Fatal(err)
			}
			edit(s)
			_, err := Fetch(t.Context(), c, name, io.Discard, nil)
			var bad *Error
			if !errors.As(err, &bad) || errors.Is(err, envelope.ErrNoKey) {
				t.Errorf("got %v", err)
			}
			t.Log(err)
		})
	}
	t.Run("only spaced otherwise", func(t *testing.T) {
		s := blobtest.NewMemory()
		writeAs(t, k.sealed(s), name, "gzip", snapshot(10))
		replaceIn(manifest, "\n  ", "\n\t")(s)
		if _, err := Fetch(t.Context(), k.sealed(s), name, io.Discard, nil); err != nil {
			t.Error(err)
		}
	})
}

func replaceIn(key, old, young string) func(*blobtest.Memory) {
	return func(s *blobtest.Memory) {
		s.Corrupt(key, func(b []byte) []byte { return bytes.ReplaceAll(b, []byte(old), []byte(young)) })
	}
}

// TestKeyDenied: a service that refuses its key, or doesn't answer, makes no backup and leaves nothing.
func TestKeyDenied(t *testing.T) {
	for _, kind := range []error{envelope.ErrKeyDenied, envelope.ErrUnavailable} {
		sealer, err := envelope.NewSealer(envelope.Config{KMS: refusing{kind}}, []string{"aws-kms:arn:aws:kms:eu-west-1:111122223333:key/1"})
		if err != nil {
			t.Fatal(err)
		}
		s := blobtest.NewMemory()
		_, err = NewWriter(catalog.New(s, catalog.WithKeys(sealer, nil)), Options{}).Write(t.Context(), name, facts, stream(snapshot(10)), nil)
		if !errors.Is(err, kind) || len(names(t, s)) != 0 {
			t.Errorf("got %v, left %v", err, names(t, s))
		}
	}
}

type refusing struct{ kind error }

func (r refusing) GenerateDataKey(context.Context, string, map[string]string) (envelope.DataKey, error) {
	return envelope.DataKey{}, &envelope.Error{Kind: r.kind}
}

func (r refusing) Decrypt(context.Context, string, []byte, map[string]string) ([]byte, error) {
	return nil, &envelope.Error{Kind: r.kind}
}

// BenchmarkWrite is the whole way of a snapshot into a store that forgets it.
func BenchmarkWrite(b *testing.B) {
	raw, k := snapshot(16<<10), newKey(b)
	for _, compression := range []string{"gzip", "zstd"} {
		for _, encryption := range []string{"plain", "age"} {
			b.Run(compression+"/"+encryption, func(b *testing.B) {
				b.SetBytes(int64(len(raw)))
				var stored int64
				for b.Loop() {
					s := blobtest.NewMemory()
					c := catalog.New(s)
					if encryption == "age" {
						c = k.sealed(s)
					}
					m, err := NewWriter(c, Options{Compression: compression}).Write(b.Context(), name, facts, stream(raw), nil)
					if err != nil {
						b.Fatal(err)
					}
					stored = m.Stored.Size
				}
				b.ReportMetric(float64(len(raw))/float64(stored), "ratio")
			})
		}
	}
}
