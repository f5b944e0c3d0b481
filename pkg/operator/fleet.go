package operator

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/operator/database"
	"github.com/etcd-manager/etcd-manager/pkg/operator/health"
)

const (
	// fleetAtOnce is how many requests are under way at the same time; fleetDirs how many directories are looked into at most, and
	// fleetDepth how deep they may be.
	fleetAtOnce = 32
	fleetDirs   = 20000
	fleetDepth  = 8
)

// ClusterHealth is one cluster of a fleet.
type ClusterHealth struct {
	// Prefix is where it is, relative to the store.
	Prefix string `json:"prefix"`
	health.Report
}

// FleetHealth is how the clusters below a store do. As JSON it is versioned as health.Report is.
type FleetHealth struct {
	Version int       `json:"version"`
	At      time.Time `json:"at"`
	Store   string    `json:"store"`
	// Verdict is the worst; unknown if there is no cluster.
	Verdict health.Verdict `json:"verdict"`
	// Clusters are sorted by trouble, the worst first.
	Clusters []ClusterHealth `json:"clusters"`
}

// Fleet says how all clusters below a store do, or below some prefixes of it. It takes one request for each directory down to a cluster,
// and two for each cluster whose leader shows what it knows, a few more for others. Below a directory that has one named "backups",
// only that
// is looked into, as in the state store of kOps. What config says of emptiness isn't asked.
func Fleet(ctx context.Context, config Config, prefixes []string) (FleetHealth, error) {
	if config.Timeout <= 0 {
		config.Timeout = DefaultTimeout
	}
	if config.Now == nil {
		config.Now = time.Now
	}
	if config.Open == nil {
		config.Open = config.connect
	}
	store, err := config.Open(ctx, config.Store)
	if err != nil {
		return FleetHealth{}, &ConfigError{FieldStore, err}
	}
	if len(prefixes) == 0 {
		prefixes = []string{""}
	}
	f := &fleet{ctx: ctx, config: config, store: store, slots: make(chan struct{}, fleetAtOnce)}
	for _, p := range prefixes {
		p = strings.Trim(p, "/")
		f.wg.Go(func() { f.visit(p, 0) })
	}
	f.wg.Wait()
	if f.err != nil {
		return FleetHealth{}, f.err
	}
	out := FleetHealth{Version: health.SchemaVersion, At: config.Now().UTC().Truncate(time.Second), Store: config.Store,
		Verdict: health.Unknown, Clusters: []ClusterHealth{}}
	slices.SortFunc(f.found, func(x, y ClusterHealth) int {
		return cmp.Or(cmp.Compare(y.Verdict.Trouble(), x.Verdict.Trouble()), cmp.Compare(x.Prefix, y.Prefix))
	})
	out.Clusters = append(out.Clusters, slices.CompactFunc(f.found, func(x, y ClusterHealth) bool { return x.Prefix == y.Prefix })...)
	if len(out.Clusters) > 0 {
		out.Verdict = out.Clusters[0].Verdict
	}
	return out, nil
}

// fleet is one look at all clusters.
type fleet struct {
	ctx    context.Context
	config Config
	store  blob.Store
	slots  chan struct{}

	wg    sync.WaitGroup
	mu    sync.Mutex
	dirs  int
	found []ClusterHealth
	err   error
}

func (f *fleet) fail(err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.err = cmp.Or(f.err, err)
}

// begin takes a place, and counts a directory; false if the look is over.
func (f *fleet) begin() bool {
	f.slots <- struct{}{}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.dirs++; f.dirs > fleetDirs && f.err == nil {
		f.err = invalidf("there are more than %d directories below %s: name longer prefixes", fleetDirs, f.config.Store)
	}
	return f.err == nil
}

// visit looks into a directory: it is a cluster, or there may be some below it.
func (f *fleet) visit(dir string, depth int) {
	below, ours := f.look(dir)
	if ours {
		f.cluster(dir)
		return
	}
	if depth == fleetDepth {
		return
	}
	if slices.Contains(below, "backups") {
		below = []string{"backups"}
	}
	for _, name := range below {
		f.wg.Go(func() { f.visit(strings.TrimPrefix(dir+"/"+name, "/"), depth+1) })
	}
}

// look tells whether a directory is a cluster's, and else what is below it.
func (f *fleet) look(dir string) (below []string, ours bool) {
	defer func() { <-f.slots }()
	if !f.begin() {
		return nil, false
	}
	ctx, cancel := context.WithTimeout(f.ctx, f.config.Timeout)
	defer cancel()
	ours, below, err := lookInto(ctx, blob.Below(f.store, dir))
	if err != nil && !notThere(err) {
		f.fail(fmt.Errorf("look for clusters: %w", err))
		return nil, false
	}
	return below, ours
}

// notThere tells a directory of a file store that doesn't exist.
func notThere(err error) bool {
	return errors.Is(err, blob.ErrInvalid) && errors.Is(err, fs.ErrNotExist)
}

// cluster judges one. What can't be read is its own affair.
func (f *fleet) cluster(dir string) {
	f.slots <- struct{}{}
	defer func() { <-f.slots }()
	url := strings.TrimRight(f.config.Store, "/")
	if dir != "" {
		url += "/" + dir
	}
	config := f.config
	config.Store = url
	c := catalog.New(blob.Below(f.store, dir), catalog.WithClock(config.Now))
	client := &Client{catalog: c, archive: &changelog.Archive{Catalog: c}, config: config, checker: database.Children{}}
	r, err := client.Health(f.ctx, HealthOptions{Brief: true})
	if err != nil {
		r = health.CannotTell(url, config.Now(), health.KindStoreSilent, "It can't be read: "+err.Error(), "")
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.found = append(f.found, ClusterHealth{Prefix: cmp.Or(dir, "."), Report: r})
}
