package preflight

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// nameless opens a file that has no name.
func nameless(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), filepath.Join(dir, "(nameless)")), nil
	}
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.EISDIR) {
		return nil, &os.PathError{Op: "create", Path: dir, Err: err}
	}
	f, err := os.CreateTemp(dir, ".etcd-manager-check-*")
	if err != nil {
		return nil, err
	}
	return f, os.Remove(f.Name())
}

func datasync(f *os.File) error { return unix.Fdatasync(int(f.Fd())) }

// mount is what a path lies on.
type mount struct{ point, kind, options string }

// mountOf finds the mount of a path that exists; empty if it isn't known.
func mountOf(path string) mount {
	if p, err := filepath.EvalSymlinks(path); err == nil {
		path = p
	}
	f, err := os.Open("/proc/self/mountinfo")
	if err != nil {
		return mount{}
	}
	defer f.Close()
	var best mount
	for s := bufio.NewScanner(f); s.Scan(); {
		m, ok := parseMount(s.Text())
		if !ok || len(m.point) < len(best.point) {
			continue
		}
		if m.point == "/" || path == m.point || strings.HasPrefix(path, m.point+"/") {
			best = m // later lines lie over earlier ones
		}
	}
	return best
}

// parseMount reads a line of mountinfo (proc(5)).
func parseMount(line string) (mount, bool) {
	first, second, ok := strings.Cut(line, " - ")
	a, b := strings.Fields(first), strings.Fields(second)
	if !ok || len(a) < 6 || len(b) < 3 {
		return mount{}, false
	}
	unescape := strings.NewReplacer(`\040`, " ", `\011`, "\t", `\012`, "\n", `\134`, `\`)
	return mount{point: unescape.Replace(a[4]), kind: b[0], options: a[5] + "," + b[2]}, true
}

func isMountPoint(path string) bool {
	p, err := filepath.EvalSymlinks(path)
	return err == nil && mountOf(p).point == p
}

// holder finds the process that listens on a port; its id is 0 if it can't be told.
func holder(port string) program {
	number, err := strconv.Atoi(port)
	if err != nil {
		return program{}
	}
	inodes := map[string]bool{}
	for _, path := range []string{"/proc/net/tcp", "/proc/net/tcp6"} {
		data, _ := os.ReadFile(path)
		for line := range bytes.Lines(data) {
			f := strings.Fields(string(line))
			const listening = "0A"
			if len(f) < 10 || f[3] != listening {
				continue
			}
			_, hex, _ := strings.Cut(f[1], ":")
			if n, err := strconv.ParseInt(hex, 16, 32); err == nil && int(n) == number {
				inodes["socket:["+f[9]+"]"] = true
			}
		}
	}
	if len(inodes) == 0 {
		return program{}
	}
	return holderOf(inodes)
}

// holderOf finds a process that has one of these open.
func holderOf(inodes map[string]bool) program {
	dirs, _ := filepath.Glob("/proc/[0-9]*/fd")
	for _, dir := range dirs {
		list, err := os.ReadDir(dir)
		if err != nil {
			continue // another user's, or gone
		}
		for _, e := range list {
			if to, err := os.Readlink(filepath.Join(dir, e.Name())); err != nil || !inodes[to] {
				continue
			}
			proc := filepath.Dir(dir)
			pid, _ := strconv.Atoi(filepath.Base(proc))
			exe, _ := os.Readlink(filepath.Join(proc, "exe"))
			line, _ := os.ReadFile(filepath.Join(proc, "cmdline"))
			return program{id: pid, name: strings.TrimSuffix(filepath.Base(exe), " (deleted)"), args: strings.Split(string(line), "\x00")}
		}
	}
	return program{}
}
