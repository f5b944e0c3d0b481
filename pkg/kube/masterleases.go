package kube

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

const (
	// MasterleasesPrefix is where API servers keep their master leases.
	MasterleasesPrefix = Registry + "masterleases/"
	// RenewalWatch is how long a master lease is watched: API servers renew theirs every ten seconds.
	RenewalWatch = 12 * time.Second
)

// Masterlease is one entry that an API server has written, with what is known of that server.
type Masterlease struct {
	Address string `json:"address"`
	// Lease is etcd's id of it in hexadecimal, empty if the entry has none and so never expires.
	Lease string `json:"lease,omitempty"`
	// TTL are the seconds that are left, -1 if etcd doesn't know the lease: the entry never expires then, either.
	TTL int64 `json:"ttlSeconds"`
	// Master is the live master that has the address.
	Master string `json:"liveMaster,omitempty"`
	// Renewed is true if an API server wrote the entry while it was watched.
	Renewed bool `json:"renewed"`
	Stale   bool `json:"stale"`

	key      string
	revision int64
}

// Key is the key of the entry.
func (l *Masterlease) Key() string { return l.key }

// Masterleases looks at the master leases in one etcd. Only Client is needed. It is safe for concurrent use.
type Masterleases struct {
	// Client is of the etcd in which API servers keep their objects.
	Client *clientv3.Client
	// Prefix is where the entries are; empty means MasterleasesPrefix.
	Prefix string
	// Live are IP addresses of live masters that run no member of this etcd, each with what Masterlease.Master shall say of it.
	Live map[string]string
	// Watch is how long an API server has time to renew an entry before it counts as stale; 0 means RenewalWatch.
	Watch time.Duration
	// Timeout bounds each of the few requests; 0 means a minute.
	Timeout time.Duration
	// Watching, if not nil, is called before entries are watched: at unknown of all addresses no live master is known.
	Watching func(unknown, all int)
	// NotLive, if not nil, is called for each member of etcd that doesn't count as a live master, with the reason. Calls don't overlap.
	NotLive func(member string, why error)
}

// EtcdError says which etcd it is that didn't answer as it should.
type EtcdError struct {
	// Verb says what was asked for.
	Verb      string
	Endpoints []string
	Err       error
}

func (e *EtcdError) Error() string {
	return fmt.Sprintf("%s at etcd %s: %v", e.Verb, strings.Join(e.Endpoints, ","), e.Err)
}

// Unwrap gives what etcd's client has said.
func (e *EtcdError) Unwrap() error { return e.Err }

// UnresolvedError says that the name of a member can't be resolved here, so that its address has to be given in Masterleases.Live.
type UnresolvedError struct{ Err error }

func (e *UnresolvedError) Error() string {
	return fmt.Sprintf("its name can't be resolved here: %v", e.Err)
}

// Unwrap gives what the resolver has said.
func (e *UnresolvedError) Unwrap() error { return e.Err }

func (m *Masterleases) failed(verb string, err error) error {
	return &EtcdError{verb, m.Client.Endpoints(), err}
}

func (m *Masterleases) prefix() string {
	if m.Prefix != "" {
		return m.Prefix
	}
	return MasterleasesPrefix
}

func (m *Masterleases) watchTime() time.Duration {
	if m.Watch != 0 {
		return m.Watch
	}
	return RenewalWatch
}

func (m *Masterleases) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	timeout := m.Timeout
	if timeout <= 0 {
		timeout = time.Minute
	}
	return context.WithTimeout(ctx, timeout)
}

// Find reads the entries and finds out whose servers live. An entry is stale if no live master has
// its address, and no API server renewed it while it was watched. What etcd doesn't answer is an
// *EtcdError.
func (m *Masterleases) Find(ctx context.Context) ([]Masterlease, error) {
	live, err := m.liveMasters(ctx)
	if err != nil {
		return nil, err
	}
	limited, cancel := m.limit(ctx)
	defer cancel()
	entries, err := m.Client.Get(limited, m.prefix(), clientv3.WithPrefix())
	if err != nil {
		return nil, m.failed("read "+m.prefix(), err)
	}
	leases := []Masterlease{} // none is [] in JSON
	unknown := 0
	for _, kv := range entries.Kvs {
		l := Masterlease{key: string(kv.Key), Address: strings.TrimPrefix(string(kv.Key), m.prefix()), revision: kv.ModRevision}
		l.Master = live[canonical(l.Address)]
		if err := m.readLease(limited, &l, kv.Lease); err != nil {
			return nil, err
		}
		if l.Master == "" {
			unknown++
		}
		leases = append(leases, l)
	}
	if unknown == 0 {
		return leases, nil
	}
	if m.Watching != nil {
		m.Watching(unknown, len(leases))
	}
	return m.watchRenewals(ctx, leases, entries.Header.Revision+1)
}

