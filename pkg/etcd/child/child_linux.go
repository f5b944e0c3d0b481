package child

import "syscall"

// DieWithParent has the kernel kill a child whose parent's thread ends.
func DieWithParent(a *syscall.SysProcAttr) *syscall.SysProcAttr {
	a.Pdeathsig = syscall.SIGKILL
	return a
}
