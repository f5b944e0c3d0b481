package chaos

import (
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

// TestLostAnswersToRecords: a real S3 server stores every record, and every second answer to that is lost on the way, once with the store
// away for a while after it. The next attempt is refused for what the first has stored. Restores end as if nothing had happened.
func TestLostAnswersToRecords(t *testing.T) {
	testutil.Long(t)
	w, cl, g := gatedWorld(t)
	for _, away := range []time.Duration{0, 5 * time.Second} {
		var mu sync.Mutex
		var until time.Time
		puts, lost := map[string]int{}, 0
		g.Lose(func(r *http.Request) bool {
			if r.Method != http.MethodPut || !strings.Contains(r.URL.Path, "/control/") {
				return false
			}
			mu.Lock()
			defer mu.Unlock()
			n := puts[r.URL.Path]
			if puts[r.URL.Path]++; n%2 == 1 {
				return false
			}
			if n == 2 && strings.Contains(r.URL.Path, "/control/operations/") {
				until = time.Now().Add(away)
			}
			lost++
			return true
		})
		g.Set(func(rw http.ResponseWriter, _ *http.Request) bool {
			mu.Lock()
			defer mu.Unlock()
			if time.Now().After(until) {
				return false
			}
			rw.WriteHeader(http.StatusServiceUnavailable)
			return true
		})
		begun := time.Now()
		w.restore("latest", latestNow...)
		took := time.Since(begun)
		g.Lose(nil)
		g.Set(nil)
		t.Logf("%d answers were lost, the store was away for %s: the restore took %s", lost, away, took.Round(time.Millisecond))
		if limit := 90*time.Second + away; lost < 5 || took > limit {
			t.Errorf("%d answers were lost; the restore took %s, more than %s", lost, took, limit)
		}
		if away == 0 { // the next one begins with a backup of the cluster that serves
			w.ofThisLife()
		}
	}
	w.judged(cl)
}
