// Package adopt makes a member of an etcd cluster that kubeadm, systemd or a person runs into one that the manager continues, with its
// members, its data and its cluster id.
//
// It reads how that etcd is run (package source), asks it who its members are,
// and plans; a plan changes nothing. Carrying it out is a sequence of idempotent steps that is
// recorded in the manager's data dir, so that it goes on wherever it was interrupted. It must never
// touch a data dir that an etcd uses, never overwrite an authority, and never let a store say that
// this cluster may be formed anew.
package adopt

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/adopt/source"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/datadir"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
	"github.com/etcd-manager/etcd-manager/pkg/pki"
)

// ErrRefused: the etcd can't be continued as it is; the message says what to change.
var ErrRefused = errors.New("this etcd can't be adopted as it is")

// Options are what the operator chooses.
type Options struct {
	ClusterName, StoreURL string
	// DataDir and PKIDir are the manager's.
	DataDir, PKIDir string
	// Address is the node's own IP address; empty means that it is found in the peer URL.
	Address                  string
	GRPCPort, QuarantinePort int
	// PeersCAKey and ClientsCAKey are the files with the keys of etcd's CAs; empty means beside the certificates.
	PeersCAKey, ClientsCAKey string
	// ClientCert and ClientKey are shown to etcd; empty means etcd's own server certificate.
	ClientCert, ClientKey string
	// Binaries are what the manager would run etcd with.
	Binaries *process.Binaries
}

// Plan is what would be done. It is also what is recorded.
type Plan struct {
	Version     int      `json:"version"`
	ClusterName string   `json:"clusterName"`
	ClusterID   string   `json:"clusterID"`
	Node        string   `json:"node"`
	Running     string   `json:"running"` // etcd's version
	Next        string   `json:"next"`    // the version that the manager runs it with
	OldDataDir  string   `json:"oldDataDir"`
	DataDir     string   `json:"dataDir"`
	PKIDir      string   `json:"pkiDir"`
	Authorities []Copied `json:"authorities,omitempty"`
	// State is the state file's content.
	State cluster.EtcdState `json:"state"`
	// Flags start the manager, Env is what it hands on to etcd.
	Flags []string `json:"flags"`
	Env   []string `json:"env,omitempty"`
	// Stop are the commands that stop the other software. While Manifest exists the kubelet starts
	// it again, and while Unit is active systemd does.
	Stop     []string `json:"stop"`
	Manifest string   `json:"manifest,omitempty"`
	Unit     string   `json:"unit,omitempty"`
	// Changes are in words what will be different.
	Changes []string `json:"changes"`
	// Done is true once the manager may start.
	Done bool `json:"done"`
}

// Copied is an authority: from where it is copied, and its name in the PKI directory.
type Copied struct {
	Name string `json:"name"`
	Cert string `json:"cert"`
	Key  string `json:"key"`
}

// handled are etcd's flags that become the manager's, or that a member which exists doesn't need.
var handled = map[string]bool{
	"name": true, "data-dir": true, "listen-client-urls": true, "advertise-client-urls": true, "listen-peer-urls": true,
	"initial-advertise-peer-urls": true,
	"initial-cluster":             true, "initial-cluster-state": true, "initial-cluster-token": true, "cert-file": true,
	"key-file": true, "trusted-ca-file": true,
	"client-cert-auth": true, "peer-cert-file": true, "peer-key-file": true, "peer-trusted-ca-file": true, "peer-client-cert-auth": true,
	"listen-metrics-urls": true, "unsupported-arch": true,
}

// refused are settings that the manager can't continue, and what to do about them.
var refused = map[string]string{
	"config-file":       "etcd's settings are in a file; give them as flags: etcd-manager adopt [flags] -- --name=NAME --data-dir=DIR ...",
	"wal-dir":           "the manager keeps the log in the data dir; stop etcd, move the log to <data-dir>/member/wal, start it without the flag, and adopt it then",
	"auto-tls":          "certificates that etcd creates for itself can't be taken over; run etcd with certificates of a CA first",
	"peer-auto-tls":     "certificates that etcd creates for itself can't be taken over; run etcd with certificates of a CA first",
	"discovery-srv":     "members found by DNS aren't supported; remove the flag, an existing member doesn't need it",
	"force-new-cluster": "an etcd that is started with this loses its members at each start; remove it",
}

