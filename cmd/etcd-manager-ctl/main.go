// Command etcd-manager-ctl is the operator's tool: it reads and writes the backup store, and needs nothing else.
//
//	etcd-manager-ctl --backup-store=s3://bucket/prefix list-backups
//
// docs/ctl.md describes the commands, their output and the exit codes.
package main

import (
	"context"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/connect"
)

// version is set by the linker (-X main.version=…) for releases.
var version string

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, deps{
		args: os.Args[1:], out: os.Stdout, errOut: os.Stderr, now: time.Now, version: toolVersion(),
		open: func(ctx context.Context, url string) (blob.Store, error) { return connect.Open(ctx, url, os.Getenv) },
	})
	stop()
	os.Exit(code)
}

// toolVersion is the linker's version, else what Go knows of the module.
func toolVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
