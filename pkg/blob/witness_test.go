package blob_test

import (
	"context"
	"errors"
	"io"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/blob/file"
)

func mustPass(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// directory is a file store as the managers have it, with all that is around it.
func directory(t *testing.T, dir string) blob.Store {
	t.Helper()
	f, err := file.New(dir)
	mustPass(t, err)
	return decorated(f)
}

func decorated(s blob.Store) blob.Store {
	return blob.Retry(blob.Observe(blob.WithTimeouts(blob.Detach(s), blob.Timeouts{}), func(blob.Event) {}), blob.RetryPolicy{})
}

// ownLocks is a file system on which each machine has locks of its own.
type ownLocks struct{ *file.Store }

func (ownLocks) LockHeld(context.Context, string) (bool, error) { return false, nil }

// site is one of two stores that are copied to each other when nobody looks: each honors conditional puts by itself.
type site struct {
	*blobtest.Memory
	other *blobtest.Memory
}

func (s site) Get(ctx context.Context, key string, r blob.Range) (io.ReadCloser, blob.Info, error) {
	if _, err := s.Stat(ctx, key); errors.Is(err, blob.ErrNotFound) { // it arrives just now
		if data, _, err := blob.ReadAll(ctx, s.other, key, 1<<10); err == nil {
			if _, err := s.Put(ctx, key, strings.NewReader(string(data)), blob.PutOptions{}); err != nil {
				return nil, blob.Info{}, err
			}
		}
	}
	return s.Memory.Get(ctx, key, r)
}

// TestWitness: two machines ask each other whether they have one store that fences between them.
func TestWitness(t *testing.T) {
	for name, c := range map[string]struct {
		stores func(t *testing.T) (asker, witness blob.Store)
		want   blob.Finding
	}{
		"one store": {func(*testing.T) (a, b blob.Store) { m := decorated(blobtest.NewMemory()); return m, m }, blob.OneStore},
		"two buckets": {func(*testing.T) (a, b blob.Store) {
			return decorated(blobtest.NewMemory()), decorated(blobtest.NewMemory())
		}, blob.OtherStore},
		"one directory": {func(t *testing.T) (a, b blob.Store) {
			dir := t.TempDir()
			return directory(t, dir), directory(t, dir)
		}, blob.OneStore},
		"two directories": {func(t *testing.T) (a, b blob.Store) {
			there := directory(t, t.TempDir())
			_, err := there.Put(t.Context(), "control/x", strings.NewReader("x"), blob.PutOptions{})
			mustPass(t, err)
			return directory(t, t.TempDir()), there
		}, blob.OtherStore},
		"a directory and a bucket": {func(t *testing.T) (a, b blob.Store) {
			return directory(t, t.TempDir()), decorated(blobtest.NewMemory())
		}, blob.OtherStore},
		"local locks": {func(t *testing.T) (a, b blob.Store) {
			dir := t.TempDir()
			f, err := file.New(dir)
			mustPass(t, err)
			return directory(t, dir), decorated(ownLocks{f})
		}, blob.LocksApart},
		"two sites": {func(*testing.T) (a, b blob.Store) {
			x, y := blobtest.NewMemory(), blobtest.NewMemory()
			return decorated(site{x, y}), decorated(site{y, x})
		}, blob.PutsApart},
	} {
		t.Run(name, func(t *testing.T) {
			a, b := c.stores(t)
			p, err := blob.Pose(t.Context(), a, "a")
			mustPass(t, err)
			got, err := p.Judge(t.Context(), blob.Witness(t.Context(), b, p.Question))
			if err != nil || got != c.want {
				t.Errorf("the finding is %v (%v), want %v", got, err, c.want)
			}
			mustPass(t, p.End(t.Context()))
			for e, err := range a.List(t.Context(), "", blob.ListOptions{}) {
				if mustPass(t, err); strings.HasPrefix(e.Key, blob.ProbePrefix) {
					t.Errorf("%s is left", e.Key)
				}
			}
		})
	}
}

// TestWitnessAgain: an answer that got lost is given again, and a lock is seen only as long as it is held.
func TestWitnessAgain(t *testing.T) {
	dir := t.TempDir()
	a, b := directory(t, dir), directory(t, dir)
	p, err := blob.Pose(t.Context(), a, "a")
	mustPass(t, err)
	first, again := blob.Witness(t.Context(), b, p.Question), blob.Witness(t.Context(), b, p.Question)
	if !first.Replaced || first != again {
		t.Errorf("first %+v, then %+v", first, again)
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".blob-tmp", "lock-*")); len(left) != 1 {
		t.Fatalf("the locks are %v", left)
	}
	mustPass(t, p.End(t.Context()))
	if left, _ := filepath.Glob(filepath.Join(dir, ".blob-tmp", "lock-*")); len(left) != 0 {
		t.Errorf("the locks %v are left", left)
	}
	if held, err := blob.Locks(b).LockHeld(t.Context(), p.Lock); held || err != nil {
		t.Errorf("after the end the lock is held: %t, %v", held, err)
	}
}

