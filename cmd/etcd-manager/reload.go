package main

import (
	"context"
	"flag"
	"io"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"github.com/etcd-manager/etcd-manager/pkg/manager"
	"github.com/etcd-manager/etcd-manager/pkg/settings"
	"github.com/etcd-manager/etcd-manager/pkg/spelling"
	"github.com/etcd-manager/etcd-manager/pkg/webhook"
)

// isLive tells whether a flag may change while the manager runs.
func isLive(o *options, name string) bool {
	if slices.Contains(settings.LiveLogFlags(), name) {
		return true
	}
	switch name {
	case "backup-interval", "defrag-threshold", "defrag-hours", "webhook-url", "webhook-secret-file":
		return o.standbyOf == ""
	case "change-log-retention": // copies go by it too, and theirs is fixed
		return o.standbyOf == "" && len(o.copies.urls) == 0
	}
	return false
}

// catchHangups keeps SIGHUP from ending a manager that has a file to read again, or that systemd runs. What it returns undoes that.
func catchHangups(o *options) (undo func()) {
	if o.configFile == "" && o.env["INVOCATION_ID"] == "" {
		return func() {} // a terminal that is closed ends it, as before
	}
	o.hangups = make(chan os.Signal, 1)
	signal.Notify(o.hangups, syscall.SIGHUP)
	return func() { signal.Stop(o.hangups) }
}

// reload reads the configuration file again whenever SIGHUP comes, until ctx ends. t is nil for a standby. Nothing else changes these
// options, and only at the start are those read that it changes.
func reload(ctx context.Context, o *options, t *manager.Tuner) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-o.hangups:
			if err := readAgain(o, t); err != nil || o.configFile == "" {
				settings.ReportNone(o.configFile, err)
			}
		}
	}
}

// readAgain reads the configuration file and puts in force what may change.
func readAgain(o *options, t *manager.Tuner) error {
	if o.configFile == "" {
		return nil
	}
	next := &options{env: o.env, flags: o.flags, envFrom: o.envFrom, args: o.args}
	f := newFlags(next)
	f.SetOutput(io.Discard)
	if err := spelling.Parse(f, o.args); err != nil {
		return err
	}
	if err := next.complete(f, nil); err != nil {
		return err
	}
	live := func(name string) bool { return isLive(o, name) }
	now, restart := settings.Changed(o.inForce, next.inForce, live)
	if err := become(o, next, f, t); err != nil {
		return err
	}
	settings.Take(o.inForce, next.inForce, live)
	settings.Report(o.configFile, now, restart)
	return nil
}

// become puts in force what may change of other options, which were read whole and are good.
func become(o, next *options, f *flag.FlagSet, t *manager.Tuner) error {
	if err := settings.TakeLogFlags(o.flags, f); err != nil {
		return err
	}
	if t == nil {
		return nil
	}
	o.interval, o.defragAt, o.defragHours = next.interval, next.defragAt, next.defragHours
	o.defragFrom, o.defragUntil = next.defragFrom, next.defragUntil
	if isLive(o, "change-log-retention") {
		o.retention.Changes = next.retention.Changes
	}
	err := t.Set(manager.Tuning{BackupInterval: o.interval, DefragThreshold: o.defragAt, DefragFrom: o.defragFrom,
		DefragUntil: o.defragUntil, Retention: o.retention})
	if err != nil {
		return err
	}
	// Their files may have changed though their names have not.
	o.webhooks, o.webhookSecretFile = next.webhooks, next.webhookSecretFile
	if next.webhook == nil {
		if next.webhook, err = webhook.New(webhook.Config{}); err != nil {
			return err
		}
	}
	o.webhook.Become(next.webhook)
	return nil
}