// Make asks the running etcd and plans. It changes nothing.
func Make(ctx context.Context, s *source.Source, o Options) (*Plan, error) {
	v := s.Values
	for name, what := range refused {
		if x := v[name]; x != "" && x != "false" {
			return nil, fmt.Errorf("--%s=%s: %s: %w", name, x, what, ErrRefused)
		}
	}
	old := v["data-dir"]
	if !filepath.IsAbs(old) {
		return nil, fmt.Errorf("etcd's data dir must be an absolute path, not %q; give it: etcd-manager adopt [flags] -- --data-dir=DIR ...: %w", old, ErrRefused)
	}
	p := &Plan{Version: recordVersion, ClusterName: o.ClusterName, OldDataDir: filepath.Clean(old), DataDir: o.DataDir,
		PKIDir: o.PKIDir, Stop: s.Stop, Manifest: s.Manifest, Unit: s.Unit}
	if err := p.checkPlace(); err != nil {
		return nil, err
	}
	secure, err := p.authorities(v, o)
	if err != nil {
		return nil, err
	}
	members, self, err := p.ask(ctx, v, o, secure)
	if err != nil {
		return nil, err
	}
	if err := p.nodes(members, self, secure, o); err != nil {
		return nil, err
	}
	b, err := o.Binaries.Nearest(p.Running)
	if err != nil {
		return nil, fmt.Errorf("the running etcd is %s, and the manager has no such version: %w", p.Running, err)
	}
	p.Next = b.Version
	return p, p.describe(v, self, secure, o)
}

// checkPlace makes sure that the old data dir can be moved by a rename.
func (p *Plan) checkPlace() error {
	if !filepath.IsAbs(p.DataDir) || !filepath.IsAbs(p.PKIDir) {
		return fmt.Errorf("--data-dir=%s and --pki-dir=%s must be absolute paths: %w", p.DataDir, p.PKIDir, ErrRefused)
	}
	from, err := device(p.OldDataDir)
	if err != nil {
		return err
	}
	parent, err := device(filepath.Dir(p.OldDataDir))
	if err != nil {
		return err
	}
	to, err := device(p.DataDir)
	if err != nil {
		return err
	}
	switch {
	case from != parent:
		return fmt.Errorf("%[1]s is the root of a file system, so it can't be moved. Stop etcd, run: mkdir %[1]s/etcd && mv %[1]s/member %[1]s/etcd/ (leave lost+found where it is), "+
			"start etcd with --data-dir=%[1]s/etcd, and adopt it then with --data-dir=%[1]s/etcd-manager: %[2]w", p.OldDataDir, ErrRefused)
	case p.OldDataDir == p.DataDir || strings.HasPrefix(p.DataDir+"/", p.OldDataDir+"/"):
		return fmt.Errorf("--data-dir=%s is inside of etcd's own %s; choose one beside it, for example --data-dir=%s-manager: %w",
			p.DataDir, p.OldDataDir, p.OldDataDir, ErrRefused)
	case from != to:
		return fmt.Errorf("%s and --data-dir=%s are on different file systems; nothing is copied, so choose a --data-dir on the first, for example --data-dir=%s-manager: %w",
			p.OldDataDir, p.DataDir, p.OldDataDir, ErrRefused)
	}
	return nil
}

