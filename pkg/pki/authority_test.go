package pki

import (
	"crypto"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

const year = 365 * 24 * time.Hour

func TestLoadAuthorityKeyFormats(t *testing.T) {
	ec := ecKey(t)
	ecDER, err := x509.MarshalECPrivateKey(ec)
	if err != nil {
		t.Fatal(err)
	}
	params := pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{6, 8, 42, 134, 72, 206, 61, 3, 1, 7}})
	for name, c := range map[string]struct {
		key crypto.Signer
		pem []byte
	}{
		"PKCS#1 RSA": {rsaKey(), pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY",
			Bytes: x509.MarshalPKCS1PrivateKey(rsaKey())})},
		"PKCS#8 RSA": {rsaKey(), pkcs8(t, rsaKey())},
		"SEC 1 EC":   {ec, pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: ecDER})},
		"EC behind its parameters": {ec, append(slices.Clone(params),
			pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: ecDER})...)},
		"PKCS#8 EC": {ec, pkcs8(t, ec)},
		"PKCS#1 under another type": {rsaKey(), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY",
			Bytes: x509.MarshalPKCS1PrivateKey(rsaKey())})},
	} {
		t.Run(name, func(t *testing.T) {
			crt, key := filepath.Join(t.TempDir(), "ca.crt"), filepath.Join(t.TempDir(), "ca.key")
			put(t, crt, selfSigned(t, c.key, -time.Hour, year))
			put(t, key, c.pem)
			a, err := LoadAuthority(crt, key, epoch)
			if err != nil {
				t.Fatal(err)
			}
			// It must not only be read: what it signs must verify.
			leaf, err := DefaultPolicy().issue(a, subject{commonName: "x", usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}},
				ecKey(t).Public(), epoch)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := leaf.Verify(x509.VerifyOptions{Roots: a.Pool(), CurrentTime: epoch,
				KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}); err != nil {
				t.Error(err)
			}
		})
	}
}

func TestLoadAuthorityBundle(t *testing.T) {
	dir := t.TempDir()
	crt, key := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")
	old, now := ecKey(t), ecKey(t)
	oldCert, nowCert := selfSigned(t, old, -year, time.Hour), selfSigned(t, now, -time.Hour, year)
	put(t, crt, []byte("# the old one\n"), oldCert, []byte("# the new one\n"), nowCert)
	for name, c := range map[string]struct {
		key  crypto.Signer
		cert []byte
	}{"first": {old, oldCert}, "second": {now, nowCert}} {
		put(t, key, pkcs8(t, c.key))
		a, err := LoadAuthority(crt, key, epoch)
		if err != nil {
			t.Fatal(err)
		}
		block, _ := pem.Decode(c.cert)
		if !slices.Equal(a.Certificate().Raw, block.Bytes) {
			t.Errorf("%s: the wrong certificate signs", name)
		}
		if want := string(oldCert) + string(nowCert); string(a.bundle) != want {
			t.Errorf("%s: bundle is %q", name, a.bundle)
		}
	}

	// A CA certificate that was renewed with its key: the expired one does no harm, the one that ends last signs.
	put(t, crt, selfSigned(t, now, -2*year, -year), selfSigned(t, now, -time.Hour, year),
		selfSigned(t, now, -time.Hour, 2*year), selfSigned(t, now, time.Hour, 3*year))
	put(t, key, pkcs8(t, now))
	a, err := LoadAuthority(crt, key, epoch)
	if err != nil {
		t.Fatal(err)
	}
	if want := epoch.Add(2 * year); !a.Certificate().NotAfter.Equal(want) {
		t.Errorf("the signing certificate ends %s, want %s", a.Certificate().NotAfter, want)
	}
}

