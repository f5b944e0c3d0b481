package restore

import (
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
	"github.com/etcd-manager/etcd-manager/test/harness"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// certificate writes a pair with an RSA key in PKCS #1, as other tools do. A nil parent makes a CA.
func certificate(t *testing.T, crt, key, name string, parent *authority, ips ...net.IP) *authority {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	must(t, err)
	tmpl := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour)}
	a := &authority{tmpl, k}
	if parent == nil {
		parent = a
		tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
	} else {
		tmpl.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
		tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		tmpl.DNSNames, tmpl.IPAddresses = []string{name}, append(ips, net.IPv4(127, 0, 0, 1), net.IPv6loopback)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, parent.crt, &k.PublicKey, parent.key)
	must(t, err)
	a.crt, err = x509.ParseCertificate(der)
	must(t, err)
	must(t, os.MkdirAll(filepath.Dir(crt), 0o755))
	must(t, os.WriteFile(crt, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644))
	must(t, os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k)}), 0o600))
	return a
}

type authority struct {
	crt *x509.Certificate
	key *rsa.PrivateKey
}

func copyFile(t *testing.T, from, to string) {
	t.Helper()
	data, err := os.ReadFile(from)
	must(t, err)
	must(t, os.MkdirAll(filepath.Dir(to), 0o755))
	must(t, os.WriteFile(to, data, 0o644))
}

const foreignToken = "aZ3-token_of-another.tool"

