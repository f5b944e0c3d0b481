package operator

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/etcd-manager/etcd-manager/pkg/putback"
)

func kv(key, value string, mod, lease int64) *mvccpb.KeyValue {
	return &mvccpb.KeyValue{Key: []byte(key), Value: []byte(value), ModRevision: mod, Lease: lease}
}

// TestComparePutBack: what is missing comes back, the rest as it is asked for.
func TestComparePutBack(t *testing.T) {
	then := []*mvccpb.KeyValue{kv("/a/changed", "then", 1, 0), kv("/a/leased", "then", 1, 7), kv("/a/leased-now", "then", 1, 0),
		kv("/a/missing", "then", 1, 0), kv("/a/same", "v", 1, 0)}
	now := []*mvccpb.KeyValue{kv("/a/changed", "now", 5, 0), kv("/a/later", "l", 6, 0), kv("/a/later-leased", "l", 6, 7), kv("/a/leased-now", "now", 6, 7),
		kv("/a/marked", "m", 6, 0), kv("/a/same", "v", 9, 0)}
	for _, x := range []struct {
		r    PutBackRequest
		want string
	}{
		{PutBackRequest{}, "put /a/missing 0"},
		{PutBackRequest{Overwrite: true}, "put /a/changed 5, put /a/missing 0"},
		{PutBackRequest{Exact: true}, "put /a/missing 0, remove /a/later 6"},
		{PutBackRequest{Overwrite: true, Exact: true, WithLeases: true},
			"put /a/changed 5, put /a/leased 0, put /a/leased-now 6, put /a/missing 0, remove /a/later-leased 6, remove /a/later 6"},
	} {
		p := PutBackPlan{Request: x.r, Marked: []string{"/a/marked"}}
		if err := p.compare(then, now); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range p.Entries {
			verb := "put"
			if e.Delete {
				verb = "remove"
			}
			got = append(got, fmt.Sprintf("%s %s %d", verb, e.Key, e.Seen))
		}
		if s := strings.Join(got, ", "); s != x.want {
			t.Errorf("%+v:\n%s\nwant\n%s", x.r, s, x.want)
		}
		if x.r.WithLeases == (p.Leased > 0) || p.Same != 1 {
			t.Errorf("%+v: %d leased, %d same", x.r, p.Leased, p.Same)
		}
	}
}

// TestIntoATerminatingNamespace: what would be deleted again isn't brought back.
func TestIntoATerminatingNamespace(t *testing.T) {
	const ns = "/registry/namespaces/shop"
	object := func(more string) string {
		return `{"apiVersion":"v1","kind":"Namespace","metadata":{"name":"shop"` + more + `}}`
	}
	then := []*mvccpb.KeyValue{kv(ns, object(""), 1, 0)}
	now := []*mvccpb.KeyValue{kv(ns, object(`,"deletionTimestamp":"2026-01-30T01:02:03Z"`), 5, 0)}
	p := PutBackPlan{Request: PutBackRequest{Namespace: "shop"}}
	var refused *TerminatingError
	if err := p.compare(then, now); !errors.As(err, &refused) || refused.Namespace != "shop" {
		t.Errorf("%v", err)
	}
	p = PutBackPlan{Request: PutBackRequest{Namespace: "shop", Overwrite: true}}
	if err := p.compare(then, now); err != nil || len(p.Entries) != 1 {
		t.Errorf("%v, %v", p.Entries, err)
	}
}

// TestOwnersComeFirst: a pod before its replica set would be removed by the garbage collector.
func TestOwnersComeFirst(t *testing.T) {
	entry := func(key, uid, owner string) putback.Entry {
		return putback.Entry{Key: []byte(key), Value: fmt.Appendf(nil, `{"metadata":{"uid":%q,"ownerReferences":[{"uid":%q}]}}`, uid, owner)}
	}
	list := []putback.Entry{
		entry("/registry/configmaps/s/a", "c1", ""),
		entry("/registry/pods/s/p", "p1", "r1"), entry("/registry/replicasets/s/r", "r1", "d1"),
		entry("/registry/x/s/loop1", "l1", "l2"), entry("/registry/x/s/loop2", "l2", "l1"), entry("/registry/x/s/self", "s1", "s1"),
		entry("/registry/deployments/s/d", "d1", "gone"), entry("/registry/namespaces/s", "n1", ""),
		entry("/registry/apiextensions.k8s.io/customresourcedefinitions/x", "crd", ""), {Key: []byte("/other")},
	}
	sortOwnersFirst(list)
	at := func(key string) int {
		return slices.IndexFunc(list, func(e putback.Entry) bool { return string(e.Key) == key })
	}
	order := []string{"/registry/namespaces/s", "/registry/apiextensions.k8s.io/customresourcedefinitions/x", "/registry/deployments/s/d",
		"/registry/replicasets/s/r", "/registry/pods/s/p"}
	for i := 1; i < len(order); i++ {
		if at(order[i-1]) > at(order[i]) {
			t.Errorf("%s comes before %s", order[i], order[i-1])
		}
	}
	if len(list) != 10 || at("/other") < 0 {
		t.Errorf("%d entries are left", len(list))
	}
}

// TestPutBackRequests: what makes no sense is refused before anything is read.
func TestPutBackRequests(t *testing.T) {
	for _, r := range []PutBackRequest{{}, {Key: "k", Namespace: "n"}, {Key: "k", Revision: -1}, {Key: "k", Revision: 3, Before: "k"}, {Key: "k", Rate: -1},
		{Key: "k", Rate: 1 << 20}} {
		var bad *InvalidError
		if err := r.check(); !errors.As(err, &bad) {
			t.Errorf("%+v: %v", r, err)
		}
	}
	for r, want := range map[*PutBackRequest]BeforeRequest{
		{Namespace: "shop"}:                 {Key: "/registry/namespaces/shop"},
		{Key: "/a", Prefix: true}:           {Key: "/a", Prefix: true},
		{Key: "/a", Before: "/b/"}:          {Key: "/b/"},
		{Namespace: "shop", Before: "/b/c"}: {Key: "/b/c"},
	} {
		if got := r.deletion(); got != want {
			t.Errorf("%+v: %+v, want %+v", r, got, want)
		}
	}
}
