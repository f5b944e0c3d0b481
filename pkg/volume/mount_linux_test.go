package volume

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestOnlyBlankDevicesAreFormatted: a device with anything on it stays as it is to the last byte, and the message says what was found.
func TestOnlyBlankDevicesAreFormatted(t *testing.T) {
	needLoop(t)
	const mib = 48
	put := func(offset int64, data string) func(t *testing.T, image, dev string) {
		return func(t *testing.T, image, _ string) {
			f, err := os.OpenFile(image, os.O_WRONLY, 0)
			if err == nil {
				_, err = f.WriteAt([]byte(data), offset)
			}
			if err != nil {
				t.Fatal(err)
			}
			f.Close()
		}
	}
	run := func(name string, args ...string) func(t *testing.T, image, dev string) {
		return func(t *testing.T, image, _ string) { tool(t, name, append(args, image)...) }
	}
	for name, c := range map[string]struct {
		fill func(t *testing.T, image, dev string)
		want string
	}{
		"one byte at the beginning": {put(0, "x"), "data at byte 0,"},
		"one byte in the middle":    {put(mib<<19+7, "x"), "data at byte 25165831,"},
		"the last byte":             {put(mib<<20-1, "\x01"), "data at byte 50331647,"},
		"text without a format":     {put(4096, "some notes that somebody wrote onto the device\n"), "data at byte 4096,"},
		"an MBR":                    {put(510, "\x55\xaa"), "MBR"},
		"a GPT":                     {put(512, "EFI PART"), "GPT"},
		"only the GPT at the end":   {put(mib<<20-512, "EFI PART"), "data at byte"},
		"xfs":                       {put(0, "XFSB"), "xfs"},
		"btrfs":                     {put(0x10040, "_BHRfS_M"), "btrfs"},
		"LUKS":                      {put(0, "LUKS\xba\xbe"), "LUKS"},
		"LVM":                       {put(512, "LABELONE"), "LVM"},
		"a RAID member, 1.2":        {put(4096, "\xfc\x4e\x2b\xa9"), "RAID"},
		"a RAID member, 1.0":        {put(mib<<20-8192, "\xfc\x4e\x2b\xa9"), "data at byte"},
		"squashfs":                  {put(0, "hsqs"), "squashfs"},
		"swap space, of mkswap":     {run("mkswap", "--pagesize", "4096"), "swap"},
		"a tar archive":             {put(257, "ustar\x0000"), "data at byte 257,"},
		"an ext4 that was half wiped": {func(t *testing.T, i, d string) {
			run("mkfs.ext4", "-q", "-F")(t, i, d)
			put(0, strings.Repeat("\x00", 4096))(t, i, d)
		}, "data at byte"},
	} {
		t.Run(name, func(t *testing.T) {
			file := image(t, mib)
			c.fill(t, file, "")
			dev := loop(t, file)
			before := sum(t, file)
			_, err := mount(t, dev, filepath.Join(t.TempDir(), "point"))
			if !errors.Is(err, ErrNotBlank) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("Mount: %v, want ErrNotBlank that says %q", err, c.want)
			}
			if after := sum(t, file); after != before {
				t.Error("the device was written to")
			}
		})
	}
}

// TestUnreadableIsNotBlank: a device that can't be read to its end is not known to be blank.
func TestUnreadableIsNotBlank(t *testing.T) {
	r := &failing{after: 3 << 20}
	if _, err := Inspect(t.Context(), r, 8<<20, nil); err == nil || !errors.Is(err, unix.EIO) {
		t.Errorf("Inspect: %v, want EIO", err)
	}
	if _, err := Inspect(t.Context(), bytes.NewReader(make([]byte, 1<<20)), 2<<20, nil); err == nil {
		t.Error("a device that ends before its size counts as blank")
	}
	if _, err := Inspect(t.Context(), bytes.NewReader(nil), 0, nil); err == nil {
		t.Error("an empty device counts as blank")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Inspect(ctx, bytes.NewReader(make([]byte, 4<<20)), 4<<20, nil); err == nil {
		t.Error("a device whose reading was broken off counts as blank")
	}
	if c, err := Inspect(t.Context(), bytes.NewReader(make([]byte, 4<<20+512)), 4<<20+512, nil); err != nil || c.Kind != Blank {
		t.Errorf("a blank device of an odd size: %v, %v", c, err)
	}
}

type failing struct{ after int64 }

func (f *failing) ReadAt(p []byte, at int64) (int, error) {
	clear(p)
	if at+int64(len(p)) > f.after {
		return 0, unix.EIO
	}
	return len(p), nil
}

// TestMountFormatsOnce: formatted the first time, and never again; what was written is there after an unmount and a new start.
func TestMountFormatsOnce(t *testing.T) {
	needLoop(t)
	file := image(t, 64)
	dev := loop(t, file)
	point := filepath.Join(t.TempDir(), "mnt", "master-vol-1")
	v, err := mount(t, dev, point)
	if err != nil {
		t.Fatal(err)
	}
	if err := v.Check(); err != nil {
		t.Error(err)
	}
	if err := os.WriteFile(filepath.Join(v.Dir, "state"), []byte("data"), 0o600); err != nil {
		t.Fatal(err)
	}
	// A start while it is mounted uses it as it is.
	if _, err := mount(t, dev, point); err != nil {
		t.Error(err)
	}
	if err := v.Unmount(); err != nil {
		t.Fatal(err)
	}
	if err := v.Check(); !errors.Is(err, ErrNotMounted) {
		t.Errorf("Check of an unmounted directory: %v", err)
	}
	v, err = mount(t, dev, point)
	if err != nil {
		t.Fatal(err)
	}
	if data, err := os.ReadFile(filepath.Join(v.Dir, "state")); err != nil || string(data) != "data" {
		t.Errorf("what was written is %q, %v", data, err)
	}
}

// TestMountElsewhere: neither the device nor the mount point may be taken by something else.
func TestMountElsewhere(t *testing.T) {
	needLoop(t)
	one, two := loop(t, image(t, 32)), loop(t, image(t, 32))
	dir := t.TempDir()
	if _, err := mount(t, one, filepath.Join(dir, "one")); err != nil {
		t.Fatal(err)
	}
	if _, err := mount(t, one, filepath.Join(dir, "other")); !errors.Is(err, ErrInUse) ||
		!strings.Contains(err.Error(), filepath.Join(dir, "one")) {
		t.Errorf("a device that is mounted elsewhere: %v", err)
	}
	if _, err := mount(t, two, filepath.Join(dir, "one")); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), one) {
		t.Errorf("a mount point that is taken: %v", err)
	}
	if err := unix.Mount("", filepath.Join(dir, "one"), "", unix.MS_REMOUNT|unix.MS_RDONLY, ""); err != nil {
		t.Fatal(err)
	}
	if _, err := mount(t, one, filepath.Join(dir, "one")); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "read-only") {
		t.Errorf("a volume that was remounted read-only: %v", err)
	}
	if _, err := mount(t, image(t, 1), filepath.Join(dir, "file")); err == nil || !strings.Contains(err.Error(), "not a block device") {
		t.Errorf("a file: %v", err)
	}
}

