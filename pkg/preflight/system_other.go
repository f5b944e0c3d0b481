//go:build !linux

package preflight

import "os"

// nameless opens a file that has no name.
func nameless(dir string) (*os.File, error) {
	f, err := os.CreateTemp(dir, ".etcd-manager-check-*")
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}

func datasync(f *os.File) error { return f.Sync() }

// mount is what a path lies on. It isn't known here.
type mount struct{ point, kind, options string }

func mountOf(string) mount { return mount{} }

func isMountPoint(string) bool { return true }

func holder(string) program { return program{} }
