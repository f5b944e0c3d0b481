package cluster

import (
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// TestShortCertificates lets certificates live for seconds under constant load with ever new connections: they are renewed while
// everything runs, and no request fails.
func TestShortCertificates(t *testing.T) {
	testutil.Long(t)
	t.Parallel() // it mostly waits
	life, long := 20*time.Second, 45*time.Second
	if *soakTime > 0 {
		life, long = 2*time.Minute, *soakTime
	}
	c := harness.Start(t, harness.Options{BackupInterval: 10 * time.Second, Env: []string{
		"ETCD_MANAGER_CERT_DURATION=" + life.String(), "ETCD_MANAGER_CERT_MIN_TIME_LEFT=" + (life / 3).String(),
	}})
	load := c.StartLoad(harness.LoadOptions{Fresh: 10})
	var pids []int
	for _, n := range c.Nodes {
		pids = append(pids, n.EtcdPID())
	}
	backups := len(c.Backups())
	end := time.Now().Add(long)
	c.WaitFor("the end of the time", long+time.Minute, func() string {
		if r := load.Report(); len(r.Failures) > 0 {
			t.Fatalf("certificates of %s: %s", life, r)
		}
		if time.Now().Before(end) {
			return "it goes on"
		}
		return ""
	})
	c.WaitHealthy(3)
	r := load.Stop()
	t.Logf("certificates of %s for %s: %s", life, long, r)
	load.Verify()
	if len(r.Failures) > 0 {
		t.Errorf("%d requests failed", len(r.Failures))
	}
	if n := len(c.Backups()); n <= backups {
		t.Errorf("there were %d backups and there are %d; the managers can't take any more", backups, n)
	}
	for i, n := range c.Nodes {
		if n.EtcdPID() != pids[i] {
			t.Errorf("the etcd of %s was restarted", n.Name)
		}
		v, err := n.Status(t.Context())
		must(t, err)
		if left := time.Until(v.CertificateExpiry); left <= 0 || left > life {
			t.Errorf("a certificate of %s expires in %s", n.Name, left)
		}
		for _, p := range v.Peers {
			if !p.Connected {
				t.Errorf("the manager of %s isn't connected to %s: %s", n.Name, p.ID, p.Problem)
			}
		}
	}
}
