package main

import (
	"fmt"
	"strings"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

// sayEnd prints how a command has ended. Whatever isn't "done" is an error with an exit code of its own.
func (a *app) sayEnd(end operator.Ended) error {
	if a.output == "json" {
		out := describe(end.Command)
		if end.Withdrawn {
			out = describeOutput{commandOutput: commandOutput{Name: end.Command.Name, Kind: "unknown",
				State: string(operator.StateWithdrawn)}}
		}
		if err := a.printJSON(out); err != nil {
			return err
		}
	}
	op := end.Command.Operation
	switch err := end.Err(); {
	case err != nil:
		return err
	case a.output == "json":
		return nil
	case op.PutBack != nil:
		return (&putBacker{a}).sayEnd(op)
	case op.Kind == catalog.KindBackup:
		return a.printf("done: backup %s\n", op.Backup)
	}
	return a.sayDone(op)
}

// leftOut says what was acknowledged while a restore of the latest state was prepared: how many revisions after which one.
const leftOut = "at least %d of the revisions after %d, written while the restore was prepared; undo-restore brings them back, and takes " +
	"back what was written since"

// afterRestore says what is left to do in Kubernetes. docs/kubernetes.md quotes it.
const afterRestore = "API servers see the restored data without a restart. Restart them soon anyway, one after the other, " +
	"then kube-controller-manager and kube-scheduler,\nthen your own operators"

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
	if op.LeftOut > 0 {
		fmt.Fprintf(&b, "  not in it:      "+leftOut+"\n", op.LeftOut, op.Target.Revision)
	}
	if op.UnknownLeases != "" {
		fmt.Fprintf(&b, "  leases:         the TTL of %s\n", op.UnknownLeases)
	}
	fmt.Fprintf(&b, "  without etcd:   %s", ui.Took(op.Outage))
	if !op.Finished.IsZero() && !op.Created.IsZero() {
		fmt.Fprintf(&b, ", of %s in all", ui.Took(op.Finished.Sub(op.Created)))
	}
	b.WriteByte('\n')
	saved, savedTo := op.Saved()
	switch {
	case saved != "":
		fmt.Fprintf(&b, "  safety backup:  %s, of the cluster as it was before\n  undo it:        %s\n",
			withChanges(saved, savedTo), a.ctl("undo-restore", op.ID))
	case op.OldToken != "":
		fmt.Fprintf(&b, "  safety backup:  none (the old cluster could not be backed up); its data are in the nodes' trash cans\n  undo it:        %s\n", a.ctl("undo-restore", op.ID))
	default:
		b.WriteString("  undo it:        not possible: there was no cluster before\n")
	}
	b.WriteString("If this is Kubernetes' etcd: " + afterRestore + " (docs/kubernetes.md says why).\n")
	return a.printf("%s", b.String())
}
