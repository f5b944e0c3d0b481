package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
	"github.com/etcd-manager/etcd-manager/pkg/operator/health"
	"github.com/etcd-manager/etcd-manager/pkg/page"
	"github.com/etcd-manager/etcd-manager/pkg/peer"
	"github.com/etcd-manager/etcd-manager/pkg/status"
)

const (
	// defaultPage is where the page is if nobody says; pagePorts is how many ports from there on are tried, since several managers
	// may run on one machine.
	defaultPage = "127.0.0.1:2390"
	pagePorts   = 10
	// pageAgain is how long a port that can't be had is left alone.
	pageAgain = 30 * time.Second
	// pageTimeout bounds the few small requests of one look at the store.
	pageTimeout = 20 * time.Second
)

// parsePage checks --page-listen.
func (o *options) parsePage(given bool) error {
	o.pageGiven = given
	if o.pageListen == "" {
		return nil
	}
	a, err := netip.ParseAddrPort(o.pageListen)
	switch {
	case err != nil || a.Port() == 0:
		return fmt.Errorf("--page-listen=%s must be an IP address and a port, for example %s, or empty for no page",
			o.pageListen, defaultPage)
	case a.Addr().IsUnspecified():
		return fmt.Errorf("--page-listen=%s must be one address, not all of them: the certificate is made for it", o.pageListen)
	case !a.Addr().Unmap().IsLoopback() && o.etcdInsecure:
		return fmt.Errorf("--page-listen=%s isn't a loopback address, so the page needs TLS with client certificates; --etcd-insecure has "+
			"no CA for them: use a loopback address, for example %s", o.pageListen, defaultPage)
	}
	if o.standbyOf == "" { // a standby shows no page; the flag is for when the node runs a cluster
		o.page = a
	}
	return nil
}

// pageAddresses are those for which the page needs a certificate; nil on loopback.
func (o *options) pageAddresses() []net.IP {
	if !o.page.IsValid() || o.page.Addr().Unmap().IsLoopback() {
		return nil
	}
	return []net.IP{o.page.Addr().Unmap().AsSlice()}
}

// pageServer shows the page for people.
type pageServer struct{ d *daemon }

// run shows the page until ctx ends. It is a convenience: that its port can't be had ends nothing.
func (s *pageServer) run(ctx context.Context) error {
	h, err := s.handler(ctx)
	if err != nil {
		return err
	}
	for ctx.Err() == nil {
		l, err := s.listen()
		if err != nil {
			s.d.said.Warningf("page", "the page for people isn't shown: %v; it is tried again every %s", err, pageAgain)
		} else if err := s.serve(ctx, l, h); err != nil && ctx.Err() == nil {
			s.d.said.Warningf("page", "the page for people: %v; it is shown again in %s", err, pageAgain)
		}
		select {
		case <-ctx.Done():
		case <-time.After(pageAgain):
		}
	}
	return nil
}

// listen opens the port: the one that was asked for, else the first free one of a few.
func (s *pageServer) listen() (net.Listener, error) {
	o, ports := s.d.o, pagePorts
	if o.pageGiven {
		ports = 1
	}
	var first error
	for i := range ports {
		port := strconv.Itoa(int(o.page.Port()) + i)
		if ports > 1 && o.usesPort(port) {
			continue // etcd, or something else of this manager, is to have it
		}
		l, err := net.Listen("tcp", net.JoinHostPort(o.page.Addr().String(), port))
		if err == nil {
			return l, nil
		}
		if first == nil {
			first = err
		}
	}
	if ports > 1 {
		return nil, fmt.Errorf("none of %d ports from %s on is free; give one by --page-listen: %w", ports, o.page, first)
	}
	return nil, fmt.Errorf("--page-listen: %w", first)
}