func TestLoadAuthorityErrorsNameFileAndWayOut(t *testing.T) {
	ec := ecKey(t)
	good, goodKey := selfSigned(t, ec, -time.Hour, year), pkcs8(t, ec)
	for _, c := range []struct {
		name      string
		cert, key []byte
		want      []string
	}{
		{"no certificate file", nil, goodKey, []string{"ca.crt is missing", "every master"}},
		{"no key file", good, nil, []string{"ca.key is missing"}},
		{"empty certificate", []byte{}, goodKey, []string{"ca.crt holds no certificate", "restore"}},
		{"certificate isn't PEM", []byte("hello"), goodKey, []string{"ca.crt holds no certificate"}},
		{"key in place of certificate", goodKey, goodKey, []string{"ca.crt holds no certificate"}},
		{"broken second certificate", append(slices.Clone(good),
			pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte("x")})...), goodKey,
			[]string{"certificate 2 in", "ca.crt", "remove"}},
		{"empty key", good, []byte{}, []string{"ca.key holds no private key"}},
		{"broken key", good, pem.EncodeToMemory(&pem.Block{Type: "RSA PRIVATE KEY", Bytes: []byte("x")}),
			[]string{"ca.key", "PKCS#1, PKCS#8 or EC"}},
		{"encrypted key", good, pem.EncodeToMemory(&pem.Block{Type: "ENCRYPTED PRIVATE KEY", Bytes: []byte("x")}),
			[]string{"ca.key", "passphrase", "without one"}},
		{"other key", good, pkcs8(t, ecKey(t)), []string{"none of the 1 certificate(s)", "ca.crt", "ca.key"}},
		{"expired", selfSigned(t, ec, -year, -time.Hour), goodKey, []string{"ca.crt expired on 2026-01-30 11:00:00 UTC", "renewed CA"}},
		{"not yet valid", selfSigned(t, ec, time.Hour, year), goodKey,
			[]string{"ca.crt is not valid before 2026-01-30 13:00:00 UTC", "clock"}},
		{"not a CA", selfSigned(t, ec, -time.Hour, year, func(c *x509.Certificate) { c.IsCA = false }), goodKey,
			[]string{"ca.crt is not a CA certificate", "CA:TRUE"}},
		{"may not sign", selfSigned(t, ec, -time.Hour, year, func(c *x509.Certificate) { c.KeyUsage = x509.KeyUsageDigitalSignature }),
			goodKey, []string{"ca.crt must not sign", "keyCertSign"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			if c.cert != nil {
				put(t, filepath.Join(dir, "ca.crt"), c.cert)
			}
			if c.key != nil {
				put(t, filepath.Join(dir, "ca.key"), c.key)
			}
			_, err := LoadAuthority(filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key"), epoch)
			if !errors.Is(err, ErrAuthority) {
				t.Fatalf("error %v", err)
			}
			for _, w := range append(c.want, dir) {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("error %q doesn't say %q", err, w)
				}
			}
			if missing := c.cert == nil || c.key == nil; missing != errors.Is(err, fs.ErrNotExist) {
				t.Errorf("fs.ErrNotExist in %v", err)
			}
		})
	}
}

func TestCreateCAs(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "pki")
	var starts sync.WaitGroup
	for range 5 { // as three managers of a demo would, at once
		starts.Go(func() {
			if err := CreateCAs(dir, epoch); err != nil {
				t.Error(err)
			}
		})
	}
	starts.Wait()
	before := map[string]string{}
	for _, name := range []string{ManagerCA, PeersCA, ClientsCA} {
		base := filepath.Join(dir, name)
		a, err := LoadAuthority(base+".crt", base+".key", epoch)
		if err != nil {
			t.Fatal(err)
		}
		if !a.Certificate().NotBefore.Before(epoch.Add(-time.Hour)) {
			t.Errorf("%s starts %s: not backdated", name, a.Certificate().NotBefore)
		}
		if st, err := os.Stat(base + ".key"); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s.key: %v, %v", name, st.Mode(), err)
		}
		for _, ext := range []string{".crt", ".key"} {
			data, err := os.ReadFile(base + ext)
			if err != nil {
				t.Fatal(err)
			}
			before[base+ext] = string(data)
		}
	}

	// Nothing is overwritten, not even rubbish or what has expired.
	rubbish := filepath.Join(dir, PeersCA+".crt")
	before[rubbish] = "rubbish"
	put(t, rubbish, []byte("rubbish"))
	if err := CreateCAs(dir, epoch.Add(100*year)); err != nil {
		t.Fatal(err)
	}
	for path, want := range before {
		if got, _ := os.ReadFile(path); string(got) != want {
			t.Errorf("%s was overwritten", path)
		}
	}

	// A crash between key and certificate is gone on from, with the same key.
	crt, key := filepath.Join(dir, ClientsCA+".crt"), filepath.Join(dir, ClientsCA+".key")
	if err := os.Remove(crt); err != nil {
		t.Fatal(err)
	}
	if err := CreateCAs(dir, epoch); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadAuthority(crt, key, epoch); err != nil {
		t.Error(err)
	}
	if got, _ := os.ReadFile(key); string(got) != before[key] {
		t.Error("the key was overwritten")
	}
	// A certificate without its key can't be helped.
	if err := os.Remove(key); err != nil {
		t.Fatal(err)
	}
	if err := CreateCAs(dir, epoch); !errors.Is(err, ErrAuthority) || !strings.Contains(err.Error(), key) {
		t.Errorf("certificate without key: %v", err)
	}
}
