// Package sidecar holds the end-to-end tests of etcd-backup beside an etcd that something else runs: a stock etcd with kubeadm's flags and
// certificates, the manifests of contrib/etcd-backup, and what docs/sidecar says about restores.
package sidecar

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/internal/testutil/machine"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// programs is the directory with this module's programs, made once.
var programs = sync.OnceValues(func() (string, error) {
	made.Store(true)
	dir, err := os.MkdirTemp("", "sidecar-programs-")
	if err != nil {
		return "", err
	}
	cmd := exec.Command("go", "build", "-o", dir+"/", "../../cmd/etcd-backup", "../../cmd/etcd-manager-ctl")
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return dir, fmt.Errorf("go build: %w\n%s", err, out)
	}
	return dir, nil
})

// made is true when there is something to remove.
var made atomic.Bool

func TestMain(m *testing.M) {
	code := m.Run()
	if made.Load() {
		if dir, _ := programs(); dir != "" {
			_ = os.RemoveAll(dir)
		}
	}
	os.Exit(code)
}

func program(t *testing.T, name string) string {
	t.Helper()
	dir, err := programs()
	testutil.Must(t, err)
	return filepath.Join(dir, name)
}

const pki = "/etc/kubernetes/pki/"

// node is a control plane node of kubeadm below a directory, with a stock etcd.
type node struct {
	t          *testing.T
	root       string
	url, peer  string
	flags      []string
	dataDir    string
	etcd       *exec.Cmd
	ended      chan struct{}
	user, pass string
}

func newNode(t *testing.T) *node {
	t.Helper()
	n := &node{t: t, root: t.TempDir()}
	n.url = fmt.Sprintf("https://127.0.0.1:%d", testutil.FreePort(t))
	n.peer = fmt.Sprintf("https://127.0.0.1:%d", testutil.FreePort(t))
	n.flags = machine.Kubeadm(t, n.root, n.url, n.peer)
	n.dataDir = filepath.Join(n.root, "/var/lib/etcd")
	n.start()
	return n
}

// here translates paths of the machine.
func (n *node) here(s string) string {
	for _, dir := range []string{"/etc/kubernetes/", "/var/lib/", "/etc/etcd-manager/"} {
		for _, before := range []string{"=", " ", "://"} {
			s = strings.ReplaceAll(s, before+dir, before+n.root+dir)
		}
	}
	return s
}

// start starts etcd and waits until it serves.
func (n *node) start() {
	n.t.Helper()
	var args []string
	for _, f := range n.flags {
		args = append(args, n.here(f))
	}
	n.etcd = exec.Command(servers.Binary(n.t, "etcd-3.5"), append(args, "--log-level=error")...)
	log, err := os.OpenFile(filepath.Join(n.root, "etcd.log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	testutil.Must(n.t, err)
	defer log.Close()
	n.etcd.Stderr, n.etcd.SysProcAttr = log, &syscall.SysProcAttr{Setpgid: true}
	testutil.Must(n.t, n.etcd.Start())
	cmd, ended := n.etcd, make(chan struct{})
	n.ended = ended
	go func() {
		_ = cmd.Wait() // the test ends it
		close(ended)
	}()
	n.t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-ended
	})
	testutil.Eventually(n.t, "etcd serves", func() bool {
		c := n.clientOr()
		if c == nil {
			return false
		}
		defer c.Close()
		_, err := c.Get(n.t.Context(), "x")
		return err == nil
	})
}

func (n *node) stop() {
	n.t.Helper()
	testutil.Must(n.t, n.etcd.Process.Signal(syscall.SIGTERM))
	<-n.ended
}

// clientOr is a client as the node's own, or nil if etcd doesn't take it now.
func (n *node) clientOr() *clientv3.Client {
	n.t.Helper()
	cert, err := tls.LoadX509KeyPair(n.root+pki+"apiserver-etcd-client.crt", n.root+pki+"apiserver-etcd-client.key")
	testutil.Must(n.t, err)
	ca, err := os.ReadFile(n.root + pki + "etcd/ca.crt")
	testutil.Must(n.t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(ca)
	conf := &tls.Config{Certificates: []tls.Certificate{cert}, RootCAs: pool, MinVersion: tls.VersionTLS12}
	c, err := clientv3.New(clientv3.Config{Endpoints: []string{n.url}, TLS: conf, DialTimeout: 5 * time.Second,
		Username: n.user, Password: n.pass, Logger: zap.NewNop()})
	if err != nil {
		return nil
	}
	return c
}

func (n *node) client() *clientv3.Client {
	n.t.Helper()
	c := n.clientOr()
	if c == nil {
		n.t.Fatal("etcd takes no client")
	}
	n.t.Cleanup(func() { _ = c.Close() })
	return c
}

// enableAuth makes the user root, and wants users from now on.
func (n *node) enableAuth() {
	n.t.Helper()
	c, ctx := n.client(), n.t.Context()
	_, err := c.UserAdd(ctx, "root", "secret")
	testutil.Must(n.t, err)
	_, err = c.UserGrantRole(ctx, "root", "root")
	testutil.Must(n.t, err)
	_, err = c.AuthEnable(ctx)
	testutil.Must(n.t, err)
	n.user, n.pass = "root", "secret"
}

// shell runs a command line as a person does on the machine.
func (n *node) shell(line string, env ...string) (string, error) {
	n.t.Helper()
	cmd := exec.CommandContext(n.t.Context(), "sh", "-ec", n.here(line))
	cmd.Env = append(os.Environ(), env...)
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// background starts a command until the test ends.
func (n *node) background(command []string, env ...string) *exec.Cmd {
	n.t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	log, err := os.Create(filepath.Join(n.t.TempDir(), "log"))
	testutil.Must(n.t, err)
	cmd.Stdout, cmd.Stderr, cmd.Env = log, log, append(os.Environ(), env...)
	testutil.Must(n.t, cmd.Start())
	n.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // how it ends isn't what is tested
		if n.t.Failed() {
			data, _ := os.ReadFile(log.Name())
			n.t.Logf("%s says\n%s", filepath.Base(command[0]), data)
		}
		_ = log.Close()
	})
	return cmd
}

// sidecarStatus is what a sidecar's status page says.
type sidecarStatus struct {
	Backups     int    `json:"backups"`
	BackupError string `json:"backupError"`
	Changes     *struct {
		Archived int64     `json:"archivedRevision"`
		Until    time.Time `json:"archivedUntil"`
	} `json:"changes"`
}

// waitFor waits until the sidecar at a port says so.
func waitFor(t *testing.T, what string, port int, ok func(sidecarStatus) bool) {
	t.Helper()
	testutil.Eventually(t, what, func() bool {
		r, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/status.json", port))
		if err != nil {
			return false
		}
		defer r.Body.Close()
		var s sidecarStatus
		return json.NewDecoder(r.Body).Decode(&s) == nil && ok(s)
	})
}
