package external

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/volume"
)

// Disks is where directories are prepared that no provider attaches, and Mount the directory in each that holds the data.
const (
	Disks = "/mnt/disks"
	Mount = "mnt"
)

// Prepared waits for the one directory <Root>/mnt/disks/<Prefix>…/mnt, which somebody has made or mounted for this machine.
type Prepared struct {
	// Root is where the machine's file system is seen.
	Root string
	// Prefix begins the directory's name, which is this node's id.
	Prefix string
	// Say tells the operator what is waited for.
	Say func(format string, args ...any)
	// Poll is the time between two looks; 0 means a second.
	Poll time.Duration
}

// PreparedVolume is such a directory.
type PreparedVolume struct {
	// Name is the directory's, Dir where the data live.
	Name, Dir string
	info      os.FileInfo
}

// Acquire returns once there is exactly one such directory. Two could both be this node's: neither is taken, and both are named.
func (p *Prepared) Acquire(ctx context.Context) (*PreparedVolume, error) {
	var said time.Time
	told := ""
	for {
		v, err := p.look()
		if err == nil {
			return v, nil
		}
		if time.Since(said) > sayAgain || told != err.Error() {
			said, told = time.Now(), err.Error()
			p.Say("waiting for a volume (--volume-provider=external, --volume-tag=%s): %v", p.Prefix, err)
		}
		every := p.Poll
		if every == 0 {
			every = poll
		}
		t := time.NewTimer(every)
		select {
		case <-ctx.Done():
			t.Stop()
			return nil, context.Cause(ctx)
		case <-t.C:
		}
	}
}

func (p *Prepared) look() (*PreparedVolume, error) {
	disks := filepath.Join(p.Root, Disks)
	entries, err := os.ReadDir(disks)
	if err != nil {
		return nil, fmt.Errorf("read directory of volumes: %w", err)
	}
	var found []*PreparedVolume
	var names []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), p.Prefix) {
			continue
		}
		dir := filepath.Join(disks, e.Name(), Mount)
		if info, err := os.Stat(dir); err == nil && info.IsDir() {
			found, names = append(found, &PreparedVolume{Name: e.Name(), Dir: dir, info: info}), append(names, dir)
		}
	}
	switch len(found) {
	case 0:
		return nil, fmt.Errorf("there is no directory %s", filepath.Join(disks, p.Prefix+"*", Mount))
	case 1:
		return found[0], nil
	}
	return nil, fmt.Errorf("%s could all be this node's, so none is used: keep only the right one", strings.Join(names, " and "))
}

// Check returns an error that wraps volume.ErrNotMounted if the directory isn't the same any more: what was
// mounted there is gone, or something is now.
func (v *PreparedVolume) Check() error {
	now, err := os.Stat(v.Dir)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("%s is gone: %w", v.Dir, volume.ErrNotMounted)
	}
	if err != nil {
		return fmt.Errorf("look at the volume: %w", err)
	}
	if !os.SameFile(now, v.info) {
		return fmt.Errorf("%s is not the directory that was there when the manager started: %w", v.Dir, volume.ErrNotMounted)
	}
	return nil
}