// usesPort tells whether a port is given to something else by a flag.
func (o *options) usesPort(port string) bool {
	for u := range strings.SplitSeq(strings.Join([]string{o.clientURLs, o.peerURLs, o.quarantine, o.metricsURLs}, ","), ",") {
		if strings.HasSuffix(strings.TrimRight(u, "/"), ":"+port) {
			return true
		}
	}
	return port == strconv.Itoa(o.grpcPort) || port == strconv.Itoa(o.metricsPort)
}

func (s *pageServer) serve(ctx context.Context, l net.Listener, h http.Handler) error {
	server := status.Server(page.LocalOnly(h))
	server.BaseContext = func(net.Listener) context.Context { return ctx }
	limited, scheme := peer.Limit(l), "http"
	if s.d.o.pageAddresses() != nil {
		server.Handler, scheme = h, "https"
		limited = tls.NewListener(limited, s.d.keeper.PageServer())
	}
	klog.Infof("the page for people is at %s://%s/", scheme, l.Addr())
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	if err := server.Serve(limited); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// handler composes the page: what was read of the store last, and what this manager knows at this moment.
func (s *pageServer) handler(ctx context.Context) (http.Handler, error) {
	c, err := operator.Open(ctx, operator.Config{Store: s.d.o.backupStore, AllowEmpty: true, Timeout: pageTimeout,
		Open: func(context.Context, string) (blob.Store, error) { return s.d.store, nil }})
	if err != nil {
		return nil, err
	}
	reader := page.NewReader(ctx, func(ctx context.Context) (health.Facts, error) { return c.Facts(ctx, operator.HealthOptions{}) })
	said := page.NewLatest(func() word {
		w := word{status: s.d.manager.Status(ctx)}
		for _, e := range s.d.manager.Outlook().Recent {
			w.events = append(w.events, page.Event{At: e.At, Text: e.Text})
		}
		return w
	})
	at := place{store: s.d.o.backupStore, cluster: s.d.o.clusterName, node: s.d.id}
	return page.Handler(func(ctx context.Context) page.View { return at.look(ctx, reader, said) })
}

// word is what this manager says at a moment.
type word struct {
	status catalog.Status
	events []page.Event
}

// place says whose page it is.
type place struct {
	store, cluster string
	node           cluster.NodeID
}

// look composes a view of what was read of the store last, and of what this manager has said last: neither a store nor a disk that hangs
// keeps the page back.
func (p place) look(ctx context.Context, reader *page.Reader, latest *page.Latest[word]) page.View {
	stored, at, problem := reader.Look(ctx)
	said, saidAt := latest.Look(ctx)
	now := time.Now()
	v := page.View{Node: p.node, StoreRead: at, ManagerRead: saidAt, Events: said.events}
	if problem != nil {
		v.StoreProblem = problem.Error()
	}
	stored.Store = p.store
	if !at.IsZero() && stored.Blank() && said.status.HasMember() {
		// The place where a file system was mounted is empty afterwards: that says nothing of what is stored.
		at, v.StoreRead, v.StoreProblem = time.Time{}, time.Time{}, fmt.Sprintf("%s has nothing of a cluster, although this node has a member "+
			"of one; is the file system mounted?", p.store)
	}
	facts, known := stored.WithWord(said.status, now, !at.IsZero())
	switch {
	case known:
		v.Report, v.Marks = health.Judge(facts), health.Marks(facts)
	case saidAt.IsZero():
		v.Report = health.CannotTell(p.store, now, health.KindStoreSilent, "This manager has not said yet how its node does; a disk may hang. "+
			"Nothing was read of the store yet: "+v.StoreProblem, "")
		v.StoreProblem = ""
	default:
		v.Report = health.CannotTell(p.store, now, health.KindStoreSilent,
			"This node has no member, and its manager has read nothing of the store yet: "+v.StoreProblem, "")
		v.Report.Doing, v.StoreProblem = said.status.Doing, ""
	}
	v.Report.ClusterName = p.cluster
	return v
}
