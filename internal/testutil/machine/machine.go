// Package machine lays out the files of machines on which something else runs an etcd: kubeadm, k3s, RKE2, Talos or a unit of systemd. The
// certificates are real ones.
package machine

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

// CA is a certificate authority.
type CA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// Write writes a file of the machine.
func Write(t testing.TB, root, path, text string) {
	t.Helper()
	path = filepath.Join(root, path)
	testutil.Must(t, os.MkdirAll(filepath.Dir(path), 0o755))
	testutil.Must(t, os.WriteFile(path, []byte(text), 0o600))
}

// Issue writes FILE.crt and FILE.key. A nil CA makes one. Certificates with addresses are for servers and clients, others for clients only.
func (ca *CA) Issue(t testing.TB, root, file, name string, addresses ...string) *CA {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	testutil.Must(t, err)
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	testutil.Must(t, err)
	c := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour),
		NotAfter: time.Now().Add(1000 * time.Hour), KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	by := ca
	if by == nil {
		by = &CA{c, key}
		c.IsCA, c.BasicConstraintsValid, c.KeyUsage, c.ExtKeyUsage = true, true, x509.KeyUsageCertSign, nil
	} else if len(addresses) > 0 {
		c.ExtKeyUsage = append(c.ExtKeyUsage, x509.ExtKeyUsageServerAuth)
		for _, a := range addresses {
			if ip := net.ParseIP(a); ip != nil {
				c.IPAddresses = append(c.IPAddresses, ip)
			} else {
				c.DNSNames = append(c.DNSNames, a)
			}
		}
	}
	der, err := x509.CreateCertificate(rand.Reader, c, by.cert, key.Public(), by.key)
	testutil.Must(t, err)
	c, err = x509.ParseCertificate(der)
	testutil.Must(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	testutil.Must(t, err)
	Write(t, root, file+".crt", string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	Write(t, root, file+".key", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})))
	return &CA{c, key}
}

// Kubeadm lays out a control plane node, and returns etcd's flags, with the machine's paths.
func Kubeadm(t testing.TB, root, clientURL, peerURL string) []string {
	t.Helper()
	const pki = "/etc/kubernetes/pki"
	ca := (*CA)(nil).Issue(t, root, pki+"/etcd/ca", "etcd-ca")
	ca.Issue(t, root, pki+"/etcd/server", "node-1", "node-1", "localhost", "127.0.0.1")
	ca.Issue(t, root, pki+"/etcd/peer", "node-1", "node-1", "localhost", "127.0.0.1")
	ca.Issue(t, root, pki+"/etcd/healthcheck-client", "kube-etcd-healthcheck-client")
	ca.Issue(t, root, pki+"/apiserver-etcd-client", "kube-apiserver-etcd-client")
	flags := []string{
		"--advertise-client-urls=" + clientURL, "--cert-file=/etc/kubernetes/pki/etcd/server.crt", "--client-cert-auth=true",
		"--data-dir=/var/lib/etcd", "--initial-advertise-peer-urls=" + peerURL, "--initial-cluster=node-1=" + peerURL,
		"--key-file=/etc/kubernetes/pki/etcd/server.key", "--listen-client-urls=" + clientURL, "--listen-peer-urls=" + peerURL,
		"--name=node-1",
		"--peer-cert-file=/etc/kubernetes/pki/etcd/peer.crt", "--peer-client-cert-auth=true", "--peer-key-file=/etc/kubernetes/pki/etcd/peer.key",
		"--peer-trusted-ca-file=/etc/kubernetes/pki/etcd/ca.crt", "--snapshot-count=10000", "--trusted-ca-file=/etc/kubernetes/pki/etcd/ca.crt",
	}
	Write(t, root, "/etc/kubernetes/manifests/etcd.yaml", `apiVersion: v1
kind: Pod
metadata:
  labels: {component: etcd, tier: control-plane}
  name: etcd
  namespace: kube-system
spec:
  containers:
  - command:
    - etcd
    - `+strings.Join(flags, "\n    - ")+`
    image: registry.k8s.io/etcd:3.5.21-0
    name: etcd
    volumeMounts:
    - mountPath: /var/lib/etcd
      name: etcd-data
    - mountPath: /etc/kubernetes/pki/etcd
      name: etcd-certs
  hostNetwork: true
  volumes:
  - hostPath: {path: /etc/kubernetes/pki/etcd, type: DirectoryOrCreate}
    name: etcd-certs
  - hostPath: {path: /var/lib/etcd, type: DirectoryOrCreate}
    name: etcd-data
`)
	return flags
}

