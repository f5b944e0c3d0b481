package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

// eventsBack is how far back events are shown if nothing is said.
const eventsBack = 24 * time.Hour

type eventsOptions struct {
	since  string
	kinds  []string
	follow bool
}

func eventsCommand(a *app) *cobra.Command {
	var o eventsOptions
	cmd := &cobra.Command{
		Use: "events", Short: "List what has happened to the cluster", Args: noArgs,
		Long: `List what has happened to the cluster, oldest first: who led, what the leader did and why, backups, restores, and when a
person was needed. The managers keep events for 30 days. Without --since it lists the last 24 hours.

An event is in the store after about 10 seconds; a backup that was taken as planned, after up to an hour.
With --follow and -o json it prints one event per line.`,
		Example: "  etcd-manager-ctl --backup-store=s3://bucket/prefix events --since=2h --follow",
		RunE:    func(cmd *cobra.Command, _ []string) error { return listEvents(cmd.Context(), a, o) },
	}
	f := cmd.Flags()
	f.StringVar(&o.since, "since", "",
		"from this `time` on: RFC 3339, \"2026-11-22 12:03:06\", 12:03:06 (today, UTC), or how long ago (default: 24h)")
	f.StringSliceVar(&o.kinds, "kind", nil, "only events of this `kind`: "+strings.Join(eventKinds(), ", ")+"; may be repeated")
	f.BoolVar(&o.follow, "follow", false, "go on until it is interrupted, and print events as they come")
	return cmd
}

func eventKinds() []string {
	return []string{string(catalog.EventAttention), string(catalog.EventBackup), string(catalog.EventDecision),
		string(catalog.EventLeader), string(catalog.EventPutBack), string(catalog.EventRestore)}
}

func listEvents(ctx context.Context, a *app, o eventsOptions) error {
	formats := []string{"json", "yaml"}
	if o.follow {
		formats = []string{"json"}
	}
	if err := a.format(formats...); err != nil {
		return err
	}
	for _, k := range o.kinds {
		if !slices.Contains(eventKinds(), k) {
			return ui.Usagef("--kind=%s is not a kind of event%s; there are %s", k,
				nearest(k, "", eventKinds()), strings.Join(eventKinds(), ", "))
		}
	}
	since, err := whenFlag(a, "since", o.since)
	if err != nil {
		return err
	}
	if since.IsZero() {
		since = a.now().Add(-eventsBack)
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	if o.follow {
		return followEvents(ctx, a, c.Events(since), o)
	}
	list, problems, err := c.Events(since).Next(ctx)
	if err != nil {
		return err
	}
	for _, p := range problems {
		a.note("%v", p)
	}
	list = o.of(list)
	if a.output != "" {
		if list == nil {
			list = []catalog.Event{}
		}
		return printReport(a, list, nil)
	}
	if len(list) == 0 {
		a.note("no events since %s", ui.Moment(since, time.Time{}))
	}
	for _, e := range list {
		if err := a.printf("%s", lineOfEvent(e)); err != nil {
			return err
		}
	}
	return nil
}

// of are the events of the kinds that are asked for.
func (o eventsOptions) of(list []catalog.Event) []catalog.Event {
	if len(o.kinds) == 0 {
		return list
	}
	return slices.DeleteFunc(list, func(e catalog.Event) bool { return !slices.Contains(o.kinds, string(e.Kind)) })
}

// lineOfEvent is an event for a screen: time, node, kind, and the sentence with its own lines indented.
func lineOfEvent(e catalog.Event) string {
	what := string(e.Kind)
	if e.Phase != "" {
		what += " " + string(e.Phase)
	}
	text := strings.ReplaceAll(e.Text, "\n", "\n    ")
	if e.Missed > 0 {
		text += fmt.Sprintf(" (%d events before this one were not kept)", e.Missed)
	}
	return fmt.Sprintf("%s  %-12s  %-16s  %s\n", ui.Moment(e.At, time.Time{}), ui.Readable(string(e.Node)), ui.Readable(what), text)
}

// followEvents prints events as they come, until ctx ends.
func followEvents(ctx context.Context, a *app, events *operator.EventLog, o eventsOptions) error {
	for first, silent := true, false; ; first = false {
		list, problems, err := events.Next(ctx)
		away := errors.Is(err, catalog.ErrTransient) || errors.Is(err, context.DeadlineExceeded)
		switch {
		case ctx.Err() != nil:
			return nil //nolint:nilerr // it was interrupted, which is how it ends
		case err != nil && (first || !away):
			return err
		case err != nil && !silent:
			a.note("the store doesn't answer, it is asked again: %v", err)
		}
		silent = err != nil
		for _, p := range problems {
			a.note("%v", p)
		}
		for _, e := range o.of(list) {
			line := lineOfEvent(e)
			if a.output == "json" {
				data, err := json.Marshal(e)
				if err != nil {
					return fmt.Errorf("print: %w", err)
				}
				line = string(data) + "\n"
			}
			if err := a.printf("%s", line); err != nil {
				return err
			}
		}
		if !a.pause(ctx) {
			return nil
		}
	}
}