// TestWitnessWhoCannotTell: what isn't known is no finding.
func TestWitnessWhoCannotTell(t *testing.T) {
	m := blobtest.NewMemory()
	p, err := blob.Pose(t.Context(), m, "a")
	mustPass(t, err)
	for _, op := range []string{"get", "put"} {
		f := blobtest.NewFaulty(m)
		f.Add(blobtest.Fault{Op: op, Match: func(string) bool { return true }, Err: blobtest.Denied(op, p.Key, "s3:X")})
		if got, err := p.Judge(t.Context(), blob.Witness(t.Context(), f, p.Question)); err == nil {
			t.Errorf("%s denied: the finding is %v", op, got)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Nanosecond)
	defer cancel()
	if got, err := p.Judge(t.Context(), blob.Witness(ctx, m, p.Question)); err == nil {
		t.Errorf("no time: the finding is %v", got)
	}
	// A store that isn't there at all is none that can be used for anything.
	if got, err := p.Judge(t.Context(), blob.Witness(t.Context(), directory(t, filepath.Join(t.TempDir(), "unmounted")),
		p.Question)); err == nil {
		t.Errorf("no directory: the finding is %v", got)
	}
}

// TestQuestionThatIsGone: what somebody has cleared away says nothing of another store.
func TestQuestionThatIsGone(t *testing.T) {
	m := blobtest.NewMemory()
	p, err := blob.Pose(t.Context(), m, "a")
	mustPass(t, err)
	_, err = m.Purge(t.Context(), "control/", func(string) bool { return true })
	mustPass(t, err)
	if got, err := p.Judge(t.Context(), blob.Witness(t.Context(), m, p.Question)); err == nil {
		t.Errorf("the finding is %v", got)
	}
}

// TestForgedQuestion: another machine's question reaches nothing but what questions are about.
func TestForgedQuestion(t *testing.T) {
	m := blobtest.NewMemory()
	put := func(key string) {
		_, err := m.Put(t.Context(), key, strings.NewReader("v"), blob.PutOptions{})
		mustPass(t, err)
	}
	put("control/leader")
	put("control/probe/x")
	for _, q := range []blob.Question{
		{Key: "control/leader", Value: "v", Reply: "r"},
		{Key: "control/probe/../leader", Value: "v", Reply: "r"},
		{Key: "control/probe/x", Value: "v", Reply: "r"},
		{Key: "", Value: "v", Reply: "r"},
		{Key: "control/probe/a/b", Value: "v", Reply: "v"},
		{Key: "control/probe/a/b", Value: "v", Reply: strings.Repeat("r", 2<<10)},
		{Key: "control/probe/a/b", Value: "v", Reply: "r", Lock: "../../x"},
		{Key: "control/probe/a/b", Value: "v", Reply: "r", Lock: strings.Repeat("x", 100)},
	} {
		if got := blob.Witness(t.Context(), m, q); got.Problem == "" {
			t.Errorf("%+v is answered with %+v", q, got)
		}
	}
	for _, key := range []string{"control/leader", "control/probe/x"} {
		if data, _, err := blob.ReadAll(t.Context(), m, key, 10); err != nil || string(data) != "v" {
			t.Errorf("%s is %q now (%v)", key, data, err)
		}
	}
}