// device is the file system of a path, or of what is there of it.
func device(path string) (uint64, error) {
	for {
		info, err := os.Stat(path)
		if errors.Is(err, fs.ErrNotExist) && path != "/" {
			path = filepath.Dir(path)
			continue
		}
		if err != nil {
			return 0, fmt.Errorf("look at %s: %w", path, err)
		}
		st, ok := info.Sys().(*syscall.Stat_t)
		if !ok {
			return 0, fmt.Errorf("look at %s: its file system can't be identified", path)
		}
		return uint64(st.Dev), nil //nolint:unconvert // it is an int32 on other systems
	}
}

// authorities finds the CAs, with their keys, and tells whether etcd speaks TLS.
func (p *Plan) authorities(v map[string]string, o Options) (secure bool, err error) {
	clients, peers := v["cert-file"] != "", v["peer-cert-file"] != ""
	if clients != peers {
		return false, fmt.Errorf("etcd uses TLS with its clients: %t, with its peers: %t; the manager uses TLS for both or for neither, so change etcd first: %w", clients, peers, ErrRefused)
	}
	if !clients {
		return false, nil
	}
	for _, a := range []struct{ name, flag, cert, key, option string }{
		{pki.PeersCA, "peer-trusted-ca-file", v["peer-trusted-ca-file"], o.PeersCAKey, "peers-ca-key"},
		{pki.ClientsCA, "trusted-ca-file", v["trusted-ca-file"], o.ClientsCAKey, "clients-ca-key"},
	} {
		if a.cert == "" {
			return false, fmt.Errorf("etcd has no --%s, so the CA of its certificates isn't known; give it: %w", a.flag, ErrRefused)
		}
		if a.key == "" {
			a.key = strings.TrimSuffix(a.cert, filepath.Ext(a.cert)) + ".key"
		}
		if _, err := pki.LoadAuthority(a.cert, a.key, time.Now()); err != nil {
			return false, fmt.Errorf("the manager issues etcd's certificates itself, so it needs the key of the CA %s; put it there before the adoption and copy it to all nodes, or give --%s=FILE: %w", a.cert, a.option, err)
		}
		p.Authorities = append(p.Authorities, Copied{Name: a.name, Cert: a.cert, Key: a.key})
	}
	return true, nil
}

// ask asks the running etcd.
func (p *Plan) ask(ctx context.Context, v map[string]string, o Options, secure bool) (members []cluster.Member,
	self cluster.Member, err error) {
	urls := split(v["advertise-client-urls"])
	if len(urls) == 0 {
		urls = split(v["listen-client-urls"])
	}
	if len(urls) == 0 {
		return nil, self, fmt.Errorf("etcd has neither --advertise-client-urls nor --listen-client-urls: %w", ErrRefused)
	}
	var conf *tls.Config
	if secure {
		if conf, err = clientTLS(v, o); err != nil {
			return nil, self, err
		}
	}
	c, err := client.Dial(urls, conf)
	if err != nil {
		return nil, self, fmt.Errorf("ask the running etcd: %w", err)
	}
	defer c.Close()
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	st, err := c.Status(ctx)
	if err != nil {
		return nil, self, fmt.Errorf("ask the running etcd at %s (it must run and be healthy): %w", strings.Join(urls, ", "), err)
	}
	if members, err = c.Members(ctx, true); err != nil {
		return nil, self, fmt.Errorf("ask the running etcd at %s for its members: %w", strings.Join(urls, ", "), err)
	}
	info, err := datadir.Inspect(p.OldDataDir)
	switch {
	case err != nil:
		return nil, self, fmt.Errorf("look at %s: %w", p.OldDataDir, err)
	case info.ClusterID != 0 && (info.ClusterID != st.ClusterID || info.MemberID != st.MemberID):
		return nil, self, fmt.Errorf("the etcd at %s is member %s of cluster %x, but %s is of member %s of cluster %x: %w",
			strings.Join(urls, ", "), st.MemberID, st.ClusterID, p.OldDataDir, info.MemberID, info.ClusterID, ErrRefused)
	}
	i := slices.IndexFunc(members, func(m cluster.Member) bool { return m.ID == st.MemberID })
	if i < 0 {
		return nil, self, fmt.Errorf("the etcd at %s isn't in its own member list: %w", strings.Join(urls, ", "), ErrRefused)
	}
	p.ClusterID, p.Running, p.Node = fmt.Sprintf("%016x", st.ClusterID), st.Version, members[i].Name
	return members, members[i], nil
}

