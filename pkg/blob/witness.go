package blob

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
)

// Locker is a Store whose conditional puts hold by locks that all machines must share, as those on a file system do.
type Locker interface {
	// HoldLock takes the lock of this name, which is of the same kind as the one of conditional
	// puts, until release is called. A name is made of small letters and digits. release doesn't
	// fail for good: what hangs when its context ends goes on by itself.
	HoldLock(ctx context.Context, name string) (release func(context.Context), err error)
	// LockHeld tells whether somebody else holds it. It doesn't wait for the lock.
	LockHeld(ctx context.Context, name string) (bool, error)
}

// Locks returns the locks that the conditional puts of s rest on, or nil if it needs none.
func Locks(s Store) Locker {
	for {
		switch x := s.(type) {
		case *detacher:
			if l, ok := x.s.(Locker); ok {
				return detachedLocker{x, l}
			}
			return nil
		case Locker:
			return x
		case interface{ Unwrap() Store }:
			s = x.Unwrap()
		default:
			return nil
		}
	}
}

// detachedLocker is for a file system that hangs.
type detachedLocker struct {
	d *detacher
	l Locker
}

func (x detachedLocker) HoldLock(ctx context.Context, name string) (func(context.Context), error) {
	var release func(context.Context)
	var err error
	gone := x.d.run(ctx, "lock", name, func(*errand) { release, err = x.l.HoldLock(ctx, name) }, func() {
		if err == nil {
			release(ctx)
		}
	})
	if gone != nil {
		return nil, gone
	}
	if err != nil {
		return nil, err
	}
	return func(ctx context.Context) {
		_ = x.d.run(ctx, "lock", name, func(*errand) { release(ctx) }, nil)
	}, nil
}

func (x detachedLocker) LockHeld(ctx context.Context, name string) (held bool, err error) {
	if gone := x.d.run(ctx, "lock", name, func(*errand) { held, err = x.l.LockHeld(ctx, name) }, nil); gone != nil {
		return false, gone
	}
	return held, err
}

// Question is what one machine asks another, to find out whether both have one store, and whether that fences between them: the other is to
// find an object that was just created, to see a lock held, and to replace the object, which the first then must not be able to.
type Question struct {
	// Key is the object below ProbePrefix, Value what it holds, Reply what the other replaces it by.
	Key, Value, Reply string
	// Lock is the lock's name; empty if the store works without.
	Lock string
}

// Testimony is what the other has found.
type Testimony struct {
	// Problem says why it can't tell; then nothing else counts.
	Problem string
	// Found says that the object was there with its value, Held that the lock was held, Replaced that the object was replaced.
	Found, Held, Replaced bool
}

// Finding is what a Testimony means.
type Finding int

// The findings.
const (
	// OneStore: both have one store, and it fences between them as far as can be seen.
	OneStore Finding = iota
	// OtherStore: what one has written the other doesn't see.
	OtherStore
	// LocksApart: a lock that one holds the other can take.
	LocksApart
	// PutsApart: a conditional put of one doesn't know of the other's.
	PutsApart
)

// Posed is a question with what is kept for it in the store. End it.
type Posed struct {
	Question
	s       Store
	version string
	release func(context.Context)
}

// Pose creates the object and takes the lock. asker is one part of a key, for example the node's id. It takes one request.
func Pose(ctx context.Context, s Store, asker string) (*Posed, error) {
	name := func() string { return strings.ToLower(rand.Text()) }
	p := &Posed{Question: Question{Key: ProbePrefix + asker + "/" + name(), Value: name(), Reply: name()}, s: s,
		release: func(context.Context) {}}
	if err := CheckKey(p.Key); err != nil || strings.Contains(asker, "/") {
		return nil, &Error{Op: "put", Key: p.Key, Kind: ErrInvalid, Err: errors.Join(err, fmt.Errorf("%q is not one part of a key", asker))}
	}
	info, err := s.Put(ctx, p.Key, strings.NewReader(p.Value), PutOptions{IfAbsent: true})
	if err != nil {
		return nil, err
	}
	p.version = info.Version
	if l := Locks(s); l != nil {
		p.Lock = name()
		if p.release, err = l.HoldLock(ctx, p.Lock); err != nil {
			_, rerr := Remove(ctx, s, p.Key, func(string) bool { return true })
			return nil, errors.Join(err, rerr)
		}
	}
	return p, nil
}

