package detect

import (
	"cmp"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"
)

// pair is a certificate and its key.
type pair struct{ cert, key string }

// complete finds out from etcd's settings what a client of it needs, and adds it to what was found. The pairs are client certificates that
// may be there; how is the command that makes the first one.
func (l *look) complete(e *Etcd, values map[string]string, pairs []pair, how string) {
	e.DataDir = values["data-dir"]
	server := l.url(e, values)
	if e.URL == "" || !isSecure(e.URL) {
		l.found = append(l.found, *e)
		return
	}
	e.CA = values["trusted-ca-file"]
	pool := l.authority(e)
	l.server(e, pool, server)
	if e.CA != "" || values["client-cert-auth"] == "true" {
		// etcd's own certificate is the last choice: it may be one for servers only.
		if values["cert-file"] != "" {
			pairs = append(slices.Clone(pairs), pair{values["cert-file"], values["key-file"]})
		}
		l.client(e, pool, pairs, how)
	}
	l.found = append(l.found, *e)
}

// Check completes an etcd whose files a person has named, in place of those that were found.
func Check(root string, now time.Time, e *Etcd) {
	l := look{root: root, now: now}
	e.Missing = nil
	if !isSecure(e.URL) {
		return
	}
	pool := l.authority(e)
	if e.Cert != "" || e.Key != "" {
		l.client(e, pool, []pair{{e.Cert, e.Key}}, "")
	}
}

func (e *Etcd) misses(do, format string, args ...any) {
	e.Missing = append(e.Missing, Missing{What: fmt.Sprintf(format, args...), Do: do})
}

func isSecure(s string) bool { return strings.HasPrefix(s, "https:") || strings.HasPrefix(s, "unixs:") }

// url chooses the URL at which a program of this machine reaches etcd, and returns etcd's own certificate.
func (l *look) url(e *Etcd, values map[string]string) *x509.Certificate {
	var server *x509.Certificate
	if file := values["cert-file"]; file != "" {
		p, err := tls.LoadX509KeyPair(l.at(file), l.at(values["key-file"]))
		if err != nil {
			e.misses("run this as root, on the machine of etcd", "etcd's own certificate can't be read: %s", l.explain(err))
		} else {
			server = p.Leaf
		}
	}
	var best string
	rank := 9
	for s := range strings.SplitSeq(cmp.Or(values["listen-client-urls"], "http://localhost:2379"), ",") {
		u, err := url.Parse(strings.TrimSpace(s))
		if err != nil {
			continue
		}
		ip := net.ParseIP(u.Hostname())
		if ip != nil && ip.IsUnspecified() {
			u.Host = net.JoinHostPort("127.0.0.1", u.Port())
			ip = net.IPv4(127, 0, 0, 1)
		}
		r := 2
		switch {
		case u.Scheme == "unix" || u.Scheme == "unixs":
			r = 3
		case u.Hostname() == "localhost" || ip != nil && ip.IsLoopback():
			r = 1
		}
		if u.Scheme == "https" && server != nil && server.VerifyHostname(u.Hostname()) != nil {
			r += 4
		}
		if r < rank {
			rank, best = r, u.String()
		}
	}
	if best == "" {
		e.misses("give it: --client-url=https://127.0.0.1:2379", "no client URL of etcd is in %s", e.Where)
	}
	if rank > 4 && server != nil && best != "" {
		u, _ := url.Parse(best) // it was parsed before
		e.misses("issue etcd a certificate with that name or address, or give another URL with --client-url",
			"etcd's certificate isn't for %s, at which it listens", u.Hostname())
	}
	e.URL = best
	return server
}

// authority reads the CA of etcd's clients, which is nearly always that of etcd's own certificate too.
func (l *look) authority(e *Etcd) *x509.CertPool {
	if e.CA == "" {
		e.misses("give the CA of etcd's certificate: --client-ca-file=FILE", "etcd uses TLS, and its settings don't name a CA")
		return nil
	}
	data, err := os.ReadFile(l.at(e.CA))
	pool := x509.NewCertPool()
	switch {
	case err != nil:
		e.misses("run this as root, on the machine of etcd", "the CA can't be read: %s", l.explain(err))
	case !pool.AppendCertsFromPEM(data):
		e.misses("give another file: --client-ca-file=FILE", "%s holds no certificate", e.CA)
	default:
		return pool
	}
	return nil
}

// server says when a client with that CA wouldn't trust etcd.
func (l *look) server(e *Etcd, pool *x509.CertPool, server *x509.Certificate) {
	if pool == nil || server == nil {
		return
	}
	if _, err := server.Verify(x509.VerifyOptions{Roots: pool, CurrentTime: l.now}); err != nil {
		e.misses("give the CA of etcd's own certificate: --client-ca-file=FILE", "%s doesn't verify etcd's own certificate: %v", e.CA, err)
	}
}

// client chooses the first certificate that etcd will take.
func (l *look) client(e *Etcd, pool *x509.CertPool, pairs []pair, how string) {
	var why []string
	for _, p := range pairs {
		name, err := l.usable(pool, p)
		if err == nil {
			e.Cert, e.Key, e.Name = p.cert, p.key, name
			return
		}
		why = append(why, l.explain(err))
	}
	do := "issue one with the CA of etcd's clients, with the key usage for clients, and give it: --client-cert-file=FILE --client-key-file=FILE"
	if how != "" {
		do = how + "; or " + do
	}
	text := "etcd wants a client certificate, and there is none that it would take"
	if len(why) > 0 {
		text += " (" + strings.Join(why, "; ") + ")"
	}
	e.Cert, e.Key, e.Name = "", "", ""
	e.misses(do, "%s", text)
}

// usable returns the common name of a client certificate, or why etcd would refuse it.
func (l *look) usable(pool *x509.CertPool, p pair) (string, error) {
	c, err := tls.LoadX509KeyPair(l.at(p.cert), l.at(p.key))
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
			return "", err
		}
		return "", fmt.Errorf("%s with %s: %w", p.cert, p.key, err)
	}
	if pool == nil {
		return c.Leaf.Subject.CommonName, nil // the CA is missing, which is said
	}
	between := x509.NewCertPool()
	for _, der := range c.Certificate[1:] {
		if more, err := x509.ParseCertificate(der); err == nil {
			between.AddCert(more)
		}
	}
	_, err = c.Leaf.Verify(x509.VerifyOptions{Roots: pool, Intermediates: between, CurrentTime: l.now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	if err != nil {
		return "", fmt.Errorf("%s: %w", p.cert, err)
	}
	return c.Leaf.Subject.CommonName, nil
}

// explain leaves the root directory out: paths in messages are the machine's.
func (l *look) explain(err error) string {
	root := strings.TrimSuffix(l.root, "/")
	if root == "" {
		return err.Error()
	}
	return strings.ReplaceAll(err.Error(), root+"/", "/")
}
