//go:build !linux

package main

import "syscall"

// endWithParent can't be had here: what a killed demo has started has to be stopped by hand.
func endWithParent(a *syscall.SysProcAttr) *syscall.SysProcAttr { return a }
