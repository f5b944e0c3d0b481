package pki

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

const (
	// checkEvery bounds how long a changed CA file, or a failed renewal, waits.
	checkEvery = 30 * time.Second
	// checkAtMost keeps a renewal that is always due from turning into a busy loop.
	checkAtMost = time.Second
)

// Config is what a Keeper needs to know.
type Config struct {
	// Dir is the directory with the three authorities.
	Dir string
	// NodeID is this manager's node id.
	NodeID string
	// Managers and Etcd say which authorities are needed: neither is read when managers and etcd both speak without TLS.
	Managers, Etcd bool
	// Page are the addresses at which people look at this manager's page with TLS; nil means that none do. It needs Etcd.
	Page []net.IP
	// Policy is how long certificates live.
	Policy Policy
	// MinVersion is the least version of TLS that managers take from each other; 0 means TLS 1.2, which is the least in any case.
	MinVersion uint16
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Keeper holds the certificates of one process and keeps them valid. All methods may be called concurrently.
type Keeper struct {
	cfg Config

	// issueMu is held while certificates are checked and files written: one at a time.
	issueMu sync.Mutex

	mu          sync.RWMutex // guards what follows; never held during input or output
	authorities map[string]*Authority
	held        map[string]*tls.Certificate // by role
	etcd        map[string]EtcdName         // by directory
	status      map[string]Status           // by name
	wake        chan struct{}
}

// Status is the state of one certificate, for metrics, status pages and alarms.
type Status struct {
	// Name says what it is for: "manager server", "manager client", "etcd client", or the path of its file.
	Name string
	// NotAfter is when it expires; RenewAt when it will be renewed.
	NotAfter, RenewAt time.Time
	// EndsWithCA is true if it can't be renewed beyond NotAfter because its CA ends then: a new CA is needed.
	EndsWithCA bool
	// Err is why the last renewal failed, or nil.
	Err error
}

// The roles of the certificates that a Keeper holds in memory.
const (
	roleManagerServer = "manager server"
	roleManagerClient = "manager client"
	roleEtcdClient    = "etcd client"
	rolePageServer    = "page server"
)

const (
	serverPrefix = "etcd-manager-server-"
	clientPrefix = cluster.EtcdUserPrefix
)

// NewKeeper reads the authorities and issues the process' own certificates. It starts nothing: call Run.
// Errors wrap ErrAuthority if a CA is missing, unreadable, expired, not valid yet or not the key's.
func NewKeeper(cfg Config) (*Keeper, error) {
	if err := cfg.Policy.Validate(); err != nil {
		return nil, err
	}
	if cfg.NodeID == "" {
		return nil, errors.New("certificates: the node id is empty")
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	k := &Keeper{
		cfg:         cfg,
		authorities: map[string]*Authority{},
		held:        map[string]*tls.Certificate{},
		etcd:        map[string]EtcdName{},
		status:      map[string]Status{},
		wake:        make(chan struct{}, 1),
	}
	if err := k.Refresh(); err != nil {
		return nil, err
	}
	return k, nil
}

// Run renews certificates and reads changed CA files until ctx ends; it returns nil then. What fails is
// logged, shown by Status and tried again; certificates that are still valid stay in use meanwhile.
func (k *Keeper) Run(ctx context.Context) error {
	for {
		timer := time.NewTimer(k.wait())
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil
		case <-k.wake:
			timer.Stop()
			continue // a directory was added: compute the wait again
		case <-timer.C:
		}
		if err := k.Refresh(); err != nil {
			klog.Warningf("certificates: %s; valid certificates stay in use, next attempt within %s",
				strings.ReplaceAll(err.Error(), "\n", "; "), checkEvery)
		}
	}
}

// wait is the time to the next check.
func (k *Keeper) wait() time.Duration {
	now := k.cfg.Now()
	d := checkEvery
	for _, s := range k.Status() {
		if !s.EndsWithCA && s.Err == nil {
			d = min(d, s.RenewAt.Sub(now))
		}
	}
	return max(d, checkAtMost)
}

// Status lists all certificates that the keeper keeps, sorted by name.
func (k *Keeper) Status() []Status {
	k.mu.RLock()
	defer k.mu.RUnlock()
	var all []Status
	for _, name := range slices.Sorted(maps.Keys(k.status)) {
		all = append(all, k.status[name])
	}
	return all
}

// Refresh reads the CA files again if they changed and reissues every certificate that is due, at once. Run calls it by itself.
func (k *Keeper) Refresh() error {
	k.issueMu.Lock()
	defer k.issueMu.Unlock()
	errs := []error{k.reload()}
	if k.cfg.Managers {
		errs = append(errs,
			k.hold(roleManagerServer, ManagerCA, subject{commonName: serverPrefix + k.cfg.NodeID,
				dnsNames: []string{serverPrefix + k.cfg.NodeID}, usages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}),
			k.hold(roleManagerClient, ManagerCA, subject{commonName: clientPrefix + k.cfg.NodeID,
				usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}))
	}
	if k.cfg.Etcd {
		errs = append(errs,
			k.hold(roleEtcdClient, ClientsCA, subject{commonName: clientPrefix + k.cfg.NodeID,
				usages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}))
	}
	if k.cfg.Etcd && len(k.cfg.Page) > 0 {
		errs = append(errs, k.hold(rolePageServer, ClientsCA, subject{commonName: k.cfg.NodeID, dnsNames: []string{k.cfg.NodeID},
			ips: k.cfg.Page, usages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}}))
	}
	k.mu.RLock()
	etcd := maps.Clone(k.etcd)
	k.mu.RUnlock()
	for _, dir := range slices.Sorted(maps.Keys(etcd)) {
		errs = append(errs, k.ensureEtcd(dir, etcd[dir]))
	}
	return errors.Join(errs...)
}

