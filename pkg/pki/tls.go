package pki

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
)

var errNoCertificate = errors.New("no certificate: the keeper was configured without this CA")

// ManagerServer is the TLS config for the manager's own gRPC server. Clients must show a certificate of
// the managers' CA; PeerID tells which node it is. Each handshake uses the current certificate and CAs.
func (k *Keeper) ManagerServer() *tls.Config {
	base := &tls.Config{
		MinVersion: max(tls.VersionTLS12, k.cfg.MinVersion),
		NextProtos: []string{"h2"},
		Time:       k.cfg.Now,
		// A resumed session would skip the check of a CA that was taken away.
		SessionTicketsDisabled: true,
		ClientAuth:             tls.RequireAndVerifyClientCert,
		GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
			return k.present(roleManagerServer)
		},
	}
	// Without an authority nobody is let in.
	base.ClientCAs = x509.NewCertPool()
	base.GetConfigForClient = func(*tls.ClientHelloInfo) (*tls.Config, error) {
		ca := k.authority(ManagerCA)
		if ca == nil {
			return nil, errNoCertificate
		}
		c := base.Clone()
		c.GetConfigForClient = nil
		c.ClientCAs = ca.Pool()
		c.VerifyConnection = func(s tls.ConnectionState) error {
			_, err := PeerID(s)
			return err
		}
		return c, nil
	}
	return base
}

// ManagerClient is the TLS config for a connection to the manager of node peer. The server must show a
// certificate of the managers' CA for exactly that node. Each handshake uses the current certificate and CAs.
func (k *Keeper) ManagerClient(peer string) *tls.Config {
	name := serverPrefix + peer
	return k.client(roleManagerClient, ManagerCA, name, []string{name})
}

// EtcdClient is the TLS config for a connection to etcd. hosts are those of the endpoints that it is used
// for, names or IP addresses; the server's certificate must be for one of them. Each handshake uses the current certificate and CAs.
func (k *Keeper) EtcdClient(hosts ...string) *tls.Config {
	return k.client(roleEtcdClient, ClientsCA, "", hosts)
}

// client makes a config that verifies by itself in VerifyConnection, since RootCAs couldn't change while
// the config is in use.
func (k *Keeper) client(role, caName, serverName string, hosts []string) *tls.Config {
	return &tls.Config{
		MinVersion:         tls.VersionTLS12,
		ServerName:         serverName,
		Time:               k.cfg.Now,
		InsecureSkipVerify: true, // verified below, against the CAs of the moment
		GetClientCertificate: func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			return k.present(role)
		},
		VerifyConnection: func(s tls.ConnectionState) error {
			ca := k.authority(caName)
			if ca == nil {
				return errNoCertificate
			}
			return k.verifyServer(s, ca, hosts)
		},
	}
}

func (k *Keeper) verifyServer(s tls.ConnectionState, ca *Authority, hosts []string) error {
	if len(s.PeerCertificates) == 0 {
		return errors.New("the server showed no certificate")
	}
	leaf := s.PeerCertificates[0]
	opts := x509.VerifyOptions{Roots: ca.Pool(), Intermediates: x509.NewCertPool(), CurrentTime: k.cfg.Now(),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}
	for _, c := range s.PeerCertificates[1:] {
		opts.Intermediates.AddCert(c)
	}
	if _, err := leaf.Verify(opts); err != nil {
		return fmt.Errorf("verify server's certificate against %s: %w", ca.certPath, err)
	}
	var errs []error
	for _, h := range hosts {
		err := leaf.VerifyHostname(strings.Trim(h, "[]"))
		if err == nil {
			return nil
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("the server is not the expected one: %w", errors.Join(errs...))
}

func (k *Keeper) present(role string) (*tls.Certificate, error) {
	c := k.certificate(role)
	if c == nil {
		return nil, errNoCertificate
	}
	return c, nil
}

// PeerID returns the node id of the manager at the other end of a connection to a ManagerServer config.
// It fails unless the client's certificate was verified and is a manager's.
func PeerID(s tls.ConnectionState) (string, error) {
	if len(s.VerifiedChains) == 0 || len(s.VerifiedChains[0]) == 0 {
		return "", errors.New("peer: the connection has no verified client certificate")
	}
	cn := s.VerifiedChains[0][0].Subject.CommonName
	id, ok := strings.CutPrefix(cn, clientPrefix)
	if !ok || id == "" {
		return "", fmt.Errorf("peer: certificate of %q is not a manager's (%s<node id>)", cn, clientPrefix)
	}
	return id, nil
}
