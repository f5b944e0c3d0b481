package kubernetes

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	coordinationv1 "k8s.io/api/coordination/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// sample makes the i-th object: pods, config maps and leases of nodes.
func sample(i int, note string) (string, runtime.Object) {
	m := metav1.ObjectMeta{Namespace: "default", Name: fmt.Sprintf("object-%04d", i), Labels: map[string]string{"note": note}}
	switch i % 3 {
	case 0:
		return "/registry/pods/default/" + m.Name,
			&corev1.Pod{ObjectMeta: m, Spec: corev1.PodSpec{NodeName: "node-1",
				Containers: []corev1.Container{{Name: "main", Image: "example.com/image"}}}}
	case 1:
		return "/registry/configmaps/default/" + m.Name, &corev1.ConfigMap{ObjectMeta: m, Data: map[string]string{"key": note}}
	}
	m.Namespace = "kube-node-lease"
	holder := "node-1"
	return "/registry/leases/kube-node-lease/" + m.Name,
		&coordinationv1.Lease{ObjectMeta: m, Spec: coordinationv1.LeaseSpec{HolderIdentity: &holder}}
}

// churn writes and deletes objects all the time, until the context ends.
func churn(ctx context.Context, s *storage, from, to int) {
	for n := 0; ctx.Err() == nil; n++ {
		key, o := sample(from+rand.IntN(to-from), fmt.Sprint("churn ", n))
		one, cancel := context.WithTimeout(ctx, time.Second)
		if n%4 == 3 {
			_, _ = s.client.Delete(one, key) // etcd is away for a moment in between, on purpose
		} else {
			_, _ = s.update(one, key, o)
		}
		cancel()
		select {
		case <-ctx.Done():
		case <-time.After(2 * time.Millisecond):
		}
	}
}

// TestReflectors takes watch caches and master leases through a restore: every cache agrees with etcd afterwards, by one new list, without
// having been told; the lease of a master that is gone doesn't come back, and those of the living are there within seconds.
func TestReflectors(t *testing.T) {
	testutil.Long(t)
	t.Parallel()
	c := harness.Start(t, harness.Options{BackupInterval: 2 * time.Second, Args: []string{"--queue-poll-interval=200ms"}})
	s := &storage{newCodec(), c.Client()}
	for i := range 500 {
		key, o := sample(i, "backed up")
		_, err := s.update(t.Context(), key, o)
		must(t, err)
	}
	var living []string
	for _, n := range c.Nodes {
		h := hold(s, n.Address)
		t.Cleanup(h.die)
		living = append(living, n.Address)
	}
	const gone = "192.0.2.9"
	revision, err := s.update(t.Context(), masterleases+gone, endpointsOf(gone, 1))
	must(t, err)

	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer func() {
		cancel()
		wg.Wait()
	}()
	var caches []*reflector
	for _, n := range c.Nodes { // an API server talks to the etcd beside it
		for _, prefix := range []string{"/registry/pods/", "/registry/configmaps/", "/registry/leases/", "/registry/"} {
			r := &reflector{storage: &storage{s.codec, c.Client(n.ClientURL())}, prefix: prefix, page: 50}
			caches = append(caches, r)
			wg.Go(func() { r.run(ctx) })
		}
	}
	agree := func(when string) {
		t.Helper()
		truth := map[string]map[string]object{}
		for _, r := range caches {
			c.WaitFor("the cache of "+r.prefix+" to be as etcd is "+when, 20*time.Second, func() string {
				items, _, _, err := s.list(t.Context(), r.prefix, 1000)
				must(t, err)
				truth[r.prefix] = items
				return r.differs(items)
			})
		}
		t.Logf("%s %d caches are as etcd is: %d objects", when, len(caches), len(truth["/registry/"]))
	}
	agree("at the beginning")
	back := c.BackupWith(revision)

	// What the restore takes back: new objects, deleted ones, and the churn.
	churning, still := context.WithCancel(ctx)
	var churners sync.WaitGroup
	churners.Go(func() { churn(churning, s, 300, 700) })
	for i := range 100 {
		key, _ := sample(i, "")
		_, err := s.client.Delete(t.Context(), key)
		must(t, err)
		key, o := sample(1000+i, "after the backup")
		_, err = s.update(t.Context(), key, o)
		must(t, err)
	}
	_, err = s.client.Delete(t.Context(), masterleases+gone)
	must(t, err)
	highest := caches[0].seen()
	out, errOut, code := c.Ctl("restore-backup", back, "--now", "--wait")
	if code != 0 {
		t.Fatalf("restore-backup: exit code %d: %s%s", code, out, errOut)
	}
	ops, _, err := c.Catalog.Operations(t.Context())
	must(t, err)
	c.CheckEnded(ops[len(ops)-1], catalog.StateDone)
	restored := time.Now()
	still()
	churners.Wait()
	c.WaitFor("the master leases of those that live, and no other", 15*time.Second, func() string {
		if now := addresses(t, s.client); !slices.Equal(now, living) {
			return fmt.Sprintf("there are %v, want %v", now, living)
		}
		return ""
	})
	t.Logf("master leases are right %s after the restore was done: %v", time.Since(restored).Round(time.Millisecond), living)
	agree("after the restore")
	for i := range 100 {
		key, o := sample(2000+i, "new")
		_, err := s.update(t.Context(), key, o)
		must(t, err)
	}
	agree("after new writes")
	for _, r := range caches {
		r.mu.Lock()
		t.Logf("%-22s version %d, before the restore %d: %s", r.prefix, r.version, highest, r.counts)
		if len(r.wrong) > 0 || r.counts.lists != 2 || r.counts.compacted != 1 || r.counts.bookmarks == 0 {
			t.Errorf("cache of %s: %v; want two lists, one because of a compaction, and bookmarks; wrong: %q", r.prefix, r.counts, r.wrong)
		}
		if r.version <= highest+1_000_000_000-1 {
			t.Errorf("cache of %s: version %d isn't raised by a billion above %d", r.prefix, r.version, highest)
		}
		r.mu.Unlock()
	}
	for i := range 100 {
		for key, want := range map[string]bool{keyOf(i): true, keyOf(1000 + i): false} {
			r, err := s.client.Get(t.Context(), key, clientv3.WithCountOnly())
			must(t, err)
			if (r.Count == 1) != want {
				t.Errorf("%s is there: %t, want %t", key, r.Count == 1, want)
			}
		}
	}
}

func keyOf(i int) string {
	key, _ := sample(i, "")
	return key
}
