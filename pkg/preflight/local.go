package preflight

import (
	"context"
	"fmt"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/pki"
)

// certificates checks the CAs.
func (r *run) certificates() {
	if len(r.CAs) == 0 {
		r.skipped("certificates", "neither the managers nor etcd use TLS")
		return
	}
	i := pki.Inspect(r.PKIDir, r.CAs, r.Now())
	for _, p := range i.Problems {
		level := Warning
		if p.Serious {
			level = Problem
		}
		r.add("certificates", level, p.Do, "%s: %s", p.Path, p.Text)
	}
	if len(i.Problems) > 0 {
		return
	}
	var ends []string
	for _, c := range i.Certificates {
		if c.Signs {
			ends = append(ends, fmt.Sprintf("%s until %s", c.Name, c.NotAfter.Format(time.DateOnly)))
		}
	}
	r.ok("certificates", "the CAs in %s are good: %s", r.PKIDir, strings.Join(ends, ", "))
}

// etcd checks that the wanted version can be run here.
func (r *run) etcd() {
	if r.Binaries == nil {
		return
	}
	version := r.version
	if version == "" {
		version = etcd.CompiledVersion
	}
	b, err := r.Binaries.Nearest(version)
	switch {
	case err != nil:
		r.problem("etcd", "unpack that version of etcd to /opt/etcd-v"+version+" (docs/versions.md), or choose another one with "+
			"configure-cluster --etcd-version",
			"etcd %s can't be run here: %v", version, err)
	case b.Version != version:
		r.warning("etcd", "unpack that version of etcd to /opt/etcd-v"+version+" (docs/versions.md), if it must be exactly that one",
			"etcd %s isn't here; %s would run in its place, from %s", version, b.Version, b.Path)
	default:
		r.ok("etcd", "etcd %s: %s", b.Version, b.Path)
	}
}

const (
	// dialTime bounds one connection, dialsAtMost how many managers are asked.
	dialTime    = 3 * time.Second
	dialsAtMost = 16
)

// managers connects to the others that are known, all at once.
func (r *run) managers() {
	if r.Dial == nil {
		return
	}
	others := maps.Clone(r.Others)
	if others == nil {
		others = map[string][]string{}
	}
	r.published(others)
	names := slices.Sorted(maps.Keys(others))
	names = names[:min(len(names), dialsAtMost)]
	results := make([]error, len(names))
	var wg sync.WaitGroup
	for i, name := range names {
		wg.Go(func() {
			for _, endpoint := range others[name] {
				ctx, cancel := context.WithTimeout(r.ctx, dialTime)
				results[i] = r.Dial(ctx, name, endpoint)
				cancel()
				if results[i] == nil {
					return
				}
			}
		})
	}
	wg.Wait()
	for i, name := range names {
		at := strings.Join(others[name], ", ")
		switch err := results[i]; {
		case err == nil:
			r.ok("managers", "%s at %s answers, and has the same CA", name, at)
		case strings.Contains(err.Error(), "x509:") || strings.Contains(err.Error(), "tls:"):
			r.problem("managers", "copy the CAs (--pki-dir) of that master to this one, or back; `etcd-manager-ctl pki check` shows "+
				"their SHA-256",
				"%s at %s and this machine don't accept each other's certificates: %v", name, at, err)
		default:
			r.warning("managers", "start it if it doesn't run; else open its --grpc-port to this machine in firewalls",
				"%s at %s doesn't answer: %v",
				name, at, err)
		}
	}
}

// published adds what the managers have written to the store about themselves, without what this address has itself.
func (r *run) published(others map[string][]string) {
	if r.Store == nil || r.Catalog == nil || !slices.ContainsFunc(r.found, func(f Finding) bool {
		return f.Check == "store" &&
			f.Level == OK
	}) {
		return
	}
	ctx, cancel := context.WithTimeout(r.ctx, storeTime)
	defer cancel()
	records, _, err := r.Catalog.Peers(ctx, nil)
	if err != nil {
		r.skipped("managers", "the other managers aren't known: %v", err)
		return
	}
	living, _ := catalog.LivingPeers(records)
	for _, p := range living {
		endpoints := slices.DeleteFunc(slices.Clone(p.Info.GetEndpoints()), func(e string) bool { return r.isOwn(e) })
		if len(endpoints) > 0 {
			others[p.Info.GetNodeId()] = endpoints
		}
	}
}

// isOwn tells whether an endpoint is the own one.
func (r *run) isOwn(endpoint string) bool {
	return slices.ContainsFunc(r.Listeners, func(l Listener) bool {
		return l.Setting == "--grpc-port" && endpoint == net.JoinHostPort(l.Host, l.Port)
	})
}
