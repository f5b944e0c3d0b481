package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"regexp"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

var diffSeed = flag.Uint64("seed", 0, "repeats a run of the random test of diff")

// moment is all that the live etcd had at a revision, read from it.
type moment struct {
	revision int64
	keys     map[string]operator.DiffValue
	// backup is the name of the one that was taken then; empty if none was.
	backup string
}

func (l *live) moment() moment {
	l.t.Helper()
	r, err := l.etcd.Client.Raw().Get(l.t.Context(), "\x00", clientv3.WithFromKey())
	must(l.t, err)
	m := moment{revision: r.Header.Revision, keys: map[string]operator.DiffValue{}}
	for _, kv := range r.Kvs {
		m.keys[string(kv.Key)] = operator.DiffValue{Revision: kv.ModRevision, Created: kv.CreateRevision, Lease: kv.Lease, Value: kv.Value}
	}
	return m
}

func (m moment) point(asBackup bool) operator.PointRequest {
	if asBackup && m.backup != "" {
		return operator.PointRequest{Backup: m.backup}
	}
	return operator.PointRequest{Target: operator.Target{Revision: m.revision}}
}

// bruteDiff compares all keys of two moments.
func bruteDiff(a, b moment) map[string]operator.DiffKind {
	out := map[string]operator.DiffKind{}
	for k, was := range a.keys {
		is, there := b.keys[k]
		switch {
		case !there:
			out[k] = operator.Removed
		case is.Revision != was.Revision:
			out[k] = operator.Changed
		}
	}
	for k := range b.keys {
		if _, there := a.keys[k]; !there {
			out[k] = operator.Added
		}
	}
	return out
}

// randomWrites changes a few keys in all ways.
func (l *live) randomWrites(r *rand.Rand, n int) {
	l.t.Helper()
	kv := l.etcd.Client.Raw()
	key := func() string {
		if r.IntN(3) == 0 {
			return fmt.Sprintf("plain/%d/%d", r.IntN(3), r.IntN(20))
		}
		return fmt.Sprintf("/registry/configmaps/ns%d/c%d", r.IntN(3), r.IntN(20))
	}
	for range n {
		switch r.IntN(10) {
		case 0, 1:
			l.remove(key())
		case 2:
			l.remove(fmt.Sprintf("/registry/configmaps/ns%d/c1", r.IntN(3)), clientv3.WithPrefix())
		case 3:
			ops := map[string]clientv3.Op{}
			for range 5 {
				k := key()
				if ops[k] = clientv3.OpPut(k, fmt.Sprint(r.IntN(100))); r.IntN(3) == 0 {
					ops[k] = clientv3.OpDelete(k)
				}
			}
			var list []clientv3.Op
			for _, op := range ops {
				list = append(list, op)
			}
			_, err := kv.Txn(l.t.Context()).Then(list...).Commit()
			must(l.t, err)
		default:
			l.write(key(), fmt.Sprint(r.IntN(3)))
		}
	}
}

func (l *live) operator() *operator.Client {
	l.t.Helper()
	c, err := operator.Open(l.t.Context(), operator.Config{Store: "mem://x", Now: func() time.Time { return l.now },
		Open: func(context.Context, string) (blob.Store, error) { return l.store, nil }})
	must(l.t, err)
	return c
}

// wantDiff compares two moments with what Diff says of them.
func (l *live) wantDiff(c *operator.Client, a, b moment, backups, values, joined bool) {
	l.t.Helper()
	got := map[string]operator.DiffKind{}
	last := ""
	r := operator.DiffRequest{A: a.point(backups), B: b.point(backups), Values: values}
	r.TempDir = l.t.TempDir()
	d, err := c.Diff(l.t.Context(), r, func(e operator.DiffEntry) error {
		k := string(e.Key)
		if k <= last {
			l.t.Errorf("%s comes after %s", k, last)
		}
		last, got[k] = k, e.Kind
		was, is := a.keys[k], b.keys[k]
		if values && e.Old != nil && (string(e.Old.Value) != string(was.Value) || e.Old.Revision != was.Revision ||
			e.Old.Created != was.Created) {
			l.t.Errorf("%s was %+v, want %+v", k, e.Old, was)
		}
		if values && e.New != nil && (string(e.New.Value) != string(is.Value) || e.New.Revision != is.Revision) {
			l.t.Errorf("%s is %+v, want %+v", k, e.New, is)
		}
		if values && (e.Old == nil) != (e.Kind == operator.Added) || values && (e.New == nil) != (e.Kind == operator.Removed) {
			l.t.Errorf("%s %s: %v, %v", k, e.Kind, e.Old, e.New)
		}
		if e.SameValue && string(was.Value) != string(is.Value) {
			l.t.Errorf("%s isn't the same", k)
		}
		return nil
	})
	must(l.t, err)
	want := bruteDiff(a, b)
	if fmt.Sprint(got) != fmt.Sprint(want) || d.Total() != int64(len(want)) || d.Joined != joined {
		l.t.Errorf("from revision %d to %d (backups %t, values %t, joined %t):\ngot  %v\nwant %v", a.revision, b.revision, backups, values,
			d.Joined, got, want)
	}
	var sum int64
	for _, g := range d.Groups {
		sum += g.Total()
	}
	if sum != d.Total() {
		l.t.Errorf("the groups have %d differences, all %d", sum, d.Total())
	}
}

