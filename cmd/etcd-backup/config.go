package main

import (
	"flag"
	"io"
	"os"
	"os/signal"
	"slices"
	"strings"
	"syscall"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/settings"
	"github.com/etcd-manager/etcd-manager/pkg/spelling"
)

// configMain is "config".
func configMain(args, environ []string, out, errOut io.Writer) int {
	klog.SetLogger(logr.Discard()) // a warning would stand in the middle of the result; klog's own flags stay as they are
	return configRun(args, environ, out, errOut)
}

func configRun(args, environ []string, out, errOut io.Writer) int {
	env := map[string]string{}
	for _, kv := range environ {
		k, v, _ := strings.Cut(kv, "=")
		env[k] = v
	}
	c := settings.Command{Program: "etcd-backup", Example: "/etc/etcd-manager/backup.yaml",
		Flags: func() *flag.FlagSet { return newFlags(&options{}) }}
	c.Read = func(args []string) ([]settings.Setting, []settings.Variable, []error) {
		o, err := parse(args, func(k string) string { return env[k] }, io.Discard)
		var errs []error
		if err != nil {
			errs = append(errs, err)
		}
		return o.inForce, variables(&o, env), errs
	}
	return c.Run(args, out, errOut)
}

// variables are those of the environment that decide how long backups are kept.
func variables(o *options, env map[string]string) []settings.Variable {
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
	return list
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
