// Package etcdtest starts real etcds for tests: members and whole clusters on loopback, with and
// without TLS, and something to fill them with.
//
// It is for tests only, and must never be imported by what is built. What it starts runs the test binary itself as etcd, so its user's
// TestMain has to dispatch etcd's hidden subcommand.
package etcdtest

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	mathrand "math/rand"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	etcdclient "github.com/etcd-manager/etcd-manager/pkg/etcd/client"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// Builtin is the etcd that is compiled into the test binary.
func Builtin(t testing.TB) process.Binary {
	t.Helper()
	b, err := (&process.Binaries{Roots: []string{t.TempDir()}, Self: testutil.Self(t)}).Find(etcd.CompiledVersion)
	testutil.Must(t, err)
	return b
}

// PKI is one CA and one certificate for everything on loopback.
type PKI struct {
	Files *etcd.TLSFiles
	Conf  *tls.Config
}

// NewPKI makes one.
func NewPKI(t testing.TB) PKI {
	t.Helper()
	dir := t.TempDir()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	testutil.Must(t, err)
	tmpl := func(n int64) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(n), Subject: pkix.Name{CommonName: fmt.Sprint("test-", n)},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		}
	}
	ca := tmpl(1)
	ca.IsCA, ca.BasicConstraintsValid, ca.KeyUsage = true, true, x509.KeyUsageCertSign
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	testutil.Must(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	testutil.Must(t, err)
	leaf := tmpl(2)
	leaf.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	leaf.DNSNames = []string{"localhost"}
	leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	testutil.Must(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	testutil.Must(t, err)
	f := &etcd.TLSFiles{CAFile: filepath.Join(dir, "ca.crt"), CertFile: filepath.Join(dir, "me.crt"), KeyFile: filepath.Join(dir, "me.key")}
	caPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	testutil.Must(t, os.WriteFile(f.CAFile, caPEM, 0o600))
	testutil.Must(t, os.WriteFile(f.CertFile, certPEM, 0o600))
	testutil.Must(t, os.WriteFile(f.KeyFile, keyPEM, 0o600))
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	testutil.Must(t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(caPEM)
	return PKI{f, &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool, MinVersion: tls.VersionTLS12}}
}

// Member is one etcd under test.
type Member struct {
	Cfg    etcd.Config
	Bin    process.Binary
	Dir    string
	Proc   *process.Process
	Client *etcdclient.Client
	TLS    *tls.Config
}

// Members lays out a cluster without starting it.
func Members(t testing.TB, n int, bin process.Binary, token string, pki *PKI, host string) []*Member {
	t.Helper()
	scheme := "http"
	if pki != nil {
		scheme = "https"
	}
	var ms []*Member
	var peers []etcd.Peer
	for i := range n {
		peer := fmt.Sprintf("%s://%s", scheme, net.JoinHostPort(host, fmt.Sprint(testutil.FreePort(t))))
		client := fmt.Sprintf("%s://%s", scheme, net.JoinHostPort(host, fmt.Sprint(testutil.FreePort(t))))
		m := &Member{Bin: bin, Dir: t.TempDir(), Cfg: etcd.Config{
			Name: fmt.Sprintf("m%d", i), Token: cluster.Token(token), NewCluster: true,
			PeerURLs: []string{peer}, ListenPeerURLs: []string{peer}, ClientURLs: []string{client}, ListenClientURLs: []string{client},
			Heartbeat: 50 * time.Millisecond, ElectionTimeout: 500 * time.Millisecond,
			CompactHashCheck: true, CorruptCheckInterval: time.Minute,
		}}
		m.Cfg.DataDir = filepath.Join(m.Dir, "data", token)
		testutil.Must(t, os.MkdirAll(filepath.Dir(m.Cfg.DataDir), 0o700))
		if pki != nil {
			m.Cfg.PeerTLS, m.Cfg.ClientTLS, m.TLS = pki.Files, pki.Files, pki.Conf
		}
		peers = append(peers, etcd.Peer{Name: m.Cfg.Name, PeerURLs: []string{peer}})
		ms = append(ms, m)
	}
	for _, m := range ms {
		m.Cfg.InitialCluster = peers
	}
	return ms
}

// PIDFile is where the process is recorded.
func (m *Member) PIDFile() string { return filepath.Join(m.Dir, "etcd.pid") }

// LogFile has what the process has said.
func (m *Member) LogFile() string { return filepath.Join(m.Dir, "etcd.log") }

// Command is what starts it.
func (m *Member) Command(t testing.TB) process.CommandLine {
	t.Helper()
	cmd, err := process.Command(m.Cfg, m.Bin)
	testutil.Must(t, err)
	return cmd
}

// Start runs the member until the test ends, and connects to it.
func (m *Member) Start(t testing.TB) {
	t.Helper()
	log, err := os.OpenFile(m.LogFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	testutil.Must(t, err)
	defer log.Close()
	p, err := process.Start(m.Command(t), process.StartOptions{PIDFile: m.PIDFile(), Stdout: log, Stderr: log})
	testutil.Must(t, err)
	m.Proc = p
	t.Cleanup(func() {
		if _, err := p.Stop(context.Background(), 0); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			b, _ := os.ReadFile(m.LogFile())
			for line := range strings.Lines(string(b)) {
				if !strings.Contains(line, `"level":"info"`) && !strings.Contains(line, `"level":"warn"`) &&
					!strings.Contains(line, "serving from embedded etcd failed") {
					t.Logf("%s: %s", m.Cfg.Name, line)
				}
			}
		}
	})
	m.Dial(t)
}

// Dial connects to it.
func (m *Member) Dial(t testing.TB) {
	t.Helper()
	c, err := etcdclient.Dial(m.Cfg.ClientURLs, m.TLS)
	testutil.Must(t, err)
	m.Client = c
	t.Cleanup(func() { testutil.Must(t, c.Close()) })
}

// Stop ends it in an orderly way.
func (m *Member) Stop(t testing.TB) {
	t.Helper()
	e, err := m.Proc.Stop(context.Background(), 10*time.Second)
	testutil.Must(t, err)
	if e.Signal == 9 {
		t.Errorf("%s had to be killed", m.Cfg.Name)
	}
}

// Context bounds what should take seconds.
func Context(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// Healthy tells whether it serves.
func (m *Member) Healthy() bool {
	select {
	case <-m.Proc.Done():
		return false
	default:
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return m.Client.Health(ctx).Healthy
}

// StartAll starts members and waits until each serves.
func StartAll(t testing.TB, ms []*Member) {
	t.Helper()
	for _, m := range ms {
		m.Start(t)
	}
	for _, m := range ms {
		testutil.Eventually(t, m.Cfg.Name+" is healthy", func() bool {
			select {
			case <-m.Proc.Done():
				t.Fatalf("%s %v", m.Cfg.Name, m.Proc.Exit())
			default:
			}
			return m.Healthy()
		})
	}
}

// StartOne runs a cluster of one.
func StartOne(t testing.TB, token string) *Member {
	t.Helper()
	ms := Members(t, 1, Builtin(t), token, nil, "127.0.0.1")
	StartAll(t, ms)
	return ms[0]
}

// Fill writes a bit of everything: history, deletions, leases, compaction. It returns the lease that lives on.
func Fill(t testing.TB, m *Member, keys int) clientv3.LeaseID {
	t.Helper()
	ctx, c := Context(t), m.Client.Raw()
	lease, err := c.Grant(ctx, 3600)
	testutil.Must(t, err)
	rnd := mathrand.New(mathrand.NewSource(7))
	value := make([]byte, 600)
	put := func(key string, opts ...clientv3.OpOption) {
		t.Helper()
		rnd.Read(value)
		_, err := c.Put(ctx, key, string(value[:rnd.Intn(len(value))]), opts...)
		testutil.Must(t, err)
	}
	for i := range keys {
		put(fmt.Sprintf("/registry/pods/p%05d", i))
	}
	for i := range keys / 2 {
		put(fmt.Sprintf("/registry/pods/p%05d", i*2))
	}
	for i := range keys / 10 {
		_, err := c.Delete(ctx, fmt.Sprintf("/registry/pods/p%05d", i*10))
		testutil.Must(t, err)
	}
	r, err := c.Get(ctx, "x")
	testutil.Must(t, err)
	testutil.Must(t, m.Client.Compact(ctx, r.Header.Revision-int64(keys/4), true))
	for i := range keys / 10 {
		put(fmt.Sprintf("/registry/pods/p%05d", i*20))
		_, err := c.Delete(ctx, fmt.Sprintf("/registry/pods/p%05d", i*20+1))
		testutil.Must(t, err)
	}
	big := bytes.Repeat([]byte("large value "), 20000) // with overflow pages
	_, err = c.Put(ctx, "/registry/big", string(big))
	testutil.Must(t, err)
	put("/registry/leases/alive", clientv3.WithLease(lease.ID))
	put("/registry/masterleases/10.0.0.1", clientv3.WithLease(lease.ID))
	put("/registry/masterleases/10.0.0.2")
	_, err = c.Delete(ctx, "/registry/masterleases/10.0.0.2")
	testutil.Must(t, err)
	put("/registry/masterleases/10.0.0.3")
	return lease.ID
}

// Save writes a snapshot to a file.
func Save(t testing.TB, m *Member, path string) {
	t.Helper()
	s, err := m.Client.Snapshot(Context(t))
	testutil.Must(t, err)
	defer s.Close()
	f, err := os.Create(path)
	testutil.Must(t, err)
	n, err := io.Copy(f, s)
	testutil.Must(t, err)
	testutil.Must(t, f.Close())
	if n != s.Size || n != s.N() {
		t.Fatalf("snapshot has %d bytes, %d were announced", n, s.Size)
	}
	if s.Version != "" && etcd.Minor(s.Version) != etcd.Minor(m.Bin.Version) {
		t.Errorf("snapshot's version is %q", s.Version)
	}
}

// LiveHash is what the member answers for its keys up to a revision.
func LiveHash(t testing.TB, m *Member, rev int64) etcd.HashKV {
	t.Helper()
	h, err := m.Client.HashKV(Context(t), rev)
	testutil.Must(t, err)
	return h
}

// OtherBinaries are real servers of the minor versions, oldest first; 3.4 only where it can be had.
func OtherBinaries(t *testing.T) []process.Binary {
	t.Helper()
	var out []process.Binary
	add := func(name string) {
		path := servers.Binary(t, name)
		b, err := exec.Command(path, "--version").Output()
		testutil.Must(t, err)
		v := regexp.MustCompile(`etcd Version: (\S+)`).FindSubmatch(b)
		if v == nil {
			t.Fatalf("%s --version says %s", path, b)
		}
		out = append(out, process.Binary{Version: string(v[1]), Path: path})
	}
	t.Run("find etcd 3.4", func(t *testing.T) { add("etcd-3.4") })
	add("etcd-3.5")
	out = append(out, Builtin(t))
	add("etcd-3.7")
	return out
}

// DirState tells one state of a directory from another.
func DirState(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	testutil.Must(t, filepath.Walk(dir, func(path string, fi os.FileInfo, err error) error {
		if err == nil {
			all[path] = fmt.Sprint(fi.Size(), fi.ModTime().UnixNano(), fi.Mode())
		}
		return err
	}))
	return all
}

// PutRequest is an entry of the log that writes a key.
func PutRequest(t testing.TB, key, value string) []byte {
	t.Helper()
	b, err := (&etcdserverpb.InternalRaftRequest{
		Header: &etcdserverpb.RequestHeader{ID: 77}, Put: &etcdserverpb.PutRequest{Key: []byte(key), Value: []byte(value)},
	}).Marshal()
	testutil.Must(t, err)
	return b
}

// Kill ends the process as a crash does.
func (m *Member) Kill(t testing.TB) {
	t.Helper()
	testutil.Must(t, m.Proc.Signal(syscall.SIGKILL))
	<-m.Proc.Done()
}

// ID is the member's id.
func (m *Member) ID(t testing.TB) cluster.MemberID {
	t.Helper()
	st, err := m.Client.Status(Context(t))
	testutil.Must(t, err)
	return st.MemberID
}
