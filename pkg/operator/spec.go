package operator

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// ClusterSpec is what the operator wants of a cluster: members and version, and those of etcd's settings that are chosen.
type ClusterSpec struct {
	cluster.Spec
	Settings cluster.Settings
}

// SpecChange is what is to be changed about a cluster's spec; what is nil is kept.
type SpecChange struct {
	// MemberCount is odd, 1 to 9.
	MemberCount *int
	// EtcdVersion is as in 3.5.21; empty leaves it to the managers.
	EtcdVersion *string
}

// Empty tells that nothing is to be changed.
func (s SpecChange) Empty() bool { return s.MemberCount == nil && s.EtcdVersion == nil }

func (s SpecChange) apply(spec cluster.Spec) cluster.Spec {
	if s.MemberCount != nil {
		spec.MemberCount = *s.MemberCount
	}
	if s.EtcdVersion != nil {
		spec.EtcdVersion = strings.TrimPrefix(strings.TrimSpace(*s.EtcdVersion), "v")
	}
	return spec
}

// Setting is one of etcd's settings; cluster.SettingNames has the names.
type Setting struct{ Name, Value string }

// SettingsChange is what is to be changed about etcd's settings.
type SettingsChange struct {
	Set []Setting
	// Unset names settings that are left to etcd again.
	Unset []string
}

// Empty tells that nothing is to be changed.
func (s SettingsChange) Empty() bool { return len(s.Set) == 0 && len(s.Unset) == 0 }

// SettingError says what is wrong with a change of one setting. It is an *InvalidError, too.
type SettingError struct {
	Name string
	// Unset is true if it isn't set and so can't be unset; Have are those that are.
	Unset bool
	Have  cluster.Settings
	Err   error
}

func (e *SettingError) Error() string {
	if e.Unset {
		return fmt.Sprintf("%s isn't set (%s)", e.Name, e.Have)
	}
	return e.Err.Error()
}

// Unwrap gives an *InvalidError.
func (e *SettingError) Unwrap() error {
	if e.Unset {
		return invalidf("%s isn't set", e.Name)
	}
	return &InvalidError{e.Err}
}

// apply returns the settings with the change.
func (s SettingsChange) apply(have cluster.Settings) (cluster.Settings, error) {
	now := cluster.Settings{}
	maps.Copy(now, have)
	for _, w := range s.Set {
		v, err := cluster.ParseSetting(w.Name, w.Value)
		if err != nil {
			return nil, &SettingError{Name: w.Name, Err: err}
		}
		now[w.Name] = v
	}
	for _, name := range s.Unset {
		if _, ok := now[name]; !ok {
			return nil, &SettingError{Name: name, Unset: true, Have: now}
		}
		delete(now, name)
	}
	if err := now.Validate(); err != nil {
		return nil, &InvalidError{err}
	}
	return now, nil
}

// NoSpecError says that the store has no cluster spec. It is ErrNotFound, and for a Change an *InvalidError instead.
type NoSpecError struct {
	Store string
	// Change is true if a change was asked for that doesn't name the number of members.
	Change bool
}

func (e *NoSpecError) Error() string {
	if e.Change {
		return fmt.Sprintf("there is no cluster spec in %s yet: the number of members is needed too", e.Store)
	}
	return "there is no cluster spec in " + e.Store
}

// Unwrap gives ErrNotFound or an *InvalidError.
func (e *NoSpecError) Unwrap() error {
	if e.Change {
		return invalidf("the number of members is missing")
	}
	return ErrNotFound
}

// Spec is the cluster spec with the settings; it is a *NoSpecError if there is none yet.
func (c *Client) Spec(ctx context.Context) (ClusterSpec, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	spec, _, err := c.catalog.Spec(ctx)
	if errors.Is(err, ErrNotFound) {
		return ClusterSpec{}, &NoSpecError{Store: c.Store()}
	}
	if err != nil {
		return ClusterSpec{}, err
	}
	return c.withSettings(ctx, spec)
}

