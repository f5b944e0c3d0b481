package cluster

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// TestOneWantedOfThreeApart wants one member, and no manager reaches another one, though each
// reaches the store. They don't take the leadership from each other over and over: not before there
// is a cluster, and not while one serves.
func TestOneWantedOfThreeApart(t *testing.T) {
	testutil.Long(t)
	t.Parallel() // it mostly waits
	c := harness.New(t, harness.Options{Nodes: 3, Isolated: true, IsolatedS3: true, Spec: &cluster.Spec{MemberCount: 1},
		Args: []string{"--queue-poll-interval=1s"}})
	apart := func() {
		for _, n := range c.Nodes {
			c.Cut(n)
		}
	}
	together := func() {
		for _, n := range c.Nodes {
			c.Join(n)
		}
	}
	apart()
	c.StartAll()
	steals(t, c, "before there is a cluster")
	together()
	c.WaitHealthy(1)
	token := c.OneToken()
	apart()
	steals(t, c, "while a cluster serves")
	together()
	c.WaitHealthy(1)
	if again := c.OneToken(); again != token {
		t.Errorf("the cluster was %s and is %s", token, again)
	}
}

// steals counts how often the store's leader record changes hands in half a minute.
func steals(t *testing.T, c *harness.Cluster, when string) {
	t.Helper()
	const watch, most = 30 * time.Second, 3
	var hands []string
	ctx, cancel := context.WithTimeout(t.Context(), watch)
	defer cancel()
	for ctx.Err() == nil {
		if r, _, err := c.Catalog.Leader(ctx); err == nil {
			if now := fmt.Sprintf("%s in term %d", r.Node, r.Term); len(hands) == 0 || hands[len(hands)-1] != now {
				hands = append(hands, now)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(100 * time.Millisecond):
		}
	}
	t.Logf("%s: the leader record was held by %s", when, strings.Join(hands, ", then "))
	if len(hands) > most {
		t.Errorf("%s: the leadership changed hands %d times in %s", when, len(hands)-1, watch)
	}
}
