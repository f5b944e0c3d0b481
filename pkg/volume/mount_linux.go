package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// growFrom is by how much a device must be larger than its file system for that to be grown; mkfs itself leaves up to a block group unused.
const growFrom = 128 << 20

// Mounter brings a device's file system to a directory of a machine. Host is required.
type Mounter struct {
	Host Host
	// Say tells the operator what is being done and takes its time. It may be nil.
	Say func(format string, args ...any)
}

// Mounted is a volume that is mounted.
type Mounted struct {
	m *Mounter
	// Dir is the directory as this process sees it.
	Dir string
	// Point is the directory on the machine, Device the block device there.
	Point, Device string
	dev           uint64
}

func (m *Mounter) say(format string, args ...any) {
	if m.Say != nil {
		m.Say(format, args...)
	}
}

// device is a block device of the machine.
type device struct {
	path string
	dev  uint64
	size int64
}

// Mount mounts the device at point and returns once its content is there. A blank device is formatted before, a file system is checked; one
// that is mounted there already is left as it is. What holds anything else, or is in use elsewhere, is refused.
func (m *Mounter) Mount(ctx context.Context, path, point string) (*Mounted, error) {
	d, here, err := m.look(path, point)
	if err != nil {
		return nil, err
	}
	if !here {
		if err := m.prepare(ctx, d); err != nil {
			return nil, err
		}
		if err := m.Host.Do(func() error { return mountAt(d, point) }); err != nil {
			return nil, err
		}
		m.say("%s is mounted at %s", d.path, point)
	}
	dir, err := m.Host.Visible(point, d.dev)
	if err != nil {
		return nil, fmt.Errorf("%s is mounted at %s, but this process doesn't see it: %w", d.path, point, err)
	}
	v := &Mounted{m: m, Dir: dir, Point: point, Device: d.path, dev: d.dev}
	return v, v.Grow(ctx)
}

// look finds the device and tells whether it is mounted at point already.
func (m *Mounter) look(path, point string) (d device, here bool, err error) {
	err = m.Host.Do(func() error {
		if d, err = openDevice(path); err != nil {
			return err
		}
		mounts, err := readMounts()
		if err != nil {
			return err
		}
		here, err = placeFor(d, point, mounts)
		return err
	})
	return d, here, err
}

// openDevice follows links and makes sure that it is a block device.
func openDevice(path string) (device, error) {
	real, err := filepath.EvalSymlinks(path)
	if err != nil {
		return device{}, fmt.Errorf("find the device: %w", err)
	}
	f, err := os.Open(real)
	if err != nil {
		return device{}, fmt.Errorf("open the device: %w", err)
	}
	defer f.Close()
	var st syscall.Stat_t
	if err := syscall.Fstat(int(f.Fd()), &st); err != nil {
		return device{}, fmt.Errorf("look at the device %s: %w", real, err)
	}
	if st.Mode&syscall.S_IFMT != syscall.S_IFBLK {
		return device{}, fmt.Errorf("%s is not a block device", real)
	}
	size, err := f.Seek(0, 2)
	if err != nil {
		return device{}, fmt.Errorf("size of the device %s: %w", real, err)
	}
	return device{path: real, dev: uint64(st.Rdev), size: size}, nil //nolint:unconvert // its type differs between architectures
}

// placeFor tells whether the device is mounted at point, and refuses if either of them is taken otherwise.
func placeFor(d device, point string, mounts []mountEntry) (bool, error) {
	isOurs := func(e *mountEntry) bool { return unix.Mkdev(e.major, e.minor) == d.dev }
	if e := at(mounts, point); e != nil {
		switch {
		case !isOurs(e):
			return false, fmt.Errorf("%s can't be mounted at %s: %s is mounted there: %w", d.path, point, e.source, ErrInUse)
		case e.root != "/":
			return false, fmt.Errorf("at %s only the directory %s of %s is mounted: %w", point, e.root, d.path, ErrInUse)
		case e.readOnly:
			return false, fmt.Errorf("%s is mounted read-only at %s, as the kernel does after an error of the file system; look at dmesg, unmount it and start again, which checks it: %w", d.path, point, ErrInUse)
		}
		return true, nil
	}
	for i := range mounts {
		e := &mounts[i]
		if !isOurs(e) {
			continue
		}
		if e.point == "/" {
			return false, fmt.Errorf("%s holds this machine's own system: %w", d.path, ErrRoot)
		}
		return false, fmt.Errorf("%s is mounted at %s, not at %s: unmount it there: %w", d.path, e.point, point, ErrInUse)
	}
	return false, nil
}

