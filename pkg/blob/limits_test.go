package blob

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

// TestCleanup: clearing up has fifteen seconds, and three from the moment at which its caller is told to end, also if that comes later.
func TestCleanup(t *testing.T) {
	for what, x := range map[string]struct {
		ends time.Duration // of the caller's context; negative is never
		want time.Duration
	}{
		"it goes on":       {-1, 15 * time.Second},
		"it has ended":     {0, 3 * time.Second},
		"it ends later":    {time.Second, 4 * time.Second},
		"it ends too late": {14 * time.Second, 15 * time.Second},
	} {
		synctest.Test(t, func(t *testing.T) {
			caller, end := context.WithCancel(t.Context())
			defer end()
			if x.ends == 0 {
				end()
			}
			begun := time.Now()
			ctx, stop := Cleanup(caller)
			defer stop()
			if x.ends > 0 {
				time.AfterFunc(x.ends, end)
			}
			<-ctx.Done()
			if took := time.Since(begun); took != x.want {
				t.Errorf("%s: it had %s; want %s", what, took, x.want)
			}
		})
	}
}
