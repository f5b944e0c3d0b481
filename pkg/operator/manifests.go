package operator

import (
	"context"
	"errors"

	"golang.org/x/sync/errgroup"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// manifestsAtOnce is how many manifests are read at the same time.
const manifestsAtOnce = 16

// Manifests reads the manifests of some backups, by name. A backup without one, or with one that can't be used, is left out. Of a sealed
// manifest that no key opens, what stands in the clear is there (catalog.Manifest, Locked).
func (c *Client) Manifests(ctx context.Context, list []catalog.Backup) (map[string]*catalog.Manifest, error) {
	read := make([]*catalog.Manifest, len(list))
	g, gctx := errgroup.WithContext(ctx)
	g.SetLimit(manifestsAtOnce)
	for i, b := range list {
		if !b.HasManifest {
			continue
		}
		g.Go(func() error {
			ctx, cancel := c.limit(gctx)
			defer cancel()
			m, err := c.catalog.Manifest(ctx, b.Name)
			switch {
			case err == nil:
				read[i] = m
			case !errors.Is(err, catalog.ErrNotFound) && !errors.Is(err, cluster.ErrCorrupt) && !errors.Is(err, cluster.ErrFuture):
				return err
			}
			return nil
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	byName := map[string]*catalog.Manifest{}
	for i, b := range list {
		if read[i] != nil {
			byName[b.Name] = read[i]
		}
	}
	return byName, nil
}
