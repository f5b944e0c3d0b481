//go:build !linux

package main

import (
	"context"
	"errors"
	"runtime"
)

func childMain([]string) (code int, ok bool) { return 0, false }

// noChecker stands where etcd's databases can't be read: what does so is built for Linux alone.
type noChecker struct{}

func newChecker() checker { return noChecker{} }

var errNotHere = errors.New("databases can be checked on Linux only, not on " + runtime.GOOS + ": run this command there, or from the image")

func (noChecker) prove(context.Context, string) (facts, error) { return facts{}, errNotHere }

func (noChecker) keys(context.Context, string, func(liveKey) error) error { return errNotHere }
