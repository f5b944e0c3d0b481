package main

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net/url"
	"os"
)

// tlsFiles are the paths of the PEM files for talking to etcd; any may be empty.
type tlsFiles struct{ ca, cert, key string }

// config makes the TLS config for a client URL; nil for plain http. The certificate is read anew for each connection, so
// that a renewed one is used without a restart.
func (f tlsFiles) config(clientURL string) (*tls.Config, error) {
	u, err := url.Parse(clientURL)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return nil, fmt.Errorf("--client-url=%s: want http://host:port or https://host:port", clientURL)
	}
	if u.Scheme == "http" {
		if f != (tlsFiles{}) {
			return nil, fmt.Errorf("--client-url=%s is plain http, but certificate files are given", clientURL)
		}
		return nil, nil
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
