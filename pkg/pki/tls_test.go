package pki

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
)

// handshake connects client and server over loopback, exchanges a byte each way and returns what the server saw.
func handshake(server, client *tls.Config) (tls.ConnectionState, error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return tls.ConnectionState{}, err
	}
	defer l.Close()
	type result struct {
		state tls.ConnectionState
		err   error
	}
	served := make(chan result, 1)
	go func() {
		conn, err := l.Accept()
		if err != nil {
			served <- result{err: err}
			return
		}
		defer conn.Close()
		s := tls.Server(conn, server)
		_, err = io.CopyN(s, s, 1)
		served <- result{s.ConnectionState(), err}
	}()
	conn, err := tls.DialWithDialer(&net.Dialer{Timeout: 20 * time.Second}, "tcp", l.Addr().String(), client)
	if err == nil {
		_, err = conn.Write([]byte("x"))
		if err == nil {
			_, err = io.ReadFull(conn, make([]byte, 1))
		}
		conn.Close()
	}
	r := <-served
	if err != nil {
		return r.state, fmt.Errorf("client: %w (server: %w)", err, r.err)
	}
	return r.state, r.err
}

func keeperFor(t *testing.T, dir, id string) *Keeper {
	t.Helper()
	k, err := NewKeeper(Config{Dir: dir, NodeID: id, Managers: true, Etcd: true, Policy: DefaultPolicy()})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

func TestManagerTLSTellsWhoIsWho(t *testing.T) {
	dir := dirWithCAs(t, time.Now())
	a, b, foreign := keeperFor(t, dir, "etcd-a"), keeperFor(t, dir, "etcd-b"), keeperFor(t, dirWithCAs(t, time.Now()), "etcd-b")

	state, err := handshake(a.ManagerServer(), b.ManagerClient("etcd-a"))
	if err != nil {
		t.Fatal(err)
	}
	if id, err := PeerID(state); err != nil || id != "etcd-b" {
		t.Errorf("peer is %q, %v", id, err)
	}
	if _, err := PeerID(tls.ConnectionState{PeerCertificates: state.PeerCertificates}); err == nil {
		t.Error("an unverified certificate gave a peer id")
	}

	noCert := b.ManagerClient("etcd-a")
	noCert.GetClientCertificate = nil
	etcdCert := b.ManagerClient("etcd-a")
	etcdCert.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return b.present(roleEtcdClient) }
	serverCert := b.ManagerClient("etcd-a")
	serverCert.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		return b.present(roleManagerServer)
	}
	for name, c := range map[string]struct{ server, client *tls.Config }{
		"another node than was asked for": {a.ManagerServer(), b.ManagerClient("etcd-c")},
		"a server of another CA":          {foreign.ManagerServer(), b.ManagerClient("etcd-b")},
		"a client of another CA":          {a.ManagerServer(), foreign.ManagerClient("etcd-a")},
		"a client without certificate":    {a.ManagerServer(), noCert},
		"a client of etcd's CA":           {a.ManagerServer(), etcdCert},
		"a server certificate as client":  {a.ManagerServer(), serverCert},
	} {
		if _, err := handshake(c.server, c.client); err == nil {
			t.Errorf("%s was accepted", name)
		}
	}
}

// etcdServer is the TLS config of a real etcd: its own code, reading the files at each handshake.
func etcdServer(t *testing.T, f EtcdFiles) *tls.Config {
	t.Helper()
	info := transport.TLSInfo{CertFile: f.ServerCert, KeyFile: f.ServerKey, TrustedCAFile: f.ClientCA, ClientCertAuth: true}
	cfg, err := info.ServerConfig()
	if err != nil {
		t.Fatal(err)
	}
	return cfg
}

// etcdPeer are both ends of a peer connection as etcd makes them.
func etcdPeer(t *testing.T, f EtcdFiles) (server, client *tls.Config) {
	t.Helper()
	info := transport.TLSInfo{CertFile: f.PeerCert, KeyFile: f.PeerKey, TrustedCAFile: f.PeerCA, ClientCertAuth: true}
	server, err := info.ServerConfig()
	if err != nil {
		t.Fatal(err)
	}
	if client, err = info.ClientConfig(); err != nil {
		t.Fatal(err)
	}
	client.ServerName = "127.0.0.1"
	return server, client
}

func TestEtcdClientChecksTheHost(t *testing.T) {
	dir := dirWithCAs(t, time.Now())
	k := keeperFor(t, dir, "etcd-a")
	files, err := k.EtcdFiles(t.TempDir(), EtcdName{Name: "etcd-a", URLs: []string{"https://etcd-a.example.com:4001"}})
	if err != nil {
		t.Fatal(err)
	}
	server := etcdServer(t, files)
	for _, hosts := range [][]string{{"127.0.0.1"}, {"::1"}, {"[::1]"}, {"etcd-a"}, {"etcd-b.example.com", "etcd-a.example.com"}} {
		if _, err := handshake(server, k.EtcdClient(hosts...)); err != nil {
			t.Errorf("hosts %v: %v", hosts, err)
		}
	}
	for _, hosts := range [][]string{nil, {"10.0.0.1"}, {"etcd-b.example.com"}} {
		if _, err := handshake(server, k.EtcdClient(hosts...)); err == nil {
			t.Errorf("hosts %v: accepted", hosts)
		}
	}
	if _, err := handshake(server, keeperFor(t, dirWithCAs(t, time.Now()), "etcd-a").EtcdClient("127.0.0.1")); err == nil {
		t.Error("another CA was accepted")
	}
}