// Rancher lays out a server of k3s or RKE2 with etcd.
func Rancher(t testing.TB, root, kind, clientURL string) {
	t.Helper()
	server := "/var/lib/rancher/" + kind + "/server"
	tls := server + "/tls/etcd"
	ca := (*CA)(nil).Issue(t, root, tls+"/server-ca", "etcd-server-ca")
	ca.Issue(t, root, tls+"/server-client", "etcd-server", "localhost", "127.0.0.1", "kine.sock")
	ca.Issue(t, root, tls+"/client", "etcd-client")
	Write(t, root, server+"/db/etcd/config", fmt.Sprintf(`advertise-client-urls: https://10.0.0.1:2379
client-transport-security:
  cert-file: %[1]s/server-client.crt
  client-cert-auth: true
  key-file: %[1]s/server-client.key
  trusted-ca-file: %[1]s/server-ca.crt
data-dir: %[2]s/db/etcd
election-timeout: 5000
heartbeat-interval: 500
listen-client-http-urls: https://127.0.0.1:2382
listen-client-urls: https://10.0.0.1:2379,%[3]s
listen-metrics-urls: http://127.0.0.1:2381
log-outputs: [stderr]
logger: zap
name: server-1-0a1b2c3d
snapshot-count: 10000
`, tls, server, clientURL))
}

// Talos lays out a control plane node of Talos.
func Talos(t testing.TB, root string) {
	t.Helper()
	Write(t, root, "/etc/os-release", "NAME=\"Talos\"\nID=talos\nVERSION_ID=v1.11.0\n")
	ca := (*CA)(nil).Issue(t, root, "/system/secrets/etcd/ca", "etcd")
	ca.Issue(t, root, "/system/secrets/etcd/server", "node-1", "localhost", "127.0.0.1")
	ca.Issue(t, root, "/system/secrets/etcd/peer", "node-1", "localhost", "127.0.0.1")
	ca.Issue(t, root, "/system/secrets/etcd/admin", "root")
}

// Unit lays out a machine whose etcd is a unit of systemd, as Debian packages it, with TLS.
func Unit(t testing.TB, root, clientURL string) {
	t.Helper()
	ca := (*CA)(nil).Issue(t, root, "/etc/etcd/pki/ca", "etcd-ca")
	ca.Issue(t, root, "/etc/etcd/pki/server", "node-1", "localhost", "127.0.0.1")
	Write(t, root, "/lib/systemd/system/etcd.service", "[Unit]\nDescription=etcd\n\n[Service]\nType=notify\nUser=etcd\n"+
		"Environment=ETCD_DATA_DIR=/var/lib/etcd/default\nEnvironmentFile=-/etc/default/%p\nExecStart=/usr/bin/etcd $DAEMON_ARGS\n")
	Write(t, root, "/etc/systemd/system/etcd.service.d/env.conf", "[Service]\nEnvironment=DAEMON_ARGS=--name=node-1\n")
	Write(t, root, "/etc/default/etcd", "ETCD_LISTEN_CLIENT_URLS="+clientURL+"\nETCD_CERT_FILE=/etc/etcd/pki/server.crt\n"+
		"ETCD_KEY_FILE=/etc/etcd/pki/server.key\nETCD_TRUSTED_CA_FILE=/etc/etcd/pki/ca.crt\nETCD_CLIENT_CERT_AUTH=true\n")
}
