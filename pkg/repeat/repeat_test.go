package repeat

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"
)

// TestAllow: whatever the pace of a failure, at most ten lines a minute come of it, the first at once.
func TestAllow(t *testing.T) {
	for _, pace := range []time.Duration{time.Millisecond, 200 * time.Millisecond, time.Second, 9 * time.Second,
		11 * time.Second, 25 * time.Second} {
		t.Run(pace.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var l Limiter
				var said []time.Time
				left := 0
				for range 10 * time.Minute / pace {
					if skipped, ok := l.Allow("a"); ok {
						said = append(said, time.Now())
						left += skipped
					} else if len(said) == 0 {
						t.Fatal("the first message was held back")
					}
					time.Sleep(pace)
				}
				for i := 10; i < len(said); i++ {
					if said[i].Sub(said[i-10]) < time.Minute {
						t.Fatalf("%d lines within a minute", i)
					}
				}
				if len(said) < 3 {
					t.Errorf("only %d lines in ten minutes; it must be said again", len(said))
				}
				if total := int(10 * time.Minute / pace); left+len(said) > total {
					t.Errorf("%d said and %d left out, of %d", len(said), left, total)
				}
			})
		})
	}
}

// TestAllowAnew: what had stopped is news again, and other keys don't wait for it.
func TestAllowAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Limiter
		for range 1000 {
			l.Allow("a")
			time.Sleep(100 * time.Millisecond)
		}
		if _, ok := l.Allow("b"); !ok {
			t.Error("another key was held back")
		}
		time.Sleep(2 * longest)
		if _, ok := l.Allow("a"); !ok {
			t.Error("what had stopped for long was held back")
		}
	})
}

// TestBounded: keys don't pile up.
func TestBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var l Limiter
		for i := range 10 * maxKeys {
			l.Allow(fmt.Sprint(i))
			time.Sleep(time.Millisecond)
		}
		if len(l.seen) > maxKeys {
			t.Errorf("%d keys are kept", len(l.seen))
		}
	})
}