// prepare makes sure that the device has a sound file system. Only what is blank is formatted.
func (m *Mounter) prepare(ctx context.Context, d device) error {
	content, err := m.inspect(ctx, d)
	if err != nil {
		return err
	}
	kind, err := m.blkid(ctx, d)
	if err != nil {
		return err
	}
	switch {
	case content.Kind == Blank && kind == "":
		return m.format(ctx, d)
	case content.Kind == Ext && strings.HasPrefix(kind, "ext"):
		if err := m.check(ctx, d, "-p"); err != nil || !grown(d, content) {
			return err
		}
		// resize2fs wants the whole file system checked, if it isn't mounted.
		if err := m.check(ctx, d, "-fp"); err != nil {
			return err
		}
		return m.grow(ctx, d, content)
	}
	what := content.What
	if content.Kind != Other {
		what = fmt.Sprintf("what blkid calls %q", kind)
	}
	return fmt.Errorf("%s contains %s, which is not a file system of etcd-manager: it is neither formatted nor mounted. If nothing on it is needed any more, run \"wipefs --all %s\" and then \"blkdiscard --zeroout %s\" on the machine, or attach a new volume: %w",
		d.path, what, d.path, d.path, ErrNotBlank)
}

// inspect reads the device itself. It is opened exclusively, so that nothing else (a mount, a RAID, LVM) has it meanwhile.
func (m *Mounter) inspect(ctx context.Context, d device) (Content, error) {
	var f *os.File
	err := m.Host.Do(func() (err error) {
		f, err = os.OpenFile(d.path, os.O_RDONLY|syscall.O_EXCL, 0)
		return err
	})
	switch {
	case errors.Is(err, syscall.EBUSY):
		return Content{}, fmt.Errorf("%s is held by something else on this machine (LVM, a RAID, or a mount in another namespace): %w",
			d.path, ErrInUse)
	case err != nil:
		return Content{}, fmt.Errorf("open the device: %w", err)
	}
	defer f.Close()
	began, said := time.Now(), time.Now()
	content, err := Inspect(ctx, f, d.size, func(n int64) {
		// What was read is zeros and isn't needed again; it must not push out what others have in memory.
		_ = unix.Fadvise(int(f.Fd()), n-scanChunk, scanChunk, unix.FADV_DONTNEED)
		if time.Since(said) > 10*time.Second {
			said = time.Now()
			m.say("%s: reading all of it to make sure that it is blank before it is formatted: %d of %d MiB, all zero",
				d.path, n>>20, d.size>>20)
		}
	})
	if err != nil {
		return Content{}, fmt.Errorf("%s: %w", d.path, err)
	}
	if content.Kind == Blank {
		m.say("%s is blank: all %d MiB were read in %s and are zero", d.path, d.size>>20, time.Since(began).Round(time.Millisecond))
	}
	return content, nil
}

// blkid asks the machine's own tool, which knows more formats than anybody remembers. It returns "" if that finds nothing at all.
func (m *Mounter) blkid(ctx context.Context, d device) (string, error) {
	out, code, err := m.Host.Run(ctx, "blkid", "--probe", "--output", "export", d.path)
	if err != nil {
		return "", fmt.Errorf("look at %s: %w", d.path, err)
	}
	switch code {
	case 0:
		kind := "something"
		for line := range strings.Lines(out) {
			if k, v, _ := strings.Cut(strings.TrimSpace(line), "="); k == "TYPE" || k == "PTTYPE" {
				kind = v
			}
		}
		return kind, nil
	case 2:
		return "", nil
	case 8:
		return "", fmt.Errorf("%s has signatures of more than one kind, so blkid can't identify it: it is neither formatted nor mounted; see \"wipefs %s\": %w", d.path, d.path, ErrNotBlank)
	}
	return "", fmt.Errorf("look at %s: blkid ended with code %d: %s", d.path, code, out)
}

// format makes the file system. mkfs isn't told to force anything: it too refuses what it finds in use.
func (m *Mounter) format(ctx context.Context, d device) error {
	m.say("%s is blank and gets an ext4 file system", d.path)
	out, code, err := m.Host.Run(ctx, "mkfs.ext4", "-q", d.path)
	if err == nil && code != 0 {
		err = fmt.Errorf("mkfs.ext4 ended with code %d: %s", code, out)
	}
	if err != nil {
		return fmt.Errorf("format %s: %w", d.path, err)
	}
	return nil
}

