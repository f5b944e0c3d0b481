package etcd

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// TLSFiles are paths of PEM files. etcd reads certificate and key again at every handshake, so a renewed certificate
// is used without a restart; the trusted CAs it reads only when it starts.
type TLSFiles struct {
	CAFile string
	// CADigest stands for what is in CAFile, which etcd reads only when it starts.
	CADigest string
	CertFile string
	KeyFile  string
}

// Peer is one row of the initial cluster.
type Peer struct {
	Name     string
	PeerURLs []string
}

// Config is all that the manager decides about one etcd process. The zero value of an optional field
// leaves etcd's own default.
type Config struct {
	// Name is the member's name.
	Name string
	// DataDir is etcd's data dir, absolute.
	DataDir string
	// Token is the cluster's token.
	Token cluster.Token

	// PeerURLs and ClientURLs are advertised; the Listen ones are bound, and their hosts are IP addresses or "localhost".
	PeerURLs         []string
	ListenPeerURLs   []string
	ClientURLs       []string
	ListenClientURLs []string
	// ListenMetricsURLs is optional.
	ListenMetricsURLs []string

	// InitialCluster names every member that is to be there, itself included.
	InitialCluster []Peer
	// NewCluster is true for a founder, false for a member that joins or restarts.
	NewCluster bool

	// PeerTLS makes peers authenticate each other; nil means plain HTTP, and then the URLs are http.
	PeerTLS *TLSFiles
	// ClientTLS makes clients authenticate with a certificate of its CA; nil means plain HTTP.
	ClientTLS *TLSFiles

	// QuotaBytes bounds the database.
	QuotaBytes int64
	// AutoCompactionMode is "periodic" or "revision"; AutoCompactionRetention is as etcd takes it.
	AutoCompactionMode      string
	AutoCompactionRetention string
	// SnapshotCount is the number of transactions between two raft snapshots.
	SnapshotCount uint64
	// Heartbeat and ElectionTimeout are raft's; whole milliseconds.
	Heartbeat       time.Duration
	ElectionTimeout time.Duration

	// InitialCorruptCheck compares hashes with the peers before serving, for which etcd reads the whole database and
	// waits for peers that don't answer: members with data that are started at the same time come up after 12 s
	// instead of 1 s. It is for a member that is started beside peers that serve.
	InitialCorruptCheck bool
	// CorruptCheckInterval compares hashes all the time.
	CorruptCheckInterval time.Duration
	// CompactHashCheck compares the hashes of compactions (from 3.5 on; ignored before).
	CompactHashCheck bool

	// LogLevel is etcd's: debug, info, warn, error.
	LogLevel string

	// ExtraEnv is handed to etcd. A variable that names the same setting as a flag wins over what the manager
	// would set, although etcd itself prefers flags. Variables that begin with ETCD_MANAGER_ are left out.
	ExtraEnv map[string]string
}

// Validate says what is wrong before a process would fail on it.
func (c *Config) Validate() error {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("%w of member %q: %s", ErrConfig, c.Name, fmt.Sprintf(format, a...))
	}
	if c.Name == "" || strings.ContainsAny(c.Name, "=, \t\n") {
		return bad("the name must not be empty nor hold %q", "=, ")
	}
	if !strings.HasPrefix(c.DataDir, "/") {
		return bad("the data dir %q must be an absolute path", c.DataDir)
	}
	if c.Token == "" {
		return bad("no cluster token")
	}
	for _, l := range []struct {
		what   string
		urls   []string
		tls    bool
		listen bool
	}{
		{"peer URL", c.PeerURLs, c.PeerTLS != nil, false},
		{"client URL", c.ClientURLs, c.ClientTLS != nil, false},
		{"peer listen URL", c.ListenPeerURLs, c.PeerTLS != nil, true},
		{"client listen URL", c.ListenClientURLs, c.ClientTLS != nil, true},
	} {
		if len(l.urls) == 0 {
			return bad("no %s", l.what)
		}
		for _, u := range l.urls {
			if err := checkURL(u, l.tls, l.listen); err != nil {
				return bad("%s %q: %v", l.what, u, err)
			}
		}
	}
	own := slices.IndexFunc(c.InitialCluster, func(p Peer) bool { return p.Name == c.Name })
	if own < 0 {
		return bad("it is not part of the initial cluster")
	}
	if !sameSet(c.InitialCluster[own].PeerURLs, c.PeerURLs) {
		return bad("the initial cluster has peer URLs %v for it, but it advertises %v", c.InitialCluster[own].PeerURLs, c.PeerURLs)
	}
	for _, t := range []*TLSFiles{c.PeerTLS, c.ClientTLS} {
		if t != nil && (t.CAFile == "" || t.CertFile == "" || t.KeyFile == "") {
			return bad("TLS needs the files of CA, certificate and key")
		}
	}
	if c.ElectionTimeout != 0 && c.Heartbeat != 0 && c.ElectionTimeout < 5*c.Heartbeat {
		return bad("the election timeout %s must be at least 5 times the heartbeat %s", c.ElectionTimeout, c.Heartbeat)
	}
	return nil
}

func checkURL(s string, tls, listen bool) error {
	u, err := url.Parse(s)
	if err != nil {
		return err
	}
	want := "http"
	if tls {
		want = "https"
	}
	if u.Scheme != want {
		return fmt.Errorf("the scheme must be %s", want)
	}
	if u.Path != "" && u.Path != "/" {
		return errors.New("no path is allowed")
	}
	if u.Hostname() == "" || u.Port() == "" {
		return errors.New("host and port are needed")
	}
	if listen && u.Hostname() != "localhost" && net.ParseIP(u.Hostname()) == nil {
		return errors.New("etcd listens on IP addresses only")
	}
	return nil
}

func sameSet(a, b []string) bool {
	a, b = slices.Sorted(slices.Values(a)), slices.Sorted(slices.Values(b))
	return slices.Equal(a, b)
}

// InitialClusterFlag is the value of --initial-cluster: sorted by name, so that every member gets the same text.
func InitialClusterFlag(peers []Peer) string {
	ps := slices.Clone(peers)
	slices.SortFunc(ps, func(a, b Peer) int { return strings.Compare(a.Name, b.Name) })
	var out []string
	for _, p := range ps {
		for _, u := range p.PeerURLs {
			out = append(out, p.Name+"="+u)
		}
	}
	return strings.Join(out, ",")
}
