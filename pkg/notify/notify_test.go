package notify

import (
	"context"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

// listen is systemd's end.
func listen(t *testing.T, name string) *net.UnixConn {
	t.Helper()
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: name, Net: "unixgram"})
	testutil.Must(t, err)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// next is the next message.
func next(t *testing.T, c *net.UnixConn) string {
	t.Helper()
	testutil.Must(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
	b := make([]byte, 4096)
	n, err := c.Read(b)
	testutil.Must(t, err)
	return string(b[:n])
}

func service(t *testing.T, env map[string]string) *Service {
	t.Helper()
	s, err := New(func(k string) string { return env[k] }, os.Getpid())
	testutil.Must(t, err)
	return s
}

func TestTell(t *testing.T) {
	dir, err := os.MkdirTemp("", "n") // a socket's path must be short
	testutil.Must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	for _, name := range []string{filepath.Join(dir, "s"), "@etcd-manager-notify-" + strconv.Itoa(os.Getpid())} {
		c := listen(t, name)
		s := service(t, map[string]string{"NOTIFY_SOCKET": name})
		s.Ready()
		s.Stopping()
		for _, want := range []string{"READY=1", "STOPPING=1"} {
			if got := next(t, c); got != want {
				t.Errorf("%s: %q; want %q", name, got, want)
			}
		}
	}
}

// TestKeep: signs of life stop while something stands still, and the status is told only when it is another one.
func TestKeep(t *testing.T) {
	dir, err := os.MkdirTemp("", "n")
	testutil.Must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	c := listen(t, filepath.Join(dir, "s"))
	s := service(t, map[string]string{"NOTIFY_SOCKET": filepath.Join(dir, "s"), "WATCHDOG_USEC": "30000", "WATCHDOG_PID": strconv.Itoa(os.Getpid())})
	var stalled atomic.Bool
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.Keep(ctx, func() Health {
			if stalled.Load() {
				return Health{Status: "well", Stalled: "the loop stands still"}
			}
			return Health{Status: "all\nis  well"}
		})
	}()
	if got := next(t, c); got != "WATCHDOG=1\nSTATUS=all is well" {
		t.Errorf("first: %q", got)
	}
	for range 3 {
		if got := next(t, c); got != "WATCHDOG=1" {
			t.Errorf("then: %q", got)
		}
	}
	stalled.Store(true)
	testutil.Eventually(t, "the status says what stands still", func() bool { return next(t, c) == "STATUS=the loop stands still" })
	testutil.Must(t, c.SetReadDeadline(time.Now().Add(200*time.Millisecond)))
	b := make([]byte, 100)
	if n, err := c.Read(b); err == nil {
		t.Errorf("a sign of life of what stands still: %q", b[:n])
	}
	stalled.Store(false)
	if got := next(t, c); got != "WATCHDOG=1\nSTATUS=all is well" {
		t.Errorf("again: %q", got)
	}
	cancel()
	<-ended
}

// TestNothingToTell: without systemd, with a socket that is gone and with what systemd never gives, nothing fails and nothing waits.
func TestNothingToTell(t *testing.T) {
	none := service(t, nil)
	none.Ready()
	none.Stopping()
	none.Keep(t.Context(), func() Health { t.Error("looked for nobody"); return Health{} })
	gone := service(t, map[string]string{"NOTIFY_SOCKET": "/gone"})
	gone.Ready()
	if s := service(t, map[string]string{"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "1000", "WATCHDOG_PID": "1"}); s.watchdog != 0 {
		t.Error("the watchdog of another process was taken")
	}
	for _, env := range []map[string]string{{"NOTIFY_SOCKET": "vsock:2:1"}, {"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "x"},
		{"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "-1"}, {"NOTIFY_SOCKET": "/s", "WATCHDOG_USEC": "9999999999999999"}} {
		if _, err := New(func(k string) string { return env[k] }, 1); err == nil || !strings.Contains(err.Error(), "systemd") {
			t.Errorf("%v: %v", env, err)
		}
	}
}

func TestOneLine(t *testing.T) {
	for in, want := range map[string]string{"a\nb\x1b[0m": "a b [0m", "": "", strings.Repeat("é", 200): strings.Repeat("é", 150) + "…", "\xff": "?"} {
		if got := oneLine(in); got != want {
			t.Errorf("%q: %q; want %q", in, got, want)
		}
	}
}

// TestReadyIsSaidAgain: a socket that wasn't there for a moment doesn't leave a unit starting for ever.
func TestReadyIsSaidAgain(t *testing.T) {
	dir, err := os.MkdirTemp("", "n")
	testutil.Must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	s := service(t, map[string]string{"NOTIFY_SOCKET": filepath.Join(dir, "s"), "WATCHDOG_USEC": "30000"})
	s.Ready()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan struct{})
	looked := make(chan struct{}, 1000)
	go func() {
		defer close(ended)
		s.Keep(ctx, func() Health { looked <- struct{}{}; return Health{Status: "well"} })
	}()
	<-looked
	<-looked // the first look could tell nobody
	c := listen(t, filepath.Join(dir, "s"))
	if got := next(t, c); got != "WATCHDOG=1\nREADY=1\nSTATUS=well" {
		t.Errorf("%q", got)
	}
	if got := next(t, c); got != "WATCHDOG=1" {
		t.Errorf("then %q", got)
	}
	cancel()
	<-ended
}