func clientTLS(v map[string]string, o Options) (*tls.Config, error) {
	pem, err := os.ReadFile(v["trusted-ca-file"])
	if err != nil {
		return nil, fmt.Errorf("ask the running etcd: %w", err)
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(pem)
	cert, key := o.ClientCert, o.ClientKey
	if cert == "" {
		cert, key = v["cert-file"], v["key-file"]
	}
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		return nil, fmt.Errorf("ask the running etcd: %w; name another client certificate with --client-cert and --client-key", err)
	}
	return &tls.Config{RootCAs: pool, Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}, nil
}

// nodes makes the state from the member list. The token has no meaning for a member that exists;
// the cluster id makes it the same on all nodes.
func (p *Plan) nodes(members []cluster.Member, self cluster.Member, secure bool, o Options) error {
	token := cluster.Token("adopted-" + p.ClusterID)
	p.State = cluster.EtcdState{DesiredSize: len(members), Token: token, EtcdVersion: p.Running}
	if !cluster.ValidMemberCount(len(members)) {
		return fmt.Errorf("the cluster has %d members; the manager keeps 1, 3, 5, 7 or 9; add or remove one first: %w",
			len(members), ErrRefused)
	}
	if strings.ContainsAny(self.Name, "/= ,\n\t") {
		return fmt.Errorf("the member's name %q becomes the node id, which must be one word: %w", self.Name, ErrRefused)
	}
	for _, m := range members {
		if m.Learner || m.Name == "" || len(m.ClientURLs) == 0 {
			return fmt.Errorf("member %s (%s) is a learner or has never started; wait until it votes, or remove it: %w",
				m.ID, m.Name, ErrRefused)
		}
		n := cluster.EtcdNode{Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, TLS: secure}
		for _, s := range append(slices.Clone(m.PeerURLs), m.ClientURLs...) {
			if u, err := url.Parse(s); err != nil || (u.Scheme == "https") != secure {
				return fmt.Errorf("member %s has the URL %s, but this etcd's certificates say TLS: %t; make them the same first (etcdctl member update): %w", m.Name, s, secure, ErrRefused)
			}
		}
		for _, s := range m.ClientURLs {
			u, err := url.Parse(s)
			if err != nil {
				return fmt.Errorf("client URL of member %s: %w", m.Name, err)
			}
			u.Host = net.JoinHostPort(u.Hostname(), fmt.Sprint(o.QuarantinePort))
			n.QuarantinedClientURLs = append(n.QuarantinedClientURLs, u.String())
		}
		p.State.Nodes = append(p.State.Nodes, n)
	}
	return nil
}

