package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/buildinfo"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// screen is a terminal, and what was written to it.
type screen struct {
	terminal *os.File
	mu       sync.Mutex
	seen     bytes.Buffer
	closed   chan struct{}
}

func newScreen(t *testing.T) *screen {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no terminal is to be had: %v", err)
	}
	must(t, unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0))
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	must(t, err)
	slave, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("no terminal is to be had: %v", err)
	}
	must(t, unix.IoctlSetWinsize(int(slave.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: 40, Col: 120}))
	s := &screen{terminal: slave, closed: make(chan struct{})}
	go func() {
		defer close(s.closed)
		buf := make([]byte, 4096)
		for {
			n, err := master.Read(buf)
			s.mu.Lock()
			s.seen.Write(buf[:n])
			s.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	t.Cleanup(func() { slave.Close(); <-s.closed; master.Close() })
	return s
}

func (s *screen) text() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen.String()
}

// waitFor waits until a pattern was on the screen.
func (s *screen) waitFor(t *testing.T, pattern string) {
	t.Helper()
	r := regexp.MustCompile(pattern)
	for deadline := time.Now().Add(20 * time.Second); !r.MatchString(s.text()); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("the screen never showed %q, but\n%s", pattern, s.text())
		}
	}
}

// escapes move the cursor and clear lines.
var escapes = regexp.MustCompile(`\x1b\[\d*A\x1b\[J`)

// last is what stays on the screen in the end.
func (s *screen) last() string {
	out := ""
	for i, part := range escapes.Split(s.text(), -1) {
		if i > 0 {
			n := 0
			_, err := fmt.Sscanf(escapes.FindAllString(s.text(), -1)[i-1], "\x1b[%dA", &n)
			if err != nil {
				return err.Error()
			}
			lines := strings.SplitAfter(out, "\n")
			out = strings.Join(lines[:len(lines)-1-n], "")
		}
		out += part
	}
	return strings.ReplaceAll(out, "\r\n", "\n")
}

// TestBars follows a restore on a real terminal.
func TestBars(t *testing.T) {
	w := newWorld(t)
	w.spec(3, "3.5.21")
	name := w.queue(backup1, catalog.RestoreOptions{})
	s := newScreen(t)
	var l *leader
	steps := []func(){
		func() { s.waitFor(t, `waiting, for \d+s`); l = w.begin(name, catalog.StateProving) },
		func() { l.progress(fetching("fetch", 50*mib)) },
		func() {
			s.waitFor(t, `a: fetch +50 % +\[=+>-+\] 50.0 MiB of 100.0 MiB`)
			s.waitFor(t, `b: fetch +25 % +\[=+>-+\] 25.0 MiB of 100.0 MiB`)
			s.waitFor(t, `c: fetch .* 50.0 MiB`)
			s.waitFor(t, `proving, for \d+s`)
			l.advance(catalog.StateStaging, "")
		},
		func() { l.progress(fetching("stage", 10*mib)) },
		func() {
			s.waitFor(t, `a: stage +10 %`)
			l.op.Leader, l.op.Term = "c", 8
			l.progress(fetching("check", 10*mib))
		},
		func() {
			s.waitFor(t, `node c leads now`)
			s.waitFor(t, `a: check +10 %`)
			l.op.Outage = time.Second
			l.advance(catalog.StateDone, "")
		},
	}
	var errOut bytes.Buffer
	now := w.now // the clock stands still, for the bars read it beside the steps
	code := run(t.Context(), deps{args: []string{"--backup-store=mem://x", "follow"}, in: strings.NewReader(""),
		out: s.terminal, errOut: &errOut, outTerminal: true,
		now: func() time.Time { return now }, build: buildinfo.Info{Version: "1"}, open: func(context.Context, string) (blob.Store, error) { return w.store, nil },
		pause: func(context.Context) bool {
			if len(steps) == 0 {
				return false
			}
			steps[0]()
			steps = steps[1:]
			return true
		}})
	if code != 0 || errOut.Len() > 0 {
		t.Errorf("%d %s", code, errOut.String())
	}
	s.waitFor(t, `says why\)`)
	got := s.last()
	if strings.Contains(got, "[=") || strings.Contains(got, "for 0s") {
		t.Errorf("bars stay on the screen:\n%s", got)
	}
	var want bytes.Buffer
	plain := ui.NewPipe(&want)
	for _, line := range []string{name + ": restore of " + backup1 + " into 3 members, etcd 3.5.21",
		"waiting " + restartManager, "begun; node b leads (term 7)"} {
		plain.Say(now, line)
	}
	if !strings.HasPrefix(got, want.String()) || strings.Count(got, "\n") != 14 {
		t.Errorf("what was said doesn't stay on the screen:\n%s", got)
	}
}

// TestTransferBar shows a download on a screen, and nothing elsewhere.
func TestTransferBar(t *testing.T) {
	s := newScreen(t)
	a := &app{deps: deps{errOut: s.terminal, errTerminal: true}}
	bar := ui.NewTransfer(a.errOut, a.errTerminal, "fetch x")
	bar.Set(10*mib, 40*mib)
	s.waitFor(t, `fetch x +25 %`)
	bar.Close()
	bar.Set(20*mib, 40*mib) // a late report is no mistake
	_, err := s.terminal.WriteString("END\n")
	must(t, err)
	s.waitFor(t, "END")
	if got := s.last(); strings.TrimSpace(got) != "END" {
		t.Errorf("it stays on the screen: %q", got)
	}
	quiet := ui.NewTransfer(io.Discard, false, "x")
	quiet.Set(1, 2)
	quiet.Close()
}
