package process

import (
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// maxLinks bounds the symbolic links on the way to a file, as the kernel does.
const maxLinks = 40

// trail is a walk along a path that looks at every part of it. A part is opened before it is looked at, and the next one
// is looked for in what was opened, so nothing can be put in its place in between.
type trail struct {
	fd    int // of the part that was reached last, with O_PATH
	at    string
	st    unix.Stat_t
	links int
}

// walk follows a path to its end. The caller closes fd.
func walk(path string) (*trail, error) {
	if !filepath.IsAbs(path) {
		return nil, fmt.Errorf("%s isn't an absolute path: %w", path, ErrUntrusted)
	}
	t := &trail{fd: -1}
	if err := t.top(); err != nil {
		return nil, err
	}
	for parts := strings.Split(path, "/"); len(parts) > 0; {
		name := parts[0]
		parts = parts[1:]
		if name == "" || name == "." {
			continue
		}
		to, err := t.step(name)
		if err != nil {
			_ = unix.Close(t.fd)
			return nil, err
		}
		if to != "" { // a symbolic link
			parts = append(strings.Split(to, "/"), parts...)
			if filepath.IsAbs(to) {
				if err := t.top(); err != nil {
					return nil, err
				}
			}
		}
	}
	return t, nil
}

// top goes to the root of the file system.
func (t *trail) top() error {
	fd, err := unix.Open("/", unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: "/", Err: err}
	}
	return t.reach(fd, "/")
}

// step goes to a name in the directory that was reached, or returns where the symbolic link of that name points.
func (t *trail) step(name string) (link string, err error) {
	here := filepath.Join(t.at, name)
	fd, err := unix.Openat(t.fd, name, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return "", &fs.PathError{Op: "open", Path: here, Err: err}
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil || st.Mode&unix.S_IFMT != unix.S_IFLNK {
		return "", t.reach(fd, here)
	}
	defer unix.Close(fd)
	if t.links++; t.links > maxLinks {
		return "", &fs.PathError{Op: "open", Path: here, Err: unix.ELOOP}
	}
	if why := mayWrite(here, st.Uid, st.Gid, 0); why != "" {
		return "", fmt.Errorf("%s: %w", why, ErrUntrusted)
	}
	buf := make([]byte, unix.PathMax)
	n, err := unix.Readlinkat(fd, "", buf)
	if err != nil || n == 0 {
		return "", &fs.PathError{Op: "readlink", Path: here, Err: err}
	}
	return string(buf[:n]), nil
}

// reach takes over fd and checks what it is. In a directory that others may write, but with the sticky bit, nobody can
// replace what belongs to root. A volume that Kubernetes makes (emptyDir) has mode 0777; what lies in it is checked.
func (t *trail) reach(fd int, at string) error {
	if t.fd >= 0 {
		_ = unix.Close(t.fd)
	}
	t.fd, t.at = fd, at
	if err := unix.Fstat(fd, &t.st); err != nil {
		return &fs.PathError{Op: "stat", Path: at, Err: err}
	}
	perm := fs.FileMode(t.st.Mode & 0o7777)
	shared := t.st.Mode&unix.S_IFMT == unix.S_IFDIR && (perm&unix.S_ISVTX != 0 || isMount(fd))
	if shared {
		perm &^= 0o022
	}
	if why := mayWrite(at, t.st.Uid, t.st.Gid, perm); why != "" {
		return fmt.Errorf("%s: %w", why, ErrUntrusted)
	}
	return nil
}

// isMount tells whether a directory is where something is mounted.
func isMount(fd int) bool {
	var st unix.Statx_t
	err := unix.Statx(fd, "", unix.AT_EMPTY_PATH, unix.STATX_BASIC_STATS, &st)
	return err == nil && st.Attributes_mask&unix.STATX_ATTR_MOUNT_ROOT != 0 && st.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0
}

func checkRoot(dir string) error {
	t, err := walk(dir)
	if err != nil {
		return err
	}
	defer unix.Close(t.fd)
	if t.st.Mode&unix.S_IFMT != unix.S_IFDIR {
		return fmt.Errorf("%s isn't a directory: %w", t.at, ErrUntrusted)
	}
	perm := fs.FileMode(t.st.Mode & 0o7777)
	if perm&unix.S_ISVTX == 0 && isMount(t.fd) {
		return nil
	}
	// Everybody may make an etcd-v… in a directory like /tmp, so none is looked for there.
	if why := mayWrite(t.at, t.st.Uid, t.st.Gid, perm); why != "" {
		return fmt.Errorf("%s: %w", why, ErrUntrusted)
	}
	return nil
}

// openTrusted opens an executable that only root, or the user who runs this program, can have written. The caller runs
// what was opened with runFile, and closes it.
func openTrusted(path string) (*os.File, exeID, error) {
	t, err := walk(path)
	if err != nil {
		return nil, exeID{}, err
	}
	defer unix.Close(t.fd)
	if t.st.Mode&unix.S_IFMT != unix.S_IFREG || t.st.Mode&0o111 == 0 {
		return nil, exeID{}, &fs.PathError{Op: "run", Path: t.at, Err: unix.EACCES}
	}
	f, err := os.Open(fmt.Sprintf("/proc/self/fd/%d", t.fd))
	if err != nil {
		return nil, exeID{}, fmt.Errorf("open %s: %w", t.at, err)
	}
	id := exeID{dev: t.st.Dev, ino: t.st.Ino, size: t.st.Size, modified: t.st.Mtim.Nano(), change: t.st.Ctim.Nano()}
	return f, id, nil
}

// runFile is a command that runs what was opened, whatever has become of its path. more are inherited as descriptors from 3 on.
func runFile(argv []string, f *os.File, more ...*os.File) *exec.Cmd {
	// The file is inherited too, behind those, so that its number is known, and a script can be read by its interpreter.
	return &exec.Cmd{Path: fmt.Sprintf("/proc/self/fd/%d", 3+len(more)), Args: argv, ExtraFiles: append(more, f)}
}
