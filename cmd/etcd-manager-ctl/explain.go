package main

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
	"github.com/etcd-manager/etcd-manager/pkg/operator/database"
)

// Exit codes; docs/ctl.md lists them.
const (
	exitOK         = 0
	exitFailure    = 1
	exitUsage      = 2
	exitNotFound   = 3
	exitStore      = 4
	exitRolledBack = 5
	exitNotDone    = 6
	exitUnfollowed = 7
)

// notFoundError is one that names something that isn't there.
type notFoundError struct{ message string }

func (e *notFoundError) Error() string { return e.message }

// outcomeError says how what was followed, or asked for, has ended.
type outcomeError struct {
	code    int
	message string
}

func (e *outcomeError) Error() string { return e.message }

// explained is an error of pkg/operator in the tool's words, with the commands and flags that lead on.
type explained struct {
	text  string
	cause error
}

func (e *explained) Error() string { return e.text }
func (e *explained) Unwrap() error { return e.cause }

// exitCode is the exit code for an error.
func exitCode(err error) int {
	var usage *ui.UsageError
	var invalid *operator.InvalidError
	var missing *notFoundError
	var outcome *outcomeError
	switch {
	case errors.As(err, &outcome):
		return outcome.code
	case errors.As(err, &usage), errors.As(err, &invalid):
		return exitUsage
	case errors.As(err, &missing), errors.Is(err, catalog.ErrNotFound):
		return exitNotFound
	case errors.Is(err, catalog.ErrDenied), errors.Is(err, catalog.ErrTransient), errors.Is(err, context.DeadlineExceeded):
		return exitStore
	}
	return exitFailure
}

// explain puts an error of pkg/operator into the tool's words. What needs none of its own is returned as it is.
func (a *app) explain(err error) error {
	if done := new(explained); err == nil || errors.As(err, &done) {
		return err
	}
	var (
		empty      *operator.EmptyStoreError
		noCommand  *operator.NoCommandError
		undecided  *operator.UndecidedError
		foreign    *operator.ForeignBackupError
		uncertain  *operator.UncertainError
		noSpec     *operator.NoSpecError
		spec       *operator.SpecError
		undo       *operator.UndoError
		quorum     *operator.NoSurvivorsError
		survivor   *operator.SurvivorError
		unfollowed *operator.UnfollowedError
		outcome    *operator.OutcomeError
		noBackup   *operator.NoVersionBackupError
		ending     *operator.TerminatingError
	)
	var text string
	switch {
	case errors.As(err, &empty):
		text = empty.Error() + "\n  for a new store:  configure-cluster --member-count=N or import-backup, or any command with --allow-empty-store"
	case errors.As(err, &noCommand):
		text = explainNoCommand(noCommand)
	case errors.As(err, &undecided):
		text = a.undecided(undecided)
	case errors.As(err, &foreign):
		text = foreign.Error() + "; if you want the other cluster's data in this cluster, add --force-foreign"
	case errors.As(err, &uncertain):
		text = fmt.Sprintf("%v. It may be queued anyway: check with %s", uncertain.Err, a.ctl("list-commands"))
	case errors.As(err, &noSpec) && noSpec.Change:
		text = fmt.Sprintf("there is no cluster spec in %s yet: --member-count is needed too", noSpec.Store)
	case errors.As(err, &noSpec):
		text = noSpec.Error() + ": write one with configure-cluster --member-count=N, or check the URL"
	case errors.As(err, &spec) && spec.Withdraw != nil:
		text = fmt.Sprintf("%s is queued, but the cluster spec could not be written, and withdrawing the command failed too (%v); withdraw it: %s: %v",
			spec.Command, spec.Withdraw, a.ctl("delete-command", spec.Command), spec.Err)
	case errors.As(err, &ending):
		text = ending.Error() + ": add --overwrite"
	case errors.As(err, &undo):
		text = a.explainUndo(undo)
	case errors.As(err, &quorum):
		text = a.explainNoSurvivors(quorum)
	case errors.As(err, &survivor):
		text = explainSurvivor(survivor)
	case errors.As(err, &unfollowed):
		return a.explainUnfollowed(unfollowed)
	case errors.As(err, &noBackup):
		return explainNoVersionBackup(noBackup)
	case errors.As(err, &outcome):
		return explainOutcome(outcome)
	default:
		return a.explainFlags(err)
	}
	return &explained{text, err}
}

