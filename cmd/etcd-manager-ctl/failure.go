package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// hint says what may be the cause of an error and what to do; empty if the error says it.
func hint(a *app, err error, code int) string {
	var outcome *outcomeError
	switch {
	case errors.As(err, &outcome):
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Sprintf("the store %s didn't answer within %s (--timeout)", a.store, a.timeout)
	case errors.Is(err, catalog.ErrDenied):
		return fmt.Sprintf("the store refuses access: check the credentials and the permissions of this machine for %s", a.store)
	case code == exitStore:
		return fmt.Sprintf("the store %s can't be reached: nothing is known about its content", a.store)
	case code == exitUsage:
		return "see etcd-manager-ctl --help"
	}
	return ""
}

// errorOutput is how an error is told to a program that has asked for JSON: one line on standard error, the last one.
type errorOutput struct {
	Error errorFields `json:"error"`
}

type errorFields struct {
	// Kind is the exit code in a word.
	Kind     string `json:"kind"`
	ExitCode int    `json:"exitCode"`
	Message  string `json:"message"`
	Hint     string `json:"hint,omitempty"`
}

// kindOf is an exit code in a word, as docs/ctl.md lists them.
func kindOf(code int) string {
	switch code {
	case exitUsage:
		return "usage"
	case exitNotFound:
		return "not-found"
	case exitStore:
		return "store"
	case exitRolledBack:
		return "rolled-back"
	case exitNotDone:
		return "not-done"
	case exitUnfollowed:
		return "not-followed"
	}
	return "failed"
}

// printError prints an error as JSON.
func printError(a *app, err error, code int) {
	e := json.NewEncoder(a.errOut)
	e.SetEscapeHTML(false)
	_ = e.Encode(errorOutput{errorFields{Kind: kindOf(code), ExitCode: code, Message: err.Error(), Hint: hint(a, err, code)}})
}

// asksForJSON tells whether a command line asks for JSON or YAML, even if it can't be read otherwise.
func asksForJSON(args []string) bool {
	for i, arg := range args {
		if !strings.HasPrefix(arg, "-") {
			continue
		}
		name, value, given := strings.Cut(strings.TrimLeft(arg, "-"), "=")
		if !given && i+1 < len(args) {
			value = args[i+1]
		}
		if short, ok := strings.CutPrefix(name, "o"); ok && (short == "json" || short == "yaml") {
			return true
		}
		if (name == "o" || name == "output") && slices.Contains([]string{"json", "yaml"}, value) {
			return true
		}
	}
	return false
}
