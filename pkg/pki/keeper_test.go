package pki

import (
	"context"
	"crypto/x509"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

func newKeeper(t *testing.T, dir string, p Policy) *Keeper {
	t.Helper()
	k, err := NewKeeper(Config{Dir: dir, NodeID: "a", Managers: true, Etcd: true, Policy: p})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// run starts k.Run and returns how to stop it.
func run(t *testing.T, k *Keeper) (stop func()) {
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- k.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	}
}

// TestKeeperRenews lives through ten minutes of two-minute certificates, looking each second.
func TestKeeperRenews(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, data := dirWithCAs(t, time.Now()), t.TempDir()
		k := newKeeper(t, dir, Policy{Duration: 2 * time.Minute, Backdate: time.Hour})
		stop := run(t, k)
		defer stop()
		synctest.Wait()
		files, err := k.EtcdFiles(data, EtcdName{Name: "a"}) // after Run has begun to wait
		if err != nil {
			t.Fatal(err)
		}
		current := map[string]func() *x509.Certificate{
			"manager server": func() *x509.Certificate { return k.certificate(roleManagerServer).Leaf },
			"manager client": func() *x509.Certificate { return k.certificate(roleManagerClient).Leaf },
			"etcd client":    func() *x509.Certificate { return k.certificate(roleEtcdClient).Leaf },
			"peer file":      func() *x509.Certificate { return readCert(t, files.PeerCert) },
			"server file":    func() *x509.Certificate { return readCert(t, files.ServerCert) },
		}
		seen := map[string]map[string]bool{}
		key, err := os.ReadFile(files.ServerKey)
		if err != nil {
			t.Fatal(err)
		}
		for range 600 {
			for name, get := range current {
				c := get()
				if left := time.Until(c.NotAfter); left < 38*time.Second {
					t.Fatalf("%s has %s left", name, left)
				}
				if seen[name] == nil {
					seen[name] = map[string]bool{}
				}
				seen[name][c.SerialNumber.String()] = true
			}
			time.Sleep(time.Second)
			synctest.Wait()
		}
		for name, serials := range seen {
			if len(serials) != 8 { // at 0 s and each 80 s
				t.Errorf("%s: %d certificates in 10 minutes, want 8", name, len(serials))
			}
		}
		if now, _ := os.ReadFile(files.ServerKey); string(now) != string(key) {
			t.Error("a renewal changed the key")
		}
		if n := len(k.Status()); n != 5 {
			t.Errorf("%d certificates in status, want 5", n)
		}

		k.Release(data)
		before := readCert(t, files.PeerCert)
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		if !readCert(t, files.PeerCert).Equal(before) {
			t.Error("a released directory was written to")
		}
		if n := len(k.Status()); n != 3 {
			t.Errorf("%d certificates in status after release, want 3", n)
		}
	})
}

