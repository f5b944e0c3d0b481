package page

import (
	"context"
	"errors"
	"testing"
	"testing/synctest"
	"time"

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
