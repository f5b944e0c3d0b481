package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Superseded says that another cluster has taken the place of this one. Managers that run stop their etcd then, and one that starts with
// this store doesn't start it.
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

// RemoveSuperseded removes the record, and what the managers have said of it. Removing one that is gone is a success.
func (c *Catalog) RemoveSuperseded(ctx context.Context) error {
	if err := c.removeFile(ctx, supersededKey); err != nil {
		return err
	}
	return c.removeFile(ctx, endedKey)
}

// Ended says how far the managers are with the end of a cluster that is superseded.
type Ended struct {
	// Of is the time of the record that they obey; of another record this says nothing.
	Of time.Time `json:"of"`
	// Revision is the last one of the cluster, Stored how far the archive is complete. 0 means that it isn't known.
	Revision int64 `json:"revision,omitempty"`
	Stored   int64 `json:"stored,omitempty"`
	// Members are the names of the cluster's members.
	Members []string `json:"members,omitempty"`
	// Stopped are the nodes on which etcd is stopped.
	Stopped map[cluster.NodeID]StoppedNode `json:"stopped,omitempty"`
	// Term and Leader are of who wrote it last; a manager that doesn't start for the record writes no term.
	Term   cluster.Term   `json:"term,omitempty"`
	Leader cluster.NodeID `json:"leader,omitempty"`
}

// StoppedNode says of a node that its etcd is stopped, and stays so until the record is taken back.
type StoppedNode struct {
	Time time.Time `json:"timestamp"`
	// Member is 0, and Revision too, if that isn't known.
	Member   HexID `json:"member,omitempty"`
	Revision int64 `json:"revision,omitempty"`
}

// Missing are the members of which nobody says that they are stopped.
func (e Ended) Missing() []string {
	var list []string
	for _, m := range e.Members {
		if _, ok := e.Stopped[cluster.NodeID(m)]; !ok {
			list = append(list, m)
		}
	}
	return list
}

// Complete tells whether no write can be acknowledged any more: a quorum of the members is stopped.
func (e Ended) Complete() bool {
	return len(e.Members) > 0 && len(e.Members)-len(e.Missing()) >= cluster.Quorum(len(e.Members))
}

const (
	endedKey     = controlPrefix + "ended.json"
	endedVersion = 1
	endedWay     = "delete the object; the managers write it again while the cluster is superseded"
	// maxEnded bounds the members and nodes that are named.
	maxEnded = 64
)

type endedJSON struct {
	Version int `json:"version"`
	Ended
}

// Ended reads how far the end of a superseded cluster is; ErrNotFound if it hasn't begun.
func (c *Catalog) Ended(ctx context.Context) (Ended, error) {
	e, _, err := c.ended(ctx)
	return e, err
}

func (c *Catalog) ended(ctx context.Context) (Ended, string, error) {
	data, info, err := c.read(ctx, endedKey, endedWay)
	if err != nil {
		return Ended{}, info.Version, err
	}
	var j endedJSON
	if err := decodeOwn(endedKey, endedWay, data, endedVersion, &j); err != nil {
		return Ended{}, info.Version, err
	}
	if len(j.Members) > maxEnded || len(j.Stopped) > maxEnded {
		return Ended{}, info.Version, corrupt(endedKey, endedWay, errors.New("it names too many nodes"))
	}
	return j.Ended, info.Version, nil
}

// NoteEnded changes what is said of the end of a cluster that the record of that time supersedes. What was said of another record, or
// can't be read, counts for nothing.
func (c *Catalog) NoteEnded(ctx context.Context, of time.Time, change func(*Ended)) error {
	for range servingAttempts {
		e, version, err := c.ended(ctx)
		opts := blob.PutOptions{IfAbsent: true}
		switch {
		case errors.Is(err, ErrNotFound):
		case err != nil && !errors.Is(err, cluster.ErrCorrupt):
			return err
		default:
			if opts, err = ifVersion(endedKey, version); err != nil {
				return err
			}
		}
		var was []byte
		if err == nil {
			if was, err = encodeOwn(endedJSON{Version: endedVersion, Ended: e}); err != nil {
				return err
			}
		}
		if !e.Of.Equal(of) {
			e = Ended{Of: of}
		}
		if e.Stopped == nil {
			e.Stopped = map[cluster.NodeID]StoppedNode{}
		}
		change(&e)
		data, err := encodeOwn(endedJSON{Version: endedVersion, Ended: e})
		if err != nil || bytes.Equal(data, was) {
			return err // a manager that is started again and again says the same each time
		}
		if _, err = c.write(ctx, endedKey, data, opts); err == nil || !errors.Is(err, ErrConflict) {
			return err
		}
	}
	return fmt.Errorf("write %s: lost %d races: %w", endedKey, servingAttempts, ErrTransient)
}