// TestKeeperFollowsCARotation goes through the documented sequence: both trusted, new one signs, old one gone.
func TestKeeperFollowsCARotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir, data := dirWithCAs(t, time.Now()), t.TempDir()
		next := dirWithCAs(t, time.Now())
		k := newKeeper(t, dir, DefaultPolicy())
		stop := run(t, k)
		defer stop()
		files, err := k.EtcdFiles(data, EtcdName{Name: "a"})
		if err != nil {
			t.Fatal(err)
		}
		at := func(dir, file string) []byte {
			b, err := os.ReadFile(filepath.Join(dir, file))
			if err != nil {
				t.Fatal(err)
			}
			return b
		}
		oldCrt, newCrt, newKey := at(dir, ClientsCA+".crt"), at(next, ClientsCA+".crt"), at(next, ClientsCA+".key")
		first := readCert(t, files.ServerCert)
		client := k.certificate(roleEtcdClient).Leaf
		peer := readCert(t, files.PeerCert)

		put(t, filepath.Join(dir, ClientsCA+".crt"), oldCrt, newCrt)
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := at(filepath.Dir(files.ClientCA), "ca.crt"); string(got) != string(oldCrt)+string(newCrt) {
			t.Errorf("trusted after the first step: %s", got)
		}
		if !readCert(t, files.ServerCert).Equal(first) {
			t.Error("a certificate was reissued though its CA signs on")
		}

		put(t, filepath.Join(dir, ClientsCA+".key"), newKey)
		time.Sleep(time.Minute)
		synctest.Wait()
		newCA := k.authority(ClientsCA).Certificate()
		for name, c := range map[string]*x509.Certificate{"server": readCert(t, files.ServerCert),
			"client": k.certificate(roleEtcdClient).Leaf} {
			if err := c.CheckSignatureFrom(newCA); err != nil || c.Equal(first) || c.Equal(client) {
				t.Errorf("%s certificate is not signed by the new CA: %v", name, err)
			}
		}
		if !readCert(t, files.PeerCert).Equal(peer) {
			t.Error("the peers' certificate was reissued though its CA didn't change")
		}

		// Torn or broken CA files don't displace what works.
		put(t, filepath.Join(dir, ClientsCA+".crt"), newCrt[:100])
		time.Sleep(time.Minute)
		synctest.Wait()
		if err := k.Refresh(); !errors.Is(err, ErrAuthority) {
			t.Errorf("Refresh with a torn CA file: %v", err)
		}
		if k.authority(ClientsCA).Certificate() != newCA {
			t.Error("a torn CA file displaced the CA")
		}
		put(t, filepath.Join(dir, ClientsCA+".crt"), newCrt)
		time.Sleep(time.Minute)
		synctest.Wait()
		if got := at(filepath.Dir(files.ClientCA), "ca.crt"); string(got) != string(newCrt) {
			t.Errorf("trusted after the last step: %s", got)
		}
	})
}

// TestKeeperAtTheEndOfACA: certificates end with their CA, are not issued over and over, and status says so.
func TestKeeperAtTheEndOfACA(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := dirWithCAs(t, time.Now().Add(-createdCALife+time.Hour)) // it has one hour left
		k := newKeeper(t, dir, DefaultPolicy())
		stop := run(t, k)
		defer stop()
		leaf := k.certificate(roleManagerServer).Leaf
		if end := k.authority(ManagerCA).Certificate().NotAfter; !leaf.NotAfter.Equal(end) {
			t.Errorf("certificate ends %s, its CA %s", leaf.NotAfter, end)
		}
		time.Sleep(59 * time.Minute)
		synctest.Wait()
		if k.certificate(roleManagerServer).Leaf != leaf {
			t.Error("the certificate was issued again though that gained nothing")
		}
		for _, s := range k.Status() {
			if !s.EndsWithCA || s.Err != nil {
				t.Errorf("status %+v", s)
			}
		}
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if err := k.Refresh(); err == nil || !strings.Contains(err.Error(), "expired") {
			t.Errorf("Refresh with an expired CA: %v", err)
		}
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if err := CreateCAs(dir, time.Now()); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if left := time.Until(k.certificate(roleManagerServer).Leaf.NotAfter); left < year {
			t.Errorf("with a new CA the certificate has %s left", left)
		}
	})
}

func TestKeeperStatusOfFailedRenewal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		data := filepath.Join(t.TempDir(), "etcd")
		k := newKeeper(t, dirWithCAs(t, time.Now()), Policy{Duration: 2 * time.Minute, Backdate: time.Hour})
		files, err := k.EtcdFiles(data, EtcdName{Name: "a"})
		if err != nil {
			t.Fatal(err)
		}
		stop := run(t, k)
		defer stop()
		// A directory in place of the temporary file makes the write fail, for root too.
		block := filepath.Join(data, "clients", ".server.crt.tmp")
		if err := os.Mkdir(block, 0o700); err != nil {
			t.Fatal(err)
		}
		time.Sleep(100 * time.Second)
		synctest.Wait()
		failed := func() (n int) {
			for _, s := range k.Status() {
				if s.Err != nil {
					n++
					if s.Name != files.ServerCert || s.NotAfter.IsZero() {
						t.Errorf("status %+v", s)
					}
				}
			}
			return n
		}
		if failed() != 1 {
			t.Errorf("%d certificates failed, want 1", failed())
		}
		if err := os.Remove(block); err != nil {
			t.Fatal(err)
		}
		time.Sleep(checkEvery)
		synctest.Wait()
		if failed() != 0 {
			t.Error("the failure stays in status after it is gone")
		}
		if left := time.Until(readCert(t, files.ServerCert).NotAfter); left < 80*time.Second {
			t.Errorf("the certificate has %s left", left)
		}
	})
}

