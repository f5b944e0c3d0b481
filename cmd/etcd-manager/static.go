package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// staticConfig is the value of --static-config.
type staticConfig struct {
	EtcdVersion string       `json:"etcdVersion"`
	Nodes       []staticNode `json:"nodes"`
}

// staticNode is a node with its addresses, for which host names may stand.
type staticNode struct {
	ID string   `json:"id"`
	IP []string `json:"ip"`
}

const (
	// lookupPatience is how long a name server has for a name, lookupAgain the time between two rounds of questions.
	lookupPatience = 5 * time.Second
	lookupAgain    = 5 * time.Second
	// saidAgain is how often it is said what is waited for.
	saidAgain = time.Minute
)

func (o *options) parseStatic() error {
	if o.staticConfig == "" {
		return nil
	}
	var s staticConfig
	d := json.NewDecoder(strings.NewReader(o.staticConfig))
	d.DisallowUnknownFields()
	if err := d.Decode(&s); err != nil {
		return fmt.Errorf(`--static-config is not like {"etcdVersion":"3.6.16","nodes":[{"id":"x","ip":["10.0.0.1"]}]}: %s`,
			cluster.Shown(err.Error(), 300))
	}
	if !cluster.ValidMemberCount(len(s.Nodes)) {
		return fmt.Errorf("--static-config has %d nodes; only 1, 3, 5, 7 or 9 make a cluster", len(s.Nodes))
	}
	for _, n := range s.Nodes {
		if _, err := cluster.ParseNodeID(n.ID); err != nil {
			return fmt.Errorf("--static-config: %w", err)
		}
	}
	if s.EtcdVersion != "" {
		if _, err := cluster.ParseVersion(s.EtcdVersion); err != nil {
			return fmt.Errorf("--static-config: %w", err)
		}
	}
	if s.find(o.address) == "" && len(s.names()) == 0 && !o.prepared() {
		return fmt.Errorf("--static-config names no node with the address %s (--address)", o.address)
	}
	o.static = &s
	return nil
}

// prepared tells that the data dir is one that somebody has made for this node and whose name says who it is; --volume-tag begins it.
func (o *options) prepared() bool {
	return o.volumeProvider == providerExternal && o.dataDir == "" && len(o.volumeTags) > 0
}

// isFileName tells whether s can begin the name of a file in a directory, and of no other.
func isFileName(s string) bool {
	return s != "" && s != "." && s != ".." && !strings.ContainsAny(s, "/\x00")
}

// find returns the id of the node with an address.
func (s *staticConfig) find(address string) cluster.NodeID {
	want, err := netip.ParseAddr(address)
	if err != nil {
		return ""
	}
	for _, n := range s.Nodes {
		for _, ip := range n.IP {
			if a, err := netip.ParseAddr(ip); err == nil && a == want {
				return cluster.NodeID(n.ID)
			}
		}
	}
	return ""
}

// has tells whether a node is one of the fixed members.
func (s *staticConfig) has(id cluster.NodeID) bool {
	return slices.ContainsFunc(s.Nodes, func(n staticNode) bool { return n.ID == string(id) })
}

// names are the host names that stand for addresses, with the nodes that they belong to.
func (s *staticConfig) names() map[string]cluster.NodeID {
	names := map[string]cluster.NodeID{}
	for _, n := range s.Nodes {
		for _, host := range n.IP {
			if _, err := netip.ParseAddr(strings.Trim(host, "[]")); err != nil {
				names[host] = cluster.NodeID(n.ID)
			}
		}
	}
	return names
}

// lookup asks which addresses a host name has.
type lookup func(ctx context.Context, host string) ([]netip.Addr, error)

func lookupHost(ctx context.Context, host string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupPatience)
	defer cancel()
	return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
}

// byName finds the node whose host name has this machine's address. The error says which names don't resolve,
// or that none is this machine's.
func (s *staticConfig) byName(ctx context.Context, address string, ask lookup) (cluster.NodeID, error) {
	want, err := netip.ParseAddr(address)
	if err != nil {
		return "", err
	}
	var errs []error
	names := s.names()
	for _, host := range slices.Sorted(maps.Keys(names)) {
		addresses, err := ask(ctx, host)
		if err != nil {
			errs = append(errs, err)
		}
		if slices.ContainsFunc(addresses, func(a netip.Addr) bool { return a.Unmap() == want }) {
			return names[host], nil
		}
	}
	if len(errs) > 0 {
		return "", fmt.Errorf("the address %s doesn't show which node of --static-config this is: %w", address, errors.Join(errs...))
	}
	return "", fmt.Errorf("--static-config names no node with the address %s (--address): %w", address, cluster.ErrPermanent)
}

// fixedID is which of the fixed members this node is: by its address, by what the data dir says, by a name
// that has the address. It waits until the
// names resolve.
func (o *options) fixedID(ctx context.Context, ask lookup) (cluster.NodeID, error) {
	if id := o.static.find(o.address); id != "" {
		return id, nil
	}
	if id, err := o.readNodeID(); err == nil && o.static.has(id) {
		return id, nil
	}
	var said time.Time
	for {
		id, err := o.static.byName(ctx, o.address, ask)
		if err == nil || errors.Is(err, cluster.ErrPermanent) || ctx.Err() != nil {
			return id, cmp.Or(err, ctx.Err())
		}
		if time.Since(said) >= saidAgain {
			said = time.Now()
			klog.Warningf("waiting: %v", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(lookupAgain):
		}
	}
}

func (o *options) myID() string { return filepath.Join(o.dataDir, "myid") }

// readNodeID reads the file myid. An error that wraps fs.ErrNotExist means that there is none.
func (o *options) readNodeID() (cluster.NodeID, error) {
	path := o.myID()
	data, err := os.ReadFile(path)
	if err != nil {
		return "", fmt.Errorf("read node id: %w", err)
	}
	id, err := cluster.ParseNodeID(strings.TrimSpace(string(data)))
	if err != nil {
		return "", fmt.Errorf("%s: %w; write this node's old id there, or delete the file: then the node joins with a new id", path, err)
	}
	return id, nil
}

// nodeID is the node's stable name: of the static configuration, else of the file myid, which is made at the first start.
func (o *options) nodeID(ctx context.Context) (cluster.NodeID, error) {
	if o.static != nil {
		return o.fixedID(ctx, lookupHost)
	}
	id, err := o.readNodeID()
	if errors.Is(err, fs.ErrNotExist) {
		return newNodeID(o.myID())
	}
	return id, err
}

// ownAddress is the address under which others reach this machine where nobody names one: the lowest that is
// neither loopback nor link-local, IPv4 first.
func ownAddress(all []netip.Addr) (netip.Addr, bool) {
	var usable []netip.Addr
	for _, a := range all {
		if a = a.Unmap().WithZone(""); a.IsValid() && !a.IsLoopback() && !a.IsLinkLocalUnicast() && !a.IsMulticast() && !a.IsUnspecified() {
			usable = append(usable, a)
		}
	}
	if len(usable) == 0 {
		return netip.Addr{}, false
	}
	return slices.MinFunc(usable, netip.Addr.Compare), true // IPv4 compares lower
}

// machineAddresses are those of all interfaces.
func machineAddresses() ([]netip.Addr, error) {
	list, err := net.InterfaceAddrs()
	if err != nil {
		return nil, fmt.Errorf("read this machine's addresses: %w", err)
	}
	var all []netip.Addr
	for _, a := range list {
		if p, err := netip.ParsePrefix(a.String()); err == nil {
			all = append(all, p.Addr())
		}
	}
	return all, nil
}