func (c *Client) withSettings(ctx context.Context, spec cluster.Spec) (ClusterSpec, error) {
	settings, _, err := c.catalog.Settings(ctx)
	if err != nil && !errors.Is(err, ErrNotFound) {
		return ClusterSpec{}, err
	}
	return ClusterSpec{spec, settings}, nil
}

// Configure writes the cluster spec and etcd's settings, keeping what isn't changed, and returns
// what is stored now. The managers see it within a minute and change the cluster accordingly, one
// safe step at a time. The settings are written first. What somebody else writes at the same moment
// is kept.
func (c *Client) Configure(ctx context.Context, spec SpecChange, settings SettingsChange) (ClusterSpec, error) {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	if err := c.writeSettings(ctx, settings); err != nil {
		return ClusterSpec{}, err
	}
	return c.configure(ctx, spec)
}

// configure changes the spec, if anything is changed about it, and returns what is stored now.
func (c *Client) configure(ctx context.Context, change SpecChange) (ClusterSpec, error) {
	var spec cluster.Spec
	var err error
	if change.Empty() {
		spec, _, err = c.readSpec(ctx, change)
	} else {
		spec, err = c.writeSpec(ctx, change)
	}
	if err != nil {
		return ClusterSpec{}, err
	}
	return c.withSettings(ctx, spec)
}

// configureAttempts bounds how often a change by somebody else is taken into account.
const configureAttempts = 5

// writeSpec changes the spec in the store and keeps what the change doesn't name, also if somebody else writes at the same moment.
func (c *Client) writeSpec(ctx context.Context, change SpecChange) (cluster.Spec, error) {
	if err := c.managed(ctx); err != nil {
		return cluster.Spec{}, err
	}
	for range configureAttempts {
		spec, stored, err := c.readSpec(ctx, change)
		if err != nil {
			return spec, err
		}
		if stored == "" {
			_, err = c.catalog.CreateSpec(ctx, spec)
		} else {
			_, err = c.catalog.ReplaceSpec(ctx, spec, stored)
		}
		if errors.Is(err, catalog.ErrConflict) {
			continue
		}
		return spec, err
	}
	return cluster.Spec{}, errors.New("somebody else changed the spec again and again: check it with get, then try again")
}

// readSpec reads the spec and applies the change. The version is that of what is stored, empty if there is none.
func (c *Client) readSpec(ctx context.Context, change SpecChange) (cluster.Spec, string, error) {
	spec, stored, err := c.catalog.Spec(ctx)
	counted := change.MemberCount != nil
	// A directory that doesn't exist yet is made by the first write, which this may be.
	absent := errors.Is(err, ErrNotFound) || counted && errors.Is(err, catalog.ErrInvalid) && errors.Is(err, fs.ErrNotExist)
	unreadable := errors.Is(err, cluster.ErrCorrupt)
	switch {
	case err != nil && !absent && !unreadable, unreadable && !counted:
		return spec, "", err
	case err != nil && !counted:
		return spec, "", &NoSpecError{Store: c.Store(), Change: !change.Empty()}
	}
	spec = change.apply(spec)
	if err := catalog.ValidateSpec(spec); err != nil {
		if change.Empty() {
			return spec, "", err
		}
		return spec, "", &InvalidError{err}
	}
	if absent {
		stored = ""
	}
	return spec, stored, nil
}

// writeSettings changes the settings in the store, also if somebody else writes at the same moment.
// What can't be read is only replaced by what is said as a whole: the object has to be deleted
// first.
func (c *Client) writeSettings(ctx context.Context, change SettingsChange) error {
	if change.Empty() {
		return nil
	}
	if err := c.managed(ctx); err != nil {
		return err
	}
	for range configureAttempts {
		have, version, err := c.catalog.Settings(ctx)
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
		if errors.Is(err, ErrNotFound) {
			version = ""
		}
		now, err := change.apply(have)
		if err != nil {
			return err
		}
		if err := c.catalog.PutSettings(ctx, now, version); !errors.Is(err, catalog.ErrConflict) {
			return err
		}
	}
	return errors.New("somebody else changed the settings again and again: check them with get, then try again")
}
