package life

import (
	"bytes"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/pki"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// authorities are the files of the CAs, without their endings.
var authorities = []string{"etcd-manager-ca", "etcd-peers-ca", "etcd-clients-ca"}

// TestRotateCAs replaces all three CAs under load, by the three steps of docs/operations.md.
func TestRotateCAs(t *testing.T) {
	testutil.Long(t)
	c := harness.Start(t, harness.Options{Args: args()})
	next := t.TempDir()
	must(t, pki.CreateCAs(next, time.Now()))
	read := func(dir, name string) []byte {
		data, err := os.ReadFile(filepath.Join(dir, name))
		must(t, err)
		return data
	}
	write := func(name string, data []byte) {
		path := filepath.Join(c.PKI, name)
		must(t, os.WriteFile(path+".new", data, 0o600))
		must(t, os.Rename(path+".new", path))
	}
	old := map[string][]byte{}
	for _, a := range authorities {
		old[a] = read(c.PKI, a+".crt")
	}
	measured(t, c, "CA rotation", func() {
		for _, a := range authorities { // 1: both are trusted
			write(a+".crt", append(bytes.Clone(old[a]), read(next, a+".crt")...))
		}
		c.RefreshCAs()
		waitTrusts(t, c, 2)
		for _, a := range authorities { // 2: the new one signs
			write(a+".key", read(next, a+".key"))
		}
		c.RefreshCAs()
		waitSigned(t, c, filepath.Join(next, "etcd-clients-ca.crt"))
		for _, a := range authorities { // 3: only the new one is trusted
			write(a+".crt", read(next, a+".crt"))
		}
		c.RefreshCAs()
		waitTrusts(t, c, 1)
	})
	c.WaitHealthy(3)
	noneReplaced(t, c)
}

// clientCA is the file with the CAs that a node's etcd trusts its clients by.
func clientCA(t *testing.T, n *harness.Node) string {
	t.Helper()
	s, err := n.State()
	must(t, err)
	return filepath.Join(n.DataDir, "pki", s.GetCluster().GetClusterToken(), "clients")
}

// waitTrusts waits until every etcd was started with that many trusted CAs, and all are healthy.
func waitTrusts(t *testing.T, c *harness.Cluster, want int) {
	t.Helper()
	c.WaitFor(fmt.Sprintf("etcds that trust %d CAs", want), 3*time.Minute, func() string {
		for _, n := range c.Nodes {
			data, err := os.ReadFile(filepath.Join(clientCA(t, n), "ca.crt"))
			must(t, err)
			if got := bytes.Count(data, []byte("BEGIN CERTIFICATE")); got != want {
				return fmt.Sprintf("node %s trusts %d", n.Name, got)
			}
			info, err := os.Stat(filepath.Join(clientCA(t, n), "ca.crt"))
			must(t, err)
			started, err := os.Stat(fmt.Sprintf("/proc/%d", n.EtcdPID()))
			if err != nil || started.ModTime().Before(info.ModTime()) {
				return "the etcd of node " + n.Name + " was started before"
			}
		}
		return running(c, t, 3, compiled)
	})
}

// waitSigned waits until every etcd has a certificate of the new CA.
func waitSigned(t *testing.T, c *harness.Cluster, caFile string) {
	t.Helper()
	ca, err := os.ReadFile(caFile)
	must(t, err)
	c.WaitFor("certificates of the new CA", 2*time.Minute, func() string {
		for _, n := range c.Nodes {
			crt, err := os.ReadFile(filepath.Join(clientCA(t, n), "server.crt"))
			must(t, err)
			if !signedBy(t, crt, ca) {
				return "node " + n.Name + " has an old one"
			}
		}
		return running(c, t, 3, compiled)
	})
}

func signedBy(t *testing.T, crt, ca []byte) bool {
	t.Helper()
	parse := func(data []byte) *x509.Certificate {
		b, _ := pem.Decode(data)
		if b == nil {
			t.Fatal("no certificate")
		}
		c, err := x509.ParseCertificate(b.Bytes)
		must(t, err)
		return c
	}
	return parse(crt).CheckSignatureFrom(parse(ca)) == nil
}
