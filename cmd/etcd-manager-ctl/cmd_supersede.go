package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

// supersedeWithin is how long managers may take to hear of it and to stop their etcd.
const supersedeWithin = 3 * time.Minute

func supersedeCommand(a *app) *cobra.Command {
	var o supersedeOptions
	c := &cobra.Command{
		Use: "supersede --by=NAME", Args: noArgs,
		Short: "Record that another cluster takes the place of this one, so that it doesn't serve any more",
		Long: `Record in the store that another cluster takes the place of this one, for example a standby that takes over. Managers that
run end the writes, store the last changes, and stop their etcd. A manager that starts with this store doesn't start etcd:
it ends, and says why. So machines that come back after an outage don't serve old data beside the new cluster.

While the leader still writes to the store, --wait or --force is needed. --wait waits until all members have said in the store
that their etcd is stopped. A manager that can't reach the store doesn't hear of the record, and one of a version that doesn't
know it doesn't obey: its etcd goes on. undo-supersede takes it back.`,
		Example: "  etcd-manager-ctl --backup-store=s3://old-bucket/prefix supersede --by=s3://new-bucket/prefix --wait",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.format(); err != nil {
				return err
			}
			if o.by == "" {
				return ui.Usagef("--by is missing: what takes the cluster's place, for example the new cluster's store")
			}
			return supersede(cmd.Context(), a, o)
		},
	}
	c.Flags().StringVar(&o.by, "by", "", "what takes its place, for people: the `name` of a store, a region, a ticket")
	c.Flags().BoolVar(&o.wait, "wait", false, "wait until the managers have stopped their etcd")
	c.Flags().DurationVar(&o.within, "wait-timeout", supersedeWithin, "how long --wait waits")
	c.Flags().BoolVar(&o.force, "force", false, "write it although the managers seem to run, and don't wait for them")
	c.Flags().BoolVar(&o.yes, "yes", false, "don't ask")
	return c
}

type supersedeOptions struct {
	by               string
	wait, force, yes bool
	within           time.Duration
}

func supersede(ctx context.Context, a *app, o supersedeOptions) error {
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	a.note("Once this is recorded, managers that run with %s stop their etcd, and none starts it any more.", a.store)
	if err := a.confirm(ctx, o.yes, "supersede", "end the cluster"); err != nil {
		return err
	}
	s, err := c.Supersede(ctx, o.by, operator.SupersedeOptions{Live: o.wait || o.force})
	var serves *operator.ServesError
	switch {
	case errors.As(err, &serves):
		return fmt.Errorf("%w\n  have its managers stop it:  %s\n  without waiting for them:  %s", err,
			a.ctl("supersede", "--by="+o.by, "--wait"), a.ctl("supersede", "--by="+o.by, "--force"))
	case errors.Is(err, catalog.ErrConflict) && s.By == o.by && o.wait: // it is waited for again
	case errors.Is(err, catalog.ErrConflict) && s.By != "":
		return fmt.Errorf("the cluster is superseded already, by %q since %s: nothing was written\n  take it back:  %s", s.By,
			ui.Clock(s.Time), a.ctl("undo-supersede"))
	case err != nil:
		return err
	}
	if err := a.printf("superseded by %s\n  take it back:  %s\n", s.By, a.ctl("undo-supersede")); err != nil || !o.wait {
		return err
	}
	e, err := c.AwaitEnded(ctx, s, o.within, nil)
	var silent *operator.SilentError
	if errors.As(err, &silent) {
		return fmt.Errorf("%w\n  the record stays: they stop as soon as they read it. Look at their logs, or stop the machines", err)
	}
	if err != nil {
		return err
	}
	return a.printf("%s\n", endedWords(e))
}

// endedWords says how a cluster has ended.
func endedWords(e operator.Stopping) string {
	words := "etcd is stopped on all members"
	if m := e.Missing(); len(m) > 0 {
		words = fmt.Sprintf("etcd is stopped on a quorum of the members; no answer from %s, which can't take a write alone", strings.Join(m, ", "))
	}
	switch {
	case e.Revision > 0 && e.Stored >= e.Revision:
		words += fmt.Sprintf("; the archive has everything, up to revision %d", e.Revision)
	case e.Revision > 0:
		words += fmt.Sprintf("; the last revision was %d, and it isn't known that the archive has all of it", e.Revision)
	}
	return words
}

func undoSupersedeCommand(a *app) *cobra.Command {
	yes := false
	c := &cobra.Command{
		Use: "undo-supersede", Short: "Take back supersede: this cluster may serve again", Args: noArgs,
		Long: `Take back supersede: managers that run start etcd again, and so do those that start with this store. Make sure first that the cluster that took its
place doesn't serve any more, and that what was written there isn't needed: it isn't in this one.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.format(); err != nil {
				return err
			}
			c, err := a.client(cmd.Context())
			if err != nil {
				return err
			}
			a.note("The managers of %s will start etcd again, with the data from before.", a.store)
			if err := a.confirm(cmd.Context(), yes, "serve", "let this cluster serve again"); err != nil {
				return err
			}
			s, err := c.UndoSupersede(cmd.Context())
			switch {
			case errors.Is(err, operator.ErrNotFound):
				return a.printf("the cluster is not superseded\n")
			case err != nil:
				return err
			}
			return a.printf("taken back (it said: superseded by %q); start the managers that don't run\n", s.By)
		},
	}
	c.Flags().BoolVar(&yes, "yes", false, "don't ask")
	return c
}
