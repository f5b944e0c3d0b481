package changelog

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// head is where a recorder goes on.
type head struct {
	incarnation catalog.Incarnation
	// fresh is true if nothing is known of the incarnation yet.
	fresh bool
	// name is the newest segment; its Sum is empty if there is none to go on from.
	name catalog.SegmentName
	// base is the highest revision of a backup of this incarnation, 0 if there is none, and baseTime when it was begun.
	base     int64
	baseTime time.Time
	// newest is the cluster's revision, asked for no earlier than all this was found if it matters.
	newest int64
}

// basesAsked is how many of the last backups are asked for their incarnation; see BackupList.Recent.
const basesAsked = 4

// findHead looks for the end of the chain of a cluster that had this newest revision. A store that knows more of the cluster than
// the cluster itself belongs to an earlier life of it: then another incarnation begins, and those before it are never gone on with.
func findHead(ctx context.Context, c *catalog.Catalog, src Source, clusterID uint64, newest int64) (head, error) {
	bases, err := basesOf(ctx, c, clusterID)
	if err != nil {
		return head{}, err
	}
	names, err := c.IncarnationNames(ctx)
	if err != nil {
		return head{}, err
	}
	lives := livesAmong(names, clusterID)
	for n := lives[len(lives)-1]; ; n++ {
		h, denied := head{incarnation: lifeName(clusterID, n), newest: newest}, false
		rec, err := c.Incarnation(ctx, h.incarnation)
		switch {
		case errors.Is(err, catalog.ErrNotFound):
			h.fresh = true
		case recordUnusable(err) && n == 1 && slices.Contains(names, h.incarnation): // its cluster tells which backups are its
		case errors.Is(err, catalog.ErrDenied) && slices.Contains(names, h.incarnation):
			denied = true
			klog.Warningf("changes: which backups are those of incarnation %s can't be known: %v", h.incarnation, err)
		case unreadable(err) && slices.Contains(lives, n):
			klog.Warningf("changes: incarnation %s isn't gone on with, since which backups are its can't be known; another one begins: %v",
				h.incarnation, err)
			continue
		case err != nil:
			return head{}, err
		}
		own := bases
		if n > 1 {
			unknown := h.fresh || denied
			own = slices.DeleteFunc(slices.Clone(bases), func(m *catalog.Manifest) bool { return unknown || !rec.Holds(m.Started) })
		}
		var from int64
		if len(own) > 0 {
			from = own[len(own)-1].Revision
			h.base, h.baseTime = own[0].Revision, own[0].Started
		}
		if h.name, err = newestSegment(ctx, c, h.incarnation, from); err != nil {
			return head{}, err
		}
		if most := max(h.name.Last, h.base); most > newest {
			// Another writer may have stored a little more meanwhile.
			if newest, _, err = revision(ctx, src, silence); err != nil {
				return head{}, err
			}
			if h.newest = newest; most > newest {
				continue
			}
		}
		return h, nil
	}
}

// unreadable tells whether an object is there and can't be used: damaged, or of a newer version. What depends on it does without.
func unreadable(err error) bool {
	return errors.Is(err, cluster.ErrCorrupt) || errors.Is(err, cluster.ErrFuture)
}

// recordUnusable tells the same of the record of an incarnation, or of which one serves. They only help to decide, and nothing that is kept
// is in them. So one that must not be read stops nothing either.
func recordUnusable(err error) bool { return unreadable(err) || errors.Is(err, catalog.ErrDenied) }

// lifeName names the n-th life of a cluster.
func lifeName(clusterID uint64, n int) catalog.Incarnation {
	first := catalog.IncarnationOf(clusterID)
	if n <= 1 {
		return first
	}
	return catalog.Incarnation(fmt.Sprintf("%s-%d", first, n))
}

// livesAmong are the numbers of a cluster's lives of which something is there, ascending. The first one is always among them.
func livesAmong(names []catalog.Incarnation, clusterID uint64) []int {
	lives := []int{1}
	for _, name := range names {
		number, ok := strings.CutPrefix(string(name), string(catalog.IncarnationOf(clusterID))+"-")
		if n, err := strconv.Atoi(number); ok && err == nil && n > 1 && lifeName(clusterID, n) == name {
			lives = append(lives, n)
		}
	}
	slices.Sort(lives)
	return lives
}

// lifeAt is the incarnation that a cluster lived in at a moment.
func lifeAt(ctx context.Context, c *catalog.Catalog, clusterID uint64, at time.Time) (catalog.Incarnation, error) {
	f := lifeFinder{c: c}
	return f.at(ctx, clusterID, at)
}

// basesOf are the backups of a cluster with the highest revisions, the highest first; two are enough.
func basesOf(ctx context.Context, c *catalog.Catalog, clusterID uint64) ([]*catalog.Manifest, error) {
	list, _, err := c.LastBackups(ctx, time.Now(), basesAsked)
	if err != nil {
		return nil, err
	}
	var recent []catalog.Backup
	for _, b := range list.Recent(time.Now(), basesAsked) {
		if b.HasManifest && b.Sound() {
			recent = append(recent, b)
		}
	}
	known, err := (&Archive{Catalog: c}).know(ctx, recent)
	if err != nil {
		return nil, err
	}
	slices.SortFunc(known, func(x, y Known) int { return compareKnown(y, x) })
	var bases []*catalog.Manifest
	for _, k := range known {
		if k.Manifest != nil && uint64(k.Manifest.ClusterID) == clusterID && len(bases) < 2 {
			bases = append(bases, k.Manifest)
		}
	}
	return bases, nil
}

// newestSegment is the one that reaches farthest.
func newestSegment(ctx context.Context, c *catalog.Catalog, i catalog.Incarnation, from int64) (catalog.SegmentName, error) {
	var best catalog.Segment
	for s, err := range c.Segments(ctx, i, from) {
		if err != nil {
			return catalog.SegmentName{}, err
		}
		if best.Sum == "" || farther(s, best) {
			best = s
		}
	}
	return best.SegmentName, nil
}

func sumOf(data []byte) []byte {
	s := sha256.Sum256(data)
	return s[:]
}

func readSpilled(o *outbox, n catalog.SegmentName) ([]byte, error) {
	data, err := os.ReadFile(o.path(n))
	if err != nil {
		return nil, fmt.Errorf("read spilled changes: %w", err)
	}
	return data, nil
}
