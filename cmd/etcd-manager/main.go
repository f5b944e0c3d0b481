// Command etcd-manager is the daemon that runs on every master next to etcd.
//
// Beside its duty it has a few other faces: "check" says what is wrong before the first start, "config" shows what is in force, "demo"
// runs a whole cluster on this machine, "adopt" takes over an etcd that something else runs, "etcd" is the compiled-in etcd server,
// "etcdctl" etcd's own tool, and "prove-db", "stage-db", "salvage-copy" and "replay-db" work on a database in a process of its own. Flags,
// environment and exit codes are in docs/flags.md.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"

	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/mem"
	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/buildinfo"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/child"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/datadir"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/salvage"
	"github.com/etcd-manager/etcd-manager/pkg/jsonlog"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

// version is set by the linker (-X main.version=…) for releases.
var version string

// build describes this program.
func build() buildinfo.Info { return buildinfo.Read(version) }

// softMemoryLimit is what the collector keeps the manager's own memory below as long as that is possible, unless GOMEMLIMIT says otherwise.
const softMemoryLimit = 64 << 20

// Exit codes.
const (
	exitOK    = 0
	exitError = 1
	exitUsage = 2
)

func main() {
	// A snapshot comes in messages of 32 KiB and a few bytes, for which gRPC's own pool takes, and clears, a buffer of 1 MiB.
	if pool, err := mem.NewBinaryTieredBufferPool(8, 12, 14, 15, 16, 20); err == nil {
		experimental.SetDefaultBufferPool(pool)
	}
	os.Exit(run(os.Args[1:]))
}

// run picks the face by the first argument.
func run(args []string) int {
	code, ok := child.Dispatch(args, process.EtcdCommand(), database.CheckCommand(), datadir.StageCommand(),
		salvage.Command(), changelog.ReplayCommand())
	if ok {
		return code
	}
	if code, ok := operator.ChildMain(args); ok { // for the demo, which is its own operator
		return code
	}
	if len(args) > 0 {
		switch args[0] {
		case "etcdctl":
			return etcdctlMain()
		case "demo":
			return demoMain(args[1:])
		case "check":
			return checkMain(args[1:], os.Environ(), os.Stdout, os.Stderr)
		case "config":
			return configMain(args[1:], os.Environ(), os.Stdout, os.Stderr)
		case "adopt":
			return adoptMain(args[1:])
		case "version", "--version", "-version":
			fmt.Printf("etcd-manager %s (etcd %s compiled in)\n", build(), etcd.CompiledVersion)
			return exitOK
		}
	}
	return daemonMain(args)
}

// daemonMain runs the manager until it is told to stop.
func daemonMain(args []string) int {
	systemd := newSystemd()
	opts, err := parseOptions(args, os.Environ())
	if errors.Is(err, flag.ErrHelp) {
		return exitOK
	}
	if err != nil {
		sayLast(opts, err)
		return exitUsage
	}
	defer klog.Flush()
	// The buffers of an upload come and go; without this the heap would grow to twice what they need.
	if opts.env["GOMEMLIMIT"] == "" {
		debug.SetMemoryLimit(softMemoryLimit)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	opts.systemd = systemd
	running, end := context.WithCancel(context.Background())
	defer end()
	go systemd.keep(running, ctx)
	defer catchHangups(opts)()
	if err := runDaemon(ctx, opts); err != nil {
		sayLast(opts, err)
		return exitError
	}
	klog.Infof("etcd-manager ends gracefully")
	return exitOK
}

// sayLast says why the manager can't run, in the format of its log. o is nil if the flags could not be read.
func sayLast(o *options, err error) {
	if o != nil && o.logFormat == jsonlog.JSON {
		klog.Errorf("etcd-manager: %v", err)
		return
	}
	fmt.Fprintf(os.Stderr, "etcd-manager: %v\n", err)
}
