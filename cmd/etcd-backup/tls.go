package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/url"
	"os"
	"strings"
)

// tlsFiles are the paths of the PEM files for talking to etcd; any may be empty.
type tlsFiles struct{ ca, cert, key string }

// isURL tells whether etcd's client can use a client URL, and whether with TLS.
func isURL(clientURL string) (secure, ok bool) {
	u, err := url.Parse(clientURL)
	if err != nil {
		return false, false
	}
	switch u.Scheme {
	case "http", "https":
		return u.Scheme == "https", u.Host != "" && u.Path == "" && u.User == nil
	case "unix", "unixs":
		return u.Scheme == "unixs", u.Host == "" && strings.HasPrefix(u.Path, "/")
	}
	return false, false
}

// config makes the TLS config for client URLs, which are all with TLS or all without; nil for those without. The certificate is read again
// for each connection, so that a renewed one is used without a restart.
func (f tlsFiles) config(clientURLs ...string) (*tls.Config, error) {
	var tlsURLs []string
	for _, s := range clientURLs {
		secure, ok := isURL(s)
		if !ok {
			return nil, fmt.Errorf("--client-url=%s: want http://host:port, https://host:port, unix:///path or unixs:///path, or several of them with commas", s)
		}
		if secure {
			tlsURLs = append(tlsURLs, s)
		}
	}
	switch len(tlsURLs) {
	case 0:
		if f != (tlsFiles{}) {
			return nil, fmt.Errorf("--client-url=%s is without TLS, but certificate files are given", strings.Join(clientURLs, ","))
		}
		return nil, nil
	case len(clientURLs):
	default:
		return nil, fmt.Errorf("--client-url=%s: give URLs that all use TLS (https, unixs), or none", strings.Join(clientURLs, ","))
	}
	c := &tls.Config{MinVersion: tls.VersionTLS12}
	if f.ca != "" {
		pem, err := os.ReadFile(f.ca)
		if err != nil {
			return nil, fmt.Errorf("read CA: %w", err)
		}
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("read CA: %s holds no certificate", f.ca)
		}
	}
	if strings.HasPrefix(clientURLs[0], "unixs:") {
		c.ServerName = "localhost" // a socket has no name that could be in a certificate
	}
	if f.cert != "" {
		load := func() (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(f.cert, f.key)
			if err != nil {
				return nil, fmt.Errorf("read client certificate: %w", err)
			}
			return &pair, nil
		}
		if _, err := load(); err != nil {
			return nil, err
		}
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return load() }
	}
	return c, nil
}
