package pki

import (
	"crypto/tls"
	"crypto/x509"
)

// PageServer is the TLS config for the page that people look at. Clients must show a certificate of the CA of etcd's clients, as
// "etcd-manager-ctl pki client" makes them: who has one can read all that etcd has. The server's certificate is of that CA, too, for
// the addresses of Config.Page. Each handshake uses the current certificate and CAs.
func (k *Keeper) PageServer() *tls.Config {
	base := &tls.Config{
		MinVersion: max(tls.VersionTLS12, k.cfg.MinVersion),
		NextProtos: []string{"http/1.1"},
		Time:       k.cfg.Now,
		// A resumed session would skip the check of a CA that was taken away.
		SessionTicketsDisabled: true,
		ClientAuth:             tls.RequireAndVerifyClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return k.present(rolePageServer)
		},
	}
	// Without an authority nobody is let in.
	base.ClientCAs = x509.NewCertPool()
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		ca := k.authority(ClientsCA)
		if ca == nil {
			return nil, errNoCertificate
		}
		c := base.Clone()
		c.GetConfigForClient = nil
		c.ClientCAs = ca.Pool()
		return c, nil
	}
	return base
}
