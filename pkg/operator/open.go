package operator

import (
	"context"
	"errors"
	"fmt"
	"net"
	"path/filepath"

	"github.com/etcd-manager/etcd-manager/pkg/etcd/scratch"
	"github.com/etcd-manager/etcd-manager/pkg/operator/database"
)

// OpenRequest says which state is to be looked at.
type OpenRequest struct {
	// Point is a backup, or a point behind one.
	Point PointRequest
	// Listen is a loopback address with a port, as in 127.0.0.1:0; port 0 takes a free one.
	Listen string
	VerifyOptions
}

// openSpace is what etcd itself writes beside the database, in bytes: its log, prepared in advance, and a few pages.
const openSpace = 160 << 20

// Opened is an etcd that serves a scratch copy of a state. It ends when it is closed, or when this process dies; the copy is removed then.
type Opened struct {
	Point *Point
	// Dir is where the copy is.
	Dir string
	scratch.Serving

	keeper *scratch.Keeper
	remove func()
}

// Done is closed when the etcd has ended.
func (o *Opened) Done() <-chan struct{} { return o.keeper.Done() }

// Err says why it has ended by itself, after Done is closed.
func (o *Opened) Err() error { return o.keeper.Err() }

// Close ends the etcd and removes the copy.
func (o *Opened) Close() error {
	err := o.keeper.Close()
	o.remove()
	return err
}

// OpenPoint builds the state of a point in a temporary directory, and runs an etcd of the compiled-in version over it on loopback, with
// the same revisions and the same HashKV as then. Leases are prolonged to ten years, so that the state stays as it was. What clients
// write changes only the copy. A point that can't be reached is an *UnreachableError. The Point is returned beside an error, as far as it
// is known.
func (c *Client) OpenPoint(ctx context.Context, r OpenRequest) (o *Opened, p *Point, err error) {
	if err := checkListen(r.Listen); err != nil {
		return nil, nil, err
	}
	if p, err = c.PlanPoint(ctx, r.Point); err != nil {
		return nil, p, err
	}
	exe, err := executable()
	if err != nil {
		return nil, p, err
	}
	dir, remove, err := database.Scratch(r.TempDir)
	if err != nil {
		return nil, p, err
	}
	o = &Opened{Point: p, Dir: dir, remove: remove}
	if o.keeper, err = scratch.Keep(exe, dir); err != nil {
		remove()
		return nil, p, err
	}
	if err := c.serve(ctx, o, r); err != nil {
		return nil, p, errors.Join(err, o.Close())
	}
	return o, p, nil
}

// serve builds the state and starts the etcd.
func (c *Client) serve(ctx context.Context, o *Opened, r OpenRequest) error {
	if err := database.CheckSpace(o.Dir, openSpace); err != nil {
		return err
	}
	path := filepath.Join(o.Dir, "snapshot.db")
	if _, err := c.build(ctx, o.Point, path, r.Transfers); err != nil {
		return err
	}
	_, over := r.Transfers.begin("open", o.Point.String())
	defer over()
	var err error
	if o.Serving, err = o.keeper.Serve(ctx, scratch.Order{Snapshot: path, Listen: r.Listen}); err != nil {
		return fmt.Errorf("%s: %w", o.Point, database.Judged(path, err))
	}
	if plan := o.Point.Plan; plan != nil && o.Hash.Revision != plan.Revision {
		return fmt.Errorf("%s: the copy has revision %d", o.Point, o.Hash.Revision)
	}
	return nil
}

// checkListen refuses what others could reach: there is no TLS, and no password unless the cluster has users.
func checkListen(listen string) error {
	host, _, err := net.SplitHostPort(listen)
	if err != nil {
		return invalidf("listen on %q: %w: give an address and a port, as in 127.0.0.1:0", listen, err)
	}
	if ip := net.ParseIP(host); host == "localhost" || ip != nil && ip.IsLoopback() {
		return nil
	}
	return invalidf("listen on %s: only loopback is possible (127.0.0.1, [::1]), because whoever reaches this etcd can read everything, "+
		"secrets too; from another machine use an SSH tunnel", listen)
}
