package etcd

import "syscall"

func dieWithParent(a *syscall.SysProcAttr) *syscall.SysProcAttr { return a }