// TestHandshakesDuringRenewals reissues every certificate every few milliseconds while clients connect
// all the time, to a manager and to etcd's own TLS code: not one handshake may fail.
func TestHandshakesDuringRenewals(t *testing.T) {
	dir, data := dirWithCAs(t, time.Now()), t.TempDir()
	k := keeperFor(t, dir, "etcd-a")
	files, err := k.EtcdFiles(data, EtcdName{Name: "etcd-a"})
	if err != nil {
		t.Fatal(err)
	}
	peerServer, peerClient := etcdPeer(t, files)
	etcd, manager := etcdServer(t, files), k.ManagerServer()

	const handshakesEach = 150
	var clients sync.WaitGroup
	var done atomic.Int64
	for name, ends := range map[string]struct{ server, client *tls.Config }{
		"manager": {manager, k.ManagerClient("etcd-a")},
		"etcd":    {etcd, k.EtcdClient("127.0.0.1")},
		"peer":    {peerServer, peerClient},
	} {
		for range 2 {
			clients.Go(func() {
				for range handshakesEach {
					if _, err := handshake(ends.server, ends.client); err != nil {
						t.Errorf("%s: %v", name, err)
						return
					}
					done.Add(1)
				}
			})
		}
	}
	stop := make(chan struct{})
	go func() { clients.Wait(); close(stop) }()

	renewals := 0
	serials := map[string]bool{}
	for running := true; running; renewals++ {
		// Another address makes the files due, and dropping what is held makes the rest due.
		name := EtcdName{Name: "etcd-a", Addresses: []string{fmt.Sprintf("10.0.0.%d", renewals%250+1)}}
		if _, err := k.EtcdFiles(data, name); err != nil {
			t.Fatal(err)
		}
		expireHeld(k)
		if err := k.Refresh(); err != nil {
			t.Fatal(err)
		}
		serials[k.certificate(roleManagerServer).Leaf.SerialNumber.String()] = true
		serials[readCert(t, files.ServerCert).SerialNumber.String()] = true
		select {
		case <-stop:
			running = false
		case <-time.After(2 * time.Millisecond):
		}
	}
	t.Logf("%d handshakes during %d renewals", done.Load(), renewals)
	if len(serials) != 2*renewals || renewals < 20 {
		t.Errorf("%d different certificates in %d renewals", len(serials), renewals)
	}
	if want := int64(6 * handshakesEach); done.Load() != want {
		t.Errorf("%d handshakes succeeded, want %d", done.Load(), want)
	}
}

// expireHeld makes the certificates in memory look like those of another node id, so that they are due, without taking them out of use.
func expireHeld(k *Keeper) {
	k.mu.Lock()
	defer k.mu.Unlock()
	for role, c := range k.held {
		old, leaf := *c, *c.Leaf
		leaf.Subject.CommonName = ""
		old.Leaf = &leaf
		k.held[role] = &old
	}
}

// TestManagersMinVersion refuses an older TLS than the one that is demanded.
func TestManagersMinVersion(t *testing.T) {
	dir := dirWithCAs(t, time.Now())
	client := keeperFor(t, dir, "etcd-b").ManagerClient("etcd-a")
	client.MaxVersion = tls.VersionTLS12
	k, err := NewKeeper(Config{Dir: dir, NodeID: "etcd-a", Managers: true, Policy: DefaultPolicy(), MinVersion: tls.VersionTLS13})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := handshake(keeperFor(t, dir, "etcd-a").ManagerServer(), client); err != nil {
		t.Errorf("TLS 1.2 where nothing is demanded: %v", err)
	}
	if _, err := handshake(k.ManagerServer(), client); err == nil {
		t.Error("TLS 1.2 was accepted where 1.3 is demanded")
	}
	client.MaxVersion = 0
	if _, err := handshake(k.ManagerServer(), client); err != nil {
		t.Errorf("TLS 1.3: %v", err)
	}
}

// TestPageServer: the page is for holders of a client certificate of etcd alone, and its certificate names its address.
func TestPageServer(t *testing.T) {
	dir := dirWithCAs(t, time.Now())
	k, err := NewKeeper(Config{Dir: dir, NodeID: "a", Managers: true, Etcd: true, Page: []net.IP{net.IPv4(127, 0, 0, 1)},
		Policy: DefaultPolicy()})
	if err != nil {
		t.Fatal(err)
	}
	files, err := ClientRequest{Name: "anna", Dir: t.TempDir(), Duration: time.Hour}.Issue(dir, time.Now())
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(files.Cert, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	pool := k.authority(ClientsCA).Pool()
	client := func(host string, certificates ...tls.Certificate) *tls.Config {
		return &tls.Config{RootCAs: pool, ServerName: host, Certificates: certificates, MinVersion: tls.VersionTLS12}
	}
	if _, err := handshake(k.PageServer(), client("127.0.0.1", pair)); err != nil {
		t.Errorf("with a client certificate: %v", err)
	}
	manager := keeperFor(t, dir, "b").certificate(roleManagerClient)
	for name, c := range map[string]*tls.Config{
		"without a certificate":       client("127.0.0.1"),
		"with a manager's":            client("127.0.0.1", *manager),
		"with one of another cluster": client("127.0.0.1", *keeperFor(t, dirWithCAs(t, time.Now()), "b").certificate(roleEtcdClient)),
		"at another address":          client("127.0.0.2", pair),
	} {
		if _, err := handshake(k.PageServer(), c); err == nil {
			t.Errorf("%s: let in", name)
		}
	}
	if without := keeperFor(t, dir, "c"); without.certificate(rolePageServer) != nil {
		t.Error("there is a certificate for a page that nobody looks at")
	}
}