// describe makes the manager's flags and says what changes.
func (p *Plan) describe(v map[string]string, self cluster.Member, secure bool, o Options) error {
	address, err := ownAddress(self, o.Address)
	if err != nil {
		return err
	}
	listen := listenAddress(v)
	me := p.State.Node(p.Node)
	template := func(urls []string) string {
		var list []string
		for _, s := range urls {
			u, err := url.Parse(s)
			if err == nil && u.Hostname() == address {
				s = fmt.Sprintf("%s://__address__:%s", u.Scheme, u.Port())
			}
			list = append(list, s)
		}
		return strings.Join(list, ",")
	}
	p.Flags = []string{
		"--cluster-name=" + o.ClusterName, "--backup-store=" + o.StoreURL, "--data-dir=" + o.DataDir, "--pki-dir=" + o.PKIDir,
		"--address=" + address, "--etcd-address=" + listen, "--client-urls=" + template(me.ClientURLs),
		"--peer-urls=" + template(me.PeerURLs),
		"--quarantine-client-urls=" + template(me.QuarantinedClientURLs), fmt.Sprintf("--grpc-port=%d", o.GRPCPort),
	}
	if !secure {
		p.Flags = append(p.Flags, "--etcd-insecure")
	}
	if m := v["listen-metrics-urls"]; m != "" {
		p.Flags = append(p.Flags, "--listen-metrics-urls="+m)
	}
	for name, value := range v {
		if !handled[name] && refused[name] == "" {
			p.Env = append(p.Env, "ETCD_"+strings.ToUpper(strings.ReplaceAll(name, "-", "_"))+"="+value)
		}
	}
	slices.Sort(p.Env)
	p.Changes = []string{
		fmt.Sprintf("clients reach etcd at %s as before, peers at %s", strings.Join(me.ClientURLs, ", "), strings.Join(me.PeerURLs, ", ")),
		fmt.Sprintf("etcd listens on %s (before: %s)", listen,
			strings.Join(append(split(v["listen-client-urls"]), split(v["listen-peer-urls"])...), ", ")),
		fmt.Sprintf("two more ports are opened: %d, for the managers, and %d, on which etcd listens instead of the client port while it is quarantined", o.GRPCPort, o.QuarantinePort),
	}
	if secure {
		p.Changes = append(p.Changes, "etcd's server and peer certificates are issued by the manager, of the same CAs, and renewed by it; clients' certificates stay valid")
		if v["client-cert-auth"] != "true" {
			p.Changes = append(p.Changes, "clients NEED a certificate of "+v["trusted-ca-file"]+
				" from now on (--client-cert-auth wasn't set)")
		}
	}
	if p.Next != p.Running {
		p.Changes = append(p.Changes, fmt.Sprintf("etcd %s runs instead of %s, until that version is installed in one of the directories of --etcd-binaries", p.Next, p.Running))
	}
	return nil
}

// ownAddress is the IP address of the node.
func ownAddress(self cluster.Member, given string) (string, error) {
	if given != "" {
		if _, err := netip.ParseAddr(given); err != nil {
			return "", fmt.Errorf("--address=%s is not an IP address", given)
		}
		return given, nil
	}
	for _, s := range self.PeerURLs {
		if u, err := url.Parse(s); err == nil {
			if _, err := netip.ParseAddr(u.Hostname()); err == nil {
				return u.Hostname(), nil
			}
		}
	}
	return "", fmt.Errorf("the node's address isn't in its peer URLs %v; give it with --address: %w", self.PeerURLs, ErrRefused)
}

// listenAddress is the one address on which etcd listens for all, or the unspecified one.
func listenAddress(v map[string]string) string {
	var hosts []string
	for _, s := range append(split(v["listen-client-urls"]), split(v["listen-peer-urls"])...) {
		if u, err := url.Parse(s); err == nil {
			hosts = append(hosts, u.Hostname())
		}
	}
	slices.Sort(hosts)
	hosts = slices.Compact(hosts)
	if len(hosts) == 1 {
		if _, err := netip.ParseAddr(hosts[0]); err == nil {
			return hosts[0]
		}
	}
	if slices.ContainsFunc(hosts, func(h string) bool { return strings.Contains(h, ":") }) {
		return "::"
	}
	return "0.0.0.0"
}

func split(s string) []string {
	return slices.DeleteFunc(strings.Split(s, ","), func(x string) bool { return x == "" })
}

// Spec is what the store will say that is wanted.
func (p *Plan) Spec() cluster.Spec { return cluster.Spec{MemberCount: len(p.State.Nodes)} }

// Marker is what keeps everybody from forming another cluster in this store.
func (p *Plan) Marker() catalog.Marker {
	return catalog.Marker{Time: time.Now(), Phase: catalog.PhaseFormed, Token: p.State.Token, Founders: p.State.Nodes, Spec: p.Spec()}
}

// NewDataDir is where etcd's data will be.
func (p *Plan) NewDataDir() string { return filepath.Join(p.DataDir, "data", string(p.State.Token)) }
