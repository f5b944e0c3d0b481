package life

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// flags are the command line of a node's etcd.
func flags(t *testing.T, n *harness.Node) string {
	t.Helper()
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", n.EtcdPID()))
	if err != nil {
		return ""
	}
	return strings.ReplaceAll(string(data), "\x00", " ")
}

// waitFlag waits until every node's etcd was started with a flag, or without, and all are healthy.
func waitFlag(t *testing.T, c *harness.Cluster, flag string, want bool) {
	t.Helper()
	c.WaitFor(fmt.Sprintf("%s: %t", flag, want), 2*time.Minute, func() string {
		for _, n := range c.Nodes {
			if strings.Contains(flags(t, n), flag) != want {
				return "node " + n.Name + " is " + flags(t, n)
			}
		}
		return running(c, t, len(c.Nodes), compiled)
	})
}

// TestSettings chooses settings of etcd in the store. They are applied by a rolling restart, and only if they have really changed.
func TestSettings(t *testing.T) {
	c := harness.Start(t, harness.Options{Args: args()})
	measured(t, c, "settings", func() {
		configure(t, c, "--set=quota-backend-bytes=4GiB", "--set=snapshot-count=5000", "--set=heartbeat-interval=200ms",
			"--set=election-timeout=2s",
			"--set=auto-compaction-mode=periodic", "--set=auto-compaction-retention=30m")
		waitFlag(t, c, "--quota-backend-bytes=4294967296", true)
	})
	for _, f := range []string{"--snapshot-count=5000", "--heartbeat-interval=200", "--election-timeout=2000",
		"--auto-compaction-retention=30m"} {
		waitFlag(t, c, f, true)
	}
	check := c.Untouched()
	configure(t, c, "--set=quota-backend-bytes=4294967296") // the same, in other words
	// What the leader says of a spec that can't be proves that it has read the settings again, too.
	for _, version := range []string{"3.8.0", compiled} {
		configure(t, c, "--etcd-version="+version)
		c.WaitFor("the leader to have looked at the store again", 20*time.Second, func() string {
			v, err := c.WaitLeader().Status(t.Context())
			if err != nil || strings.Contains(v.Doing, "3.8.0") != (version == "3.8.0") {
				return "it hasn't"
			}
			return ""
		})
	}
	for _, bad := range [][]string{{"--set=quota-backend-bytes=1"}, {"--set=election-timeout=300ms"},
		{"--set=no-such=1"}, {"--set=heartbeat-interval"}, {"--unset=listen-metrics-urls"}, {"--set=auto-compaction-mode=revision"}} {
		out, errOut, code := c.Ctl(append([]string{"configure-cluster"}, bad...)...)
		if code != 2 || out != "" {
			t.Errorf("configure-cluster %v: exit code %d, %s%s", bad, code, out, errOut)
		}
		t.Logf("%v: %s", bad, strings.TrimSpace(errOut))
	}
	check()
	// A member that joins has them, too, and a manager that was killed doesn't forget.
	n := c.Nodes[1]
	n.KillWhole()
	n.Wipe(true)
	n.Start()
	c.WaitHealthy(3)
	waitFlag(t, c, "--quota-backend-bytes=4294967296", true)
	measured(t, c, "settings taken back", func() {
		configure(t, c, "--unset=quota-backend-bytes")
		waitFlag(t, c, "--quota-backend-bytes", false)
	})
	noneReplaced2(t, c)
}

// TestSettingTakenBack chooses what etcd can't start with. One member at most is down then, and it
// is well again once the operator has taken it back, with one master too.
func TestSettingTakenBack(t *testing.T) {
	testutil.Long(t)
	for _, nodes := range []int{1, 3} {
		t.Run(fmt.Sprint(nodes), func(t *testing.T) {
			c := harness.Start(t, harness.Options{Nodes: nodes, Args: args()})
			c.WaitHealthy(nodes)
			c.Put("/before", "x")
			configure(t, c, "--set=listen-metrics-urls=http://192.0.2.1:8081")
			down := func() (list []string) {
				for _, n := range c.Nodes {
					if v, err := n.Status(t.Context()); err != nil || !v.Etcd.Healthy {
						list = append(list, n.Name)
					}
				}
				return list
			}
			c.WaitFor("etcd that can't listen there", time.Minute, func() string {
				for _, n := range c.Nodes {
					if v, err := n.Status(t.Context()); err == nil && !v.Etcd.Running && strings.Contains(v.Etcd.Error, "etcd") {
						return ""
					}
				}
				return fmt.Sprintf("%v are down", down())
			})
			if list := down(); len(list) != 1 {
				t.Errorf("%v are down", list)
			}
			configure(t, c, "--unset=listen-metrics-urls")
			waitFlag(t, c, "--listen-metrics-urls=http://192.0.2.1", false)
			c.Put("/after", "x")
		})
	}
}

