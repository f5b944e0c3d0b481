package main

import "syscall"

// endWithParent has the kernel ask a child to stop when its parent is killed: a manager then stops its etcd, too.
func endWithParent(a *syscall.SysProcAttr) *syscall.SysProcAttr {
	a.Pdeathsig = syscall.SIGTERM
	return a
}