// TestRootIsRefused: the device of "/" is refused whatever its content.
func TestRootIsRefused(t *testing.T) {
	mounts, err := parseMounts("22 1 259:1 / / rw,relatime shared:1 - ext4 /dev/nvme0n1p1 rw\n30 22 0:5 / /mnt/a\\040b rw - tmpfs tmpfs rw\n")
	if err != nil {
		t.Fatal(err)
	}
	if mounts[1].point != "/mnt/a b" {
		t.Errorf("point %q", mounts[1].point)
	}
	d := device{path: "/dev/nvme0n1p1", dev: unix.Mkdev(259, 1), size: 1 << 30}
	if _, err := placeFor(d, "/mnt/master-vol-1", mounts); !errors.Is(err, ErrRoot) {
		t.Errorf("placeFor: %v, want ErrRoot", err)
	}
}

// TestCheckRepairs: an error of the file system that can be repaired is, one that can't is said and nothing is mounted.
func TestCheckRepairs(t *testing.T) {
	needLoop(t)
	file := image(t, 64)
	tool(t, "mkfs.ext4", "-q", "-F", file)
	dev := loop(t, file)
	point := filepath.Join(t.TempDir(), "point")
	// A file system whose group descriptors are destroyed needs a decision.
	f, err := os.OpenFile(file, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	good := make([]byte, 4096)
	if _, err := f.ReadAt(good, 2048); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(bytes.Repeat([]byte{0x5a}, 4096), 2048); err != nil {
		t.Fatal(err)
	}
	tool(t, "blockdev", "--flushbufs", dev)
	if _, err := mount(t, dev, point); err == nil || !strings.Contains(err.Error(), "e2fsck") {
		t.Errorf("a destroyed file system: %v", err)
	}
	if _, err := f.WriteAt(good, 2048); err != nil {
		t.Fatal(err)
	}
	tool(t, "blockdev", "--flushbufs", dev)
	if _, err := mount(t, dev, point); err != nil {
		t.Errorf("the same, sound again: %v", err)
	}
}

// TestGrow: a volume that was made larger gets a larger file system, while it is mounted or at the next start.
func TestGrow(t *testing.T) {
	needLoop(t)
	file := image(t, 64)
	dev := loop(t, file)
	point := filepath.Join(t.TempDir(), "point")
	v, err := mount(t, dev, point)
	if err != nil {
		t.Fatal(err)
	}
	size := func() int64 {
		var st unix.Statfs_t
		if err := unix.Statfs(point, &st); err != nil {
			t.Fatal(err)
		}
		return int64(st.Blocks) * st.Bsize >> 20
	}
	grow := func(mib int64) {
		if err := os.Truncate(file, mib<<20); err != nil {
			t.Fatal(err)
		}
		tool(t, "losetup", "--set-capacity", dev)
	}
	before := size()
	grow(512)
	if err := v.Grow(t.Context()); err != nil {
		t.Fatal(err)
	}
	if now := size(); !may(t, unix.CAP_SYS_RESOURCE) {
		t.Logf("not looked at: the kernel lets nobody here grow what is mounted")
	} else if now < 400 {
		t.Errorf("%d MiB after it grew to 512, %d before", now, before)
	}
	if err := v.Unmount(); err != nil {
		t.Fatal(err)
	}
	grow(1024)
	if _, err := mount(t, dev, point); err != nil {
		t.Fatal(err)
	}
	if now := size(); now < 900 {
		t.Errorf("%d MiB after it grew to 1024 while it was away", now)
	}
}

// may tells whether this process has a capability.
func may(t *testing.T, capability int) bool {
	t.Helper()
	data := [2]unix.CapUserData{}
	if err := unix.Capget(&unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}, &data[0]); err != nil {
		t.Fatal(err)
	}
	return data[capability/32].Effective&(1<<(capability%32)) != 0
}
