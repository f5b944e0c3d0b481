// Package external is for machines whose data volume is mounted by somebody else: by /etc/fstab, by systemd, or by a person.
//
// It mounts and formats nothing. What it must make sure of is that etcd never writes into the empty
// directory below a volume that isn't there.
package external

import (
	"context"
	"fmt"
	"path/filepath"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/volume"
)

// poll is the time between two looks for the volume, sayAgain how often it is said that there is none.
const (
	poll     = time.Second
	sayAgain = time.Minute
)

// Provider waits for the volume that is mounted at Dir.
type Provider struct {
	Dir string
	// Say tells the operator what is waited for.
	Say func(format string, args ...any)
}

// Volume is what is mounted.
type Volume struct {
	dir   string
	mount volume.MountID
}

// Acquire returns once a file system is mounted at exactly that directory.
func (p *Provider) Acquire(ctx context.Context) (*Volume, error) {
	var said time.Time
	for {
		dir, err := filepath.EvalSymlinks(p.Dir)
		var id volume.MountID
		if err == nil {
			id, err = volume.MountedAt(dir)
		}
		if err == nil {
			return &Volume{dir: dir, mount: id}, nil
		}
		if time.Since(said) > sayAgain {
			said = time.Now()
			p.Say("waiting for a volume to be mounted at %s (--data-dir with --volume-provider=external): %v", p.Dir, err)
		}
		t := time.NewTimer(poll)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, context.Cause(ctx)
		case <-t.C:
		}
	}
}

// Dir is where it is mounted.
func (v *Volume) Dir() string { return v.dir }

// Check returns an error that wraps volume.ErrNotMounted if what is mounted there isn't the same any more.
func (v *Volume) Check() error {
	now, err := volume.MountedAt(v.dir)
	if err != nil {
		return err
	}
	if now != v.mount {
		return fmt.Errorf("%s is not the volume that was mounted there when the manager started: %w", v.dir, volume.ErrNotMounted)
	}
	return nil
}
