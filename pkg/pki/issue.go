package pki

import (
	"bytes"
	"crypto"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"
)

// Policy says how long certificates live.
type Policy struct {
	// Duration is the life of a new certificate, shortened where its CA ends earlier.
	Duration time.Duration
	// MinTimeLeft renews a certificate that has less than this left, though never in the first third
	// of its life. A certificate is in any case renewed after two thirds of its life.
	MinTimeLeft time.Duration
	// Backdate is how far in the past a new certificate starts, so that nodes whose clocks are behind accept it.
	Backdate time.Duration
}

// DefaultPolicy is two years, renewed at two thirds of it, starting an hour in the past.
func DefaultPolicy() Policy {
	return Policy{Duration: 2 * 365 * 24 * time.Hour, Backdate: time.Hour}
}

// Validate says what is wrong with the policy, in terms of the variables with which users set it.
func (p Policy) Validate() error {
	switch {
	case p.Duration < 10*time.Second:
		return fmt.Errorf("certificate duration %s is too short (ETCD_MANAGER_CERT_DURATION, at least 10s)", p.Duration)
	case p.MinTimeLeft < 0 || p.MinTimeLeft >= p.Duration:
		return fmt.Errorf("minimal time left %s of a certificate must be less than its duration %s (ETCD_MANAGER_CERT_MIN_TIME_LEFT, ETCD_MANAGER_CERT_DURATION)", p.MinTimeLeft, p.Duration)
	case p.Backdate < 0:
		return errors.New("certificates can't start in the future (negative backdate)")
	}
	return nil
}

// subject is what a certificate is to say.
type subject struct {
	commonName string
	dnsNames   []string
	ips        []net.IP
	usages     []x509.ExtKeyUsage
}

// issue signs a certificate for the key pub. It is pure but for the randomness of serial and signature.
func (p Policy) issue(ca *Authority, s subject, pub crypto.PublicKey, now time.Time) (*x509.Certificate, error) {
	number, err := serial()
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber:          number,
		Subject:               pkix.Name{CommonName: s.commonName},
		DNSNames:              s.dnsNames,
		IPAddresses:           s.ips,
		NotBefore:             now.Add(-p.Backdate),
		NotAfter:              p.end(ca, now),
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage:           s.usages,
		BasicConstraintsValid: true,
	}
	if !template.NotAfter.After(now) {
		return nil, fmt.Errorf("%w: the CA certificate in %s has expired", ErrAuthority, ca.certPath)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.signer, pub, ca.key)
	if err != nil {
		return nil, fmt.Errorf("sign certificate for %q with %s: %w", s.commonName, ca.keyPath, err)
	}
	return x509.ParseCertificate(der)
}

// end is when a certificate ends that is issued now.
func (p Policy) end(ca *Authority, now time.Time) time.Time {
	end := now.Add(p.Duration)
	if end.After(ca.signer.NotAfter) {
		end = ca.signer.NotAfter
	}
	return end
}

// renewAt is when a certificate is to be renewed. Its life is counted from when it was issued, not from its backdated start.
func (p Policy) renewAt(c *x509.Certificate) time.Time {
	issued := c.NotBefore.Add(p.Backdate)
	if !issued.Before(c.NotAfter) {
		issued = c.NotBefore // issued under another policy
	}
	life := c.NotAfter.Sub(issued)
	at := issued.Add(life / 3 * 2)
	if p.MinTimeLeft > 0 {
		if early := c.NotAfter.Add(-p.MinTimeLeft); early.Before(at) {
			at = early
		}
		if first := issued.Add(life / 3); at.Before(first) {
			at = first
		}
	}
	return at
}

// reissue says why certificate c has to be replaced now, or "" if it need not be.
func (p Policy) reissue(c *x509.Certificate, ca *Authority, s subject, pub crypto.PublicKey, now time.Time) string {
	switch {
	case c == nil:
		return "there is none"
	case !samePublicKey(c.PublicKey, pub):
		return "it is for another key"
	case !bytes.Equal(c.RawIssuer, ca.signer.RawSubject) || c.CheckSignatureFrom(ca.signer) != nil:
		return "the CA changed"
	case !s.matches(c):
		return "names or addresses changed"
	case now.Before(c.NotBefore):
		return "it is not valid yet by this clock"
	case !now.Before(p.renewAt(c)) && p.end(ca, now).Truncate(time.Second).After(c.NotAfter):
		// The second condition keeps a certificate that ends with its CA from being issued again and
		// again: only a new CA helps there.
		return "it is due for renewal"
	}
	return ""
}

// matches tells whether c says exactly what s wants.
func (s subject) matches(c *x509.Certificate) bool {
	if c.Subject.CommonName != s.commonName || !slices.Equal(c.DNSNames, s.dnsNames) || !slices.Equal(c.ExtKeyUsage, s.usages) {
		return false
	}
	return slices.EqualFunc(c.IPAddresses, s.ips, net.IP.Equal)
}

// EtcdName is what an etcd's certificates are issued for.
type EtcdName struct {
	// Name is the member's name, which is the node's id.
	Name string
	// Addresses are the node's own IP addresses.
	Addresses []string
	// URLs are the peer and client URLs (quarantined ones too); their hosts become names of the certificate.
	URLs []string
}

// subject collects name, hosts and addresses, sorted and each once, so that equal sets give equal certificates.
func (e EtcdName) subject() (subject, error) {
	if e.Name == "" {
		return subject{}, errors.New("etcd certificate: the node's name is empty")
	}
	hosts := append([]string{e.Name, "127.0.0.1", "::1"}, e.Addresses...)
	for _, raw := range e.URLs {
		u, err := url.Parse(raw)
		if err != nil {
			return subject{}, fmt.Errorf("etcd certificate for %s: %w", e.Name, err)
		}
		if u.Hostname() == "" {
			return subject{}, fmt.Errorf("etcd certificate for %s: URL %q names no host", e.Name, raw)
		}
		hosts = append(hosts, u.Hostname())
	}
	s := subject{commonName: e.Name, usages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	for _, h := range hosts {
		h, _, _ = strings.Cut(h, "%") // the zone of a link-local address isn't part of a certificate
		ip := net.ParseIP(h)
		switch {
		case h == "" || ip != nil && ip.IsUnspecified():
		case ip != nil:
			if ip4 := ip.To4(); ip4 != nil {
				ip = ip4
			}
			s.ips = append(s.ips, ip)
		default:
			s.dnsNames = append(s.dnsNames, h)
		}
	}
	slices.Sort(s.dnsNames)
	s.dnsNames = slices.Compact(s.dnsNames)
	slices.SortFunc(s.ips, func(a, b net.IP) int { return bytes.Compare(a, b) })
	s.ips = slices.CompactFunc(s.ips, net.IP.Equal)
	return s, nil
}
