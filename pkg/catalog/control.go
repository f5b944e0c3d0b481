package catalog

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// Object is one row of a listing.
type Object struct {
	// Name is what the object is called among its kind: a command's, an operation's; empty for the single ones.
	Name string
	// Stamp changes whenever the object does; empty means that it doesn't exist. It is only to be compared with other
	// stamps: a compare-and-swap takes the version that came with the content.
	Stamp string
	// Modified is by the store's clock.
	Modified time.Time
	// Size is in bytes.
	Size int64
}

// Exists tells whether the object was in the listing.
func (o Object) Exists() bool { return o.Stamp != "" }

// ControlListing is what one list request says about everything below control/: enough to know what has to be read again.
type ControlListing struct {
	Spec   Object
	Marker Object
	Leader Object
	// Settings are etcd's, as the operator has chosen them.
	Settings Object
	// Survivors exists while the cluster has no quorum.
	Survivors Object
	// Superseded exists if another cluster has taken the place of this one.
	Superseded Object
	// Ended exists if managers have begun to end it for that.
	Ended Object
	// Promotion exists if a standby with this store is to become, or has become, a cluster.
	Promotion Object
	// Copy exists if the store is a copy of another one.
	Copy Object
	// Commands and Operations are in lexical order of their names.
	Commands   []Object
	Operations []Object
	// Statuses are those of managers that no leader shows, by node.
	Statuses []Object
	// Unknown are the keys that this version has no meaning for.
	Unknown []string
}

// ControlListing lists control/ with one request (and another for each thousand objects).
func (c *Catalog) ControlListing(ctx context.Context) (ControlListing, error) {
	var l ControlListing
	for e, err := range c.store.List(ctx, controlPrefix, blob.ListOptions{}) {
		if err != nil {
			return ControlListing{}, fmt.Errorf("list %s: %w", controlPrefix, err)
		}
		l.add(e)
	}
	return l, nil
}

func (l *ControlListing) add(e blob.Entry) {
	o := Object{Stamp: stamp(e.Info), Modified: e.Modified, Size: e.Size}
	switch e.Key {
	case specKey:
		l.Spec = o
		return
	case markerKey:
		l.Marker = o
		return
	case leaderKey:
		l.Leader = o
		return
	case settingsKey:
		l.Settings = o
		return
	case survivorsKey:
		l.Survivors = o
		return
	case supersededKey:
		l.Superseded = o
		return
	case endedKey:
		l.Ended = o
		return
	case promotionKey:
		l.Promotion = o
		return
	case copyKey:
		l.Copy = o
		return
	case servingKey, copiesKey:
		return
	}
	if node, ok := statusOf(e.Key); ok {
		o.Name = node
		l.Statuses = append(l.Statuses, o)
		return
	}
	dir, file, nested := strings.Cut(strings.TrimPrefix(e.Key, controlPrefix), "/")
	switch {
	case dir+"/" == strings.TrimPrefix(operationsPrefix, controlPrefix):
		if id, ok := strings.CutSuffix(file, ".json"); ok && validName("operation", id) == nil {
			o.Name = id
			l.Operations = append(l.Operations, o)
			return
		}
	case nested && (file == commandFile || file == recoverFile || file == createFile || file == putBackFile):
		o.Name = dir
		l.Commands = append(l.Commands, o)
		return
	case nested && (file == optionsFile || file == progressFile), strings.HasPrefix(e.Key, blob.ProbePrefix):
		return
	}
	l.Unknown = append(l.Unknown, e.Key)
}