// explainFlags is explain for what a flag of the tool is about.
func (a *app) explainFlags(err error) error {
	var (
		config  *operator.ConfigError
		setting *operator.SettingError
		unsafe  *operator.UnsafeVersionError
		busy    *operator.BusyError
		sum     *operator.NoChecksumError
		temp    *database.TempDirError
		exists  *operator.ExistsError
	)
	switch {
	case errors.As(err, &config):
		flag := map[string]string{operator.FieldIdentities: "--identity: ", operator.FieldEncryption: "--backup-encryption: "}[config.Field]
		return ui.Usagef("%s%w", flag, config.Err)
	case errors.As(err, &setting) && setting.Unset:
		return ui.Usagef("--unset=%s: that isn't set (%s)", setting.Name, setting.Have)
	case errors.As(err, &setting):
		return ui.Usagef("--set: %v", setting.Err)
	case errors.As(err, &unsafe):
		return ui.Usagef("--etcd-version=%s is refused: %s", unsafe.Version, unsafe.Why)
	case errors.As(err, &busy):
		return fmt.Errorf("%s (%s) is running and writes the marker itself; follow it: %s", busy.Command.Name,
			subjectOf(busy.Command), a.ctl("follow", busy.Command.Name))
	case errors.As(err, &sum):
		return &explained{sum.Error() + "; if it is such a copy, add --skip-hash-check", err}
	case errors.As(err, &temp):
		return &explained{strings.Replace(err.Error(), temp.Error(), temp.Error()+" (--temp-dir names another place)", 1), err}
	case errors.As(err, &exists):
		return &explained{exists.Error() + ": nothing was fetched; --force replaces it", err}
	}
	return err
}

func explainNoCommand(e *operator.NoCommandError) string {
	switch {
	case e.Queue:
		return e.Error() + " (list-commands shows the queue)"
	case e.Name == "":
		return e.Error() + " (list-commands shows what was)"
	}
	return e.Error() + " (list-commands shows them)"
}

// undecided shows what may be meant, and how to say which.
func (a *app) undecided(e *operator.UndecidedError) string {
	text := e.Error()
	for _, k := range e.Candidates {
		text += fmt.Sprintf("\n  this one:  %s", a.ctl("restore-backup", k.Name, "--dry-run"))
		if k.Life != "" {
			text += fmt.Sprintf("\n  with the changes of its incarnation:  %s", a.ctl("restore-backup", k.Name, "--latest", "--dry-run"))
		}
	}
	return text
}

func (a *app) explainUndo(e *operator.UndoError) string {
	name := e.Command.Name
	switch e.Why {
	case operator.UndoRunning:
		return fmt.Sprintf("%s (%s) is being executed (%s), so there is nothing to undo yet; to undo an earlier one, name it\n  follow it:    %s\n  withdraw it:  %s (while nothing is stopped for it)",
			name, subjectOf(e.Command), e.Command.Operation.State, a.ctl("follow", name), a.ctl("delete-command", name))
	case operator.UndoWaiting:
		return fmt.Sprintf("%s (%s) waits and has not begun yet; to undo an earlier one anyway, name it\n  withdraw it:  %s",
			name, subjectOf(e.Command), a.ctl("delete-command", name))
	case operator.UndoNotBegun:
		return e.Error() + " with delete-command"
	case operator.UndoUnknown:
		return e.Error() + " (list-commands shows them)"
	}
	return e.Error()
}

