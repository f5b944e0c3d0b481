package preflight

import (
	"context"
	"errors"
	"io/fs"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// copies looks whether what is in the places for copies lets the leader copy to them. It writes nothing there.
func (r *run) copies() {
	for _, p := range r.Copies {
		if p.Err != nil {
			r.problem("copy", "correct --backup-store-copy, or the variables of the store (docs/flags.md)", "%v", p.Err)
			continue
		}
		ctx, cancel := context.WithTimeout(r.ctx, storeTime)
		r.copy(ctx, p)
		cancel()
	}
}

func (r *run) copy(ctx context.Context, p Place) {
	const another = "give --backup-store-copy an empty place"
	record, _, err := catalog.New(p.Store).CopyRecord(ctx)
	if errors.Is(err, catalog.ErrNotFound) {
		r.newCopy(ctx, p)
		return
	}
	switch same := strings.TrimRight(record.Of, "/") == strings.TrimRight(r.StoreURL, "/"); {
	case err != nil:
		r.problem("copy", storeAdvice(err), "%s: %v", p.URL, err)
	case !record.InUse.IsZero():
		r.problem("copy", "leave --backup-store-copy out, or "+another, "%s was put into use as a store of its own at %s: nothing is copied to it",
			p.URL, record.InUse.UTC().Format(time.RFC3339))
	case !same || r.ClusterName != "" && record.ClusterName != r.ClusterName:
		r.problem("copy", another, "%s is a copy of %s (cluster %s), and not of %s", p.URL, record.Of, record.ClusterName, r.StoreURL)
	default:
		r.ok("copy", "%s is a copy of this store", p.URL)
	}
}

// newCopy looks whether a place without a record is empty.
func (r *run) newCopy(ctx context.Context, p Place) {
	if _, err := p.Store.Stat(ctx, "control/copy.json"); absent(err) {
		r.warning("copy", "mount the file system that holds it; if it is to be an ordinary directory, create it",
			"%s doesn't exist: the leader would make it on the disk of this machine", p.URL)
		return
	}
	switch empty, err := catalog.New(p.Store).Empty(ctx); {
	case err != nil:
		r.problem("copy", storeAdvice(err), "%s: %v", p.URL, err)
	case !empty:
		r.problem("copy", "give --backup-store-copy an empty place", "%s has other objects, and no control/copy.json: it is no copy of "+
			"this store, and nothing is copied to it", p.URL)
	default:
		r.ok("copy", "%s is empty: the copy begins with the first leader", p.URL)
	}
}

// standby looks whether there is a cluster to be followed.
func (r *run) standby() {
	p := r.StandbyOf
	if p.URL == "" {
		return
	}
	if p.Err != nil {
		r.problem("standby", "correct --standby-of, or the variables of the store (docs/flags.md)", "%v", p.Err)
		return
	}
	ctx, cancel := context.WithTimeout(r.ctx, storeTime)
	defer cancel()
	const check = "correct --standby-of; it is the --backup-store of the cluster that is to be followed"
	c := catalog.New(p.Store)
	list, _, err := c.LastBackups(ctx, r.Now(), 1)
	switch {
	case absent(err):
		r.problem("standby", check+"; if it is a file system, mount it", "%s doesn't exist", p.URL)
		return
	case err != nil:
		r.problem("standby", storeAdvice(err), "%s: %v", p.URL, err)
		return
	case len(list.Backups) > 0:
		r.ok("standby", "there is a cluster in %s, and its newest backup is %s", p.URL, list.Backups[len(list.Backups)-1].Name)
		return
	}
	switch _, _, err := c.Marker(ctx); {
	case errors.Is(err, catalog.ErrNotFound):
		r.problem("standby", check, "there is no cluster in %s: a standby has nothing to follow there", p.URL)
	case err != nil:
		r.problem("standby", storeAdvice(err), "%s: %v", p.URL, err)
	default:
		r.warning("standby", "wait for its first backup: following begins with that", "the cluster in %s has no backup yet", p.URL)
	}
}

// absent tells a directory that doesn't exist.
func absent(err error) bool {
	return errors.Is(err, catalog.ErrInvalid) && errors.Is(err, fs.ErrNotExist)
}
