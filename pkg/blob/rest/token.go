package rest

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

const (
	// tokenWait bounds the time for which a request waits for a token.
	tokenWait = 20 * time.Second
	// tokenLeft is how long a token must last to be used; a token is fetched again when it has less.
	tokenLeft = 3 * time.Minute
)

// TokenError says that there are no credentials, or that the one who gives them out does not answer.
type TokenError struct {
	// Need says what is missing, as an operator would understand it.
	Need string
	// Transient is true if trying again may help.
	Transient bool
	// Err is the cause.
	Err error
}

// Error says what went wrong.
func (e *TokenError) Error() string { return "get a token: " + e.Err.Error() }

// Unwrap gives the cause.
func (e *TokenError) Unwrap() error { return e.Err }

// Token is what a request is authorized by.
type Token struct {
	// Value is the token itself.
	Value string
	// Expires is when it ends.
	Expires time.Time
}

// Tokens keeps a token until shortly before its end. One fetch is under way at most, however many wait for it, and it goes on when they
// give up. It may be used concurrently.
type Tokens struct {
	// From says where the tokens come from, for messages.
	From string
	// Fetch gets one. It must end when its context does, or within a minute.
	Fetch func(ctx context.Context) (Token, error)
	// Wait bounds how long Get waits; 0 means 20 s.
	Wait time.Duration

	mu    sync.Mutex
	token Token
	busy  *fetching
}

type fetching struct {
	done  chan struct{}
	token Token
	err   error
}

// Get returns a token that lasts, fetched if need be. Its errors are *TokenError, or those of ctx.
func (t *Tokens) Get(ctx context.Context) (string, error) {
	t.mu.Lock()
	left := time.Until(t.token.Expires)
	if t.token.Value != "" && left > tokenLeft {
		defer t.mu.Unlock()
		return t.token.Value, nil
	}
	f := t.busy
	if f == nil {
		f = &fetching{done: make(chan struct{})}
		t.busy = f
		go t.fetch(f)
	}
	old := t.token
	t.mu.Unlock()

	wait := t.Wait
	if wait == 0 {
		wait = tokenWait
	}
	if old.Value != "" && time.Until(old.Expires) > 0 {
		wait = min(wait, time.Second) // requests must not wait for what they can do without
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	var err error
	select {
	case <-f.done:
		if f.err == nil {
			return f.token.Value, nil
		}
		err = f.err
	case <-ctx.Done():
		return "", ctx.Err()
	case <-timer.C:
		err = &TokenError{Transient: true, Err: fmt.Errorf("%s gave no answer within %s", t.From, wait)}
	}
	if old.Value != "" && time.Until(old.Expires) > 0 {
		return old.Value, nil // the old one is still good
	}
	return "", err
}

func (t *Tokens) fetch(f *fetching) {
	// It is no caller's context: the token is for all who wait for it, and who gives up must not take it from the others.
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	f.token, f.err = t.Fetch(ctx)
	if f.err == nil && f.token.Value == "" {
		f.err = errors.New("the answer has no token")
	}
	if f.err != nil {
		var te *TokenError
		if !errors.As(f.err, &te) {
			f.err = &TokenError{Need: "credentials from " + t.From, Err: f.err}
		}
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if f.err == nil {
		t.token = f.token
	}
	t.busy = nil
	close(f.done)
}

// Forget drops the token that is kept: the server has refused it.
func (t *Tokens) Forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.token = Token{}
}
