package main

import (
	"context"
	"strings"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

func followCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "follow [COMMAND]", Short: "Follow a restore to its end, through the store only", Args: atMostOne,
		Long: `Follow a queued or running restore to its end. Without a name: the one that is being executed, else the
newest one that waits. It only reads the store, so it works whichever manager leads, and it continues after the store
could not be reached for a while. Interrupting it (Ctrl-C) doesn't interrupt the restore.

Exit codes: 0 done, 1 failed (nothing was stopped), 5 rolled back (the old data serve again), 6 superseded or
withdrawn, 7 not followed to its end.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.format("json"); err != nil {
				return err
			}
			c, err := a.client(cmd.Context())
			if err != nil {
				return err
			}
			name, err := c.CommandToFollow(cmd.Context(), strings.Join(args, ""))
			if err != nil {
				return err
			}
			return followOperation(cmd.Context(), a, c, name)
		},
		ValidArgsFunction: a.complete(commandNames),
	}
}

// followOperation shows a command until it has ended. The error says how, unless it was done. That there is a store was found out
// before: from here on its silence is no reason to give up.
func followOperation(ctx context.Context, a *app, c *operator.Client, name string) error {
	noteWaiting(ctx, a, c, false)
	v := newView(a)
	end, err := watchOperation(ctx, a, c, name, v)
	v.Close()
	if err != nil {
		return err
	}
	return a.sayEnd(end)
}

// watchOperation shows events until the last one, which it returns.
func watchOperation(ctx context.Context, a *app, c *operator.Client, name string, v ui.View) (operator.Ended, error) {
	for event, err := range c.Follow(ctx, name, followOptions(a)) {
		if err != nil {
			return operator.Ended{}, err
		}
		if end, ok := event.(operator.Ended); ok {
			return end, nil
		}
		show(v, event)
	}
	return operator.Ended{}, &operator.UnfollowedError{Command: name, Err: context.Cause(ctx)}
}

// followOptions: the store may be silent for as long as the timeout says, if one is given.
func followOptions(a *app) operator.FollowOptions {
	o := operator.FollowOptions{Pause: a.pause}
	if a.timeoutGiven {
		o.Patience = a.timeout
	}
	return o
}

// newView is bars on a screen, lines anywhere else. JSON stands alone on the standard output.
func newView(a *app) ui.View {
	if a.output == "json" {
		return ui.NewPipe(a.errOut)
	}
	return ui.NewView(a.out, a.outTerminal, a.now)
}
