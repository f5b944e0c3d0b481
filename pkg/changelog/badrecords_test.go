package changelog

import (
	"fmt"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// TestBadRecordsStopNoRecorder: the record of the incarnation, or of which one serves, can't be used, each in each way, in a first and in a
// later incarnation. Changes are kept all the same, without a gap.
func TestBadRecordsStopNoRecorder(t *testing.T) {
	w := newWorld(t, "etcd-3.6", "3.6.16")
	ctx := t.Context()
	const serving = "control/serving.json"
	n := 0
	for _, later := range []bool{false, true} {
		if later { // the store knows more of the cluster than the cluster itself: it is one that was put back
			_, id, err := w.own.Revision(ctx)
			must(t, err)
			w.storeSegment(catalog.IncarnationOf(id), 1_000_000)
		}
		r, stop := w.record(nil)
		w.began(r)
		w.archived(r, w.put("/a", "1"))
		stop()
		life := r.Status().Incarnation
		if later != strings.HasSuffix(string(life), "-2") {
			t.Fatalf("later %t: incarnation %s", later, life)
		}
		for _, key := range []string{serving, fmt.Sprintf("changes/%s/_incarnation.json", life)} {
			good, _, err := blob.ReadAll(ctx, w.store.Store, key, 1<<20)
			must(t, err)
			kinds := map[string]string{"damaged": `{"version":1,`, "denied": string(good)}
			if !later {
				kinds["too large"], kinds["newer"] = strings.Repeat("x", 2<<20), `{"version":99}`
			}
			for kind, content := range kinds {
				what := fmt.Sprintf("%s %s", key, kind)
				_, err := w.store.Store.Put(ctx, key, strings.NewReader(content), blob.PutOptions{})
				must(t, err)
				if kind == "denied" {
					w.store.Add(blobtest.Fault{Op: "get", Match: func(k string) bool { return k == key }, Err: blobtest.Denied("get", key, "s3:GetObject")})
				}
				n++
				r, stop := w.record(nil)
				w.began(r)
				w.archived(r, w.put("/a", fmt.Sprint(n)))
				stop()
				got := r.Status().Incarnation
				// Which backups are a later one's is told by its record alone: if that is damaged for good another one begins.
				if other := later && key != serving && kind != "denied"; (got != life) != other {
					t.Errorf("%s: incarnation %s after %s", what, got, life)
				}
				w.store.Heal()
				if got != life {
					_, err := w.store.Store.Purge(ctx, fmt.Sprintf("changes/%s/", got), func(string) bool { return true })
					must(t, err)
				}
				_, err = w.store.Store.Put(ctx, key, strings.NewReader(string(good)), blob.PutOptions{})
				must(t, err)
			}
		}
	}
}

// TestServingWithBadRecords: where a record that may show which incarnation serves can't be used, nothing is guessed from the others.
func TestServingWithBadRecords(t *testing.T) {
	ctx := t.Context()
	f := blobtest.NewFaulty(blobtest.NewMemory())
	c := catalog.New(f)
	a := &Archive{Catalog: c}
	must(t, c.CreateIncarnation(ctx, catalog.IncarnationRecord{ID: "0000000000000001", Revision: 2_000_000_000}))
	must(t, c.CreateIncarnation(ctx, catalog.IncarnationRecord{ID: "0000000000000002", Revision: 4_000_000_000}))
	if l, err := a.ServingLife(ctx, nil); err != nil || l.Serving != "0000000000000002" {
		t.Fatalf("%+v, %v", l, err)
	}
	const key = "changes/0000000000000002/_incarnation.json"
	good, _, err := blob.ReadAll(ctx, f.Store, key, 1<<20)
	must(t, err)
	for kind, content := range map[string]string{"empty": "", "newer": `{"version":99}`, "denied": string(good)} {
		_, err := f.Store.Put(ctx, key, strings.NewReader(content), blob.PutOptions{})
		must(t, err)
		if kind == "denied" {
			f.Add(blobtest.Fault{Op: "get", Match: func(k string) bool { return k == key }, Err: blobtest.Denied("get", key, "s3:GetObject")})
		}
		if l, err := a.ServingLife(ctx, nil); err != nil || l.Serving != "" || !strings.Contains(l.Why, key) {
			t.Errorf("%s: %+v, %v", kind, l, err)
		}
	}
}
