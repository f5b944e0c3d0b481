package operator

import (
	"context"
	"errors"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// CopyRecord says what a store is a copy of.
type CopyRecord = catalog.CopyRecord

// CopyError says that a store is a copy of another one: no manager runs on it, so nothing is queued or configured there.
type CopyError = catalog.CopyError

// UseCopy puts a copy into use as a store of its own: managers may run on it from then on, and the managers of the first store copy
// nothing to it any more. It is for when the first store is lost. changed is false if that was done before. A store that isn't a copy
// is an *InvalidError.
func (c *Client) UseCopy(ctx context.Context) (r CopyRecord, changed bool, err error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	r, changed, err = c.catalog.UseCopy(ctx)
	if errors.Is(err, ErrNotFound) {
		return r, false, invalidf("%s isn't a copy: there is no control/copy.json. Managers run on it without this command", c.Store())
	}
	return r, changed, err
}

// managed fails with a *CopyError if no manager reads what is written to this store.
func (c *Client) managed(ctx context.Context) error {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	return c.catalog.RefuseCopy(ctx, c.Store())
}

// SupersededBy is the record that another cluster has taken the place of this one; nil if there is none.
func (c *Client) SupersededBy(ctx context.Context) (*catalog.Superseded, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	s, err := c.catalog.Superseded(ctx)
	if errors.Is(err, ErrNotFound) {
		return nil, nil
	}
	return &s, err
}
