package catalog

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"maps"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// CopiesRecord is what a first store knows of its copies.
type CopiesRecord struct {
	// Store tells this store from every other one, also from one with the same URL. It is random.
	Store string `json:"store"`
	// Begun says of each copy, by its URL, when it began: an empty place with that URL isn't a new one.
	Begun map[string]time.Time `json:"begun"`
}

const (
	copiesKey     = controlPrefix + "copies.json"
	copiesVersion = 1
	copiesWay     = "delete it; the leader writes it again, and takes an empty place for a new copy then"
	// maxCopies bounds the copies that are remembered.
	maxCopies = 32
)

type copiesJSON struct {
	Version int `json:"version"`
	CopiesRecord
}

// Copies reads what the store knows of its copies, and the version of the record; ErrNotFound if it never had one.
func (c *Catalog) Copies(ctx context.Context) (CopiesRecord, string, error) {
	data, info, err := c.read(ctx, copiesKey, copiesWay)
	if err != nil {
		return CopiesRecord{}, info.Version, err
	}
	var j copiesJSON
	if err := decodeOwn(copiesKey, copiesWay, data, copiesVersion, &j); err != nil {
		return CopiesRecord{}, info.Version, err
	}
	if j.Store == "" {
		return CopiesRecord{}, info.Version, corrupt(copiesKey, copiesWay, errors.New("it names no store"))
	}
	return j.CopiesRecord, info.Version, nil
}

// NoteCopy remembers in the first store that it has a copy at a URL, and returns which store this is. A store that isn't named yet gets the
// name store, or a random one if that is empty.
func (c *Catalog) NoteCopy(ctx context.Context, url, store string) (string, error) {
	for range servingAttempts {
		r, version, err := c.Copies(ctx)
		absent := errors.Is(err, ErrNotFound)
		if err != nil && !absent {
			return "", err
		}
		if _, known := r.Begun[url]; known {
			return r.Store, nil
		}
		if r.Store == "" {
			if r.Store = store; store == "" {
				r.Store = rand.Text()
			}
		}
		if r.Begun == nil {
			r.Begun = map[string]time.Time{}
		}
		r.Begun[url] = c.now().UTC()
		for len(r.Begun) > maxCopies {
			oldest := url
			for u, at := range r.Begun {
				if at.Before(r.Begun[oldest]) {
					oldest = u
				}
			}
			maps.DeleteFunc(r.Begun, func(u string, _ time.Time) bool { return u == oldest })
		}
		data, err := encodeOwn(copiesJSON{Version: copiesVersion, CopiesRecord: r})
		if err != nil {
			return "", err
		}
		opts := blob.PutOptions{IfAbsent: true}
		if !absent {
			opts = blob.PutOptions{IfVersion: version}
		}
		if _, err = c.write(ctx, copiesKey, data, opts); err == nil || !errors.Is(err, ErrConflict) {
			return cluster.Shown(r.Store, 100), err
		}
	}
	return "", fmt.Errorf("write %s: lost %d races: %w", copiesKey, servingAttempts, ErrTransient)
}
