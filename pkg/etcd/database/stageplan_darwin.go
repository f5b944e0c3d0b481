package database

import "syscall"

func changeTimes(st *syscall.Stat_t) (modified, changed int64) {
	return st.Mtimespec.Nano(), st.Ctimespec.Nano()
}
