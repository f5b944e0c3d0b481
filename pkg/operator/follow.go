package operator

import (
	"context"
	"iter"
	"time"
)

// PollInterval is how often Follow looks at the store.
const PollInterval = 1500 * time.Millisecond

// FollowOptions say how a command is followed. The zero value looks every PollInterval, and waits for a silent store without end.
type FollowOptions struct {
	// Patience is how long the store may be silent; 0 means without end.
	Patience time.Duration
	// Pause waits between two looks. It returns false to end following. Nil means Pause.
	Pause func(ctx context.Context) bool
}

// Pause waits for PollInterval. It returns false if the context ends before.
func Pause(ctx context.Context) bool {
	t := time.NewTimer(PollInterval)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// Follow follows a command to its end, through the store alone: it doesn't mind which manager
// leads, and goes on when the store was away for a while. The last event is an Ended. Ending the
// loop, or the context, doesn't interrupt the restore. An error ends the sequence: it is an
// *UnfollowedError if the context or the patience has ended, else the command's record can't be
// read (Unreadable).
func (c *Client) Follow(ctx context.Context, command string, o FollowOptions) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		f := follower{w: c.newWatch(command), o: o, now: c.config.Now}
		if f.o.Pause == nil {
			f.o.Pause = Pause
		}
		for {
			more, err := f.look(ctx, func(e Event) bool { return yield(e, nil) })
			if err != nil {
				yield(nil, err)
				return
			}
			if !more {
				return
			}
			if !f.o.Pause(ctx) {
				yield(nil, f.unfollowed(0, context.Cause(ctx)))
				return
			}
		}
	}
}

// follower is one run of Follow.
type follower struct {
	w    *watch
	o    FollowOptions
	now  func() time.Time
	last *Look
	// silent is since when the store doesn't answer.
	silent time.Time
}

// look looks once and yields what has changed. more is false when the command has ended, or nobody wants more.
func (f *follower) look(ctx context.Context, yield func(Event) bool) (more bool, err error) {
	l, err := f.w.look(ctx)
	switch {
	case ctx.Err() != nil:
		return false, f.unfollowed(0, context.Cause(ctx))
	case Unreadable(err):
		return false, err
	case err != nil:
		return f.away(err, yield)
	}
	events := changes(f.last, l)
	if !f.silent.IsZero() {
		events = append([]Event{StoreAnswers{Moment{l.At}, l.At.Sub(f.silent)}}, events...)
		f.silent = time.Time{}
	}
	events = append(events, Looked{Moment{l.At}, *l})
	f.last = l
	if l.Ended() {
		events = append(events, Ended{Moment{l.At}, l.Command, l.Withdrawn})
	}
	for _, e := range events {
		if !yield(e) {
			return false, nil
		}
	}
	return !l.Ended(), nil
}

// away is a look that the store didn't answer.
func (f *follower) away(cause error, yield func(Event) bool) (more bool, err error) {
	now := f.now()
	if f.silent.IsZero() {
		f.silent = now
		if !yield(StoreSilent{Moment{now}, cause}) {
			return false, nil
		}
	}
	if p := f.o.Patience; p > 0 && now.Sub(f.silent) >= p {
		return false, f.unfollowed(p, cause)
	}
	return true, nil
}

func (f *follower) unfollowed(silent time.Duration, cause error) error {
	e := &UnfollowedError{Command: f.w.name, Silent: silent, Err: cause}
	if f.last != nil {
		e.Operation = f.last.Command.Operation
	}
	return e
}
