package main

import (
	"context"
	"errors"
	"maps"
	"strings"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// settingsChange is what the command line changes about etcd's settings.
type settingsChange struct{ set, unset []string }

func (s *settingsChange) addFlags(cmd *cobra.Command) {
	names := strings.Join(cluster.SettingNames(), ", ")
	cmd.Flags().StringArrayVar(&s.set, "set", nil, "choose one of etcd's settings, as `NAME=VALUE`; may be repeated; names are "+names)
	cmd.Flags().StringArrayVar(&s.unset, "unset", nil, "leave a setting to etcd again, by its `NAME`; may be repeated")
}

func (s *settingsChange) empty() bool { return len(s.set) == 0 && len(s.unset) == 0 }

// apply returns the settings with the change.
func (s *settingsChange) apply(have cluster.Settings) (cluster.Settings, error) {
	now := cluster.Settings{}
	maps.Copy(now, have)
	for _, word := range s.set {
		name, value, ok := strings.Cut(word, "=")
		if !ok {
			return nil, ui.Usagef("--set=%s is not NAME=VALUE", word)
		}
		v, err := cluster.ParseSetting(name, value)
		if err != nil {
			return nil, ui.Usagef("--set: %v", err)
		}
		now[name] = v
	}
	for _, name := range s.unset {
		if _, ok := now[name]; !ok {
			return nil, ui.Usagef("--unset=%s: that isn't set (%s)", name, now)
		}
		delete(now, name)
	}
	if err := now.Validate(); err != nil {
		return nil, &ui.UsageError{Err: err}
	}
	return now, nil
}

// writeSettings changes the settings in the store, also if somebody else writes at the same moment. What can't be read is only replaced by what
// is said as a whole: the object has to be deleted first.
func (a *app) writeSettings(ctx context.Context, c *catalog.Catalog, change settingsChange) error {
	if change.empty() {
		return nil
	}
	for range configureAttempts {
		have, version, err := c.Settings(ctx)
		if err != nil && !errors.Is(err, catalog.ErrNotFound) {
			return err
		}
		if errors.Is(err, catalog.ErrNotFound) {
			version = ""
		}
		now, err := change.apply(have)
		if err != nil {
			return err
		}
		if err := c.PutSettings(ctx, now, version); !errors.Is(err, catalog.ErrConflict) {
			return err
		}
	}
	return errors.New("the settings were changed by somebody else again and again: look with get, then try again")
}
