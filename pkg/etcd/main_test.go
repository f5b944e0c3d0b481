package etcd

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

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// TestMain makes the test binary what the manager is: able to run as etcd and as the checkers.
func TestMain(m *testing.M) {
	if len(os.Args) > 1 {
		code, ok := DispatchChild(os.Args[1:], EtcdCommand())
		if ok {
			os.Exit(code)
		}
		switch os.Args[1] {
		case "launch-and-die":
			launchAndDie(os.Args[2:])
		}
	}
	os.Exit(m.Run())
}

func self(t testing.TB) string {
	t.Helper()
	exe, err := os.Executable()
	must(t, err)
	return exe
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func builtin(t testing.TB) Binary {
	t.Helper()
	b, err := (&Binaries{Roots: []string{t.TempDir()}, Self: self(t)}).Find(CompiledVersion)
	must(t, err)
	return b
}

// eventually waits for a condition.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(30 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("still not: %s", what)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// freePort is below the range from which the kernel takes ports for connections, so that none takes it meanwhile.
func freePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		port := 12000 + mathrand.Intn(20000)
		l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
		if err == nil {
			must(t, l.Close())
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// testPKI is one CA and one certificate for everything on loopback.
type testPKI struct {
	files *TLSFiles
	conf  *tls.Config
}

func newPKI(t testing.TB) testPKI {
	t.Helper()
	dir := t.TempDir()
	caKey, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	tmpl := func(n int64) *x509.Certificate {
		return &x509.Certificate{
			SerialNumber: big.NewInt(n), Subject: pkix.Name{CommonName: fmt.Sprint("test-", n)},
			NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		}
	}
	ca := tmpl(1)
	ca.IsCA, ca.BasicConstraintsValid, ca.KeyUsage = true, true, x509.KeyUsageCertSign
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	must(t, err)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	must(t, err)
	leaf := tmpl(2)
	leaf.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
	leaf.DNSNames = []string{"localhost"}
	leaf.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}
	der, err := x509.CreateCertificate(rand.Reader, leaf, ca, key.Public(), caKey)
	must(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	must(t, err)
	f := &TLSFiles{CAFile: filepath.Join(dir, "ca.crt"), CertFile: filepath.Join(dir, "me.crt"), KeyFile: filepath.Join(dir, "me.key")}
	caPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	keyPEM := pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})
	must(t, os.WriteFile(f.CAFile, caPEM, 0o600))
	must(t, os.WriteFile(f.CertFile, certPEM, 0o600))
	must(t, os.WriteFile(f.KeyFile, keyPEM, 0o600))
	pair, err := tls.X509KeyPair(certPEM, keyPEM)
	must(t, err)
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(caPEM)
	return testPKI{f, &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool, MinVersion: tls.VersionTLS12}}
}

// testMember is one etcd under test.
type testMember struct {
	cfg    Config
	bin    Binary
	dir    string
	proc   *Process
	client *Client
	tls    *tls.Config
}

// makeMembers lays out a cluster without starting it.
func makeMembers(t testing.TB, n int, bin Binary, token string, pki *testPKI, host string) []*testMember {
	t.Helper()
	scheme := "http"
	if pki != nil {
		scheme = "https"
	}
	var ms []*testMember
	var peers []Peer
	for i := range n {
		peer := fmt.Sprintf("%s://%s", scheme, net.JoinHostPort(host, fmt.Sprint(freePort(t))))
		client := fmt.Sprintf("%s://%s", scheme, net.JoinHostPort(host, fmt.Sprint(freePort(t))))
		m := &testMember{bin: bin, dir: t.TempDir(), cfg: Config{
			Name: fmt.Sprintf("m%d", i), Token: cluster.Token(token), NewCluster: true,
			PeerURLs: []string{peer}, ListenPeerURLs: []string{peer}, ClientURLs: []string{client}, ListenClientURLs: []string{client},
			Heartbeat: 50 * time.Millisecond, ElectionTimeout: 500 * time.Millisecond,
			CompactHashCheck: true, CorruptCheckInterval: time.Minute,
		}}
		m.cfg.DataDir = filepath.Join(m.dir, "data", token)
		must(t, os.MkdirAll(filepath.Dir(m.cfg.DataDir), 0o700))
		if pki != nil {
			m.cfg.PeerTLS, m.cfg.ClientTLS, m.tls = pki.files, pki.files, pki.conf
		}
		peers = append(peers, Peer{m.cfg.Name, []string{peer}})
		ms = append(ms, m)
	}
	for _, m := range ms {
		m.cfg.InitialCluster = peers
	}
	return ms
}