// TestDiffRandom compares random moments of a random history with what the live etcd had then: by the changes alone, and, when some of them
// are gone, by both states.
func TestDiffRandom(t *testing.T) {
	seed := *diffSeed
	if seed == 0 {
		seed = uint64(time.Now().UnixNano())
	}
	t.Logf("-seed=%d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	l := newLive(t)
	l.randomWrites(r, 10)
	l.back()
	var all []moment
	for i := range 9 {
		l.randomWrites(r, 5+r.IntN(40))
		m := l.moment()
		l.kept()
		if i%3 == 1 {
			m.backup = l.back()
		}
		all = append(all, m)
	}
	c := l.operator()
	for range 12 {
		a, b := all[r.IntN(len(all))], all[r.IntN(len(all))]
		l.wantDiff(c, a, b, r.IntN(2) == 0, r.IntN(2) == 0, true)
	}
	// Without the changes in the middle nothing joins the backups.
	store := catalog.New(l.store)
	for s, err := range store.Segments(t.Context(), l.recorder.Status().Incarnation, 0) {
		must(t, err)
		if s.First <= all[5].revision && s.Last > all[3].revision {
			_, err := l.store.Purge(t.Context(), s.Key(), func(string) bool { return true })
			must(t, err)
		}
	}
	c = l.operator()
	for _, values := range []bool{false, true} {
		l.wantDiff(c, all[1], all[7], true, values, false)
		l.wantDiff(c, all[7], all[1], true, values, false)
	}
}

// TestDiffOutput: what a person and a program see, secrets hidden, and the exit codes.
func TestDiffOutput(t *testing.T) {
	l := newLive(t)
	l.write("/registry/configmaps/shop/settings", `{"kind":"ConfigMap","data":{"color":"red","size":"1"}}`)
	l.write("/registry/secrets/shop/password", "hunter2")
	l.write("plain/a/b", "1")
	name := l.back()
	l.write("/registry/configmaps/shop/settings", `{"kind":"ConfigMap","data":{"color":"blue","size":"1"}}`)
	l.write("/registry/secrets/shop/password", "hunter3")
	l.write("/registry/pods/shop/web", "k8s\x00")
	l.remove("plain/a/b")
	l.kept()
	for _, c := range []struct {
		args     []string
		code     int
		has, not []string
	}{
		{[]string{"diff", name}, 1, []string{"from:  backup " + name, "to:    now, revision", "1        0        0  Pod in shop",
			"0        0        1  plain/a/", "1 added, 2 changed, 1 removed"}, []string{"hunter"}},
		{[]string{"diff", name, name}, 0, []string{"the same"}, nil},
		{[]string{"diff", "now", name, "--keys"}, 1, []string{"- /registry/pods/shop/web  (Pod shop/web)", "+ plain/a/b"}, []string{"hunter"}},
		{[]string{"diff", name, "now", "--values"}, 1, []string{"~ /registry/configmaps/shop/settings", `data.color: "red" → "blue"`,
			"was:  hidden, 7 B"}, []string{"hunter", "data.size"}},
		{[]string{"diff", name, "--values", "--show-secrets"}, 1, []string{"was:  hunter2", "is:   hunter3"}, nil},
		{[]string{"diff", "before:plain/a/b", "--keys"}, 1, []string{"- plain/a/b"}, []string{"/registry/pods"}},
		{[]string{"diff", name, "999999"}, 2, nil, nil},
		{[]string{"diff", "2026-01-30T01:02:03Z-000009"}, 3, nil, nil},
		{[]string{"diff"}, 2, nil, nil},
	} {
		code, out, errOut := l.exec(append([]string{"--backup-store=mem://x"}, c.args...)...)
		if code != c.code {
			t.Errorf("%v: exit code %d, want %d\n%s%s", c.args, code, c.code, out, errOut)
		}
		plain := regexp.MustCompile(`\n +(\d)`).ReplaceAllString(out, "\n$1")
		for _, want := range c.has {
			if !strings.Contains(plain, want) {
				t.Errorf("%v: no %q in\n%s%s", c.args, want, plain, errOut)
			}
		}
		for _, secret := range c.not {
			if strings.Contains(out, secret) {
				t.Errorf("%v: %q in\n%s", c.args, secret, out)
			}
		}
	}
	code, out, errOut := l.exec("--backup-store=mem://x", "diff", name, "--values", "-o", "json")
	var o struct {
		diffOutput
		Keys []diffKey `json:"keys"`
	}
	err := json.Unmarshal([]byte(out), &o)
	if err != nil || code != 1 || len(o.Keys) != 4 || o.Changed != 2 || strings.Contains(out, "hunter") {
		t.Errorf("%d %v\n%s%s", code, err, out, errOut)
	}
	// A restore says what it would change.
	code, out, errOut = l.exec("--backup-store=mem://x", "restore-backup", name, "--dry-run")
	want := "would remove 1 object made since, among them 1 Pod in shop; would bring back 1, among them 1 plain/a/; would change 2"
	if code != 0 || !strings.Contains(out, want) {
		t.Errorf("%d\n%s%s", code, out, errOut)
	}
	if code, _, errOut = l.exec("--backup-store=mem://x", "restore-backup", name); code != 0 || !strings.Contains(errOut, want) {
		t.Errorf("%d\n%s", code, errOut)
	}
}
