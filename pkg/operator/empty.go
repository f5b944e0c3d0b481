package operator

import (
	"context"
	"slices"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/spelling"
)

// neighbors bounds how many prefixes beside an empty store are looked at, and named.
const (
	neighborsRead  = 1000
	neighborsNamed = 5
)

// checkStore fails if the store holds nothing of a cluster: the URL is probably mistyped, and a command that is queued there is obeyed by
// nobody. That the store can't be read is left to what is done next, which says so.
func (c *Config) checkStore(ctx context.Context, s blob.Store) error {
	ctx, cancel := context.WithTimeout(ctx, c.Timeout)
	defer cancel()
	ours, below, err := lookInto(ctx, s)
	if ours || err != nil && !notThere(err) {
		return nil
	}
	return &EmptyStoreError{Store: c.Store, Missing: err != nil, Near: c.near(ctx, below)}
}

// lookInto tells whether anything of a cluster is stored here, and else which prefixes there are.
func lookInto(ctx context.Context, s blob.Store) (ours bool, below []string, err error) {
	for e, err := range s.List(ctx, "", blob.ListOptions{Delimiter: "/"}) {
		if err != nil {
			return false, below, err
		}
		name := strings.TrimSuffix(e.Key, "/")
		if e.Prefix && (name == "control" || name == "changes" || !catalog.BackupTime(name).IsZero()) {
			return true, nil, nil
		}
		if e.Prefix {
			below = append(below, name)
		}
		if len(below) >= neighborsRead {
			break
		}
	}
	return false, below, nil
}

// near names URLs of clusters that may be meant: beside the store, and below it.
func (c *Config) near(ctx context.Context, below []string) []string {
	base := strings.TrimRight(c.Store, "/")
	var urls []string
	for _, name := range below {
		urls = append(urls, base+"/"+name)
	}
	if i := strings.LastIndex(base, "/"); i > 0 && base[i-1] != '/' {
		parent, own := base[:i], base[i+1:]
		if s, err := c.Open(ctx, parent); err == nil {
			_, beside, _ := lookInto(ctx, s)
			first := spelling.Closest(own, beside, neighborsNamed)
			for _, name := range append(first, beside...) {
				if u := parent + "/" + name; name != own && !slices.Contains(urls, u) {
					urls = append(urls, u)
				}
			}
		}
	}
	var found []string
	for _, u := range urls[:min(len(urls), 4*neighborsNamed)] {
		s, err := c.Open(ctx, u)
		if err != nil {
			continue
		}
		if ours, _, err := lookInto(ctx, s); err == nil && ours {
			found = append(found, u)
		}
		if len(found) == neighborsNamed {
			break
		}
	}
	return found
}
