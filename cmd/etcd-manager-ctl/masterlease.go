package main

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

// masterlease is one entry that an API server has written, with what is known of that server.
type masterlease struct {
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

func (l *masterlease) expires() string {
	switch {
	case l.Lease == "":
		return "never"
	case l.TTL < 0:
		return "never (etcd doesn't know the lease)"
	}
	return fmt.Sprintf("in %ds", l.TTL)
}

func (l *masterlease) verdict() string {
	switch {
	case l.Stale:
		return "stale"
	case l.Renewed:
		return "live, renewed just now"
	}
	return "live"
}

// findLeases reads the entries and finds out whose servers live.
func (a *app) findLeases(ctx context.Context, c *clientv3.Client, r *leaseRequest) ([]masterlease, error) {
	live, err := a.liveMasters(ctx, c, r.masters)
	if err != nil {
		return nil, err
	}
	limited, cancel := a.limit(ctx)
	defer cancel()
	entries, err := c.Get(limited, r.prefix, clientv3.WithPrefix())
	if err != nil {
		return nil, etcdError(c, "read "+r.prefix, err)
	}
	leases := []masterlease{} // none is [] in JSON
	undecided := 0
	for _, kv := range entries.Kvs {
		l := masterlease{key: string(kv.Key), Address: strings.TrimPrefix(string(kv.Key), r.prefix), revision: kv.ModRevision}
		l.Master = live[canonical(l.Address)]
		if err := l.readLease(limited, c, kv.Lease); err != nil {
			return nil, err
		}
		if l.Master == "" {
			undecided++
		}
		leases = append(leases, l)
	}
	if undecided == 0 {
		return leases, nil
	}
	a.note("at %d of %d addresses no live master is known; watching for up to %s whether an API server renews its entry", undecided, len(leases), r.watch)
	return a.watchRenewals(ctx, c, r, leases, entries.Header.Revision+1)
}

func (l *masterlease) readLease(ctx context.Context, c *clientv3.Client, id int64) error {
	if id == 0 {
		return nil
	}
	l.Lease = fmt.Sprintf("%x", id)
	ttl, err := c.TimeToLive(ctx, clientv3.LeaseID(id))
	if err != nil {
		return etcdError(c, "read lease "+l.Lease, err)
	}
	l.TTL = ttl.TTL
	return nil
}

// watchRenewals looks for writes to the entries at whose address no live master is known. Entries that expire meanwhile leave the list;
// those that nobody has renewed in the end are stale.
func (a *app) watchRenewals(whole context.Context, c *clientv3.Client, r *leaseRequest, leases []masterlease, from int64) ([]masterlease, error) {
	ctx, cancel := context.WithTimeout(whole, r.watch)
	defer cancel()
	events := c.Watch(clientv3.WithRequireLeader(ctx), r.prefix, clientv3.WithPrefix(), clientv3.WithRev(from))
	byKey := map[string]*masterlease{}
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
			return nil, etcdError(c, "watch "+r.prefix, err)
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
			limited, cancel := a.limit(whole)
			err := l.readLease(limited, c, e.Kv.Lease)
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
	var out []masterlease
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
func (a *app) liveMasters(ctx context.Context, c *clientv3.Client, named []string) (map[string]string, error) {
	live := map[string]string{}
	for _, m := range named {
		if _, err := netip.ParseAddr(m); err != nil {
			return nil, usagef("--live-master=%s is not an IP address", m)
		}
		live[canonical(m)] = "named by --live-master"
	}
	limited, cancel := a.limit(ctx)
	defer cancel()
	members, err := c.MemberList(limited)
	if err != nil {
		return nil, etcdError(c, "list members", err)
	}
	var mu sync.Mutex
	var wg sync.WaitGroup
	for _, m := range members.Members {
		wg.Go(func() {
			err := answers(ctx, c, m.ClientURLs)
			var addresses []string
			if err == nil {
				addresses, err = resolve(ctx, append(m.ClientURLs, m.PeerURLs...))
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				a.note("member %s doesn't count as a live master: %v", m.Name, err)
			}
			for _, ip := range addresses {
				live[ip] = "member " + m.Name
			}
		})
	}
	wg.Wait()
	return live, nil
}

// answers returns nil if one of a member's client URLs does.
func answers(ctx context.Context, c *clientv3.Client, urls []string) error {
	ctx, cancel := context.WithTimeout(ctx, statusTimeout)
	defer cancel()
	err := fmt.Errorf("it has no client URL, so it has never started")
	for _, u := range urls {
		if _, err = c.Status(ctx, u); err == nil {
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
			return nil, fmt.Errorf("its name is not to be resolved here (name its address with --live-master): %w", err)
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
