package e2e

import (
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

// TestKillContainers kills whole containers, each with its manager and its etcd, at random moments while three masters form a cluster.
// It always becomes one cluster, and what was acknowledged meanwhile is in it.
func TestKillContainers(t *testing.T) {
	testutil.Long(t)
	needDocker(t)
	t.Parallel()
	s := *seed
	if s == 0 {
		s = uint64(time.Now().UnixNano())
	}
	t.Logf("repeat this with: go test ./test/e2e -run TestKillContainers -rounds=%d -seed=%d", *rounds, s)
	for round := range *rounds {
		if end, ok := t.Deadline(); ok && round > 0 && time.Until(end) < 2*time.Minute {
			t.Logf("only %d of %d rounds: -timeout would end the test binary before another is over", round, *rounds)
			break
		}
		// Each round has a source of its own, so that it doesn't depend on how long another took.
		r := rand.New(rand.NewPCG(s, uint64(round)))
		t.Run("", func(t *testing.T) { killRound(t, r) })
		if t.Failed() {
			t.Fatalf("round %d failed, the seed is %d", round, s)
		}
	}
}

// strike is one container's end and its return.
type strike struct {
	victim int
	at     time.Duration // after the last one
	away   time.Duration
}

// strikes are made up beforehand: the first within the three seconds in which a cluster usually forms.
func strikes(r *rand.Rand) []strike {
	list := make([]strike, 1+r.IntN(3))
	for i := range list {
		list[i] = strike{r.IntN(3), time.Duration(r.Int64N(int64(3 * time.Second))), time.Duration(r.Int64N(int64(2 * time.Second)))}
	}
	return list
}

func killRound(t *testing.T, r *rand.Rand) {
	w := newWorld(t)
	w.startS3("kill")
	w.configure("")
	for _, name := range []string{"a", "b", "c"} {
		w.addMaster(name, masterOptions{args: []string{"--form-grace=5s", "--backup-interval=2s"}})
	}
	f, writers := w.watchFence(), w.startWriters()
	each(w.masters, (*master).start)
	for _, s := range strikes(r) {
		time.Sleep(s.at)
		m := w.masters[s.victim]
		t.Logf("kill %s at phase %q, with %d writes acknowledged; it is away for %s", m.name, w.marker().Phase,
			acked(writers, w.masters), s.away.Round(time.Millisecond))
		m.kill()
		time.Sleep(s.away)
		m.start()
	}
	had := acked(writers, w.masters)
	waitFor(t, "writes are acknowledged after the last kill", 2*time.Minute, func() string { return serves(writers, w.masters, had, 20) })
	w.waitServing(2 * time.Minute)
	f.stop()
	w.checkWriters(writers)
	token := w.oneCluster(0)
	if mark := w.marker(); mark.Token != token {
		t.Errorf("the marker names token %s, the state files %s", mark.Token, token)
	}
	for _, m := range w.masters {
		if strings.Contains(m.log(), "panic: ") {
			t.Errorf("%s has panicked", m.name)
		}
	}
}
