// Command etcd-manager-ctl is the operator's tool: it reads and writes the backup store, and needs nothing else.
//
//	etcd-manager-ctl --backup-store=s3://bucket/prefix list-backups
//
// docs/ctl.md describes the commands, their output and the exit codes. Hidden faces, "prove-db",
// "keys-db", "values-db" and "replay-db", work on a database that may be corrupt in a process of
// its own.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/vbauerster/mpb/v8/cwriter"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/connect"
	"github.com/etcd-manager/etcd-manager/pkg/buildinfo"
	"github.com/etcd-manager/etcd-manager/pkg/envelope/awskms"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

// version is set by the linker (-X main.version=…) for releases.
var version string

func main() {
	if code, ok := operator.ChildMain(os.Args[1:]); ok {
		os.Exit(code)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, deps{
		args: os.Args[1:], in: os.Stdin, out: os.Stdout, errOut: os.Stderr,
		outTerminal: isTerminal(os.Stdout), errTerminal: isTerminal(os.Stderr), person: isTerminal(os.Stdin) && isTerminal(os.Stderr),
		open: openStore, openCopy: openCopy,
		now: time.Now, env: os.Getenv, build: buildinfo.Read(version), pause: operator.Pause, kopsVolumes: openKopsVolumes,
		kms: awskms.New(awskms.Config{Endpoint: os.Getenv("KMS_ENDPOINT")}),
	})
	stop()
	os.Exit(code)
}

func isTerminal(f *os.File) bool { return cwriter.IsTerminal(int(f.Fd())) }

// copyVariable looks a variable up for the store of --from: with the prefix, if it is set there, else as for --backup-store.
func copyVariable(name string) string {
	if v, ok := os.LookupEnv("ETCD_MANAGER_COPY_" + name); ok {
		return v
	}
	return os.Getenv(name)
}

// openCopy opens the store of --from, openStore that of --backup-store.
func openCopy(ctx context.Context, url string) (blob.Store, error) {
	return openWith(ctx, url, copyVariable)
}

func openStore(ctx context.Context, url string) (blob.Store, error) {
	return openWith(ctx, url, os.Getenv)
}

// openWith opens a store of which no operation outlasts its context.
func openWith(ctx context.Context, url string, env func(string) string) (blob.Store, error) {
	s, err := connect.Open(ctx, url, env)
	if err != nil {
		return nil, err
	}
	return blob.Detach(s), nil
}
