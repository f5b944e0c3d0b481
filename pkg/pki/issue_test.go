package pki

import (
	"crypto/x509"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func testAuthority(t *testing.T, life time.Duration) *Authority {
	t.Helper()
	dir, key := t.TempDir(), ecKey(t)
	put(t, filepath.Join(dir, "ca.crt"), selfSigned(t, key, -48*time.Hour, life))
	put(t, filepath.Join(dir, "ca.key"), pkcs8(t, key))
	a, err := LoadAuthority(filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key"), epoch)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func TestEtcdNameSubject(t *testing.T) {
	s, err := EtcdName{
		Name:      "etcd-a",
		Addresses: []string{"10.0.0.1", "2001:db8::1", "fe80::1%eth0", ""},
		URLs: []string{
			"https://etcd-a.internal.example.com:2380", "https://10.0.0.1:4001", "https://[2001:db8::2]:2380",
			"https://0.0.0.0:4001", "https://[::]:4001", "http://localhost:8001", "https://[::ffff:10.0.0.9]:1",
		},
	}.subject()
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"etcd-a", "etcd-a.internal.example.com", "localhost"}; !slices.Equal(s.dnsNames, want) {
		t.Errorf("DNS names %v, want %v", s.dnsNames, want)
	}
	var ips []string
	for _, ip := range s.ips {
		ips = append(ips, ip.String())
	}
	slices.Sort(ips)
	if want := []string{"10.0.0.1", "10.0.0.9", "127.0.0.1", "2001:db8::1", "2001:db8::2", "::1", "fe80::1"}; !slices.Equal(ips, want) {
		t.Errorf("addresses %v, want %v", ips, want)
	}
	// The order in which things are given makes no difference, and the certificate says what was wanted.
	c, err := DefaultPolicy().issue(testAuthority(t, 20*year), s, ecKey(t).Public(), epoch)
	if err != nil {
		t.Fatal(err)
	}
	if !s.matches(c) {
		t.Error("the certificate doesn't match its own subject")
	}
	for _, u := range []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth} {
		if !slices.Contains(c.ExtKeyUsage, u) {
			t.Errorf("usage %v is missing", u)
		}
	}
	for _, bad := range []EtcdName{{}, {Name: "a", URLs: []string{"https://:2380"}},
		{Name: "a", URLs: []string{"https://[::1"}}, {Name: "a", URLs: []string{"10.0.0.1"}}} {
		if _, err := bad.subject(); err == nil {
			t.Errorf("%+v was accepted", bad)
		}
	}
}

func TestIssueLife(t *testing.T) {
	p := Policy{Duration: 2 * year, Backdate: time.Hour}
	for _, c := range []struct{ caLife, want time.Duration }{{20 * year, 2 * year}, {year, year}} {
		cert, err := p.issue(testAuthority(t, c.caLife), subject{commonName: "x"}, ecKey(t).Public(), epoch)
		if err != nil {
			t.Fatal(err)
		}
		if !cert.NotAfter.Equal(epoch.Add(c.want)) || !cert.NotBefore.Equal(epoch.Add(-time.Hour)) {
			t.Errorf("CA of %s: valid from %s to %s", c.caLife, cert.NotBefore, cert.NotAfter)
		}
	}
	ca := testAuthority(t, time.Minute)
	if _, err := p.issue(ca, subject{commonName: "x"}, ecKey(t).Public(), epoch.Add(time.Hour)); err == nil {
		t.Error("an expired CA signed")
	}
}

