package process

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// ErrUntrusted means that others than root, or the user who runs this program, can have written an executable.
var ErrUntrusted = errors.New("not run, as others than root can have written it")

// exeID tells one file, as it is now, from every other.
type exeID struct {
	dev, ino         uint64
	size             int64
	modified, change int64
}

// mayWrite says who else may write what is owned and may be written like this, or is "". The group of an ordinary user
// is taken for that user's own.
func mayWrite(path string, uid, gid uint32, perm fs.FileMode) string {
	switch {
	case uid != 0 && int(uid) != os.Geteuid():
		return fmt.Sprintf("%s belongs to user %d (mode %04o)", path, uid, perm)
	case perm&0o002 != 0:
		return fmt.Sprintf("%s can be written by everybody (mode %04o)", path, perm)
	case perm&0o020 != 0 && (os.Geteuid() == 0 || int(gid) != os.Getegid()):
		return fmt.Sprintf("%s can be written by group %d (mode %04o)", path, gid, perm)
	}
	return ""
}

// CheckRoot says why no etcd is run from a directory, as one of Binaries.Roots. The error wraps ErrUntrusted and names the
// part of the path and its mode. A directory that doesn't exist holds nothing and is no error.
func CheckRoot(dir string) error {
	err := checkRoot(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
