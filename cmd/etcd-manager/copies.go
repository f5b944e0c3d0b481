package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/connect"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/manager"
	"github.com/etcd-manager/etcd-manager/pkg/prune"
	"github.com/etcd-manager/etcd-manager/pkg/retention"
)

// copyOptions are the flags of --backup-store-copy.
type copyOptions struct {
	urls []string
	// hourly, daily and changes are how long copies keep what they have; negative means as long as the first store.
	hourly, daily, changes time.Duration
	// rate is in bytes per second; 0 means no bound.
	rate int64
}

// defaultCopyRate is what a copy may read in bytes per second: the leader runs beside an etcd that needs the same network.
const defaultCopyRate = 32 << 20

func (c *copyOptions) flags(f *flag.FlagSet) {
	c.hourly, c.daily, c.changes, c.rate = -1, -1, -1, defaultCopyRate
	f.Var(list{&c.urls}, "backup-store-copy",
		"another store, of any kind, to which backups, changes, spec and records are copied (docs/copy.md); may be repeated")
	f.Var(sameAs{&c.hourly}, "copy-hourly-retention",
		"how long copies keep a backup of each hour: 168h, 7d, 1y (default: as long as --backup-store)")
	f.Var(sameAs{&c.daily}, "copy-daily-retention", "how long copies keep a backup of each day (default: as long as --backup-store)")
	f.Var(sameAs{&c.changes}, "copy-change-log-retention",
		"how long copies keep every change between backups; 0 means as long as a backup of each hour (default: as long as --backup-store)")
	f.Var(rate{&c.rate}, "copy-rate", "how much a copy reads at most from --backup-store in a second: 32MiB, 500KiB; 0 means no limit")
}

// sameAs is a duration that is that of the first store unless it is given.
type sameAs struct{ to *time.Duration }

func (s sameAs) String() string {
	if s.to == nil || *s.to < 0 {
		return ""
	}
	return retention.FormatDuration(*s.to)
}

func (s sameAs) Set(text string) error {
	d, err := retention.ParseDuration(text)
	if err == nil && d < 0 {
		err = errors.New("it must not be negative")
	}
	if err == nil {
		*s.to = d
	}
	return err
}

func (s sameAs) or(d time.Duration) time.Duration {
	if *s.to < 0 {
		return d
	}
	return *s.to
}

// rate is an amount of bytes, written with a unit.
type rate struct{ to *int64 }

func rateUnits() []struct {
	name  string
	bytes int64
} {
	return []struct {
		name  string
		bytes int64
	}{{"GiB", 1 << 30}, {"MiB", 1 << 20}, {"KiB", 1 << 10}}
}

func (r rate) String() string {
	if r.to == nil || *r.to == 0 {
		return "0"
	}
	for _, u := range rateUnits() {
		if *r.to%u.bytes == 0 {
			return strconv.FormatInt(*r.to/u.bytes, 10) + u.name
		}
	}
	return strconv.FormatInt(*r.to, 10)
}

func (r rate) Set(text string) error {
	number, unit := text, int64(1)
	for _, u := range rateUnits() {
		if n, ok := strings.CutSuffix(text, u.name); ok {
			number, unit = n, u.bytes
		}
	}
	n, err := strconv.ParseInt(number, 10, 64)
	if err != nil || n < 0 || n > 1<<50/unit {
		return fmt.Errorf("%.40q must be a number of bytes per second such as 32MiB or 500KiB, or 0", text)
	}
	*r.to = n * unit
	return nil
}

// checkCopies finds out what can't be right before anything starts.
func (o *options) checkCopies() error {
	seen := map[string]bool{strings.TrimRight(o.backupStore, "/"): true}
	var errs []error
	for _, url := range o.copies.urls {
		key := strings.TrimRight(url, "/")
		switch {
		case key == "":
			errs = append(errs, errors.New("--backup-store-copy is empty; give the URL of another store, or leave the flag out"))
		case seen[key]:
			errs = append(errs, fmt.Errorf("--backup-store-copy=%s is --backup-store, or was given twice; a copy needs a place of its own", url))
		}
		for other := range seen {
			if other != "" && key != "" && (strings.HasPrefix(key, other+"/") || strings.HasPrefix(other, key+"/")) {
				errs = append(errs, fmt.Errorf("--backup-store-copy=%s and %s lie one in the other; a copy needs a place of its own", url, other))
			}
		}
		seen[key] = true
	}
	return errors.Join(errs...)
}

// copyPrefix begins the variables that only copies are reached with. One that isn't set is that of --backup-store; an empty one is not set.
const copyPrefix = "ETCD_MANAGER_COPY_"

