package kops

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
)

// noVolumes is a region in which volumes appear as they are created.
type noVolumes struct{ list []Volume }

func (n *noVolumes) List(context.Context, map[string]string) ([]Volume, error) { return n.list, nil }
func (n *noVolumes) Create(_ context.Context, v Volume, token string) (string, error) {
	v.ID = token
	n.list = append(n.list, v)
	return token, nil
}
func (n *noVolumes) Modify(context.Context, Volume) error                       { return nil }
func (n *noVolumes) Tag(context.Context, string, map[string]string) error       { return nil }
func (n *noVolumes) Key(_ context.Context, name string) (arn string, err error) { return name, nil }

// TestLostAnswers: the answer to each write of an apply is lost, once with the store away after it. What this apply has stored isn't taken
// for somebody else's; planning and applying again ends it, and nothing is made twice. What somebody else has written stays.
func TestLostAnswers(t *testing.T) {
	f := parse(t, load(t, "three"))
	r := &region{volumes: &noVolumes{}, stores: map[string]*blobtest.Faulty{}}
	must(t, r.apply(t, f))
	made := len(r.volumes.list)
	for _, away := range []bool{false, true} {
		for n, hit := 0, true; hit; n++ {
			again := r.withoutAll(t, "etcd-peers-ca-events") // making keys takes long, so the others are there
			again.n, again.away = n, away
			err := again.apply(t, f)
			hit = again.puts > n
			if (err != nil) != (hit && away) {
				t.Errorf("answer %d is lost, away %t: %v", n, away, err)
			}
			if err != nil && strings.Contains(err.Error(), "somebody else") {
				t.Errorf("answer %d is lost: its own write counts as somebody else's: %v", n, err)
			}
			again.n, again.away = 1000, false
			must(t, again.apply(t, f))
			if len(again.volumes.list) != made {
				t.Errorf("answer %d is lost: there are %d volumes, not %d", n, len(again.volumes.list), made)
			}
		}
	}
	s := blobtest.NewMemory()
	o := object{key: "k", data: []byte("mine")}
	must(t, put(t.Context(), s, o))
	must(t, put(t.Context(), s, o))
	if err := put(t.Context(), s, object{key: "k", data: []byte("another's")}); !errors.Is(err, blob.ErrPreconditionFailed) {
		t.Errorf("what somebody else has written was written over: %v", err)
	}
}

// region is where a file is applied: volumes, and a store for each URL. The answer to put number n is lost; if away, nothing can be read
// then.
type region struct {
	volumes *noVolumes
	stores  map[string]*blobtest.Faulty
	n, puts int
	away    bool
}

func (r *region) open(_ context.Context, url string) (blob.Store, error) {
	s, ok := r.stores[url]
	if !ok {
		s = blobtest.NewFaulty(blobtest.NewMemory())
		s.Add(blobtest.Fault{Op: "put", Match: func(string) bool { r.puts++; return r.puts == r.n+1 }, After: true, Err: blobtest.Transient("put", "x")})
		s.Add(blobtest.Fault{Op: "get", Match: func(string) bool { return r.away && r.puts > r.n }, Err: blobtest.Transient("get", "x")})
		r.stores[url] = s
	}
	return s, nil
}

func (r *region) apply(t *testing.T, f *File) error {
	t.Helper()
	if len(r.stores) == 0 && r.n == 0 {
		r.n = 1000
	}
	w := World{Volumes: r.volumes, Open: r.open, Now: func() time.Time { return time.Date(2026, 2, 1, 12, 0, 0, 0, time.UTC) }}
	o, err := Observe(t.Context(), f, w)
	must(t, err)
	p, err := Compare(f, o, Options{})
	must(t, err)
	return Apply(t.Context(), p, w, func(Change) {})
}

// withoutAll is a region that has only the key pairs of this one, but for one.
func (r *region) withoutAll(t *testing.T, missing string) *region {
	t.Helper()
	out := &region{volumes: &noVolumes{}, stores: map[string]*blobtest.Faulty{}, n: 1000}
	for url, from := range r.stores {
		to, err := out.open(t.Context(), url)
		must(t, err)
		for e, err := range from.List(t.Context(), "", blob.ListOptions{}) {
			must(t, err)
			if !strings.HasSuffix(e.Key, "/keyset.yaml") || strings.Contains(e.Key, missing) {
				continue
			}
			data, _, err := blob.ReadAll(t.Context(), from, e.Key, 1<<20)
			must(t, err)
			_, err = to.Put(t.Context(), e.Key, bytes.NewReader(data), blob.PutOptions{})
			must(t, err)
		}
	}
	out.puts = 0
	return out
}