// reload reads the CA files. A CA that can't be used any more doesn't displace one that was read before.
func (k *Keeper) reload() error {
	var names []string
	if k.cfg.Managers {
		names = append(names, ManagerCA)
	}
	if k.cfg.Etcd {
		names = append(names, PeersCA, ClientsCA)
	}
	var errs []error
	for _, name := range names {
		base := filepath.Join(k.cfg.Dir, name)
		had := k.authority(name)
		certPEM, err := readCAFile(base + ".crt")
		if err != nil {
			errs = append(errs, err)
			continue
		}
		keyPEM, err := readCAFile(base + ".key")
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if had != nil && had.sameFiles(certPEM, keyPEM) && k.cfg.Now().Before(had.signer.NotAfter) {
			continue
		}
		a, err := parseAuthority(base+".crt", certPEM, base+".key", keyPEM, k.cfg.Now())
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if had != nil {
			klog.Infof("certificates: %s.crt changed: %d certificate(s) trusted, signing with the one that ends %s",
				base, len(a.trusted), a.signer.NotAfter.UTC().Format(time.RFC3339))
		}
		k.mu.Lock()
		k.authorities[name] = a
		k.mu.Unlock()
	}
	return errors.Join(errs...)
}

func (k *Keeper) authority(name string) *Authority {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.authorities[name]
}

func (k *Keeper) certificate(role string) *tls.Certificate {
	k.mu.RLock()
	defer k.mu.RUnlock()
	return k.held[role]
}

