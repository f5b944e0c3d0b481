package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// bench is what the test harness asks of a test: a place, a context, and things to be done at the
// end. Of testing.TB it has what the harness uses.
type bench struct {
	testing.TB

	name, dir string
	ctx       context.Context
	cancel    context.CancelFunc

	mu       sync.Mutex
	cleanups []func()
	failed   bool
	stopped  bool
	dirs     int
}

func newBench(name, dir string) *bench {
	b := &bench{name: name, dir: dir}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	return b
}

// sub runs f with a bench of its own: what f started has ended, and what it wrote is gone, when sub returns.
func (b *bench) sub(name string, f func(*bench)) {
	s := newBench(b.name+"/"+name, filepath.Join(b.TempDir(), name))
	if !s.run(nil, func() { f(s) }) {
		b.Fatalf("%s failed", s.name)
	}
}

// run calls f and then the cleanups, and tells whether nothing failed. A signal ends it early.
func (b *bench) run(stop <-chan os.Signal, f func()) bool {
	done := make(chan struct{})
	go func() {
		defer close(done)
		f()
	}()
	select {
	case <-done:
	case <-stop:
		b.stopped = true
		b.mu.Lock()
		b.failed = true
		b.mu.Unlock()
	}
	b.cancel()
	for {
		b.mu.Lock()
		n := len(b.cleanups)
		if n == 0 {
			b.mu.Unlock()
			break
		}
		c := b.cleanups[n-1]
		b.cleanups = b.cleanups[:n-1]
		b.mu.Unlock()
		c()
	}
	if err := os.RemoveAll(b.dir); err != nil {
		b.Errorf("%v", err)
	}
	return !b.Failed()
}

func (b *bench) say(format string, a ...any) { logTo(os.Stderr, b.name+": "+format, a...) }

func (b *bench) note(text string) {
	b.mu.Lock()
	b.failed = true
	b.mu.Unlock()
	b.say("FAILED: %s", text)
}

// Helper does nothing.
func (b *bench) Helper() {}

// Name is that of the part.
func (b *bench) Name() string { return b.name }

// Context ends before the cleanups run.
func (b *bench) Context() context.Context { return b.ctx }

// Cleanup has f called at the end, last one first.
func (b *bench) Cleanup(f func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.cleanups = append(b.cleanups, f)
}

// TempDir makes a directory that goes with the bench.
func (b *bench) TempDir() string {
	b.mu.Lock()
	b.dirs++
	dir := filepath.Join(b.dir, fmt.Sprint(b.dirs))
	b.mu.Unlock()
	if err := os.MkdirAll(dir, 0o755); err != nil {
		b.Fatalf("%v", err)
	}
	return dir
}

// Failed tells whether anything failed.
func (b *bench) Failed() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.failed
}

// Log and the rest do what they do in a test.
func (b *bench) Log(a ...any) { b.say("%s", strings.TrimSuffix(fmt.Sprintln(a...), "\n")) }

// Logf logs.
func (b *bench) Logf(format string, a ...any) { b.say(format, a...) }

// Error fails and goes on.
func (b *bench) Error(a ...any) { b.note(strings.TrimSuffix(fmt.Sprintln(a...), "\n")) }

// Errorf fails and goes on.
func (b *bench) Errorf(format string, a ...any) { b.note(fmt.Sprintf(format, a...)) }

// Fatal fails and ends the goroutine.
func (b *bench) Fatal(a ...any) {
	b.note(strings.TrimSuffix(fmt.Sprintln(a...), "\n"))
	runtime.Goexit()
}

// Fatalf fails and ends the goroutine.
func (b *bench) Fatalf(format string, a ...any) {
	b.note(fmt.Sprintf(format, a...))
	runtime.Goexit()
}

// Skipf can't be used here: nothing may be left out of the table silently.
func (b *bench) Skipf(format string, a ...any) { b.Fatalf(format, a...) }

func (b *bench) must(err error) {
	if err != nil {
		b.Fatal(err)
	}
}
