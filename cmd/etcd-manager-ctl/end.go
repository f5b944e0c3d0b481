package main

import (
	"fmt"
	"strings"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// sayEnd prints how a command has ended. Whatever isn't "done" is an error with an exit code of its own.
func (a *app) sayEnd(s *sight) error {
	if s.withdrawn {
		if a.output == "json" {
			if err := a.printJSON(commandOutput{Name: s.name, Kind: "unknown", State: "withdrawn"}); err != nil {
				return err
			}
		}
		return &outcomeError{exitNotDone, fmt.Sprintf("%s was withdrawn before anybody began; nothing was changed", s.name)}
	}
	if a.output == "json" {
		if err := a.printJSON(s.entry.describe()); err != nil {
			return err
		}
	}
	op := s.op
	switch op.State {
	case catalog.StateDone:
		if a.output == "json" {
			return nil
		}
		if op.Kind == catalog.KindBackup {
			return a.printf("done: backup %s\n", op.Backup)
		}
		return a.sayDone(op)
	case catalog.StateRolledBack:
		text := fmt.Sprintf("%s was rolled back: %s\nThe old data are back; nothing is to be undone.", s.name, op.Reason)
		if op.Outage > 0 {
			text += fmt.Sprintf(" etcd served nobody for %s.", ui.Took(op.Outage))
		}
		return &outcomeError{exitRolledBack, text}
	case catalog.StateSuperseded:
		return &outcomeError{exitNotDone, fmt.Sprintf("%s was superseded: %s\nNothing was changed by it (list-commands shows the one that took its place)", s.name, op.Reason)}
	}
	if op.Kind == catalog.KindBackup {
		return &outcomeError{exitFailure, fmt.Sprintf("%s failed: %s", s.name, op.Reason)}
	}
	return &outcomeError{exitFailure, fmt.Sprintf("%s failed: %s\nNothing was stopped for it; what served before serves on.", s.name, op.Reason)}
}

// sayDone prints the result of a restore, how to take it back, and what is left to do.
func (a *app) sayDone(op *catalog.Operation) error {
	var b strings.Builder
	what := op.Backup
	if op.Source != nil {
		what = strings.TrimPrefix(subject("", op.Source), "recovery from ") + ", as backup " + op.Backup
	}
	fmt.Fprintf(&b, "done: restored %s%s into %s\n", what, point(op.Options, op.Target), clusterOf(op.Spec))
	if op.RevisionAfter > 0 {
		fmt.Fprintf(&b, "  revision:       %d", op.RevisionAfter)
		if op.RevisionBefore > 0 {
			fmt.Fprintf(&b, " (clients had seen up to %d)", op.RevisionBefore)
		}
		b.WriteByte('\n')
	}
	if op.UnknownLeases != "" {
		fmt.Fprintf(&b, "  leases:         the TTL of %s\n", op.UnknownLeases)
	}
	fmt.Fprintf(&b, "  without etcd:   %s", ui.Took(op.Outage))
	if !op.Finished.IsZero() && !op.Created.IsZero() {
		fmt.Fprintf(&b, ", of %s in all", ui.Took(op.Finished.Sub(op.Created)))
	}
	b.WriteByte('\n')
	switch {
	case op.SafetyBackup != "":
		fmt.Fprintf(&b, "  safety backup:  %s, of the cluster as it was before\n  undo it:        %s\n", op.SafetyBackup, a.ctl("undo-restore", op.ID))
	case op.OldToken != "":
		fmt.Fprintf(&b, "  safety backup:  none (the old cluster could not be backed up); its data are in the nodes' trash cans\n  undo it:        %s\n", a.ctl("undo-restore", op.ID))
	default:
		b.WriteString("  undo it:        not possible: there was no cluster before\n")
	}
	b.WriteString(`If this is Kubernetes' etcd: API servers see what was restored by themselves. Soon, restart them one after the other, then kube-controller-manager and kube-scheduler,
then operators of your own (docs/kubernetes.md says why).
`)
	return a.printf("%s", b.String())
}
