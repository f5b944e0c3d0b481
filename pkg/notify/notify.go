// Package notify tells systemd how this program does: that it is ready, what it is doing, that it makes progress, and that it stops.
//
// It is the protocol of sd_notify(3): one datagram for each message, to the socket that systemd names in the environment. Without one
// nothing is told, and nothing fails. The package must never read the environment, and a socket that takes nothing must never hold the
// program up.
package notify

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode"

	"github.com/etcd-manager/etcd-manager/pkg/repeat"
)

// Variables are what systemd puts into the environment for this. They are meant for one process: its children must not get them.
func Variables() []string { return []string{"NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"} }

const (
	// sendTimeout bounds one message.
	sendTimeout = time.Second
	// lookEvery is the longest time between two looks at how the program does.
	lookEvery = 5 * time.Second
	// statusBytes bounds the status, which is one line.
	statusBytes = 300
)

// Service is what systemd wants to be told. A nil Service tells nobody anything. Its methods may be called concurrently.
type Service struct {
	socket string
	// watchdog is within which time systemd wants a sign of life; 0 if it wants none.
	watchdog time.Duration
	said     repeat.Limiter
	// ready is true while it is still to be told that the program is ready.
	ready atomic.Bool
}

// New reads what systemd has given to the process with this id. It returns nil if that is nothing, or meant for another process.
func New(env func(string) string, pid int) (*Service, error) {
	socket := env("NOTIFY_SOCKET")
	if socket == "" {
		return nil, nil
	}
	if socket[0] != '/' && socket[0] != '@' {
		return nil, fmt.Errorf("NOTIFY_SOCKET=%s: want a path, or @ and a name; systemd isn't told how this program does", socket)
	}
	s := &Service{socket: socket}
	if owner := env("WATCHDOG_PID"); owner != "" && owner != strconv.Itoa(pid) {
		return s, nil
	}
	if text := env("WATCHDOG_USEC"); text != "" {
		n, err := strconv.ParseInt(text, 10, 64)
		if err != nil || n <= 0 || n > int64(24*time.Hour/time.Microsecond) {
			return s, fmt.Errorf("WATCHDOG_USEC=%s: want microseconds, up to a day; systemd gets no signs of life", text)
		}
		s.watchdog = time.Duration(n) * time.Microsecond
	}
	return s, nil
}

// tell sends one message. What can't be sent is logged.
func (s *Service) tell(lines ...string) bool {
	err := s.send(strings.Join(lines, "\n"))
	if err != nil {
		s.said.Warningf("send", "systemd can't be told how this program does: %v", err)
	}
	return err == nil
}

// Ready says that the program does its duty. If it can't be said, Keep says it again.
func (s *Service) Ready() {
	if s != nil && !s.tell("READY=1") {
		s.ready.Store(true)
	}
}

// Stopping says that the program ends its duty.
func (s *Service) Stopping() {
	if s != nil {
		s.tell("STOPPING=1")
	}
}

func (s *Service) send(message string) error {
	c, err := net.DialTimeout("unixgram", s.socket, sendTimeout)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return err
	}
	_, err = c.Write([]byte(message))
	return err
}

// Health is what a look finds: a line for people, and the part that makes no progress, empty if all do.
type Health struct{ Status, Stalled string }

// Keep looks how the program does until ctx ends. It tells a new status, and gives a sign of life after each look that finds that
// everything makes progress. A look that doesn't return gives none: it waits for the same locks as the program's loops.
func (s *Service) Keep(ctx context.Context, look func() Health) {
	if s == nil {
		return
	}
	every := lookEvery
	if s.watchdog > 0 {
		every = min(every, s.watchdog/3)
	}
	last := ""
	for ctx.Err() == nil {
		h := look()
		var lines []string
		if h.Stalled != "" {
			h.Status = h.Stalled
			if s.watchdog > 0 {
				s.said.Errorf("stalled", "%s; if that lasts, systemd restarts this program after %s", h.Stalled, s.watchdog)
			}
		} else if s.watchdog > 0 {
			lines = append(lines, "WATCHDOG=1")
		}
		ready, line := s.ready.Load(), oneLine(h.Status)
		if ready {
			lines = append(lines, "READY=1")
		}
		if line != last {
			lines = append(lines, "STATUS="+line)
		}
		if len(lines) > 0 && s.tell(lines...) {
			last = line
			if ready {
				s.ready.Store(false)
			}
		}
		select {
		case <-ctx.Done():
		case <-time.After(every):
		}
	}
}

// oneLine makes a status fit into one line.
func oneLine(text string) string {
	words := strings.FieldsFunc(text, func(r rune) bool { return unicode.IsControl(r) || r == ' ' })
	text = strings.ToValidUTF8(strings.Join(words, " "), "?")
	if len(text) <= statusBytes {
		return text
	}
	return strings.ToValidUTF8(text[:statusBytes], "") + "…"
}
