package client_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
)

// nextBatch asks for progress until something comes.
func nextBatch(t *testing.T, s *client.Changes) (client.Batch, error) {
	t.Helper()
	type result struct {
		b   client.Batch
		err error
	}
	came := make(chan result, 1)
	go func() {
		b, err := s.Next()
		came <- result{b, err}
	}()
	tick := time.NewTicker(200 * time.Millisecond)
	defer tick.Stop()
	for deadline := time.After(15 * time.Second); ; {
		select {
		case r := <-came:
			return r.b, r.err
		case <-tick.C:
			_ = s.AskProgress()
		case <-deadline:
			t.Fatal("nothing comes though progress is asked for")
		}
	}
}

// TestWatchFromTheFuture watches from the revision that will be made next. What is there already doesn't come, progress does though nothing is made,
// and what is made then comes first. So it is on a store that is empty, and on one that was compacted up to the newest revision.
func TestWatchFromTheFuture(t *testing.T) {
	for _, bin := range otherBinaries(t) {
		t.Run(bin.Version, func(t *testing.T) {
			m := makeMembers(t, 1, bin, "future", nil, "127.0.0.1")[0]
			startAll(t, []*testMember{m})
			c := m.Client
			for round := range 3 {
				newest, _, err := c.Revision(ctxOf(t))
				must(t, err)
				if round == 2 {
					_, err := c.Raw().Compact(ctxOf(t), newest, clientv3.WithCompactPhysical())
					must(t, err)
				}
				s, err := c.WatchAll(t.Context(), newest+1)
				must(t, err)
				b, err := nextBatch(t, s)
				must(t, err)
				if len(b.Transactions) > 0 || b.Revision != newest {
					t.Errorf("round %d: %d transactions came with revision %d, want none and %d", round, len(b.Transactions), b.Revision, newest)
				}
				_, err = c.Raw().Put(ctxOf(t), "k", fmt.Sprint(round))
				must(t, err)
				for b.Transactions = nil; len(b.Transactions) == 0; {
					b, err = nextBatch(t, s)
					must(t, err)
				}
				if got := b.Transactions[0]; got.Revision != newest+1 || string(got.Events[0].Kv.Value) != fmt.Sprint(round) {
					t.Errorf("round %d: the first is revision %d %s, want %d", round, got.Revision, got.Events[0].Kv.Value, newest+1)
				}
				s.Close()
			}

			// What is asked for is compacted, or only the one before it is.
			for range 3 {
				_, err := c.Raw().Put(ctxOf(t), "k", "more")
				must(t, err)
			}
			newest, _, err := c.Revision(ctxOf(t))
			must(t, err)
			_, err = c.Raw().Compact(ctxOf(t), newest-1, clientv3.WithCompactPhysical())
			must(t, err)
			for from := newest - 2; from <= newest; from++ {
				ctx, cancel := context.WithCancel(t.Context())
				s, err := c.WatchAll(ctx, from)
				must(t, err)
				b, err := nextBatch(t, s)
				for err == nil && len(b.Transactions) == 0 { // etcd 3.4 tells progress before it has sent what was made
					b, err = nextBatch(t, s)
				}
				var gone *client.CompactedError
				switch {
				case from < newest-1:
					if !errors.As(err, &gone) || gone.Revision != newest-1 {
						t.Errorf("from %d of %d: %+v %v, want that the revisions before %d are compacted", from, newest, b, err, newest-1)
					}
				case err != nil || len(b.Transactions) != int(newest-from+1) || b.Transactions[0].Revision != from:
					t.Errorf("from %d of %d: %+v %v", from, newest, b, err)
				}
				s.Close()
				cancel()
			}
		})
	}
}
