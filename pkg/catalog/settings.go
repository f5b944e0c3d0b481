package catalog

import (
	"context"
	"fmt"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// The settings of etcd have an object of their own beside the spec, whose format belongs to others.
const (
	settingsKey     = controlPrefix + "etcd-cluster-settings.json"
	settingsVersion = 1
	settingsWay     = "delete the object and choose the settings again: etcd-manager-ctl configure-cluster --set=NAME=VALUE"
)

type settingsJSON struct {
	Version  int              `json:"version"`
	Settings cluster.Settings `json:"settings"`
}

// Settings reads what the operator has chosen of etcd's settings, and its version. Without any the error is ErrNotFound; what can't be
// read, or can't be run, is cluster.ErrCorrupt.
func (c *Catalog) Settings(ctx context.Context) (cluster.Settings, string, error) {
	data, info, err := c.read(ctx, settingsKey, settingsWay)
	if err != nil {
		return nil, info.Version, err
	}
	var j settingsJSON
	if err := decodeOwn(settingsKey, settingsWay, data, settingsVersion, &j); err != nil {
		return nil, info.Version, err
	}
	if err := j.Settings.Validate(); err != nil {
		return nil, info.Version, corrupt(settingsKey, settingsWay, err)
	}
	return j.Settings, info.Version, nil
}

// PutSettings writes the settings if the stored ones still have the given version; "" means that there are none yet. It fails with
// ErrConflict if not.
func (c *Catalog) PutSettings(ctx context.Context, s cluster.Settings, version string) error {
	if err := s.Validate(); err != nil {
		return fmt.Errorf("write %s: %w", settingsKey, invalidf("%v", err))
	}
	data, err := encodeOwn(settingsJSON{Version: settingsVersion, Settings: s})
	if err != nil {
		return err
	}
	opts := blob.PutOptions{IfAbsent: true}
	if version != "" {
		opts = blob.PutOptions{IfVersion: version}
	}
	_, err = c.writeOwn(ctx, settingsKey, data, opts, nil)
	return err
}