// check repairs what can be repaired without asking anybody.
func (m *Mounter) check(ctx context.Context, d device, how string) error {
	out, code, err := m.Host.Run(ctx, "e2fsck", how, d.path)
	switch {
	case err != nil:
		return fmt.Errorf("check the file system on %s: %w", d.path, err)
	case code == 1:
		m.say("the file system on %s had errors, which were repaired: %s", d.path, out)
	case code != 0:
		return fmt.Errorf("the file system on %s has errors that can't be repaired automatically, so it isn't mounted: run \"e2fsck %s\" on the machine, or attach an empty volume, which the other members fill: e2fsck ended with code %d: %s", d.path, d.path, code, out)
	}
	return nil
}

// mountAt makes the directory and mounts the device on it.
func mountAt(d device, point string) error {
	if err := os.MkdirAll(point, 0o755); err != nil {
		return fmt.Errorf("make the mount point: %w", err)
	}
	if err := unix.Mount(d.path, point, "ext4", unix.MS_NOATIME|unix.MS_NODEV|unix.MS_NOSUID, ""); err != nil {
		return fmt.Errorf("mount %s at %s: %w", d.path, point, err)
	}
	return nil
}

// Check returns an error that wraps ErrNotMounted if the directory isn't the volume any more.
func (v *Mounted) Check() error {
	dev, err := deviceOf(v.Dir)
	if err != nil {
		return fmt.Errorf("%s: %w: %w", v.Dir, err, ErrNotMounted)
	}
	if dev != v.dev {
		return fmt.Errorf("%s is not the volume %s, which was unmounted: %w", v.Dir, v.Device, ErrNotMounted)
	}
	return nil
}

// Grow makes the file system as large as the device, if that has grown. That it can't be grown
// harms nothing that is there, so it is said and is no error.
func (v *Mounted) Grow(ctx context.Context) error {
	var d device
	var content Content
	err := v.m.Host.Do(func() (err error) {
		if d, err = openDevice(v.Device); err != nil {
			return err
		}
		f, err := os.Open(d.path)
		if err != nil {
			return fmt.Errorf("open the device: %w", err)
		}
		defer f.Close()
		content, err = Inspect(ctx, f, min(d.size, headBytes), nil)
		return err
	})
	if err != nil {
		return fmt.Errorf("look whether %s has grown: %w", v.Device, err)
	}
	if !grown(d, content) {
		return nil
	}
	return v.m.grow(ctx, d, content)
}

// grown tells whether the device has become larger than its file system.
func grown(d device, c Content) bool {
	return c.Kind == Ext && d.size-c.FileSystemBytes >= growFrom
}

func (m *Mounter) grow(ctx context.Context, d device, c Content) error {
	out, code, err := m.Host.Run(ctx, "resize2fs", d.path)
	if err == nil && code != 0 {
		err = fmt.Errorf("resize2fs ended with code %d: %s", code, out)
	}
	switch {
	case err == nil:
		m.say("%s has grown: its file system was made larger, from %d to %d MiB", d.path, c.FileSystemBytes>>20, d.size>>20)
	case ctx.Err() != nil:
		return context.Cause(ctx)
	default:
		m.say("%s has grown to %d MiB, but its file system stays at %d MiB: %v", d.path, d.size>>20, c.FileSystemBytes>>20, err)
	}
	return nil
}

// Unmount takes the volume away from its directory. Nothing may use it any more.
func (v *Mounted) Unmount() error { return v.m.Unmount(v.Point, v.Dir) }

// Unmount takes what is mounted at point away, and the copies of that mount that this process and
// other containers have: a container has one if it was there when the container started, and as
// long as one is left the device is in use. What isn't mounted is no error.
func (m *Mounter) Unmount(point string, copies ...string) error {
	if err := m.unmountElsewhere(point); err != nil {
		return err
	}
	for _, path := range copies {
		if path == point {
			continue
		}
		if err := unmount(path); err != nil {
			return err
		}
	}
	return m.Host.Do(func() error { return unmount(point) })
}

func unmount(path string) error {
	if err := unix.Unmount(path, 0); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("unmount %s: %w", path, err)
	}
	return nil
}

// PointFor is where the volume of that id is mounted: below /mnt/disks where there is that directory, as on systems whose /mnt can't be
// written to.
func (m *Mounter) PointFor(id ID) (string, error) {
	point := "/mnt/master-" + string(id)
	err := m.Host.Do(func() error {
		fi, err := os.Stat("/mnt/disks")
		switch {
		case err == nil && fi.IsDir():
			point = "/mnt/disks/master-" + string(id)
		case err != nil && !errors.Is(err, os.ErrNotExist):
			return err
		}
		return nil
	})
	if err != nil {
		return "", fmt.Errorf("find the place for the mount: %w", err)
	}
	return point, nil
}
