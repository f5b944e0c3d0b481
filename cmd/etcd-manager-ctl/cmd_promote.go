package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

func promoteCommand(a *app) *cobra.Command {
	r := operator.PromoteRequest{}
	wait, yes := false, false
	c := &cobra.Command{
		Use: "promote", Args: noArgs,
		Short: "Have a standby become a cluster; the cluster that it follows is ended first",
		Long: `Have a standby become a cluster. --backup-store is the standby's own store. First the cluster that it follows is ended, as
supersede --wait does: its managers end the writes, store the last changes and stop etcd. Then the nodes of the standby take
these, make a backup of one copy in their own store, and begin the cluster with it, at a revision that is higher by a billion.

Without an answer of the other cluster's managers it can't be known whether it still serves. Then this is refused, and --force
goes on with what the copies have. Make sure before that no client can write there.`,
		Example: "  etcd-manager-ctl --backup-store=s3://own-bucket/prefix promote --wait",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.format(); err != nil {
				return err
			}
			return promote(cmd.Context(), a, r, wait, yes)
		},
	}
	c.Flags().StringVar(&r.Of, "standby-of", "", "the other cluster's store `URL`; what the nodes follow if it isn't given")
	c.Flags().IntVar(&r.MemberCount, "member-count", 0, "how many members the cluster gets; as many as the other one has if it isn't given")
	c.Flags().DurationVar(&r.Within, "wait-timeout", supersedeWithin, "how long the managers of the other cluster are waited for")
	c.Flags().BoolVar(&r.Force, "force", false, "go on though it isn't known that the other cluster has ended, or that nothing of it is missing")
	c.Flags().BoolVar(&wait, "wait", false, "wait until the cluster serves")
	c.Flags().BoolVar(&yes, "yes", false, "don't ask")
	return c
}

func promote(ctx context.Context, a *app, r operator.PromoteRequest, wait, yes bool) error {
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	a.note("The cluster that this standby follows is ended, and the standby takes its place.")
	if err := a.confirm(ctx, yes, "promote", "promote it"); err != nil {
		return err
	}
	p, err := c.Promote(ctx, r)
	var no *operator.RefusedError
	switch {
	case errors.As(err, &no):
		return a.refusedPromotion(no)
	case errors.Is(err, catalog.ErrConflict) && p.Of != "" && !wait:
		return fmt.Errorf("promote was asked for already, at %s: nothing was changed\n  wait for its end:  %s\n"+
			"  if what it waits for is lost:  %s", ui.Clock(p.Time), a.ctl("promote", "--wait"), a.ctl("promote", "--force"))
	case errors.Is(err, catalog.ErrConflict) && p.Of != "": // it is waited for
	case err != nil:
		return err
	}
	words := "with the copy that is farthest, as it isn't known what the other cluster had last"
	if p.Revision > 0 {
		words = fmt.Sprintf("the other cluster has ended at revision %d, and all of it is taken", p.Revision)
	}
	if err := a.printf("the standby becomes a cluster of %d: %s\n", p.Spec.MemberCount, words); err != nil || !wait {
		return err
	}
	_, err = c.AwaitPromoted(ctx, func(p operator.Promotion) {
		switch {
		case p.Problem != "":
			a.note("%s; it is tried again", p.Problem)
		case p.Backup != "":
			a.note("backup %s was made of the copy on node %s; its restore begins", p.Backup, p.Chosen)
		case p.Chosen != "":
			a.note("node %s makes a backup of its copy", p.Chosen)
		}
	})
	if err != nil {
		return err
	}
	return a.printf("the cluster serves; remove --standby-of from its managers\n")
}

// refusedPromotion says what an operator can do.
func (a *app) refusedPromotion(no *operator.RefusedError) error {
	words := "nothing was changed"
	if no.Ended {
		words = "the record in the other cluster's store stays"
	}
	if !no.Forceable {
		return fmt.Errorf("%w; %s", no, words)
	}
	return fmt.Errorf("%w; %s\n  if you are sure that it doesn't serve, and accept what may be lost:  %s", no, words, a.ctl("promote", "--force"))
}
