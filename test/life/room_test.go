package life

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// fill writes values of 256 KiB until there are n, always over the same few keys, so that most of
// it is history. It returns how many were taken before etcd refused.
func fill(t *testing.T, c *harness.Cluster, n int) int {
	t.Helper()
	client := c.Client()
	value := make([]byte, 256<<10)
	for i := range n {
		for j := range value {
			value[j] = byte('a' + rand.IntN(26))
		}
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		_, err := client.Put(ctx, fmt.Sprintf("/big/%d", i%4), string(value))
		cancel()
		if errors.Is(err, rpctypes.ErrNoSpace) {
			return i
		}
		must(t, err)
	}
	return n
}

// TestNoSpace fills a database up to a small quota. It comes back by itself, and says so.
func TestNoSpace(t *testing.T) {
	testutil.Long(t)
	c := harness.Start(t, harness.Options{Args: args()})
	configure(t, c, "--set=quota-backend-bytes=32MiB")
	waitFlag(t, c, "--quota-backend-bytes=33554432", true)
	wrote := fill(t, c, 1000)
	if wrote == 1000 {
		t.Fatal("etcd never refused a write")
	}
	t.Logf("etcd refused the write after %d of 256 KiB", wrote)
	start := time.Now()
	client := c.Client()
	c.WaitFor("writes again", 2*time.Minute, func() string {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := client.Put(ctx, "/after", "room"); err != nil {
			return err.Error()
		}
		return ""
	})
	t.Logf("etcd takes writes again after %s", time.Since(start).Round(time.Millisecond))
	for _, text := range []string{"its history goes first -> compact", "inside the database of node",
		"there is room again", "took back etcd's alarm NOSPACE"} {
		c.WaitLog(10*time.Second, text)
	}
	c.WaitHealthy(3)
	if got, _ := c.ReadAll("/big/"); len(got) != 4 {
		t.Errorf("%d of 4 keys are there", len(got))
	}
	noneReplaced(t, c)
}

// TestNoSpaceBesideASickMember fills a database while the etcd of one member is frozen: room is
// made on the other two, and then on that one.
func TestNoSpaceBesideASickMember(t *testing.T) {
	testutil.Long(t)
	c := harness.Start(t, harness.Options{Args: []string{"--queue-poll-interval=1s"}}) // it isn't replaced for a minute
	configure(t, c, "--set=quota-backend-bytes=32MiB")
	waitFlag(t, c, "--quota-backend-bytes=33554432", true)
	sick := follower(t, c)
	pid := sick.EtcdPID()
	must(t, syscall.Kill(pid, syscall.SIGSTOP))
	thaw := func() { _ = syscall.Kill(pid, syscall.SIGCONT) } // it may have been replaced
	defer thaw()
	var urls []string
	for _, n := range c.Nodes {
		if n != sick {
			urls = append(urls, n.ClientURL())
		}
	}
	client := c.Client(urls...)
	write := func(key, value string) error {
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err := client.Put(ctx, key, value)
		return err
	}
	value := strings.Repeat("x", 256<<10)
	refused := false
	for i := 0; !refused && i < 1000; i++ {
		err := write(fmt.Sprintf("/big/%d", i%4), value)
		refused = errors.Is(err, rpctypes.ErrNoSpace)
		if err != nil && !refused {
			t.Fatal(err)
		}
	}
	if !refused {
		t.Fatal("etcd never refused a write")
	}
	start := time.Now()
	c.WaitFor("writes again", 2*time.Minute, func() string {
		if err := write("/after", "room"); err != nil {
			return err.Error()
		}
		return ""
	})
	t.Logf("etcd takes writes again after %s, with the etcd of node %s frozen", time.Since(start).Round(time.Millisecond), sick.Name)
	if n := strings.Count(logs(t, c), "-> defragment"); n < 2 {
		t.Errorf("%d databases were rewritten", n)
	}
	thaw()
	c.WaitHealthy(3)
	c.WaitFor("the database of the member that was sick to be small", time.Minute, func() string {
		v, err := sick.Status(t.Context())
		if err != nil || v.Etcd.DBSizeInUse > 16<<20 || len(v.Etcd.Alarms) > 0 {
			return fmt.Sprintf("%+v, %v", v, err)
		}
		return ""
	})
}

// TestNoSpaceData fills a database with data that no compaction makes smaller: a person has to raise the quota, and that is said.
func TestNoSpaceData(t *testing.T) {
	testutil.Long(t)
	c := harness.Start(t, harness.Options{Args: args()})
	configure(t, c, "--set=quota-backend-bytes=16MiB")
	waitFlag(t, c, "--quota-backend-bytes=16777216", true)
	client := c.Client()
	value := strings.Repeat("x", 256<<10)
	keys := 0
	fill := func() { // what is free inside the databases, too: once they are rewritten there may be room again
		for {
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
			_, err := client.Put(ctx, fmt.Sprintf("/data/%d", keys), value)
			cancel()
			if errors.Is(err, rpctypes.ErrNoSpace) {
				return
			}
			must(t, err)
			keys++
		}
	}
	fill()
	c.WaitFor("the leader to ask for a higher quota", 2*time.Minute, func() string {
		v, err := c.WaitLeader().Status(t.Context())
		if err != nil || !v.Alarm || !strings.Contains(v.Doing, "--set=quota-backend-bytes=") {
			fill()
			return v.Doing
		}
		t.Log(v.Doing)
		return ""
	})
	configure(t, c, "--set=quota-backend-bytes=64MiB")
	c.Put("/after", "room")
	waitFlag(t, c, "--quota-backend-bytes=67108864", true)
	c.WaitHealthy(3)
}

// TestDefragment makes holes in the databases, which are rewritten one after the other.
func TestDefragment(t *testing.T) {
	testutil.Long(t)
	c := harness.Start(t, harness.Options{Args: args("--defrag-threshold=0.5")})
	measured(t, c, "defragmentation", func() {
		fill(t, c, 160)
		client := c.Client()
		r, err := client.Get(t.Context(), "/big/0")
		must(t, err)
		_, err = client.Compact(t.Context(), r.Header.Revision)
		must(t, err)
		c.WaitFor("small databases", 2*time.Minute, func() string {
			for _, n := range c.Nodes {
				v, err := n.Status(t.Context())
				if err != nil || v.Etcd.DBSize > 16<<20 {
					return fmt.Sprintf("node %s: %v", n.Name, v.Etcd.DBSize)
				}
			}
			return ""
		})
	})
	noneReplaced(t, c)
	c.WaitHealthy(3)
}