// hold issues the certificate of one role in memory, if it is due. Here the key is new each time: both change at once.
func (k *Keeper) hold(role, caName string, s subject) error {
	ca := k.authority(caName)
	if ca == nil {
		return nil // reload has said why
	}
	now := k.cfg.Now()
	if have := k.certificate(role); have != nil {
		if k.cfg.Policy.reissue(have.Leaf, ca, s, have.Leaf.PublicKey, now) == "" {
			return k.note(role, have.Leaf, ca, nil)
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return k.note(role, nil, ca, err)
	}
	leaf, err := k.cfg.Policy.issue(ca, s, key.Public(), now)
	if err != nil {
		return k.note(role, nil, ca, err)
	}
	k.mu.Lock()
	k.held[role] = &tls.Certificate{Certificate: [][]byte{leaf.Raw}, PrivateKey: key, Leaf: leaf}
	k.mu.Unlock()
	return k.note(role, leaf, ca, nil)
}

// note records the state of a certificate; c is nil if issuing failed and the one before stays. It returns err, wrapped.
func (k *Keeper) note(name string, c *x509.Certificate, ca *Authority, err error) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	s := k.status[name]
	s.Name, s.Err = name, err
	if c != nil {
		s.NotAfter, s.RenewAt = c.NotAfter, k.cfg.Policy.renewAt(c)
		s.EndsWithCA = !c.NotAfter.Before(ca.signer.NotAfter)
	}
	k.status[name] = s
	if err != nil {
		return fmt.Errorf("renew certificate %s: %w", name, err)
	}
	return nil
}

// EtcdFiles writes the certificates of an etcd below dir (<data-dir>/pki/<cluster token>) and keeps them
// valid until Release(dir). Called again for the same dir, also with another name, it reissues what has to
// change and leaves the rest. The keys of the files stay the same.
func (k *Keeper) EtcdFiles(dir string, name EtcdName) (EtcdFiles, error) {
	if !k.cfg.Etcd {
		return EtcdFiles{}, errors.New("etcd certificates: the keeper was configured without etcd's CAs")
	}
	if _, err := name.subject(); err != nil {
		return EtcdFiles{}, err
	}
	k.issueMu.Lock()
	defer k.issueMu.Unlock()
	k.mu.Lock()
	before, known := k.etcd[dir]
	k.etcd[dir] = name
	k.mu.Unlock()
	if err := k.ensureEtcd(dir, name); err != nil {
		return EtcdFiles{}, err
	}
	if known && reflect.DeepEqual(before, name) {
		return EtcdFilesIn(dir), nil // waking Run for nothing, again and again, would keep it from its checks
	}
	select {
	case k.wake <- struct{}{}:
	default:
	}
	return EtcdFilesIn(dir), nil
}

func (k *Keeper) ensureEtcd(dir string, name EtcdName) error {
	peers, clients := k.authority(PeersCA), k.authority(ClientsCA)
	if peers == nil || clients == nil {
		return nil // reload has said why
	}
	s, err := name.subject()
	if err != nil {
		return err
	}
	f := EtcdFilesIn(dir)
	var errs []error
	for _, p := range []pair{
		{ca: peers, subject: s, caPath: f.PeerCA, cert: f.PeerCert, keyAt: f.PeerKey},
		{ca: clients, subject: s, caPath: f.ClientCA, cert: f.ServerCert, keyAt: f.ServerKey},
	} {
		c, why, err := p.ensure(k.cfg.Policy, k.cfg.Now())
		errs = append(errs, k.note(p.cert, c, p.ca, err))
		if why != "" {
			klog.V(2).Infof("certificates: issued %s for %s, valid until %s, because %s", p.cert, name.Name,
				c.NotAfter.UTC().Format(time.RFC3339), why)
		}
	}
	return errors.Join(errs...)
}

// Release stops keeping the certificates below dir. The files stay where they are.
func (k *Keeper) Release(dir string) {
	k.issueMu.Lock() // not while they are being written
	defer k.issueMu.Unlock()
	k.mu.Lock()
	defer k.mu.Unlock()
	f := EtcdFilesIn(dir)
	delete(k.etcd, dir)
	delete(k.status, f.PeerCert)
	delete(k.status, f.ServerCert)
}

// Remove releases dir and deletes the certificates in it.
func (k *Keeper) Remove(dir string) error {
	k.Release(dir)
	if err := os.RemoveAll(dir); err != nil {
		return fmt.Errorf("remove certificates: %w", err)
	}
	return nil
}
