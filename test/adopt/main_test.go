// Package adopt holds the end-to-end tests of etcd-manager adopt: etcds as kubeadm and systemd run them, real processes on loopback, which
// the manager continues.
package adopt

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/json"
	"encoding/pem"
	"flag"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/test/harness"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

func TestMain(m *testing.M) {
	flag.Parse()
	os.Exit(harness.Main(m))
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// authority is a CA with an RSA key, as kubeadm makes it.
type authority struct {
	crt *x509.Certificate
	key *rsa.PrivateKey
}

// issue writes a pair; a nil authority makes a CA.
func (a *authority) issue(t *testing.T, base, name string, ips ...net.IP) *authority {
	t.Helper()
	k, err := rsa.GenerateKey(rand.Reader, 2048)
	must(t, err)
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 100))
	must(t, err)
	tmpl := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(1000 * time.Hour)}
	made := &authority{tmpl, k}
	if a == nil {
		a = made
		tmpl.IsCA, tmpl.BasicConstraintsValid, tmpl.KeyUsage = true, true, x509.KeyUsageCertSign|x509.KeyUsageDigitalSignature
	} else {
		tmpl.KeyUsage = x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment
		tmpl.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
		tmpl.DNSNames, tmpl.IPAddresses = []string{name, "localhost"}, append(ips, net.IPv4(127, 0, 0, 1), net.IPv6loopback)
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.crt, &k.PublicKey, a.key)
	must(t, err)
	made.crt, err = x509.ParseCertificate(der)
	must(t, err)
	must(t, os.MkdirAll(filepath.Dir(base), 0o755))
	must(t, os.WriteFile(base+".crt", pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o644))
	must(t, os.WriteFile(base+".key", pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: x509.MarshalPKCS1PrivateKey(k)}),
		0o600))
	return made
}

// world is a cluster whose etcds something else runs.
type world struct {
	*harness.Cluster
	t  *testing.T
	ca *authority
}

// newWorld prepares nodes, and the CA of etcd in a directory for each host, as kubeadm has it in /etc/kubernetes/pki/etcd.
func newWorld(t *testing.T, nodes int) *world {
	t.Helper()
	w := &world{t: t}
	w.Cluster = harness.New(t, harness.Options{Nodes: nodes, NoSpec: true,
		Args: []string{"--queue-poll-interval=1s", "--member-unhealthy-deadline=3s"}, CAs: func(dir string) {
			w.ca = (*authority)(nil).issue(t, filepath.Join(dir, "ca"), "etcd-ca")
			for _, name := range []string{"etcd-peers-ca", "etcd-clients-ca"} { // for the test's own clients
				for _, ext := range []string{".crt", ".key"} {
					must(t, os.Link(filepath.Join(dir, "ca"+ext), filepath.Join(dir, name+ext)))
				}
			}
		}})
	for _, n := range w.Nodes {
		must(t, os.RemoveAll(n.DataDir)) // it isn't there before the adoption
		for _, ext := range []string{".crt", ".key"} {
			data, err := os.ReadFile(filepath.Join(w.PKI, "ca"+ext))
			must(t, err)
			harness.WriteFile(t, filepath.Join(w.host(n), "pki", "ca"+ext), string(data))
		}
		for _, name := range []string{"server", "peer"} {
			w.ca.issue(t, filepath.Join(w.host(n), "pki", name), n.Name, net.ParseIP(n.Address))
		}
	}
	return w
}

// host is where the files of a node's machine lie.
func (w *world) host(n *harness.Node) string { return filepath.Join(w.Dir, "host-"+n.Name) }

// old is an etcd that something else runs.
type old struct {
	t     *testing.T
	cmd   *exec.Cmd
	ended chan struct{}
}

// run starts an etcd with arguments and environment.
func (w *world) run(n *harness.Node, args, env []string) *old {
	w.t.Helper()
	cmd := exec.Command(servers.Binary(w.t, "etcd-3.6"), args...)
	log, err := os.OpenFile(n.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(w.t, err)
	defer log.Close()
	cmd.Env, cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = append(os.Environ(), env...), log, log, &syscall.SysProcAttr{Setpgid: true}
	must(w.t, cmd.Start())
	o := &old{t: w.t, cmd: cmd, ended: make(chan struct{})}
	go func() {
		_ = cmd.Wait() // the test ends it
		close(o.ended)
	}()
	w.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-o.ended
	})
	return o
}

