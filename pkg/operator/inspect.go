package operator

import (
	"bytes"
	"cmp"
	"context"
	"slices"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/operator/database"
)

// InspectRequest says what is looked into.
type InspectRequest struct {
	// Backup is a name, or Latest.
	Backup string
	// Depth is how many parts between slashes make a prefix, at least 1. Top is how many prefixes are returned, 0 for all.
	Depth, Top int
	VerifyOptions
}

// Inspection is what is in a backup.
type Inspection struct {
	Backup      string `json:"backup"`
	EtcdVersion string `json:"etcdVersion,omitempty"`
	ClusterName string `json:"clusterName,omitempty"`
	Facts
	// Prefixes are sorted by bytes, the largest first. PrefixCount is how many there are at this depth.
	PrefixCount int      `json:"prefixCount"`
	Prefixes    []Prefix `json:"prefixes"`
	// ByKeys are sorted by number of keys.
	ByKeys []Prefix `json:"-"`
	// Notes are those of Client.Backup.
	Notes []string `json:"-"`
}

// Prefix is what all keys have together that begin alike. Only keys that exist at the backup's revision count.
type Prefix struct {
	Prefix string `json:"prefix"`
	Keys   int64  `json:"keys"`
	// Bytes are those of keys and values.
	Bytes      int64 `json:"bytes"`
	LeasedKeys int64 `json:"leasedKeys,omitempty"`
	// NewestRevision is when one of them was last written.
	NewestRevision int64 `json:"newestRevision"`
}

// Inspect fetches a backup, checks it as Verify does, and says what is in it. Beside an error only the Notes are filled in.
func (c *Client) Inspect(ctx context.Context, r InspectRequest) (Inspection, error) {
	if r.Depth < 1 || r.Top < 0 {
		return Inspection{}, invalidf("the depth must be at least 1, and the number of prefixes at least 0")
	}
	b, notes, err := c.backup(ctx, r.Backup)
	if err != nil {
		return Inspection{Notes: notes}, err
	}
	p, err := c.check(ctx, b, r.VerifyOptions)
	if err != nil {
		return Inspection{Notes: notes}, err
	}
	defer p.remove()
	out := Inspection{Backup: b.Name, EtcdVersion: b.Info.EtcdVersion, Facts: p.facts, Notes: notes}
	if b.Manifest != nil {
		out.ClusterName = b.Manifest.ClusterName
	}
	all, err := c.prefixes(ctx, p.path, r.Depth)
	if err != nil {
		return Inspection{Notes: notes}, err
	}
	out.fill(all, r.Top)
	return out, nil
}

// prefixes sums up the live keys.
func (c *Client) prefixes(ctx context.Context, path string, depth int) (map[string]*Prefix, error) {
	all := map[string]*Prefix{}
	err := c.checker.Keys(ctx, path, func(k database.Key) error {
		b := prefixOf(k.Key, depth)
		p := all[string(b)]
		if p == nil {
			p = &Prefix{Prefix: string(b)}
			all[p.Prefix] = p
		}
		p.Keys++
		p.Bytes += int64(len(k.Key)) + k.ValueSize
		if k.Lease != 0 {
			p.LeasedKeys++
		}
		p.NewestRevision = max(p.NewestRevision, k.Revision)
		return nil
	})
	return all, err
}

// prefixOf cuts a key behind its depth-th part, where the slash at its beginning begins none. A key with fewer parts
// counts where its last slash is; one without a slash has the empty prefix.
func prefixOf(key []byte, depth int) []byte {
	at := 0
	if len(key) > 0 && key[0] == '/' {
		at = 1
	}
	end := at
	for range depth {
		i := bytes.IndexByte(key[at:], '/')
		if i < 0 {
			break
		}
		at += i + 1
		end = at
	}
	return key[:end]
}

// fill sorts and cuts. Names decide between equals, so that the same backup is always shown alike.
func (out *Inspection) fill(all map[string]*Prefix, top int) {
	list := make([]Prefix, 0, len(all))
	for _, p := range all {
		list = append(list, *p)
	}
	out.PrefixCount = len(list)
	first := func(by func(p Prefix) int64) []Prefix {
		sorted := slices.Clone(list)
		slices.SortFunc(sorted, func(x, y Prefix) int {
			return cmp.Or(cmp.Compare(by(y), by(x)), strings.Compare(x.Prefix, y.Prefix))
		})
		if top > 0 && top < len(sorted) {
			sorted = sorted[:top]
		}
		return sorted
	}
	out.Prefixes = first(func(p Prefix) int64 { return p.Bytes })
	out.ByKeys = first(func(p Prefix) int64 { return p.Keys })
}
