package main

import (
	"fmt"
	"os"
	"slices"

	"go.etcd.io/etcd/etcdctl/v3/ctlv3"
)

// etcdctlMain is etcd's own tool, so that the image, and a machine that has only Go, can look into a cluster. It reads the process's
// arguments, which are made to look as if it stood alone.
func etcdctlMain() int {
	os.Args = slices.Concat([]string{"etcdctl"}, os.Args[2:])
	if err := ctlv3.Start(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return exitError
	}
	return exitOK
}