// stop ends it as kubelet and systemd do.
func (o *old) stop() {
	o.t.Helper()
	must(o.t, o.cmd.Process.Signal(syscall.SIGTERM))
	select {
	case <-o.ended:
	case <-time.After(30 * time.Second):
		o.t.Fatal("the old etcd doesn't end")
	}
}

// members are the ids of all members by name, and the cluster's.
func (w *world) members() map[string]uint64 {
	w.t.Helper()
	ids := map[string]uint64{}
	w.WaitFor("the member list", 30*time.Second, func() string {
		ctx, cancel := context.WithTimeout(w.t.Context(), 3*time.Second)
		defer cancel()
		l, err := w.Client().MemberList(ctx)
		if err != nil {
			return err.Error()
		}
		clear(ids)
		ids["cluster"] = l.Header.ClusterId
		for _, m := range l.Members {
			ids[m.Name] = m.ID
		}
		return ""
	})
	return ids
}

// adoption is a run of etcd-manager adopt.
type adoption struct {
	mu   sync.Mutex
	out  bytes.Buffer
	done chan struct{}
	code int
}

func (a *adoption) Write(p []byte) (int, error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.out.Write(p)
}

func (a *adoption) text() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.out.String()
}

// pkiOf is the manager's PKI directory on a node.
func (w *world) pkiOf(n *harness.Node) string { return filepath.Join(w.host(n), "etcd-manager-pki") }

// adopt begins etcd-manager adopt on a node.
func (w *world) adopt(n *harness.Node, args ...string) *adoption {
	w.t.Helper()
	a := &adoption{done: make(chan struct{})}
	cmd := exec.Command(w.Programs.Manager, append([]string{"adopt", "--cluster-name=test",
		"--backup-store=" + w.StoreURL, "--data-dir=" + n.DataDir, "--pki-dir=" + w.pkiOf(n),
		fmt.Sprintf("--grpc-port=%d", w.Ports.GRPC), fmt.Sprintf("--quarantine-port=%d", w.Ports.Quarantine)}, args...)...)
	cmd.Stdout, cmd.Stderr = a, a
	must(w.t, cmd.Start())
	go func() {
		_ = cmd.Wait() // the exit code tells
		a.code = cmd.ProcessState.ExitCode()
		close(a.done)
	}()
	w.t.Cleanup(func() { _ = cmd.Process.Kill(); <-a.done })
	return a
}

// end waits for its end, and checks exit code and words.
func (a *adoption) end(t *testing.T, code int, words ...string) {
	t.Helper()
	select {
	case <-a.done:
	case <-time.After(60 * time.Second):
		t.Fatalf("adopt doesn't end:\n%s", a.text())
	}
	if a.code != code {
		t.Fatalf("adopt exits with %d, want %d:\n%s", a.code, code, a.text())
	}
	for _, s := range words {
		if !strings.Contains(a.text(), s) {
			t.Errorf("adopt doesn't say %q:\n%s", s, a.text())
		}
	}
}

// startManager starts the manager with the flags that adopt has named.
func (w *world) startManager(n *harness.Node) {
	w.t.Helper()
	data, err := os.ReadFile(filepath.Join(n.DataDir, "etcd-manager", "adopt.json"))
	must(w.t, err)
	var p struct {
		Flags, Env []string
	}
	must(w.t, json.Unmarshal(data, &p))
	n.Args, n.Env = p.Flags, p.Env
	n.Start()
}

// files are all files below a directory with their sizes.
func files(t *testing.T, dir string) string {
	t.Helper()
	var list []string
	must(t, filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || strings.Contains(path, "/member/") || strings.HasSuffix(path, ".log") {
			return err
		}
		list = append(list, path)
		return nil
	}))
	return strings.Join(list, "\n")
}
