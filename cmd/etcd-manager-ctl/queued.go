package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

// queueFlags are the flags that all commands share which queue a restore.
type queueFlags struct {
	options operator.RestoreOptions
	change  specFlags
	// wait follows the command to its end.
	wait bool
}

func (q *queueFlags) add(cmd *cobra.Command, now bool) {
	f := cmd.Flags()
	f.BoolVar(&q.options.Now, "now", now, "don't wait for a restart of the managers: the leader sees the command within about half a minute")
	f.BoolVar(&q.wait, "wait", false, "follow it to its end; interrupting the tool doesn't interrupt the restore")
	f.StringVar(&q.options.Reason, "reason", "", "a `note` of your own, kept with the record")
	q.change.add(cmd)
}

// sayAndFollow says what was queued, and follows it if that was asked for.
func (a *app) sayAndFollow(ctx context.Context, c *operator.Client, q operator.Queued, wait bool) error {
	if err := a.say(q, wait); err != nil || !wait {
		return err
	}
	return followOperation(ctx, a, c, q.Command.Name)
}

func (a *app) say(q operator.Queued, wait bool) error {
	a.saySpec(q.Spec)
	a.sayOthers(q.Others)
	switch {
	case a.output != "json":
		return a.sayQueued(q, wait)
	case wait: // what is printed in the end says more
		return nil
	}
	return a.printJSON(commandRow(operator.Command{Name: q.Command.Name, Queued: &q.Command}))
}

// saySpec tells what becomes of the cluster spec.
func (a *app) saySpec(s operator.SpecEffect) {
	switch s.When {
	case operator.SpecKept:
	case operator.SpecWhenDone:
		a.note("the cluster spec is %s. When the restore is done it becomes %s; otherwise the managers would change the restored cluster back", clusterOf(*s.Before), clusterOf(s.After))
	case operator.SpecWritten:
		was := "there was none"
		if s.Before != nil {
			was = "it was " + clusterOf(*s.Before)
		}
		a.note(`the cluster spec is written too: %s (%s); otherwise the managers would change the restored cluster back
  A cluster that serves is changed to it from now on; withdrawing the restore doesn't undo that.`, clusterOf(s.After), was)
	}
}

// sayOthers tells what else stands in the queue, and which of them wins.
func (a *app) sayOthers(others []operator.Command) {
	for _, o := range others {
		switch {
		case o.Creates(), o.PutsBack() && !o.Waiting() && !o.Running(): // it takes nothing from the restore, or has ended
		case o.PutsBack():
			a.note("%s (%s) waits, or pauses, until this one has ended", o.Name, subjectOf(o))
		case o.Running():
			a.note("%s (%s) is being executed (%s); this one begins when it has ended", o.Name, subjectOf(o), o.Operation.State)
		case o.Waiting():
			a.note("%s (%s) was waiting too: it is superseded when this one begins", o.Name, subjectOf(o))
		}
	}
}

func (a *app) sayQueued(q operator.Queued, wait bool) error {
	cmd := q.Command
	what := subject(cmd.Backup, cmd.Source) + point(cmd.Options, nil)
	if err := a.printf("queued: %s (%s into %s)\n", cmd.Name, what, clusterOf(cmd.Spec)); err != nil {
		return err
	}
	if wait {
		return nil
	}
	begin := `Nothing has changed yet: the cluster keeps serving until the managers are restarted.
  start it:     restart etcd-manager on the masters, one after the other (docker stop, kill, or a rolling update): each stops its etcd
`
	if cmd.Options.Now {
		begin = "The leader sees it within about half a minute and begins; nothing is stopped before everything is checked and staged.\n"
	}
	return a.printf(`%s  follow it:    %s
  withdraw it:  %s
`, begin, a.ctl("follow", cmd.Name), a.ctl("delete-command", cmd.Name))
}