// noneReplaced2 is noneReplaced for a test that has wiped a disk itself. That member may be removed at the second attempt.
func noneReplaced2(t *testing.T, c *harness.Cluster) {
	t.Helper()
	members := map[string]bool{}
	lines := replaced(t, c)
	for _, line := range lines {
		_, what, _ := strings.Cut(line, "-> ")
		members[what] = true
	}
	if len(members) > 1 {
		t.Errorf("members were replaced:\n%s", strings.Join(lines, "\n"))
	}
}

// TestEnvironment changes an ETCD_ variable of managers that take over running etcds: the leader restarts these, one by one.
func TestEnvironment(t *testing.T) {
	testutil.Long(t)
	c := harness.Start(t, harness.Options{Args: args()})
	measured(t, c, "variable of killed managers", func() {
		for _, n := range c.Nodes {
			n.Env = []string{"ETCD_MAX_REQUEST_BYTES=2000000"}
			n.Kill()
			n.Start()
		}
		c.WaitFor("all etcds with the variable", 2*time.Minute, func() string {
			for _, n := range c.Nodes {
				data, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", n.EtcdPID()))
				if err != nil || !strings.Contains(string(data), "ETCD_MAX_REQUEST_BYTES=2000000") {
					return "node " + n.Name + " has none"
				}
			}
			return running(c, t, 3, compiled)
		})
	})
	noneReplaced(t, c)
}

// TestTurnTLSOn takes a cluster whose etcd speaks in the clear to TLS, one manager at a time. The client knows both.
func TestTurnTLSOn(t *testing.T) {
	testutil.Long(t)
	for _, killed := range []bool{false, true} {
		t.Run(map[bool]string{false: "stopped", true: "killed"}[killed], func(t *testing.T) {
			c := harness.New(t, harness.Options{Args: args()})
			for _, n := range c.Nodes {
				n.Args = []string{"--etcd-insecure"}
			}
			c.StartAll()
			c.WaitFor("three members", time.Minute, func() string { return running(c, t, 3, compiled) })
			// One key is written and read all the time, by whichever way is open.
			acked := 0
			write := func() error {
				key, value := "/tls", fmt.Sprint(acked)
				var last error
				for _, n := range c.Nodes {
					for _, url := range []string{n.ClientURL(), strings.Replace(n.ClientURL(), "https:", "http:", 1)} {
						cfg := clientv3.Config{Endpoints: []string{url}, Logger: zap.NewNop()}
						if strings.HasPrefix(url, "https:") {
							cfg.TLS = c.TLS()
						}
						if last = put(t, cfg, key, value); last == nil {
							acked++
							return nil
						}
					}
				}
				return last
			}
			must(t, write())
			for _, n := range c.Nodes {
				n.Args = nil
				if killed {
					n.Kill()
				} else {
					n.Term()
				}
				n.Start()
				c.WaitFor("all to be healthy, with TLS on node "+n.Name, 2*time.Minute, func() string {
					if err := write(); err != nil {
						return err.Error()
					}
					if !strings.Contains(flags(t, n), "--peer-cert-file") {
						return "node " + n.Name + " speaks in the clear"
					}
					return running(c, t, 3, compiled)
				})
				c.WaitFor("the others to know the new peer URL of "+n.Name, time.Minute, func() string {
					v, err := n.Status(t.Context())
					if err != nil {
						return err.Error()
					}
					for _, m := range v.Etcd.Members {
						if m.Name == n.Name && strings.HasPrefix(m.PeerURLs[0], "https:") {
							return ""
						}
					}
					return "it is still http"
				})
			}
			c.WaitHealthy(3)
			if got, _ := c.ReadAll("/tls"); got["/tls"] != fmt.Sprint(acked-1) {
				t.Errorf("the last acknowledged write was %d, and there is %v", acked-1, got)
			}
			noneReplaced(t, c)
		})
	}
}

func put(t *testing.T, cfg clientv3.Config, key, value string) error {
	client, err := clientv3.New(cfg)
	if err != nil {
		return err
	}
	defer client.Close()
	ctx, cancel := contextFor(t, time.Second)
	defer cancel()
	_, err = client.Put(ctx, key, value)
	return err
}
