package cluster

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/test/harness"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// TestPage looks at the page for people of every node while a cluster is healthy, while a member is down, and while the store hangs. It
// always answers within seconds, and never says healthy of what isn't.
func TestPage(t *testing.T) {
	testutil.Long(t)
	t.Parallel() // it mostly waits
	s3 := servers.StartVersityGW(t)
	c := harness.New(t, harness.Options{S3: s3})
	urls := map[string]string{}
	for _, n := range c.Nodes {
		address := fmt.Sprintf("%s:%d", n.Address, testutil.FreePort(t))
		n.Args = append(n.Args, "--page-listen="+address)
		urls[n.Name] = "http://" + address + "/"
	}
	look := func(n *harness.Node) string {
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, urls[n.Name], nil)
		must(t, err)
		client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
		resp, err := client.Do(req)
		if err != nil {
			return err.Error()
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return err.Error()
		}
		return string(body)
	}
	says := func(n *harness.Node, what ...string) {
		t.Helper()
		c.WaitFor(fmt.Sprintf("the page of %s to say %q", n.Name, what), 90*time.Second, func() string {
			body := look(n)
			for _, w := range what {
				if !strings.Contains(body, w) {
					_, title, _ := strings.Cut(body, "<title>")
					title, _, _ = strings.Cut(title, "</title>")
					return fmt.Sprintf("it lacks %q; title %q", w, title)
				}
			}
			return ""
		})
	}
	c.StartAll()
	c.WaitHealthy(3)
	c.WaitBackups(1)
	for _, n := range c.Nodes {
		says(n, "<title>Healthy: test</title>", "3 of 3 members are healthy", "copies its log to the others", "Any second from")
	}
	leader := c.WaitLeader()
	down := c.Nodes[0]
	if down == leader {
		down = c.Nodes[1]
	}
	down.KillWhole()
	for _, n := range c.Nodes {
		if n != down {
			says(n, "<title>Degraded: test</title>", "2 of 3 members are healthy")
		}
	}
	s3.Pause()
	for range 5 { // within the time in which store-away is no attention yet: nothing may hang, or say what isn't known
		if body := look(leader); strings.Contains(body, "<title>Healthy") || !strings.Contains(body, "2 of 3 members are healthy") {
			t.Errorf("the store hangs, and the leader's page is %s", body)
		}
	}
	s3.Resume()
}