func (m *testMember) pidFile() string { return filepath.Join(m.dir, "etcd.pid") }
func (m *testMember) logFile() string { return filepath.Join(m.dir, "etcd.log") }

func (m *testMember) command(t testing.TB) CommandLine {
	t.Helper()
	cmd, err := Command(m.cfg, m.bin)
	must(t, err)
	return cmd
}

func (m *testMember) start(t testing.TB) {
	t.Helper()
	log, err := os.OpenFile(m.logFile(), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(t, err)
	defer log.Close()
	p, err := Start(m.command(t), StartOptions{PIDFile: m.pidFile(), Stdout: log, Stderr: log})
	must(t, err)
	m.proc = p
	t.Cleanup(func() {
		if _, err := p.Stop(context.Background(), 0); err != nil {
			t.Error(err)
		}
		if t.Failed() {
			b, _ := os.ReadFile(m.logFile())
			for line := range strings.Lines(string(b)) {
				if !strings.Contains(line, `"level":"info"`) && !strings.Contains(line, `"level":"warn"`) && !strings.Contains(line, "serving from embedded etcd failed") {
					t.Logf("%s: %s", m.cfg.Name, line)
				}
			}
		}
	})
	m.dial(t)
}

func (m *testMember) dial(t testing.TB) {
	t.Helper()
	c, err := Dial(m.cfg.ClientURLs, m.tls)
	must(t, err)
	m.client = c
	t.Cleanup(func() { must(t, c.Close()) })
}

func (m *testMember) stop(t testing.TB) {
	t.Helper()
	e, err := m.proc.Stop(context.Background(), 10*time.Second)
	must(t, err)
	if e.Signal == 9 {
		t.Errorf("%s had to be killed", m.cfg.Name)
	}
}

func ctxOf(t testing.TB) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func (m *testMember) healthy() bool {
	select {
	case <-m.proc.Done():
		return false
	default:
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	return m.client.Health(ctx).Healthy
}

// startAll starts members and waits until each serves.
func startAll(t testing.TB, ms []*testMember) {
	t.Helper()
	for _, m := range ms {
		m.start(t)
	}
	for _, m := range ms {
		eventually(t, m.cfg.Name+" is healthy", func() bool {
			select {
			case <-m.proc.Done():
				t.Fatalf("%s %v", m.cfg.Name, m.proc.Exit())
			default:
			}
			return m.healthy()
		})
	}
}

func startOne(t testing.TB, token string) *testMember {
	t.Helper()
	ms := makeMembers(t, 1, builtin(t), token, nil, "127.0.0.1")
	startAll(t, ms)
	return ms[0]
}

// fillStore writes a bit of everything: history, deletions, leases, compaction. It returns the lease that lives on.
func fillStore(t testing.TB, m *testMember, keys int) clientv3.LeaseID {
	t.Helper()
	ctx, c := ctxOf(t), m.client.Raw()
	lease, err := c.Grant(ctx, 3600)
	must(t, err)
	rnd := mathrand.New(mathrand.NewSource(7))
	value := make([]byte, 600)
	put := func(key string, opts ...clientv3.OpOption) {
		t.Helper()
		rnd.Read(value)
		_, err := c.Put(ctx, key, string(value[:rnd.Intn(len(value))]), opts...)
		must(t, err)
	}
	for i := range keys {
		put(fmt.Sprintf("/registry/pods/p%05d", i))
	}
	for i := range keys / 2 {
		put(fmt.Sprintf("/registry/pods/p%05d", i*2))
	}
	for i := range keys / 10 {
		_, err := c.Delete(ctx, fmt.Sprintf("/registry/pods/p%05d", i*10))
		must(t, err)
	}
	r, err := c.Get(ctx, "x")
	must(t, err)
	must(t, m.client.Compact(ctx, r.Header.Revision-int64(keys/4), true))
	for i := range keys / 10 {
		put(fmt.Sprintf("/registry/pods/p%05d", i*20))
		_, err := c.Delete(ctx, fmt.Sprintf("/registry/pods/p%05d", i*20+1))
		must(t, err)
	}
	big := bytes.Repeat([]byte("large value "), 20000) // with overflow pages
	_, err = c.Put(ctx, "/registry/big", string(big))
	must(t, err)
	put("/registry/leases/alive", clientv3.WithLease(lease.ID))
	put("/registry/masterleases/10.0.0.1", clientv3.WithLease(lease.ID))
	put("/registry/masterleases/10.0.0.2")
	_, err = c.Delete(ctx, "/registry/masterleases/10.0.0.2")
	must(t, err)
	put("/registry/masterleases/10.0.0.3")
	return lease.ID
}

// save writes a snapshot to a file.
func save(t testing.TB, m *testMember, path string) {
	t.Helper()
	s, err := m.client.Snapshot(ctxOf(t))
	must(t, err)
	defer s.Close()
	f, err := os.Create(path)
	must(t, err)
	n, err := io.Copy(f, s)
	must(t, err)
	must(t, f.Close())
	if n != s.Size || n != s.N() {
		t.Fatalf("snapshot has %d bytes, %d were announced", n, s.Size)
	}
	if s.Version != "" && Minor(s.Version) != Minor(m.bin.Version) {
		t.Errorf("snapshot's version is %q", s.Version)
	}
}

func liveHash(t testing.TB, m *testMember, rev int64) HashKV {
	t.Helper()
	h, err := m.client.HashKV(ctxOf(t), rev)
	must(t, err)
	return h
}

// otherBinaries are real servers of the minor versions, oldest first; 3.4 only where it can be had.
func otherBinaries(t *testing.T) []Binary {
	t.Helper()
	var out []Binary
	add := func(name string) {
		path := servers.Binary(t, name)
		b, err := exec.Command(path, "--version").Output()
		must(t, err)
		v := regexp.MustCompile(`etcd Version: (\S+)`).FindSubmatch(b)
		if v == nil {
			t.Fatalf("%s --version says %s", path, b)
		}
		out = append(out, Binary{Version: string(v[1]), Path: path})
	}
	t.Run("find etcd 3.4", func(t *testing.T) { add("etcd-3.4") })
	add("etcd-3.5")
	out = append(out, builtin(t))
	add("etcd-3.7")
	return out
}

func (m *testMember) kill(t testing.TB) {
	t.Helper()
	must(t, m.proc.Signal(syscall.SIGKILL))
	<-m.proc.Done()
}

// dirState tells one state of a directory from another.
func dirState(t testing.TB, dir string) map[string]string {
	t.Helper()
	all := map[string]string{}
	must(t, filepath.Walk(dir, func(path string, fi os.FileInfo, err error) error {
		if err == nil {
			all[path] = fmt.Sprint(fi.Size(), fi.ModTime().UnixNano(), fi.Mode())
		}
		return err
	}))
	return all
}

func putRequest(t testing.TB, key, value string) []byte {
	t.Helper()
	b, err := (&etcdserverpb.InternalRaftRequest{
		Header: &etcdserverpb.RequestHeader{ID: 77}, Put: &etcdserverpb.PutRequest{Key: []byte(key), Value: []byte(value)},
	}).Marshal()
	must(t, err)
	return b
}

func (m *testMember) id(t testing.TB) cluster.MemberID {
	t.Helper()
	st, err := m.client.Status(ctxOf(t))
	must(t, err)
	return st.MemberID
}

const bump = 1_000_000_000