// copyEnv looks a variable up for a copy.
func copyEnv(env map[string]string, name string) string {
	if v, ok := env[copyPrefix+name]; ok {
		return v
	}
	return env[name]
}

// openCopies opens the stores of --backup-store-copy. Nothing is sent yet.
func openCopies(ctx context.Context, o *options, requests *requestCounter, keys catalog.Option) ([]manager.StoreCopy, error) {
	var list []manager.StoreCopy
	for _, url := range o.copies.urls {
		s, err := connect.Open(ctx, url, func(k string) string { return copyEnv(o.env, k) }, connect.OnRequest(requests.addCopy))
		if err != nil {
			return nil, fmt.Errorf("--backup-store-copy: %w", err)
		}
		s = blob.Retry(blob.WithTimeouts(blob.Detach(s), blob.Timeouts{}), blob.RetryPolicy{})
		list = append(list, manager.StoreCopy{Catalog: catalog.New(s, keys), Name: url, Rate: o.copies.rate})
	}
	return list, nil
}

// copyRetention is how long copies keep what they have.
func (o *options) copyRetention() prune.Policy {
	p := o.retention
	p.Backups.Hourly = sameAs{&o.copies.hourly}.or(p.Backups.Hourly)
	p.Backups.Daily = sameAs{&o.copies.daily}.or(p.Backups.Daily)
	p.Changes = sameAs{&o.copies.changes}.or(p.Changes)
	return p
}

// checkCopiesInUse refuses to start where a copy of this store was put into use, since another cluster may serve from it: the first store
// is away then, or as it was at that time. If the leader has written to the first store since, or this node's etcd to its log, they were in
// use beside the copy all along, as after a drill: a restart while the store is away must not stop them.
// Like checkSuperseded it is asked before anything is started, and leaves alone what runs. A copy that doesn't answer is passed over.
func checkCopiesInUse(ctx context.Context, d *daemon) error {
	ctx, cancel := context.WithTimeout(ctx, supersededTimeout)
	defer cancel()
	// All are asked at once: one that hangs must not take the time of the others.
	records, written := make([]catalog.CopyRecord, len(d.copies)), time.Time{}
	var wg sync.WaitGroup
	for i, c := range d.copies {
		wg.Go(func() {
			if r, _, err := c.Catalog.CopyRecord(ctx); err == nil {
				records[i] = r
			}
		})
	}
	wg.Go(func() {
		if l, err := d.catalog.ControlListing(ctx); err == nil {
			written = l.Leader.Modified
		}
	})
	wg.Wait()
	for i, c := range d.copies {
		r := records[i]
		if r.InUse.IsZero() || r.Of != d.o.backupStore || r.ClusterName != d.o.clusterName {
			continue
		}
		if time.Until(r.InUse) > usedBeside {
			klog.Errorf("the copy %s says that it was put into use at %s, which lies in the future: that is a wrong clock, or forged, and is passed "+
				"over. If another cluster serves from it, stop this manager (SIGTERM)", c.Name, r.InUse.UTC().Format(time.RFC3339))
			continue
		}
		since := r.InUse.Add(usedBeside)
		beside := written.After(since) || wroteAfter(d.o.dataDir, since)
		if beside {
			klog.Warningf("the copy %s of this store was put into use at %s; this cluster has served since, so it goes on", c.Name,
				r.InUse.UTC().Format(time.RFC3339))
			continue
		}
		err := fmt.Errorf("the copy %s of this store was put into use at %s, so another cluster may serve in the place of this one: its etcd isn't "+
			"started; if this one is the right one, start its managers without --backup-store-copy=%s", c.Name, r.InUse.UTC().Format(time.RFC3339),
			c.Name)
		if dir := runningOn(d.o.dataDir); dir != "" {
			klog.Errorf("an etcd runs on %s, so the manager starts and looks after it. Stop it if it isn't to serve (SIGTERM to this manager): %v",
				dir, err)
			continue
		}
		return err
	}
	return nil
}

// wroteAfter tells whether an etcd of this node has written to its log after a moment.
func wroteAfter(dataDir string, at time.Time) bool {
	logs, err := filepath.Glob(filepath.Join(dataDir, "data", "*", "member", "wal", "*.wal"))
	if err != nil {
		return false
	}
	return slices.ContainsFunc(logs, func(path string) bool {
		info, err := os.Stat(path)
		return err == nil && info.ModTime().After(at)
	})
}

// usedBeside is how long after a copy was put into use the first store, or this node's etcd, must have been written to so that both
// count as used: clocks differ.
const usedBeside = 10 * time.Minute
