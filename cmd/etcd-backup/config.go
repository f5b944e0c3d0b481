package main

import (
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/settings"
	"github.com/etcd-manager/etcd-manager/pkg/spelling"
)

const configHelp = `etcd-backup config show prints what is in force with these flags and the file of --config, and where each value comes from. What
may be a secret isn't printed. etcd-backup config schema prints a JSON schema of that file.

usage: etcd-backup config show [flags of etcd-backup]
       etcd-backup config schema

example: etcd-backup config show --config=/etc/etcd-manager/backup.yaml

The exit code is 0, or 2 if something is wrong, which is said behind the values.
`

// configMain is "config".
func configMain(args, environ []string, out, errOut io.Writer) int {
	klog.LogToStderr(false)
	klog.SetOutput(io.Discard) // a warning would stand in the middle of the result
	return configRun(args, environ, out, errOut)
}

func configRun(args, environ []string, out, errOut io.Writer) int {
	switch {
	case len(args) == 1 && args[0] == "schema":
		data, err := settings.Schema(newFlags(&options{}))
		if err != nil {
			fmt.Fprintf(errOut, "etcd-backup config: %v\n", err)
			return exitFailure
		}
		fmt.Fprintf(out, "%s", data)
		return exitOK
	case len(args) > 0 && args[0] == "show":
		return configShow(args[1:], environ, out, errOut)
	case len(args) == 1 && slices.Contains([]string{"help", "--help", "-h"}, args[0]):
		fmt.Fprint(out, configHelp)
		return exitOK
	}
	fmt.Fprint(errOut, configHelp)
	return exitUsage
}

func configShow(args, environ []string, out, errOut io.Writer) int {
	env := map[string]string{}
	for _, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	o, err := parse(args, func(k string) string { return env[k] }, io.Discard)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(out, configHelp)
		return exitOK
	}
	if o.inForce != nil {
		var list []settings.Variable
		for _, name := range []string{"ETCD_MANAGER_DAILY_BACKUPS_RETENTION", "ETCD_MANAGER_HOURLY_BACKUPS_RETENTION"} {
			v := settings.Variable{Name: name, Value: env[name], Source: "environment"}
			if o.env != nil && o.env(name) != v.Value {
				v.Value, v.Source = o.env(name), o.envFile
			}
			if v.Value != "" {
				list = append(list, v)
			}
		}
		if err := settings.Show(out, o.inForce, list); err != nil {
			fmt.Fprintf(errOut, "etcd-backup config: print: %v\n", err)
			return exitFailure
		}
	}
	if err != nil {
		fmt.Fprintf(errOut, "etcd-backup: %v\n", err)
		return exitUsage
	}
	return exitOK
}

// isLive tells whether a flag may change while the sidecar runs.
func isLive(name string) bool {
	return slices.Contains(append(settings.LiveLogFlags(), "interval", "change-log-retention"), name)
}

// catchHangups keeps SIGHUP from ending a sidecar that has a file to read again, or that systemd runs. What it returns undoes that.
func (o *options) catchHangups() (undo func()) {
	if o.configFile == "" && o.env("INVOCATION_ID") == "" {
		return func() {}
	}
	hangups := make(chan os.Signal, 1)
	signal.Notify(hangups, syscall.SIGHUP)
	o.hangups = hangups
	return func() { signal.Stop(hangups) }
}

// readAgain reads the configuration file and puts in force what may change. The goroutine of run calls it.
func (s *sidecar) readAgain() {
	if err := s.tryAgain(); err != nil || s.o.configFile == "" {
		settings.ReportNone(s.o.configFile, err)
	}
}

func (s *sidecar) tryAgain() error {
	if s.o.configFile == "" {
		return nil
	}
	next := options{env: s.o.env, environ: s.o.environ, flags: s.o.flags, args: s.o.args}
	f := newFlags(&next)
	f.SetOutput(io.Discard)
	if err := spelling.Parse(f, next.args); err != nil {
		return err
	}
	if err := next.complete(f); err != nil {
		return err
	}
	now, restart := settings.Changed(s.o.inForce, next.inForce, isLive)
	if err := settings.TakeLogFlags(s.o.flags, f); err != nil {
		return err
	}
	s.o.interval, s.o.retention.Changes = next.interval, next.retention.Changes
	s.pruner.Keep(s.o.retention)
	settings.Take(s.o.inForce, next.inForce, isLive)
	settings.Report(s.o.configFile, now, restart)
	return nil
}