// explainNoSurvivors explains why there is nothing to choose from.
func (a *app) explainNoSurvivors(e *operator.NoSurvivorsError) string {
	text := e.Error()
	switch {
	case e.Leader == nil:
		text += "\nNo manager has ever been leader here."
	case e.Led():
		return text + fmt.Sprintf("\nA manager on node %s leads (last reported %s). If the quorum was lost just now, try again in a minute.", e.Leader.Node, ui.Ago(e.Age))
	default:
		text += fmt.Sprintf("\nBut no manager seems to lead: the last one, on node %s, last reported %s.", e.Leader.Node, ui.Ago(e.Age))
	}
	need := "a majority of the spec's masters"
	if e.Members > 0 {
		need = fmt.Sprintf("at least %d of the %d masters of the spec", cluster.Quorum(e.Members), e.Members)
	}
	return text + fmt.Sprintf(`
Only a leading manager reports survivors, and a manager can only lead while %s run etcd-manager. So
  start new masters for the lost ones (they can be empty), or
  if you have none, lower the member count: %s
    and restart the survivor's manager, which reads it at its start.
Then try again.`, need, a.ctl("configure-cluster", "--member-count=1"))
}

func explainSurvivor(e *operator.SurvivorError) string {
	switch {
	case e.Ambiguous:
		return e.Error() + " with --from-survivor=NODE"
	case e.Name != "":
		return e.Error()
	}
	return e.Error() + " (restore-backup latest)"
}

// explainUnfollowed says that the restore goes on although nobody looks.
func (a *app) explainUnfollowed(e *operator.UnfollowedError) error {
	why := "interrupted"
	if e.Silent > 0 {
		why = fmt.Sprintf("the store has not answered for %s (--timeout): %v", e.Silent, e.Err)
	}
	text := fmt.Sprintf("%s is not followed any more: %s\n", e.Command, why)
	if e.Operation == nil {
		text += fmt.Sprintf("It stays queued.\n  follow it:    %s\n  withdraw it:  %s", a.ctl("follow", e.Command),
			a.ctl("delete-command", e.Command))
		return &outcomeError{exitUnfollowed, text}
	}
	text += fmt.Sprintf("The managers continue it (%s).\n  follow it:    %s", e.Operation.State, a.ctl("follow", e.Command))
	if !operator.Stopped(e.Operation.State) {
		text += "\n  withdraw it:  " + a.ctl("delete-command", e.Command)
	}
	return &outcomeError{exitUnfollowed, text}
}

func explainNoVersionBackup(e *operator.NoVersionBackupError) error {
	var outcome *operator.OutcomeError
	switch {
	case !errors.As(e.Err, &outcome):
		return e.Err
	case outcome.Withdrawn:
		return &outcomeError{exitNotDone, e.Error()}
	}
	return &outcomeError{exitFailure, e.Error()}
}

// explainOutcome says how a command has ended. Each end has an exit code of its own.
func explainOutcome(e *operator.OutcomeError) error {
	name, op := e.Command.Name, e.Command.Operation
	switch {
	case e.Withdrawn:
		return &outcomeError{exitNotDone, e.Error()}
	case op.State == catalog.StateRolledBack:
		text := fmt.Sprintf("%s was rolled back: %s\nThe old data are back; there is nothing to undo.", name, op.Reason)
		if op.Outage > 0 {
			text += fmt.Sprintf(" etcd was stopped for %s.", ui.Took(op.Outage))
		}
		return &outcomeError{exitRolledBack, text}
	case op.State == catalog.StateSuperseded:
		return &outcomeError{exitNotDone, fmt.Sprintf("%s was superseded: %s\nIt changed nothing (list-commands shows the one that replaced it)", name, op.Reason)}
	case op.PutBack != nil:
		text := fmt.Sprintf("%s failed: %s\nIt has done: %s.", name, op.Reason, countsOf(op.PutBack.PutBackCounts))
		if op.PutBack.Written() > 0 {
			text += " undo-put-back " + name + " takes that back"
		}
		return &outcomeError{exitFailure, text}
	case op.Kind == catalog.KindBackup:
		return &outcomeError{exitFailure, fmt.Sprintf("%s failed: %s", name, op.Reason)}
	}
	return &outcomeError{exitFailure, fmt.Sprintf("%s failed: %s\nNothing was stopped for it; the cluster keeps serving.", name, op.Reason)}
}
