package settings

import (
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// othersWrite says which others may write a file, or is "". The group of an ordinary user is taken for that user's own.
func othersWrite(path string, info fs.FileInfo) string {
	perm := info.Mode().Perm()
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok {
		return ""
	}
	switch {
	case st.Uid != 0 && int(st.Uid) != os.Geteuid():
		return fmt.Sprintf("%s belongs to user %d, who can write it", path, st.Uid)
	case perm&0o002 != 0:
		return fmt.Sprintf("%s has mode %04o: everybody can write it", path, perm)
	case perm&0o020 != 0 && (os.Geteuid() == 0 || int(st.Gid) != os.Getegid()):
		return fmt.Sprintf("%s has mode %04o: the members of group %d can write it", path, perm, st.Gid)
	}
	return ""
}
