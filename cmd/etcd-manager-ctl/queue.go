package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// request is a restore, or a recovery, that the operator asks for.
type request struct {
	// Exactly one of the two is set.
	backup string
	source *catalog.Source
	// change goes into the spec too: a cluster restored into another size would be brought back to the spec's at once. The managers write
	// it when the restore is done; with nothing serving, at once, since the managers elect by it.
	change  specChange
	options catalog.RestoreOptions
	// wait follows the command to its end.
	wait bool
}

// addFlags declares the flags that all commands share which queue something.
func (r *request) addFlags(cmd *cobra.Command, now bool) {
	f := cmd.Flags()
	f.BoolVar(&r.options.Now, "now", now, "don't wait for a restart of the managers: the leader sees it within about half a minute")
	f.BoolVar(&r.wait, "wait", false, "follow it to its end; interrupting that doesn't interrupt the restore")
	f.StringVar(&r.options.Reason, "reason", "", "a `note` of your own, kept with the record")
	r.change.addFlags(cmd)
}

// enqueue queues the request, writes the spec if the request changes it, says what was done, and follows it if that was asked for.
func (a *app) enqueue(ctx context.Context, c *catalog.Catalog, r request) error {
	cmd, err := a.queueAndSay(ctx, c, r)
	if err != nil || !r.wait {
		return err
	}
	return a.follow(ctx, c, cmd.Name)
}

func (a *app) queueAndSay(ctx context.Context, c *catalog.Catalog, r request) (catalog.Command, error) {
	ctx, cancel := a.limit(ctx)
	defer cancel()
	spec, stored, err := a.readSpec(ctx, c, r.change)
	if err != nil {
		if errors.Is(err, catalog.ErrInvalid) && r.change.empty() {
			err = fmt.Errorf("the cluster spec in %s can't be restored into: %w", a.store, err)
		}
		return catalog.Command{}, err
	}
	others, err := entries(ctx, c)
	if err != nil {
		return catalog.Command{}, err
	}
	r.options.SetSpec = stored != "" && !r.change.empty() && !r.atOnce()
	cmd, err := r.queue(ctx, c, spec)
	if err != nil {
		// The store may have taken the command, and only its answer was lost.
		return catalog.Command{}, fmt.Errorf("%w; whether it is queued all the same shows %s", err, a.ctl("list-commands"))
	}
	if err := a.changeSpec(ctx, c, r, cmd, stored); err != nil {
		return catalog.Command{}, err
	}
	a.sayOthers(others)
	if a.output == "json" {
		if r.wait {
			return cmd, nil // what is printed in the end says more
		}
		return cmd, a.printJSON(entry{name: cmd.Name, cmd: &cmd}.output())
	}
	return cmd, a.sayQueued(cmd, r.wait)
}

func (r *request) queue(ctx context.Context, c *catalog.Catalog, spec cluster.Spec) (catalog.Command, error) {
	if r.source != nil {
		return c.QueueRecover(ctx, *r.source, spec, r.options)
	}
	return c.QueueRestore(ctx, r.backup, spec, r.options)
}

// atOnce tells whether nothing can be serving: a recovery from a survivor is only made without a quorum.
func (r *request) atOnce() bool { return r.source != nil && r.source.Node != "" }

// withdrawTimeout bounds the clearing away after a failure, which goes on when the caller's time is over.
const withdrawTimeout = 15 * time.Second

// changeSpec writes the spec after the command was queued: in the other order a failure, or a crash, in between would resize a cluster that nobody
// restores. If the spec can't be written, the command is withdrawn.
func (a *app) changeSpec(ctx context.Context, c *catalog.Catalog, r request, cmd catalog.Command, stored string) error {
	if r.change.empty() {
		return nil
	}
	before, _, err := c.Spec(ctx)
	if err == nil && stored != "" && before == cmd.Spec {
		return nil
	}
	if cmd.Options.SetSpec && err == nil {
		a.note("the cluster spec is %s; when the restore is done it becomes %s, else the restored cluster would be changed back to it", clusterOf(before), clusterOf(cmd.Spec))
		return nil
	}
	after, err := a.writeSpec(ctx, c, r.change)
	if err != nil {
		uctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), withdrawTimeout)
		defer cancel()
		if uerr := c.RemoveCommand(uctx, cmd.Name); uerr != nil {
			return fmt.Errorf("%s is queued, but the cluster spec could not be written, and withdrawing the command failed too (%w); withdraw it: %s: %w",
				cmd.Name, uerr, a.ctl("delete-command", cmd.Name), err)
		}
		return fmt.Errorf("nothing is queued: the cluster spec could not be written: %w", err)
	}
	was := "there was none"
	if stored != "" {
		was = "it was " + clusterOf(before)
	}
	a.note(`the cluster spec is written too: %s (%s); else the restored cluster would be changed back to it
  A cluster that serves is changed accordingly from now on; withdrawing the restore doesn't take that back.`, clusterOf(after), was)
	return nil
}

// sayOthers tells what else stands in the queue, and which of them wins.
func (a *app) sayOthers(others []entry) {
	for _, o := range others {
		switch {
		case o.creates():
		case o.running():
			a.note("%s (%s) is being executed (%s); this one begins after it has ended", o.name, o.subject(), o.op.State)
		case o.waiting():
			a.note("%s (%s) was waiting too: the later one wins, so it is superseded when this one begins", o.name, o.subject())
		}
	}
}

func (a *app) sayQueued(cmd catalog.Command, wait bool) error {
	what := subject(cmd.Backup, cmd.Source) + point(cmd.Options, nil)
	if err := a.printf("queued: %s (%s into %s)\n", cmd.Name, what, clusterOf(cmd.Spec)); err != nil {
		return err
	}
	if wait {
		return nil
	}
	begin := `Nothing has changed yet: the cluster serves on until the managers are restarted.
  start it:     restart etcd-manager on the masters, one after the other (docker stop, kill, or a roll of the masters): each stops its etcd
`
	if cmd.Options.Now {
		begin = "The leader sees it within about half a minute and begins; nothing is stopped before all is proven and staged.\n"
	}
	return a.printf(`%s  watch it:     %s
  withdraw it:  %s
`, begin, a.ctl("follow", cmd.Name), a.ctl("delete-command", cmd.Name))
}
