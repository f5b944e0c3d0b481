package catalog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Promotion is the operator's word, in a standby's own store, that it becomes a cluster, and how far its nodes are with that.
type Promotion struct {
	// Of is the store of the cluster that is followed, Time when it was asked for.
	Of   string    `json:"of"`
	Time time.Time `json:"timestamp"`
	// Spec is what the cluster becomes.
	Spec cluster.Spec `json:"spec"`
	// Incarnation and Revision are the last state of the other cluster, which a copy must have. A revision of 0 means that it isn't known:
	// then the copy that is farthest is taken.
	Incarnation Incarnation `json:"incarnation,omitempty"`
	Revision    int64       `json:"revision,omitempty"`
	// Copies are what the nodes can offer.
	Copies map[cluster.NodeID]OfferedCopy `json:"copies,omitempty"`
	// Chosen is the node whose copy is taken. No other one takes its place, unless the operator says that it is lost: two would make two
	// clusters of it.
	Chosen cluster.NodeID `json:"chosen,omitempty"`
	// Backup is made of its copy, and Command restores it. When they are there, the nodes run the cluster.
	Backup  string `json:"backup,omitempty"`
	Command string `json:"command,omitempty"`
	// Problem is why the last attempt has failed; it is tried again.
	Problem string `json:"problem,omitempty"`
}

// OfferedCopy is how far a node's copy is.
type OfferedCopy struct {
	Revision int64     `json:"revision"`
	Time     time.Time `json:"timestamp"`
}

const (
	promotionKey     = controlPrefix + "promotion.json"
	promotionVersion = 1
	promotionWay     = "delete the object if no node runs a cluster for this store yet, and ask for it again: etcd-manager-ctl promote"
	// maxOffered bounds the copies that are offered.
	maxOffered = 64
)

type promotionJSON struct {
	Version int `json:"version"`
	Promotion
}

// Promotion reads the record; ErrNotFound if nobody has asked for it.
func (c *Catalog) Promotion(ctx context.Context) (Promotion, error) {
	p, _, err := c.promotion(ctx)
	return p, err
}

func (c *Catalog) promotion(ctx context.Context) (Promotion, string, error) {
	data, info, err := c.read(ctx, promotionKey, promotionWay)
	if err != nil {
		return Promotion{}, info.Version, err
	}
	var j promotionJSON
	if err := decodeOwn(promotionKey, promotionWay, data, promotionVersion, &j); err != nil {
		return Promotion{}, info.Version, err
	}
	switch {
	case j.Of == "" || ValidateSpec(j.Spec) != nil:
		err = errors.New("it names no store, or no size of the cluster")
	case len(j.Copies) > maxOffered:
		err = errors.New("it names too many copies")
	case j.Backup != "" && (ValidBackupName(j.Backup) != nil || validName("command", j.Command) != nil):
		err = errors.New("it names no backup and command that there can be")
	}
	if err != nil {
		return Promotion{}, info.Version, corrupt(promotionKey, promotionWay, err)
	}
	return j.Promotion, info.Version, nil
}

// PutPromotion asks for it; ErrConflict if somebody has asked for it already.
func (c *Catalog) PutPromotion(ctx context.Context, p Promotion) (Promotion, error) {
	p.Time = c.now().UTC()
	if err := ValidateSpec(p.Spec); err != nil {
		return p, err
	}
	if p.Of == "" {
		return p, invalidf("a promotion names the store that was followed")
	}
	data, err := encodeOwn(promotionJSON{Version: promotionVersion, Promotion: p})
	if err != nil {
		return p, err
	}
	_, err = c.writeOwn(ctx, promotionKey, data, blob.PutOptions{IfAbsent: true}, nil)
	return p, err
}

// ChangePromotion changes what is said of a promotion, by compare-and-swap, unless change refuses.
func (c *Catalog) ChangePromotion(ctx context.Context, change func(*Promotion) error) (Promotion, error) {
	for range servingAttempts {
		p, version, err := c.promotion(ctx)
		if err != nil {
			return Promotion{}, err
		}
		opts, err := ifVersion(promotionKey, version)
		if err != nil {
			return Promotion{}, err
		}
		if p.Copies == nil {
			p.Copies = map[cluster.NodeID]OfferedCopy{}
		}
		if err := change(&p); err != nil {
			return p, err
		}
		data, err := encodeOwn(promotionJSON{Version: promotionVersion, Promotion: p})
		if err != nil {
			return Promotion{}, err
		}
		if _, err = c.write(ctx, promotionKey, data, opts); err == nil || !errors.Is(err, ErrConflict) {
			return p, err
		}
	}
	return Promotion{}, fmt.Errorf("write %s: lost %d races: %w", promotionKey, servingAttempts, ErrTransient)
}