// Witness answers a question that another machine has posed. It takes two requests and changes nothing but the object of the question.
func Witness(ctx context.Context, s Store, q Question) (t Testimony) {
	if err := q.check(); err != nil {
		return Testimony{Problem: err.Error()}
	}
	data, info, err := ReadAll(ctx, s, q.Key, 1<<10)
	switch {
	case errors.Is(err, ErrNotFound):
		return t
	case err != nil:
		return Testimony{Problem: err.Error()}
	}
	t.Replaced = string(data) == q.Reply // an answer got lost
	if t.Found = t.Replaced || string(data) == q.Value; !t.Found {
		return t
	}
	if q.Lock != "" {
		if l := Locks(s); l != nil {
			if t.Held, err = l.LockHeld(ctx, q.Lock); err != nil {
				return Testimony{Problem: err.Error()}
			}
		}
		if !t.Held {
			return t
		}
	}
	if t.Replaced {
		return t
	}
	_, err = s.Put(ctx, q.Key, strings.NewReader(q.Reply), PutOptions{IfVersion: info.Version})
	if t.Replaced = err == nil; err != nil && !errors.Is(err, ErrPreconditionFailed) {
		return Testimony{Problem: err.Error()}
	}
	return t
}

// check says what is wrong with a question that has come from another machine.
func (q Question) check() error {
	if err := CheckKey(q.Key); err != nil {
		return err
	}
	if rest, ok := strings.CutPrefix(q.Key, ProbePrefix); !ok || strings.Count(rest, "/") != 1 {
		return fmt.Errorf("key %q is none of a question", q.Key)
	}
	if q.Value == "" || q.Reply == "" || q.Value == q.Reply || len(q.Value)+len(q.Reply) > 1<<10 {
		return errors.New("a question needs two values of less than 1 KiB")
	}
	return CheckLock(q.Lock)
}

// CheckLock says what is wrong with the name of a lock, or nil; an empty one is none.
func CheckLock(name string) error {
	if len(name) > 64 || strings.Trim(name, "abcdefghijklmnopqrstuvwxyz0123456789") != "" {
		return fmt.Errorf("%q is not the name of a lock", name)
	}
	return nil
}

// Judge says what an answer without a Problem means. It takes two requests at most. After PutsApart the question is to be
// posed anew; after the other two the same one can be asked again. An error says that it can't be told now.
func (p *Posed) Judge(ctx context.Context, t Testimony) (Finding, error) {
	switch {
	case t.Problem != "":
		return 0, errors.New(t.Problem)
	case !t.Found:
		return OtherStore, p.stands(ctx)
	case p.Lock != "" && !t.Held:
		return LocksApart, nil
	case !t.Replaced:
		return PutsApart, nil
	}
	// What the other has replaced must not be there any more in the version from before.
	_, err := p.s.Put(ctx, p.Key, strings.NewReader(p.Value), PutOptions{IfVersion: p.version})
	switch {
	case err == nil:
		return PutsApart, nil
	case !errors.Is(err, ErrPreconditionFailed):
		return 0, err
	}
	data, _, err := ReadAll(ctx, p.s, p.Key, 1<<10)
	switch {
	case err != nil && !errors.Is(err, ErrNotFound):
		return 0, err
	case string(data) != p.Reply:
		return PutsApart, nil
	}
	return OneStore, nil
}

// stands makes sure that the object is where it was put: what was cleaned up in between nobody can find.
func (p *Posed) stands(ctx context.Context) error {
	data, _, err := ReadAll(ctx, p.s, p.Key, 1<<10)
	if err == nil && string(data) != p.Value {
		err = errors.New("none of the nodes that were asked has replaced it")
	}
	if err != nil {
		return fmt.Errorf("read its own question: %w", err)
	}
	return nil
}

// End gives the lock back and removes the object.
func (p *Posed) End(ctx context.Context) error {
	p.release(ctx)
	_, err := Remove(ctx, p.s, p.Key, func(key string) bool { return key == p.Key })
	return err
}
