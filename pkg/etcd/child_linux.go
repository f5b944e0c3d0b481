package etcd

import "syscall"

// dieWithParent has the kernel kill a child whose parent's thread ends.
func dieWithParent(a *syscall.SysProcAttr) *syscall.SysProcAttr {
	a.Pdeathsig = syscall.SIGKILL
	return a
}
