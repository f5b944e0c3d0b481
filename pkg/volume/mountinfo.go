package volume

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// mountEntry is one line of /proc/…/mountinfo.
type mountEntry struct {
	// major and minor number the device; root is which directory of it is mounted.
	major, minor uint32
	root, point  string
	fsType       string
	source       string
	readOnly     bool
}

// readMounts reads the mounts that the calling thread sees.
func readMounts() ([]mountEntry, error) {
	return readMountsOf("/proc/thread-self")
}

// readMountsOf reads the mounts of a process, which is a directory below /proc.
func readMountsOf(process string) ([]mountEntry, error) {
	data, err := os.ReadFile(filepath.Join(process, "mountinfo"))
	if err != nil {
		return nil, fmt.Errorf("read mounts: %w", err)
	}
	return parseMounts(string(data))
}

// parseMounts reads lines such as "36 35 98:0 /dir /mnt rw,noatime shared:1 - ext3 /dev/root rw,errors=continue".
func parseMounts(text string) ([]mountEntry, error) {
	var list []mountEntry
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		dash := -1
		for i := 6; i < len(fields); i++ {
			if fields[i] == "-" {
				dash = i
				break
			}
		}
		if dash < 0 || len(fields) < dash+3 {
			return nil, fmt.Errorf("read mounts: the line %.200q is not understood", strings.TrimSpace(line))
		}
		major, minor, ok := strings.Cut(fields[2], ":")
		a, err1 := strconv.ParseUint(major, 10, 32)
		b, err2 := strconv.ParseUint(minor, 10, 32)
		if !ok || err1 != nil || err2 != nil {
			return nil, fmt.Errorf("read mounts: the line %.200q is not understood", strings.TrimSpace(line))
		}
		e := mountEntry{major: uint32(a), minor: uint32(b), root: unescape(fields[3]), point: unescape(fields[4]),
			fsType: fields[dash+1], source: unescape(fields[dash+2])}
		for _, options := range append([]string{fields[5]}, fields[dash+3:]...) {
			for o := range strings.SplitSeq(options, ",") {
				e.readOnly = e.readOnly || o == "ro"
			}
		}
		list = append(list, e)
	}
	return list, nil
}

// unescape turns \040 and its like back into what they stand for.
func unescape(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+3 < len(s) {
			if n, err := strconv.ParseUint(s[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(s[i])
	}
	return b.String()
}

// at returns the topmost mount at a path, or nil.
func at(mounts []mountEntry, path string) *mountEntry {
	for i := len(mounts) - 1; i >= 0; i-- {
		if mounts[i].point == path {
			return &mounts[i]
		}
	}
	return nil
}

// MountID tells what is mounted at a directory: two of them are equal if it is the same directory of the same file system.
type MountID struct {
	major, minor uint32
	root         string
}

// MountedAt says what is mounted at exactly this directory. An error that wraps ErrNotMounted means that nothing is.
func MountedAt(dir string) (MountID, error) {
	mounts, err := readMounts()
	if err != nil {
		return MountID{}, err
	}
	e := at(mounts, dir)
	if e == nil {
		return MountID{}, fmt.Errorf("nothing is mounted at %s: %w", dir, ErrNotMounted)
	}
	return MountID{e.major, e.minor, e.root}, nil
}