func TestEtcdFilesRepair(t *testing.T) {
	dir, data := dirWithCAs(t, time.Now()), filepath.Join(t.TempDir(), "pki", "token")
	k := newKeeper(t, dir, DefaultPolicy())
	name := EtcdName{Name: "a", Addresses: []string{"10.0.0.1"}}
	files, err := k.EtcdFiles(data, name)
	if err != nil {
		t.Fatal(err)
	}
	read := func(path string) string {
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	if st, _ := os.Stat(files.PeerKey); st.Mode().Perm() != 0o600 {
		t.Errorf("key has permissions %s", st.Mode())
	}
	for _, c := range []struct {
		what      string
		damage    func()
		sameCert  bool
		sameKey   bool
		nameAfter EtcdName
	}{
		{"nothing", func() {}, true, true, name},
		{"certificate lost", func() { os.Remove(files.PeerCert) }, false, true, name},
		{"certificate torn", func() { put(t, files.PeerCert, []byte("-----BEGIN")) }, false, true, name},
		{"bundle lost", func() { os.Remove(files.PeerCA) }, true, true, name},
		{"bundle changed", func() { put(t, files.PeerCA, []byte("x")) }, true, true, name},
		{"key lost", func() { os.Remove(files.PeerKey) }, false, false, name},
		{"key torn", func() { put(t, files.PeerKey, []byte("x")) }, false, false, name},
		{"a new address", func() {}, false, true, EtcdName{Name: "a", Addresses: []string{"10.0.0.2"}}},
		{"another process", func() { k = newKeeper(t, dir, DefaultPolicy()) }, true, true,
			EtcdName{Name: "a", Addresses: []string{"10.0.0.2"}}},
	} {
		cert := readCert(t, files.PeerCert)
		key := read(files.PeerKey)
		c.damage()
		if _, err := k.EtcdFiles(data, c.nameAfter); err != nil {
			t.Fatalf("%s: %v", c.what, err)
		}
		if got := readCert(t, files.PeerCert).Equal(cert); got != c.sameCert {
			t.Errorf("%s: same certificate %v, want %v", c.what, got, c.sameCert)
		}
		if got := read(files.PeerKey) == key; got != c.sameKey {
			t.Errorf("%s: same key %v, want %v", c.what, got, c.sameKey)
		}
		if !samePublicKey(readCert(t, files.PeerCert).PublicKey, mustKey(t, files.PeerKey).Public()) {
			t.Errorf("%s: certificate and key don't match", c.what)
		}
		if read(files.PeerCA) != read(filepath.Join(dir, PeersCA+".crt")) {
			t.Errorf("%s: the bundle is not the CA's", c.what)
		}
	}
	if err := k.Remove(data); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(data); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("removed directory: %v", err)
	}
}

func TestNewKeeperErrors(t *testing.T) {
	dir := dirWithCAs(t, time.Now())
	if _, err := NewKeeper(Config{Dir: dir, Managers: true, Policy: DefaultPolicy()}); err == nil {
		t.Error("an empty node id was accepted")
	}
	if _, err := NewKeeper(Config{Dir: dir, NodeID: "a", Managers: true}); err == nil {
		t.Error("an empty policy was accepted")
	}
	if err := os.Remove(filepath.Join(dir, PeersCA+".crt")); err != nil {
		t.Fatal(err)
	}
	if _, err := NewKeeper(Config{Dir: dir, NodeID: "a", Managers: true, Etcd: true, Policy: DefaultPolicy()}); !errors.Is(err,
		ErrAuthority) {
		t.Errorf("a missing CA: %v", err)
	}
	// What isn't needed isn't read.
	k, err := NewKeeper(Config{Dir: dir, NodeID: "a", Managers: true, Policy: DefaultPolicy()})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := k.EtcdFiles(t.TempDir(), EtcdName{Name: "a"}); err == nil {
		t.Error("etcd certificates without etcd's authorities")
	}
	if _, err := NewKeeper(Config{Dir: "/does/not/exist", NodeID: "a", Policy: DefaultPolicy()}); err != nil {
		t.Errorf("insecure everywhere: %v", err)
	}
}
