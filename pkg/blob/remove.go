package blob

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Remove purges like Purge, and hides what the store has under lock: nobody reads or lists it any more. It is for what must be gone
// now and may stay as an old version: commands, pins, what a probe wrote. What retention deletes isn't hidden,
// since it has to be found when its lock ends.
func Remove(ctx context.Context, s Store, prefix string, match func(key string) bool) (int, error) {
	n, err := s.Purge(ctx, prefix, match)
	locked, rest := SplitLocked(err)
	for _, l := range locked {
		for _, key := range l.Keys {
			if _, err := s.Put(ctx, key, strings.NewReader(""), PutOptions{Hide: true}); err != nil {
				rest = append(rest, fmt.Errorf("hide what is under lock: %w", err))
				continue
			}
			n++
		}
	}
	return n, errors.Join(rest...)
}

// SplitLocked tells the locks in an error of Purge from everything else.
func SplitLocked(err error) (locked []*LockedError, rest []error) {
	if err == nil {
		return nil, nil
	}
	var found *LockedError
	switch e := err.(type) { //nolint:errorlint // it goes through the tree itself
	case *LockedError:
		return []*LockedError{e}, nil
	case *Error:
		if e.Kind == ErrLocked && errors.As(err, &found) { //nolint:errorlint // a kind is a sentinel
			return []*LockedError{found}, nil
		}
		return nil, []error{err}
	case interface{ Unwrap() []error }:
		for _, x := range e.Unwrap() {
			l, r := SplitLocked(x)
			locked, rest = append(locked, l...), append(rest, r...)
		}
		return locked, rest
	}
	if errors.As(err, &found) {
		return SplitLocked(errors.Unwrap(err))
	}
	return nil, []error{err}
}

// SplitRefused tells what an error of Purge says of single objects from what it says of the whole request.
func SplitRefused(err error) (refused []*Error, rest []error) {
	switch e := err.(type) { //nolint:errorlint // it goes through the tree itself
	case nil:
		return nil, nil
	case *Error:
		if len(e.Keys) > 0 {
			return []*Error{e}, nil
		}
	case interface{ Unwrap() []error }:
		for _, x := range e.Unwrap() {
			f, r := SplitRefused(x)
			refused, rest = append(refused, f...), append(rest, r...)
		}
		return refused, rest
	case interface{ Unwrap() error }:
		if f, r := SplitRefused(e.Unwrap()); len(f) > 0 {
			return f, r
		}
	}
	return nil, []error{err}
}