// Remove removes an entry unless it has changed since it was looked at. It returns false then, also if the entry has expired.
func (m *Masterleases) Remove(ctx context.Context, l Masterlease) (bool, error) {
	r, err := m.Client.Txn(ctx).If(clientv3.Compare(clientv3.ModRevision(l.key), "=", l.revision)).Then(clientv3.OpDelete(l.key)).Commit()
	if err != nil {
		return false, m.failed("remove "+l.key, err)
	}
	return r.Succeeded, nil
}

func (m *Masterleases) readLease(ctx context.Context, l *Masterlease, id int64) error {
	if id == 0 {
		return nil
	}
	l.Lease = fmt.Sprintf("%x", id)
	ttl, err := m.Client.TimeToLive(ctx, clientv3.LeaseID(id))
	if err != nil {
		return m.failed("read lease "+l.Lease, err)
	}
	l.TTL = ttl.TTL
	return nil
}

// watchRenewals looks for writes to the entries at whose address no live master is known. Entries that expire meanwhile leave the list;
// those that nobody has renewed in the end are stale.
func (m *Masterleases) watchRenewals(whole context.Context, leases []Masterlease, from int64) ([]Masterlease, error) {
	ctx, cancel := context.WithTimeout(whole, m.watchTime())
	defer cancel()
	events := m.Client.Watch(clientv3.WithRequireLeader(ctx), m.prefix(), clientv3.WithPrefix(), clientv3.WithRev(from))
	byKey := map[string]*Masterlease{}
	open := map[string]bool{}
	for i := range leases {
		byKey[leases[i].key] = &leases[i]
		open[leases[i].key] = leases[i].Master == ""
	}
	gone := map[string]bool{}
	for undecided(open) && ctx.Err() == nil {
		answer, ok := <-events
		if !ok {
			break
		}
		if err := answer.Err(); err != nil && ctx.Err() == nil {
			return nil, m.failed("watch "+m.prefix(), err)
		}
		for _, e := range answer.Events {
			key := string(e.Kv.Key)
			l := byKey[key]
			if l == nil {
				continue // an API server that has just started
			}
			open[key] = false
			l.revision, l.Renewed, gone[key] = e.Kv.ModRevision, e.IsCreate() || e.IsModify(), e.Type == clientv3.EventTypeDelete
			if !l.Renewed {
				continue
			}
			// One that was renewed in the last moment has its time beyond the watch's.
			limited, cancel := m.limit(whole)
			err := m.readLease(limited, l, e.Kv.Lease)
			cancel()
			if err != nil {
				return nil, err
			}
		}
	}
	// The watch's own deadline is what ends it; anything else that ended the context is the operator's.
	if err := ctx.Err(); err != nil && !errors.Is(err, context.DeadlineExceeded) {
		return nil, err
	}
	var out []Masterlease
	for _, l := range leases {
		l.Stale = open[l.key]
		if !gone[l.key] {
			out = append(out, l)
		}
	}
	return out, nil
}

func undecided(open map[string]bool) bool {
	for _, o := range open {
		if o {
			return true
		}
	}
	return false
}

// statusTimeout is how long a master has time to say that it lives.
const statusTimeout = 3 * time.Second

// liveMasters are the addresses of those members of etcd that answer, and of the masters that the operator names.
func (m *Masterleases) liveMasters(ctx context.Context) (map[string]string, error) {
	live := map[string]string{}
	for address, who := range m.Live {
		live[canonical(address)] = who
	}
	limited, cancel := m.limit(ctx)
	defer cancel()
	members, err := m.Client.MemberList(limited)
	if err != nil {
		return nil, m.failed("list members", err)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, member := range members.Members {
		wg.Go(func() {
			err := m.answers(ctx, member.ClientURLs)
			var addresses []string
			if err == nil {
				addresses, err = resolve(ctx, append(member.ClientURLs, member.PeerURLs...))
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil && m.NotLive != nil {
				m.NotLive(member.Name, err)
			}
			for _, ip := range addresses {
				live[ip] = "member " + member.Name
			}
		})
	}
	wg.Wait()
	return live, nil
}

// answers returns nil if one of a member's client URLs does.
func (m *Masterleases) answers(ctx context.Context, urls []string) error {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	err := fmt.Errorf("it has no client URL, so it has never started")
	for _, u := range urls {
		if _, err = m.Client.Status(ctx, u); err == nil {
			return nil
		}
	}
	return err
}

// resolve returns the addresses of the URLs' hosts. An address that means no host in particular is left out.
func resolve(ctx context.Context, urls []string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	var out []string
	for _, raw := range urls {
		u, err := url.Parse(raw)
		if err != nil {
			return nil, err
		}
		addresses, err := net.DefaultResolver.LookupNetIP(ctx, "ip", u.Hostname())
		if err != nil {
			return nil, &UnresolvedError{err}
		}
		for _, ip := range addresses {
			out = append(out, ip.Unmap().String())
		}
	}
	return out, nil
}

// canonical writes an address as netip does, so that two spellings of one are the same.
func canonical(address string) string {
	ip, err := netip.ParseAddr(address)
	if err != nil {
		return address
	}
	return ip.Unmap().String()
}
