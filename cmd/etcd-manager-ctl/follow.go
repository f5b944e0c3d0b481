package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

func (a *app) followCommand() *cobra.Command {
	return &cobra.Command{
		Use: "follow [COMMAND]", Short: "Follow a restore to its end, through the store alone", Args: atMostOne,
		Long: `Follow a queued or running restore to its end. Without a name: the one that is being executed, else the newest that waits.
It reads the store alone, so it doesn't mind which manager leads, and it goes on when the store was away for a while.
Interrupting it (Ctrl-C) doesn't interrupt the restore.

Exit codes: 0 done, 1 failed (nothing was stopped), 5 rolled back (the old data serve again), 6 superseded or withdrawn, 7 not followed to its end.`,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := a.format("json"); err != nil {
				return err
			}
			c, err := a.openCatalog(cmd.Context())
			if err != nil {
				return err
			}
			name, err := a.whatToFollow(cmd.Context(), c, args)
			if err != nil {
				return err
			}
			return a.follow(cmd.Context(), c, name)
		},
		ValidArgsFunction: a.complete(commandNames),
	}
}

// whatToFollow finds the command that is meant.
func (a *app) whatToFollow(ctx context.Context, c *catalog.Catalog, args []string) (string, error) {
	ctx, cancel := a.limit(ctx)
	defer cancel()
	list, err := entries(ctx, c)
	if err != nil {
		return "", err
	}
	named, running, waiting := "", "", ""
	for _, e := range list {
		switch {
		case len(args) > 0 && e.name == args[0]:
			return e.name, nil
		case len(args) > 0 && e.problem == nil && e.backup() == args[0]:
			named = e.name
		case e.running():
			running = e.name
		case e.waiting():
			waiting = e.name
		}
	}
	switch {
	case named != "":
		return named, nil
	case len(args) > 0:
		return "", &notFoundError{fmt.Sprintf("there is no command %q, neither queued nor in the history (list-commands shows them)", args[0])}
	case running != "":
		return running, nil
	case waiting != "":
		return waiting, nil
	}
	return "", &notFoundError{"nothing is being executed and nothing waits (list-commands shows what was)"}
}

// follow shows a command until it has ended. The error says how, unless it was done. That there is a store was found out before: from
// here on its silence is no reason to give up.
func (a *app) follow(ctx context.Context, c *catalog.Catalog, name string) error {
	w := newWatch(a, c, name)
	v := a.newView()
	last, err := w.run(ctx, v)
	v.Close()
	if err != nil {
		return err
	}
	return a.sayEnd(last)
}

// newView is bars on a screen, lines anywhere else. JSON stands alone on the standard output.
func (a *app) newView() ui.View {
	if a.output == "json" {
		return ui.NewPipe(a.errOut)
	}
	return ui.NewView(a.out, a.outTerminal, a.now)
}

// state is what a view shows of a look.
func (s *sight) state() ui.State {
	out := ui.State{At: s.at}
	switch {
	case s.op == nil && s.cmd != nil:
		out.Doing, out.Since = stateWaiting, s.cmd.Time
	case s.op != nil && !s.op.State.Final():
		out.Doing, out.Since = string(s.op.State), s.op.StateSince
	}
	if s.op != nil {
		out.Progress = s.op.Progress
	}
	return out
}

// patience is how long the store may be silent; 0 means without end.
func (w *watch) patience() time.Duration {
	if w.a.timeoutGiven {
		return w.a.timeout
	}
	return 0
}

// run looks and shows until the command has ended.
func (w *watch) run(ctx context.Context, v ui.View) (*sight, error) {
	var last *sight
	var silentSince time.Time
	for {
		s, err := w.look(ctx)
		switch {
		case ctx.Err() != nil:
			return nil, w.unfollowed(last, "interrupted")
		case err == nil:
			if !silentSince.IsZero() {
				v.Say(s.at, fmt.Sprintf("the store answers again, after %s", ui.Took(s.at.Sub(silentSince))))
				silentSince = time.Time{}
			}
			for _, line := range tell(last, s) {
				v.Say(line.at, line.text)
			}
			v.Show(s.state())
			last = s
			if s.ended() {
				return s, nil
			}
		case unusable(err):
			return nil, err
		default:
			now := w.a.now()
			if silentSince.IsZero() {
				silentSince = now
				v.Say(now, fmt.Sprintf("the store doesn't answer; the managers go on meanwhile, and it is tried again: %v", err))
			}
			if p := w.patience(); p > 0 && now.Sub(silentSince) >= p {
				return nil, w.unfollowed(last, fmt.Sprintf("the store has not answered for %s (--timeout): %v", p, err))
			}
		}
		if !w.a.pause(ctx) {
			return nil, w.unfollowed(last, "interrupted")
		}
	}
}

// unfollowed says that the restore goes on although nobody looks.
func (w *watch) unfollowed(last *sight, why string) error {
	text := fmt.Sprintf("%s is not followed any more: %s\n", w.name, why)
	if last == nil || last.op == nil {
		text += fmt.Sprintf("It stays queued.\n  look again:   %s\n  withdraw it:  %s", w.a.ctl("follow", w.name), w.a.ctl("delete-command", w.name))
		return &outcomeError{exitUnfollowed, text}
	}
	text += fmt.Sprintf("The managers go on with it (%s).\n  look again:   %s", last.op.State, w.a.ctl("follow", w.name))
	if !stopped(last.op.State) {
		text += "\n  withdraw it:  " + w.a.ctl("delete-command", w.name)
	}
	return &outcomeError{exitUnfollowed, text}
}
