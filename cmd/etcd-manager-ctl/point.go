package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

// targetFlags name a point behind a backup.
type targetFlags struct {
	time     string
	revision int64
	latest   bool
	before   string
	dryRun   bool
}

func (f *targetFlags) add(cmd *cobra.Command) {
	fs := cmd.Flags()
	fs.StringVar(&f.time, "to-time", "", "the state at this `time`: 2026-11-22T12:03:06Z, 12:03:06 (today, UTC), or how long ago, as 90m")
	fs.Int64Var(&f.revision, "to-revision", 0, "the state at this `revision`")
	fs.BoolVar(&f.latest, "latest", false, "everything that was kept, up to the last change")
	fs.StringVar(&f.before, "before", "",
		"the state right before the last deletion of this `key`, or of keys below it, if it ends with a slash")
}

// target reads the flags. It is zero if none of them names a point.
func (f *targetFlags) target(cmd *cobra.Command, now time.Time) (operator.Target, error) {
	t := operator.Target{Revision: f.revision, Latest: f.latest}
	given := 0
	for _, name := range []string{"to-time", "to-revision", "latest", "before"} {
		if cmd.Flags().Changed(name) {
			given++
		}
	}
	if given > 1 {
		return t, ui.Usagef("--to-time, --to-revision, --latest and --before each name a point: give one of them")
	}
	if cmd.Flags().Changed("to-revision") && f.revision < 1 {
		return t, ui.Usagef("--to-revision=%d: revisions begin with 1", f.revision)
	}
	if cmd.Flags().Changed("to-time") {
		at, err := ui.ParseWhen(f.time, now)
		if err != nil {
			return t, err
		}
		if at.After(now) {
			return t, ui.Usagef("--to-time=%s is in the future", f.time)
		}
		t.Time = at
	}
	return t, nil
}

// sayLocated tells how what was named was found.
func sayLocated(a *app, before *operator.Deletion, key string, notes []string) {
	if before != nil {
		a.note("%s was last deleted after revision %d (%s shows the details)", key, before.Revision, a.ctl("before", key))
	}
	a.latest(notes)
}

// reachedText says of a point which state it is, in one line.
func reachedText(revision int64, at, notBefore, until time.Time) string {
	s := fmt.Sprintf("revision %d", revision)
	switch {
	case !notBefore.IsZero():
		s += ", made at some time between " + ui.Exactly(notBefore) + " and " + ui.Exactly(at)
	case !at.IsZero():
		s += ", made at " + ui.Exactly(at)
	}
	if !until.IsZero() && until.After(at) {
		s += ", the newest until " + ui.Exactly(until)
	}
	return s
}
