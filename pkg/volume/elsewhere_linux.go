package volume

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// unmountElsewhere takes the copies of a mount away that other mount namespaces of the machine
// have: those of its device, or, where it isn't mounted on the machine any more, those whose path
// ends like it (it has the volume's id). Where the machine's processes aren't seen there is nothing
// to be done.
func (m *Mounter) unmountElsewhere(point string) error {
	var here *mountEntry
	if err := m.Host.Do(func() error {
		mounts, err := readMounts()
		here = at(mounts, point)
		return err
	}); err != nil {
		return err
	}
	proc := m.Host.Processes()
	entries, err := os.ReadDir(proc)
	if err != nil {
		return nil //nolint:nilerr // they aren't seen
	}
	done := map[string]bool{}
	for _, p := range []string{"/proc/thread-self", filepath.Join(proc, "1")} { // these two are the caller's to do
		if ns, err := os.Readlink(filepath.Join(p, "ns/mnt")); err == nil {
			done[ns] = true
		}
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		process := filepath.Join(proc, e.Name())
		ns, err := os.Readlink(filepath.Join(process, "ns/mnt"))
		if err != nil || done[ns] {
			continue // it may have ended
		}
		done[ns] = true
		if err := unmountIn(process, here, point); err != nil {
			return err
		}
	}
	return nil
}

// unmountIn does it in the mount namespace of a process.
func unmountIn(process string, here *mountEntry, point string) error {
	mounts, err := readMountsOf(process)
	if err != nil {
		return nil //nolint:nilerr // the process has ended
	}
	var points []string
	for _, e := range mounts {
		if here != nil && e.major == here.major && e.minor == here.minor || here == nil && strings.HasSuffix(e.point, point) {
			points = append(points, e.point)
		}
	}
	if len(points) == 0 {
		return nil
	}
	ns, err := os.Open(filepath.Join(process, "ns/mnt"))
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("unmount %s in the mounts of process %s: %w", point, filepath.Base(process), err)
	}
	defer ns.Close()
	name, _ := os.ReadFile(filepath.Join(process, "comm"))
	for _, p := range slices.Backward(points) {
		if err := inThread(func() error { return setNamespace(ns) }, func() error { return unmount(p) }); err != nil {
			return fmt.Errorf("another container has the volume mounted, too (that of process %s, %s); stop it: %w",
				filepath.Base(process), strings.TrimSpace(string(name)), err)
		}
	}
	return nil
}