// leaveBehind makes the data dir of a node as another etcd-manager leaves it, and starts the etcd
// that runs there. It returns what kills that etcd.
func leaveBehind(t *testing.T, c *harness.Cluster, n *harness.Node, peers, clients *authority) (kill func()) {
	t.Helper()
	state := &protosv1.EtcdState{EtcdVersion: etcd.CompiledVersion,
		Cluster: &protosv1.EtcdCluster{DesiredClusterSize: 3, ClusterToken: foreignToken}}
	var initial []string
	for _, m := range c.Nodes {
		state.Cluster.Nodes = append(state.Cluster.Nodes,
			&protosv1.EtcdNode{Name: m.Name, PeerUrls: []string{m.PeerURL()}, ClientUrls: []string{m.ClientURL()},
				QuarantinedClientUrls: []string{m.QuarantineURL()}, TlsEnabled: true})
		initial = append(initial, m.Name+"="+m.PeerURL())
	}
	data, err := proto.Marshal(state)
	must(t, err)
	must(t, os.WriteFile(filepath.Join(n.DataDir, "state"), data, 0o644))
	dir := filepath.Join(n.DataDir, "pki", foreignToken)
	p, s := filepath.Join(dir, "peers"), filepath.Join(dir, "clients")
	copyFile(t, filepath.Join(c.PKI, "etcd-peers-ca.crt"), filepath.Join(p, "ca.crt"))
	copyFile(t, filepath.Join(c.PKI, "etcd-clients-ca.crt"), filepath.Join(s, "ca.crt"))
	certificate(t, filepath.Join(p, "me.crt"), filepath.Join(p, "me.key"), n.Name, peers, net.ParseIP(n.Address))
	certificate(t, filepath.Join(s, "server.crt"), filepath.Join(s, "server.key"), n.Name, clients, net.ParseIP(n.Address))
	cmd := exec.Command(servers.Binary(t, "etcd-3.6"),
		"--name="+n.Name, "--data-dir="+filepath.Join(n.DataDir, "data", foreignToken), "--initial-cluster-token="+foreignToken,
		"--initial-cluster="+strings.Join(initial, ","), "--initial-cluster-state=new",
		"--listen-peer-urls="+n.PeerURL(), "--initial-advertise-peer-urls="+n.PeerURL(),
		"--listen-client-urls="+n.ClientURL(), "--advertise-client-urls="+n.ClientURL(),
		"--peer-client-cert-auth", "--peer-trusted-ca-file="+filepath.Join(p, "ca.crt"),
		"--peer-cert-file="+filepath.Join(p, "me.crt"), "--peer-key-file="+filepath.Join(p, "me.key"),
		"--client-cert-auth", "--trusted-ca-file="+filepath.Join(s, "ca.crt"),
		"--cert-file="+filepath.Join(s, "server.crt"), "--key-file="+filepath.Join(s, "server.key"))
	log, err := os.OpenFile(n.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(t, err)
	defer log.Close()
	cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = log, log, &syscall.SysProcAttr{Setpgid: true}
	must(t, cmd.Start())
	ended := make(chan struct{})
	go func() {
		_ = cmd.Wait() // whoever ends it: the manager that takes it over, or the cleanup
		close(ended)
	}()
	kill = func() {
		_ = cmd.Process.Kill()
		<-ended
	}
	t.Cleanup(kill)
	return kill
}

// members are the ids of all members by name, and the cluster's.
func members(t *testing.T, c *harness.Cluster) map[string]uint64 {
	t.Helper()
	ids := map[string]uint64{}
	c.WaitFor("the member list", 30*time.Second, func() string {
		ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
		defer cancel()
		l, err := c.Client().MemberList(ctx)
		if err != nil {
			return err.Error()
		}
		ids["cluster"] = l.Header.ClusterId
		for _, m := range l.Members {
			ids[m.Name] = m.ID
		}
		return ""
	})
	return ids
}

// TestTakeOver has the managers take over what another etcd-manager has left: its running etcds, its data dirs, its bucket, its backup
// and its queued command, all written here by hand as docs/format.md says.
func TestTakeOver(t *testing.T) {
	testutil.Long(t)
	var peers, clients *authority
	c := harness.New(t, harness.Options{NoSpec: true, CAs: func(dir string) {
		pair := func(name string) *authority {
			return certificate(t, filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key"), name, nil)
		}
		pair("etcd-manager-ca")
		peers, clients = pair("etcd-peers-ca"), pair("etcd-clients-ca")
	}})
	control := filepath.Join(c.StoreURL, "control")
	harness.WriteFile(t, filepath.Join(control, "etcd-cluster-spec"), `{"memberCount":3}`)
	harness.WriteFile(t, filepath.Join(control, "etcd-cluster-created"), `{"timestamp":1516000000000000000}`)
	for _, n := range c.Nodes {
		leaveBehind(t, c, n, peers, clients)
	}
	w := &restoreWorld{c: c, early: c.Put("/data/first", "1"), backup: "2026-01-30T01:02:03Z-000009"}
	for i := range 20 {
		c.Put(fmt.Sprintf("/data/%d", i), "x")
	}
	lease, err := c.Client().Grant(t.Context(), 3600)
	must(t, err)
	w.lease = lease.ID
	_, err = c.Client().Put(t.Context(), "/data/leased", "y", leased(lease.ID))
	must(t, err)
	w.data, w.highest = c.ReadAll("/data/")
	ids := members(t, c)
	snapshot, err := c.Client(c.Nodes[0].ClientURL()).Snapshot(t.Context())
	must(t, err)
	raw, err := io.ReadAll(snapshot)
	must(t, err)
	harness.WriteFile(t, filepath.Join(c.StoreURL, w.backup, "etcd.backup.gz"), string(harness.Gzipped(t, raw)))
	spec := fmt.Sprintf(`{"memberCount":3,"etcdVersion":%q}`, etcd.CompiledVersion)
	harness.WriteFile(t, filepath.Join(c.StoreURL, w.backup, "_etcd_backup.meta"),
		fmt.Sprintf(`{"etcdVersion":%q,"timestamp":"1516000000","clusterSpec":%s}`, etcd.CompiledVersion, spec))

	load := c.StartLoad(harness.LoadOptions{})
	c.StartAll()
	c.WaitHealthy(3)
	r := load.Stop()
	t.Logf("the running etcds were taken over: %s", r)
	if len(r.Failures) > 0 {
		t.Errorf("%d requests failed while the managers took over", len(r.Failures))
	}
	sameCluster(t, c, ids)
	c.RestartAll()
	c.WaitHealthy(3)
	sameCluster(t, c, ids)
	load.Verify()
	if got, _ := c.ReadAll("/data/"); len(got) != len(w.data) {
		t.Errorf("after the restart there are %d keys; want %d", len(got), len(w.data))
	}
	out, errOut, code := c.Ctl("list-backups")
	if code != 0 || !strings.HasPrefix(out, w.backup+"\n") {
		t.Errorf("list-backups: exit code %d: %s%s", code, out, errOut)
	}

	w.spoil(t)
	name := "2026-02-01T00:00:00Z-000000"
	harness.WriteFile(t, filepath.Join(control, name, "_command.json"),
		fmt.Sprintf(`{"timestamp":"1516000000000000000","restoreBackup":{"clusterSpec":%s,"backup":%q}}`, spec, w.backup))
	c.RestartAll()
	c.CheckEnded(c.WaitOperation(name, 2*time.Minute), catalog.StateDone)
	c.WaitHealthy(3)
	w.check(t)
	c.OneToken()
	if got := c.Spec(); got != (cluster.Spec{MemberCount: 3}) {
		t.Errorf("the spec is %+v now", got)
	}
}

// sameCluster fails unless members, cluster id and token are those that were left behind.
func sameCluster(t *testing.T, c *harness.Cluster, want map[string]uint64) {
	t.Helper()
	if got := members(t, c); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("the members are %x; want %x", got, want)
	}
	for _, n := range c.Nodes {
		s, err := n.State()
		must(t, err)
		if got := s.GetCluster().GetClusterToken(); got != foreignToken {
			t.Errorf("the state file of %s has token %q; want %q", n.Name, got, foreignToken)
		}
	}
}

// TestThereAndBack: the managers restore, another etcd-manager is put in their place and restores too, and the managers come back. The
// marker names the cluster that they made, which is gone; one command says that the one that runs is right.
func TestThereAndBack(t *testing.T) {
	testutil.Long(t)
	t.Parallel() // it mostly waits
	var peers, clients *authority
	c := harness.Start(t, harness.Options{Args: []string{"--queue-poll-interval=1s"}, CAs: func(dir string) {
		pair := func(name string) *authority {
			return certificate(t, filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key"), name, nil)
		}
		pair("etcd-manager-ca")
		peers, clients = pair("etcd-peers-ca"), pair("etcd-clients-ca")
	}})
	c.WaitBackups(1)
	c.Put("/data/ours", "1")
	if out, errOut, code := c.Ctl("restore-backup", "latest", "--now", "--wait"); code != 0 {
		t.Fatalf("restore-backup: exit code %d: %s%s", code, out, errOut)
	}
	c.WaitHealthy(3)
	ours := c.OneToken()

	// The other one restores by making a cluster of its own; it moves the old data away, and knows nothing of the marker's token.
	c.TermAll()
	for _, n := range c.Nodes {
		must(t, os.MkdirAll(filepath.Join(n.DataDir, "data-trashcan"), 0o755))
		must(t, os.Rename(filepath.Join(n.DataDir, "data", ours), filepath.Join(n.DataDir, "data-trashcan", ours)))
		leaveBehind(t, c, n, peers, clients)
	}
	revision := c.Put("/data/theirs", "2")
	ids := members(t, c)

	c.StartAll()
	var a cluster.Attention
	c.WaitFor("a person is told of two clusters", 2*time.Minute, func() string {
		v, err := c.WaitLeader().Status(t.Context())
		if err != nil {
			return err.Error()
		}
		for _, a = range v.Attention {
			if a.Kind == cluster.AttentionClusters {
				return ""
			}
		}
		return fmt.Sprintf("%+v; it does: %s", v.Attention, v.Doing)
	})
	t.Logf("%s", a)
	args := strings.Fields(a.Command)
	if i := slices.Index(args, "confirm-cluster"); i < 0 || i+2 != len(args) || args[i+1] != foreignToken {
		t.Fatalf("the command is %q; want confirm-cluster %s", a.Command, foreignToken)
	}
	if out, errOut, code := c.Ctl("confirm-cluster", foreignToken); code != 0 {
		t.Fatalf("confirm-cluster: exit code %d: %s%s", code, out, errOut)
	}
	c.WaitHealthy(3)
	calm := func() string {
		v, err := c.WaitLeader().Status(t.Context())
		switch {
		case err != nil:
			return err.Error()
		case len(v.Attention) > 0:
			return fmt.Sprintf("%+v", v.Attention)
		}
		return ""
	}
	c.WaitFor("nobody is needed any more", 2*time.Minute, calm)
	if out, errOut, code := c.Ctl("create-backup", "--wait"); code != 0 {
		t.Errorf("create-backup: exit code %d: %s%s", code, out, errOut)
	}
	c.BackupWith(revision)
	c.RestartAll()
	c.WaitHealthy(3)
	c.WaitFor("nobody is needed after a restart", 2*time.Minute, calm)
	sameCluster(t, c, ids)
	if got, _ := c.ReadAll("/data/"); got["/data/theirs"] != "2" {
		t.Errorf("what was written meanwhile isn't there: %v", got)
	}
}
