package catalog

import (
	"context"
	"errors"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// Superseded says that another cluster has taken the place of this one. A manager that starts with this store doesn't start etcd then.
type Superseded struct {
	// By names what took its place, for people: a store's URL, a region, a ticket.
	By string `json:"by"`
	// Time is when the operator said so, by the clock of that machine.
	Time time.Time `json:"timestamp"`
}

const (
	supersededKey     = controlPrefix + "superseded.json"
	supersededVersion = 1
	supersededWay     = "the operator may have written it so that this cluster doesn't serve again; look at the object, " +
		"and remove it if this cluster is the right one: etcd-manager-ctl undo-supersede"
	// maxBy bounds Superseded.By, in bytes.
	maxBy = 300
)

type supersededJSON struct {
	Version int `json:"version"`
	Superseded
}

// Superseded reads the record; ErrNotFound if the cluster is not superseded.
func (c *Catalog) Superseded(ctx context.Context) (Superseded, error) {
	data, _, err := c.read(ctx, supersededKey, supersededWay)
	if err != nil {
		return Superseded{}, err
	}
	var j supersededJSON
	if err := decodeOwn(supersededKey, supersededWay, data, supersededVersion, &j); err != nil {
		return Superseded{}, err
	}
	if j.By == "" {
		return Superseded{}, corrupt(supersededKey, supersededWay, errors.New("it doesn't say by what"))
	}
	return j.Superseded, nil
}

// PutSuperseded writes the record; ErrConflict if there is one that says something else.
func (c *Catalog) PutSuperseded(ctx context.Context, by string) (Superseded, error) {
	if by == "" || len(by) > maxBy {
		return Superseded{}, invalidf("what supersedes a cluster needs a name of at most %d bytes", maxBy)
	}
	s := Superseded{By: by, Time: c.now().UTC()}
	data, err := encodeOwn(supersededJSON{Version: supersededVersion, Superseded: s})
	if err != nil {
		return Superseded{}, err
	}
	_, err = c.writeOwn(ctx, supersededKey, data, blob.PutOptions{IfAbsent: true}, nil)
	return s, err
}

// RemoveSuperseded removes the record. Removing one that is gone is a success.
func (c *Catalog) RemoveSuperseded(ctx context.Context) error {
	return c.removeFile(ctx, supersededKey)
}
