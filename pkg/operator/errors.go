package operator

import (
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// What the store says. Any error of this package may wrap one of them.
var (
	// ErrNotFound: what was named isn't there.
	ErrNotFound = catalog.ErrNotFound
	// ErrDenied: the store refuses; credentials or permissions are wrong.
	ErrDenied = catalog.ErrDenied
	// ErrTransient: the store can't be reached now, and nothing is known about its content.
	ErrTransient = catalog.ErrTransient
)

// UndecidedError says that it isn't known which backup is the newest, and which may be meant.
type UndecidedError = changelog.UndecidedError

// The fields of a Config that a ConfigError names.
const (
	FieldStore      = "Store"
	FieldIdentities = "Identities"
	FieldEncryption = "Encryption"
)

// ConfigError says which field of a Config can't be used, and why.
type ConfigError struct {
	Field string
	Err   error
}

func (e *ConfigError) Error() string { return e.Err.Error() }

// Unwrap gives the cause.
func (e *ConfigError) Unwrap() error { return e.Err }

// InvalidError says that a request makes no sense; nothing was changed.
type InvalidError struct{ Err error }

func (e *InvalidError) Error() string { return e.Err.Error() }

// Unwrap gives what is wrong.
func (e *InvalidError) Unwrap() error { return e.Err }

func invalidf(format string, args ...any) error { return &InvalidError{fmt.Errorf(format, args...)} }

// EmptyStoreError says that nothing of a cluster is stored at a URL. It is ErrNotFound, or catalog.ErrTransient if Missing.
type EmptyStoreError struct {
	Store string
	// Missing is true if the directory of a file store doesn't exist: the file system may not be mounted.
	Missing bool
	// Near are URLs of clusters that may be meant: beside the store, and below it.
	Near []string
}

func (e *EmptyStoreError) Error() string {
	s, also := fmt.Sprintf("there is no cluster in %s: this URL has no objects of a cluster", e.Store), "; did"
	if e.Missing {
		also = " Or did"
		s = fmt.Sprintf("the store %s is away: its directory doesn't exist; is the file system mounted?", e.Store)
	}
	if len(e.Near) > 0 {
		s += also + " you mean " + strings.Join(e.Near, " or ") + "?"
	}
	return s
}

// Unwrap gives ErrNotFound, or catalog.ErrTransient.
func (e *EmptyStoreError) Unwrap() error {
	if e.Missing {
		return catalog.ErrTransient
	}
	return ErrNotFound
}

// NoCommandError says that no command has a name, neither in the queue nor in the history. It is ErrNotFound.
type NoCommandError struct {
	// Name is empty if the one was meant that is being executed, or waits.
	Name string
	// Queue is true if only the queue was looked at, for commands of that name and for commands that restore the backup of that name.
	Queue bool
}

func (e *NoCommandError) Error() string {
	switch {
	case e.Queue:
		return fmt.Sprintf("no queued command has this name or restores a backup with this name: %q", e.Name)
	case e.Name == "":
		return "nothing is being executed and nothing waits"
	}
	return fmt.Sprintf("there is no command %q, neither queued nor in the history", e.Name)
}

// Unwrap gives ErrNotFound.
func (e *NoCommandError) Unwrap() error { return ErrNotFound }

// UnfollowedError says that a command isn't followed any more though it has not ended. The managers go on with it all the same.
type UnfollowedError struct {
	Command string
	// Operation is what was last seen of it; nil if nobody had begun.
	Operation *catalog.Operation
	// Silent is for how long the store had not answered, if that is why; else the caller has ended it.
	Silent time.Duration
	Err    error
}

func (e *UnfollowedError) Error() string {
	if e.Silent > 0 {
		return fmt.Sprintf("%s is not followed any more: the store has not answered for %s: %v", e.Command, e.Silent, e.Err)
	}
	return fmt.Sprintf("%s is not followed any more: interrupted", e.Command)
}

// Unwrap gives the error of the context or of the store.
func (e *UnfollowedError) Unwrap() error { return e.Err }

// OutcomeError says that a command has ended otherwise than done.
type OutcomeError struct {
	Command Command
	// Withdrawn is true if it was taken out of the queue before anybody began.
	Withdrawn bool
}

func (e *OutcomeError) Error() string {
	if e.Withdrawn {
		return e.Command.Name + " was withdrawn before it began; nothing was changed"
	}
	return fmt.Sprintf("%s ended as %s: %s", e.Command.Name, e.Command.Operation.State, e.Command.Operation.Reason)
}

// Unreadable tells an object that can't be read from a store that doesn't answer: it is damaged, or a newer version wrote it.
func Unreadable(err error) bool {
	return errors.Is(err, cluster.ErrCorrupt) || errors.Is(err, cluster.ErrFuture)
}
