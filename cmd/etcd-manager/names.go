package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/hosts"
)

// hostsAgain is how long a hosts file that couldn't be written is left alone.
const hostsAgain = 5 * time.Second

// keepHosts keeps the members' names resolvable.
func (d *daemon) keepHosts(ctx context.Context) error {
	file := hosts.File{Path: d.o.hostsFile, KeepDir: d.o.dataDir}
	shadowed := ""
	for {
		changed := d.peers.Changed()
		var entries []hosts.Entry
		for name, ips := range d.peers.HostEntries() {
			for _, ip := range ips {
				a, err := netip.ParseAddr(ip)
				if err != nil {
					continue
				}
				entries = append(entries, hosts.Entry{Addr: a, Names: []string{name}})
			}
		}
		slices.SortFunc(entries, func(a, b hosts.Entry) int {
			return strings.Compare(a.Names[0]+a.Addr.String(), b.Names[0]+b.Addr.String())
		})
		wait := time.Minute
		if _, err := file.Update(ctx, d.o.clusterName, entries); err != nil && ctx.Err() == nil {
			d.said.Errorf("hosts", "names of members may not resolve: %v", err)
			wait, changed = hostsAgain, nil // whatever changes, a file that can't be written isn't tried more often
		}
		shadowed = d.checkNames(file, entries, shadowed)
		select {
		case <-ctx.Done():
			return nil
		case <-changed:
		case <-time.After(wait):
		}
	}
}

// checkNames compares what the hosts file says outside the own block with where the members are. It
// returns the problem, which is logged when it is another one than before, and told to the leader.
func (d *daemon) checkNames(file hosts.File, entries []hosts.Entry, before string) string {
	shadows, err := file.Shadows(d.o.clusterName, entries)
	if err != nil {
		return before // the update has said so
	}
	var lines []string
	for _, s := range shadows {
		lines = append(lines, s.String())
	}
	const most = 5
	if more := len(lines) - most; more > 0 {
		lines = append(lines[:most], fmt.Sprintf("and %d more", more))
	}
	problem := ""
	if len(lines) > 0 {
		problem = fmt.Sprintf("in %s %s, but the member is at another one", file.Path, strings.Join(lines, ", "))
	}
	d.agent.SetNameProblem(problem)
	switch {
	case problem == before:
	case problem == "":
		klog.Infof("the members' names resolve correctly again")
	default:
		klog.Errorf("members may not find each other: %s. Remove these lines", problem)
	}
	return problem
}

// expand turns a template into URLs for a node.
func (o *options) expand(template, name string) ([]string, error) {
	address := o.address
	if strings.Contains(address, ":") {
		address = "[" + address + "]"
	}
	var urls []string
	for s := range strings.SplitSeq(template, ",") {
		s = strings.TrimSpace(s)
		s = strings.ReplaceAll(strings.ReplaceAll(s, "__address__", address), "__name__", name+o.dnsSuffix)
		u, err := url.Parse(s)
		if err != nil {
			return nil, fmt.Errorf("%q is not a URL: %w", s, err)
		}
		if (u.Scheme != "http" && u.Scheme != "https") || u.Hostname() == "" || u.Port() == "" || strings.Trim(u.Path, "/") != "" {
			return nil, fmt.Errorf("%q must be like https://__address__:2380", s)
		}
		if o.etcdInsecure {
			u.Scheme = "http"
		}
		if u.Scheme == "http" && !o.etcdInsecure {
			return nil, fmt.Errorf("%q is plain http; that needs --etcd-insecure", s)
		}
		u.Path = ""
		urls = append(urls, u.String())
	}
	return urls, nil
}

// usesNames tells whether others reach etcd by name, so that names have to resolve.
func (o *options) usesNames() bool {
	return strings.Contains(o.peerURLs+o.clientURLs+o.quarantine, "__name__") || o.dnsSuffix != ""
}

// self is this node as a member.
func (o *options) self(id cluster.NodeID) (cluster.EtcdNode, error) {
	n := cluster.EtcdNode{Name: string(id), TLS: !o.etcdInsecure}
	var err [3]error
	n.PeerURLs, err[0] = o.expand(o.peerURLs, n.Name)
	n.ClientURLs, err[1] = o.expand(o.clientURLs, n.Name)
	n.QuarantinedClientURLs, err[2] = o.expand(o.quarantine, n.Name)
	return n, errors.Join(err[:]...)
}
