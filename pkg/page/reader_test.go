package page

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/operator/health"
)

// TestStoreIsBack: a store that didn't answer until the timeout is asked again within half a minute, and a slow one for a twentieth of the
// time.
func TestStoreIsBack(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		away, takes, readings := true, readTimeout, 0
		r := NewReader(t.Context(), func(context.Context) (health.Facts, error) {
			readings++
			time.Sleep(takes)
			if away {
				return health.Facts{}, errors.New("away")
			}
			return health.Facts{}, nil
		})
		look := func() error {
			_, _, err := r.Look(t.Context())
			return err
		}
		if err := look(); !errors.Is(err, errNotYet) {
			t.Errorf("at first: %v", err)
		}
		time.Sleep(readTimeout)
		synctest.Wait()
		if err := look(); err == nil {
			t.Error("a store that is away is said to answer")
		}
		away, takes = false, 0
		time.Sleep(readEvery)
		if err := look(); err != nil {
			t.Errorf("half a minute after it is back: %v", err)
		}
		takes, readings = 3*time.Second, 0
		for range 10 * 60 {
			time.Sleep(time.Second)
			_ = look()
		}
		synctest.Wait()
		if readings < 5 || readings > 12 {
			t.Errorf("a slow store was read %d times in ten minutes", readings)
		}
	})
}

// TestStoreIsEmptied: a store that has nothing any more of the cluster that was in it is away; what was read of it stays.
func TestStoreIsEmptied(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		full := health.Facts{Spec: &cluster.Spec{MemberCount: 3}}
		facts := health.Facts{}
		r := NewReader(t.Context(), func(context.Context) (health.Facts, error) { return facts, nil })
		if _, at, err := r.Look(t.Context()); err != nil || at.IsZero() {
			t.Errorf("a store that never had anything: %v", err)
		}
		facts = full
		time.Sleep(readEvery)
		_, read, _ := r.Look(t.Context())
		facts = health.Facts{}
		time.Sleep(time.Hour)
		if f, at, err := r.Look(t.Context()); !errors.Is(err, errEmptied) || f.Spec == nil || !at.Equal(read) {
			t.Errorf("a store that was emptied: %v, spec %v, read at %s", err, f.Spec, at)
		}
	})
}

// TestLatest: a manager that can't answer, since a disk hangs, keeps nobody waiting for longer than a second, and is asked once.
func TestLatest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked, hang := 0, make(chan struct{})
		close(hang)
		l := NewLatest(func() int {
			asked++
			<-hang
			return asked
		})
		if n, at := l.Look(t.Context()); n != 1 || at.IsZero() {
			t.Errorf("it answers: %d at %s", n, at)
		}
		hang = make(chan struct{})
		for range 3 {
			began := time.Now()
			if n, at := l.Look(t.Context()); n != 1 || at.IsZero() || time.Since(began) != laterWait {
				t.Errorf("it hangs: %d at %s, after %s", n, at, time.Since(began))
			}
		}
		if asked != 2 {
			t.Errorf("it was asked %d times", asked)
		}
		close(hang)
		synctest.Wait()
		if n, _ := l.Look(t.Context()); n != 3 {
			t.Errorf("afterwards: %d", n)
		}
	})
}
