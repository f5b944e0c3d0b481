package kops

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/retention"
)

// World is what a file is compared with, and what it is applied to.
type World struct {
	Volumes Volumes
	// Open opens a store by its URL.
	Open func(ctx context.Context, url string) (blob.Store, error)
	Now  func() time.Time
}

// maxObject bounds what is read of an object.
const maxObject = 1 << 20

// Observe looks at all that Compare needs. It changes nothing.
func Observe(ctx context.Context, f *File, w World) (Observation, error) {
	o := Observation{Now: w.Now(), Keys: map[string]string{}, Stores: map[string]StoreState{},
		Keysets: map[string]Stored{}, Issued: map[string]bool{}, Pods: map[string]Stored{}}
	if err := o.readVolumes(ctx, f, w.Volumes); err != nil {
		return o, err
	}
	keys, err := w.Open(ctx, f.KeyStore)
	if err != nil {
		return o, fmt.Errorf("open the key store: %w", err)
	}
	base, err := w.Open(ctx, f.ConfigBase)
	if err != nil {
		return o, fmt.Errorf("open the configuration's base: %w", err)
	}
	for i := range f.Clusters {
		c := &f.Clusters[i]
		if o.Stores[c.Name], err = readStore(ctx, c, w); err != nil {
			return o, err
		}
		for _, name := range keypairs(c.Name) {
			if o.Keysets[name], err = readStored(ctx, keys, keysetPath(name, true)); err != nil {
				return o, fmt.Errorf("read key pair %s: %w", name, err)
			}
			issued, err := readStored(ctx, keys, keysetPath(name, false))
			if err != nil {
				return o, fmt.Errorf("read certificates %s: %w", name, err)
			}
			o.Issued[name] = issued.exists()
		}
		for _, group := range c.groups() {
			path := podPath(c.Name, group)
			if o.Pods[path], err = readStored(ctx, base, path); err != nil {
				return o, fmt.Errorf("read static pod: %w", err)
			}
		}
	}
	return o, nil
}

func (o *Observation) readVolumes(ctx context.Context, f *File, volumes Volumes) error {
	seen := map[string]bool{}
	for _, tags := range f.clusterTags() {
		list, err := volumes.List(ctx, tags)
		if err != nil {
			return fmt.Errorf("list volumes: %w", err)
		}
		for _, v := range list {
			if !seen[v.ID] {
				o.Volumes = append(o.Volumes, v)
			}
			seen[v.ID] = true
		}
	}
	for _, c := range f.Clusters {
		for _, m := range c.Members {
			if m.Key == "" || o.Keys[m.Key] != "" {
				continue
			}
			arn, err := volumes.Key(ctx, m.Key)
			if err != nil {
				return fmt.Errorf("look at the key of member %s of %s: %w", m.Name, c.Name, err)
			}
			o.Keys[m.Key] = arn
		}
	}
	return nil
}

// absent tells whether an error means that an object is not there. For stores in directories this includes the directory.
func absent(err error) bool {
	return errors.Is(err, blob.ErrNotFound) || errors.Is(err, blob.ErrInvalid) && errors.Is(err, fs.ErrNotExist)
}

func readStored(ctx context.Context, s blob.Store, key string) (Stored, error) {
	data, info, err := blob.ReadAll(ctx, s, key, maxObject)
	if absent(err) {
		return Stored{}, nil
	}
	if err != nil {
		return Stored{}, err
	}
	return Stored{bytes.Clone(data), info.Version}, nil
}

func readStore(ctx context.Context, c *EtcdCluster, w World) (StoreState, error) {
	s, err := w.Open(ctx, c.BackupStore)
	if err != nil {
		return StoreState{}, fmt.Errorf("open the backup store of %s: %w", c.Name, err)
	}
	cat := catalog.New(s)
	var st StoreState
	st.Spec, st.Version, err = cat.Spec(ctx)
	if absent(err) {
		return StoreState{}, nil
	}
	if err != nil {
		return StoreState{}, fmt.Errorf("read the spec of %s: %w", c.Name, err)
	}
	list, err := cat.Backups(ctx)
	if err != nil {
		return StoreState{}, fmt.Errorf("list the backups of %s: %w", c.Name, err)
	}
	for _, b := range list.Backups {
		st.Backups = append(st.Backups, retention.Backup{Name: b.Name, Time: b.Time, Complete: true})
	}
	return st, nil
}
