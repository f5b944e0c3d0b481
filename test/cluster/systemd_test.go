package cluster

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/internal/testutil/systemdtest"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// TestSystemd is systemd for one of three managers: it is told when that one answers its peers, though there is no etcd yet, then how it
// does, and at the end that it stops. Neither its etcd nor any other child could speak for it.
func TestSystemd(t *testing.T) {
	testutil.Long(t)
	systemd := systemdtest.New(t)
	c := harness.New(t, harness.Options{})
	n := c.Nodes[0]
	n.Env = append(n.Env, "NOTIFY_SOCKET="+systemd.Socket, "WATCHDOG_USEC=3000000")
	n.Start()
	systemd.Wait("READY=1")
	systemd.Wait("STATUS=no etcd runs; no manager leads")
	systemd.Wait("WATCHDOG=1")
	for _, other := range c.Nodes[1:] {
		other.Start()
	}
	c.WaitHealthy(3)
	systemd.Wait("STATUS=etcd serves; ")
	systemd.Wait("WATCHDOG=1")
	env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", n.EtcdPID()))
	testutil.Must(t, err)
	if strings.Contains(string(env), "NOTIFY_SOCKET") || strings.Contains(string(env), "WATCHDOG_") {
		t.Errorf("etcd has %q", env)
	}
	n.Term()
	systemd.Wait("STOPPING=1")
}
