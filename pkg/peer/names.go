package peer

import (
	"maps"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// hostName is what a name in a hosts file may look like: labels of letters, digits, hyphens and underscores.
var hostName = regexp.MustCompile(`^([A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?\.)*[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?$`)

func validHostName(name string) bool {
	if _, err := netip.ParseAddr(name); err == nil || strings.EqualFold(name, "localhost") {
		return false
	}
	return len(name) <= 253 && hostName.MatchString(name)
}

// HostEntries returns the IP addresses of all known nodes' host names, the own ones included. The names follow from the node ids, so
// that nobody can have another name resolve to an address of its choice.
func (p *Peers) HostEntries() map[string][]string {
	p.mu.Lock()
	defer p.mu.Unlock()
	entries := map[string][]string{}
	if p.cfg.HostNames == nil {
		return entries
	}
	add := func(id cluster.NodeID, addresses []string) {
		if addresses = p.usable(addresses); len(addresses) == 0 {
			return
		}
		for _, name := range p.cfg.HostNames(id) {
			if _, ok := entries[name]; !ok && validHostName(name) {
				entries[name] = addresses
			}
		}
	}
	for _, i := range p.view.newestFirst() {
		add(i.ID, i.Addresses)
	}
	for _, id := range slices.Sorted(maps.Keys(p.nodes)) {
		if n := p.nodes[id]; p.view.infos[id].Incarnation == 0 && !n.refused {
			add(id, hostIPs(n.endpoints(Info{})))
		}
	}
	return entries
}

// Addresses returns the IP addresses at which a node is found, the own one included; none if they aren't known.
func (p *Peers) Addresses(id cluster.NodeID) []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	if id == p.cfg.Self.ID {
		return slices.Clone(p.self.Addresses)
	}
	if known := p.usable(p.view.infos[id].Addresses); len(known) > 0 {
		return known
	}
	if n := p.nodes[id]; n != nil && !n.refused {
		return p.usable(hostIPs(n.endpoints(Info{})))
	}
	return nil
}

// usable returns those of the addresses at which another machine can be: IP addresses of one machine, and of this machine itself only if this
// node is known by one of those too, as all nodes on one machine are.
func (p *Peers) usable(addresses []string) []string {
	local := slices.ContainsFunc(p.self.Addresses, func(s string) bool {
		a, err := netip.ParseAddr(s)
		return err == nil && a.Unmap().IsLoopback()
	})
	var out []string
	for _, s := range addresses {
		a, err := netip.ParseAddr(s)
		if err != nil {
			continue
		}
		if a = a.Unmap(); a.IsUnspecified() || a.IsMulticast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) || a.IsLoopback() && !local {
			continue
		}
		out = append(out, s)
	}
	return out
}

// hostIPs returns those hosts of the endpoints that are IP addresses.
func hostIPs(endpoints []string) []string {
	var ips []string
	for _, e := range endpoints {
		host, _, err := net.SplitHostPort(e)
		if err != nil {
			continue
		}
		if a, err := netip.ParseAddr(strings.Trim(host, "[]")); err == nil && !slices.Contains(ips, a.String()) {
			ips = append(ips, a.String())
		}
	}
	return ips
}
