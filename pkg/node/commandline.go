package node

import (
	"fmt"
	"net"
	"net/url"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
	"github.com/etcd-manager/etcd-manager/pkg/pki"
)

// listenOn replaces the host of every URL.
func listenOn(urls []string, host string) ([]string, error) {
	var list []string
	for _, s := range urls {
		u, err := url.Parse(s)
		if err != nil {
			return nil, fmt.Errorf("parse URL %q: %w", s, err)
		}
		u.Host = net.JoinHostPort(host, u.Port())
		list = append(list, u.String())
	}
	return list, nil
}

// localHost is where this node's own etcd is reached when it listens on the given address.
func localHost(listen string) string {
	ip := net.ParseIP(listen)
	switch {
	case ip == nil:
		return listen
	case ip.IsUnspecified() && ip.To4() != nil:
		return "127.0.0.1"
	case ip.IsUnspecified():
		return "::1"
	}
	return listen
}

// clientURLs are those that etcd opens in this state.
func clientURLs(s *cluster.EtcdState, self *cluster.EtcdNode) []string {
	if s.Quarantined {
		return self.QuarantinedClientURLs
	}
	return self.ClientURLs
}

// commandLine builds what starts etcd in this state. Certificates are issued on the way.
func (sv *supervisor) commandLine(s *cluster.EtcdState) (process.CommandLine, error) {
	self := s.Node(sv.cfg.Self.Name)
	if self == nil {
		return process.CommandLine{}, fmt.Errorf("state names members %v, not this node %s: %w", nodeNames(s.Nodes), sv.cfg.Self.Name, cluster.ErrPermanent)
	}
	bin, err := sv.cfg.Binaries.Nearest(s.EtcdVersion)
	if err != nil {
		return process.CommandLine{}, err
	}
	cfg := etcd.Config{
		Name: self.Name, DataDir: sv.l.data(s.Token), Token: s.Token, NewCluster: s.NewCluster,
		PeerURLs: self.PeerURLs, ClientURLs: clientURLs(s, self), ListenMetricsURLs: sv.cfg.MetricsURLs, ExtraEnv: sv.cfg.EtcdEnv,
		CompactHashCheck: true,
	}
	settings := sv.records.journaled().Settings
	sv.mu.Lock()
	snapshotNow := sv.snapshotNow
	sv.mu.Unlock()
	applySettings(&cfg, settings)
	if snapshotNow {
		forSnapshot(&cfg)
	}
	if s.Quarantined {
		cfg.ListenMetricsURLs = nil
	}
	for _, n := range s.Nodes {
		cfg.InitialCluster = append(cfg.InitialCluster, etcd.Peer{Name: n.Name, PeerURLs: n.PeerURLs})
	}
	if cfg.ListenPeerURLs, err = listenOn(cfg.PeerURLs, sv.cfg.ListenAddress); err != nil {
		return process.CommandLine{}, err
	}
	if cfg.ListenClientURLs, err = listenOn(cfg.ClientURLs, sv.cfg.ListenAddress); err != nil {
		return process.CommandLine{}, err
	}
	if self.TLS {
		if sv.cfg.Certificates == nil {
			return process.CommandLine{}, errInsecure
		}
		urls := append(append(append([]string{}, self.PeerURLs...), self.ClientURLs...), self.QuarantinedClientURLs...)
		f, err := sv.cfg.Certificates.EtcdFiles(sv.l.pki(s.Token), pki.EtcdName{Name: self.Name, Addresses: []string{sv.cfg.Address}, URLs: urls})
		if err != nil {
			return process.CommandLine{}, err
		}
		cfg.PeerTLS = &etcd.TLSFiles{CAFile: f.PeerCA, CertFile: f.PeerCert, KeyFile: f.PeerKey, CADigest: digest(f.PeerCA)}
		cfg.ClientTLS = &etcd.TLSFiles{CAFile: f.ClientCA, CertFile: f.ServerCert, KeyFile: f.ServerKey, CADigest: digest(f.ClientCA)}
	}
	return process.Command(cfg, bin)
}

var errInsecure = fmt.Errorf("etcd speaks TLS in this cluster, but the manager was started with --etcd-insecure: %w", cluster.ErrPermanent)

// dial opens a client to the own etcd as it runs in this state.
func (sv *supervisor) dial(s *cluster.EtcdState) (*client.Client, error) {
	self := s.Node(sv.cfg.Self.Name)
	host := localHost(sv.cfg.ListenAddress)
	urls, err := listenOn(clientURLs(s, self), host)
	if err != nil {
		return nil, err
	}
	if !self.TLS {
		return client.Dial(urls, nil)
	}
	if sv.cfg.Certificates == nil {
		return nil, errInsecure
	}
	return client.Dial(urls, sv.cfg.Certificates.EtcdClient(host))
}
