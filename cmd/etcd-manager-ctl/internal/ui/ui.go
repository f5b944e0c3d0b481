// Package ui is how etcd-manager-ctl speaks to a person: progress on a screen and in a pipe,
// tables, moments and sizes in words, times as they are typed, and questions.
//
// It knows nothing of stores and decides nothing about a cluster.
package ui

import (
	"fmt"
)

// UsageError is one that the command line caused.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }

// Unwrap gives what is wrong.
func (e *UsageError) Unwrap() error { return e.Err }

// Usagef makes a UsageError.
func Usagef(format string, args ...any) error { return &UsageError{fmt.Errorf(format, args...)} }