func TestRenewAt(t *testing.T) {
	for _, c := range []struct {
		policy         Policy
		issuedBackdate time.Duration
		life, want     time.Duration // from when it was issued
	}{
		{Policy{Duration: 2 * year, Backdate: time.Hour}, time.Hour, 3 * year, 2 * year},
		{Policy{Duration: 2 * time.Minute, Backdate: time.Hour}, time.Hour, 2 * time.Minute, 80 * time.Second},
		{Policy{Duration: 90 * 24 * time.Hour, MinTimeLeft: 40 * 24 * time.Hour, Backdate: time.Hour}, time.Hour,
			90 * 24 * time.Hour, 50 * 24 * time.Hour},
		// Less left than wanted: two thirds come first.
		{Policy{Duration: 90 * 24 * time.Hour, MinTimeLeft: time.Hour, Backdate: time.Hour}, time.Hour,
			90 * 24 * time.Hour, 60 * 24 * time.Hour},
		// The CA cut the life below MinTimeLeft: not before a third.
		{Policy{Duration: 90 * 24 * time.Hour, MinTimeLeft: 60 * 24 * time.Hour, Backdate: time.Hour}, time.Hour,
			30 * 24 * time.Hour, 10 * 24 * time.Hour},
		// Issued without a backdate, under a policy with a longer one than its life: counted from its start.
		{Policy{Duration: 2 * time.Minute, Backdate: time.Hour}, 0, 3 * time.Minute, 2 * time.Minute},
	} {
		cert := &x509.Certificate{NotBefore: epoch.Add(-c.issuedBackdate), NotAfter: epoch.Add(c.life)}
		if got := c.policy.renewAt(cert).Sub(epoch); got != c.want {
			t.Errorf("%+v: renewed after %s, want %s", c, got, c.want)
		}
	}
}

func TestReissue(t *testing.T) {
	p := Policy{Duration: 3 * time.Hour, Backdate: time.Hour}
	ca, key := testAuthority(t, year), ecKey(t)
	s, err := EtcdName{Name: "a", Addresses: []string{"10.0.0.1"}}.subject()
	if err != nil {
		t.Fatal(err)
	}
	moved := s
	moved.ips = append(slices.Clone(s.ips), net.ParseIP("10.0.0.2"))
	renamed := s
	renamed.dnsNames = []string{"b"}
	cert, err := p.issue(ca, s, key.Public(), epoch)
	if err != nil {
		t.Fatal(err)
	}
	ending := testAuthority(t, 3*time.Hour)
	endsWithCA, err := p.issue(ending, s, key.Public(), epoch)
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name string
		got  string
		want string
	}{
		{"fresh", p.reissue(cert, ca, s, key.Public(), epoch), ""},
		{"just before two thirds", p.reissue(cert, ca, s, key.Public(), epoch.Add(2*time.Hour-time.Second)), ""},
		{"two thirds", p.reissue(cert, ca, s, key.Public(), epoch.Add(2*time.Hour)), "due"},
		{"expired", p.reissue(cert, ca, s, key.Public(), epoch.Add(4*time.Hour)), "due"},
		{"clock set back", p.reissue(cert, ca, s, key.Public(), epoch.Add(-2*time.Hour)), "not valid yet"},
		{"none", p.reissue(nil, ca, s, key.Public(), epoch), "none"},
		{"other key", p.reissue(cert, ca, s, ecKey(t).Public(), epoch), "another key"},
		{"other CA of the same name", p.reissue(cert, testAuthority(t, year), s, key.Public(), epoch), "CA changed"},
		{"address", p.reissue(cert, ca, moved, key.Public(), epoch), "names or addresses"},
		{"name", p.reissue(cert, ca, renamed, key.Public(), epoch), "names or addresses"},
		{"due, but ends with its CA", p.reissue(endsWithCA, ending, s, key.Public(), epoch.Add(150*time.Minute)), ""},
	} {
		if (c.want == "") != (c.got == "") || !strings.Contains(c.got, c.want) {
			t.Errorf("%s: %q, want %q", c.name, c.got, c.want)
		}
	}
}

func TestPolicyValidate(t *testing.T) {
	if err := DefaultPolicy().Validate(); err != nil {
		t.Error(err)
	}
	if err := (Policy{Duration: 2 * time.Minute, Backdate: time.Hour}).Validate(); err != nil {
		t.Error(err)
	}
	for _, p := range []Policy{{}, {Duration: time.Second}, {Duration: time.Hour, MinTimeLeft: time.Hour},
		{Duration: time.Hour, MinTimeLeft: -1}} {
		if err := p.Validate(); err == nil || !strings.Contains(fmt.Sprint(err), "ETCD_MANAGER_CERT_") {
			t.Errorf("%+v: %v", p, err)
		}
	}
	if err := (Policy{Duration: time.Hour, Backdate: -1}).Validate(); err == nil {
		t.Error("a negative backdate was accepted")
	}
}
