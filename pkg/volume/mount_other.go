//go:build !linux

package volume

import (
	"context"
	"errors"
)

// errNoMounts: elsewhere only the operator's tool runs, which mounts nothing.
var errNoMounts = errors.New("volumes can be mounted on Linux only")

// InHost isn't possible here.
type InHost struct{ Proc, Root string }

// Do fails.
func (InHost) Do(func() error) error { return errNoMounts }

// Run fails.
func (InHost) Run(context.Context, string, ...string) (string, int, error) {
	return "", -1, errNoMounts
}

// Visible fails.
func (InHost) Visible(string, uint64) (string, error) { return "", errNoMounts }

func deviceOf(string) (uint64, error) { return 0, errNoMounts }

// Mounter can't mount here.
type Mounter struct {
	Host Host
	Say  func(format string, args ...any)
}

// Mounted is never made here.
type Mounted struct{ Dir, Point, Device string }

// Mount fails.
func (*Mounter) Mount(context.Context, string, string) (*Mounted, error) { return nil, errNoMounts }

// PointFor fails.
func (*Mounter) PointFor(ID) (string, error) { return "", errNoMounts }

// Check fails.
func (*Mounted) Check() error { return errNoMounts }

// Grow fails.
func (*Mounted) Grow(context.Context) error { return errNoMounts }

// Unmount fails.
func (*Mounted) Unmount() error { return errNoMounts }

// Unmount fails.
func (*Mounter) Unmount(string, ...string) error { return errNoMounts }
