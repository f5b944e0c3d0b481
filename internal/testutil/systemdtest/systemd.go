// Package systemdtest is systemd's end of sd_notify(3) for tests: a real socket that takes what a program says of itself.
package systemdtest

import (
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

// Systemd remembers every message.
type Systemd struct {
	// Socket is for NOTIFY_SOCKET.
	Socket string

	t    testing.TB
	mu   sync.Mutex
	said []string
	next int // of said, behind what Wait has seen
}

// New listens until the test ends.
func New(t testing.TB) *Systemd {
	t.Helper()
	dir, err := os.MkdirTemp("", "s") // a socket's path must be short
	testutil.Must(t, err)
	s := &Systemd{Socket: filepath.Join(dir, "n"), t: t}
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: s.Socket, Net: "unixgram"})
	testutil.Must(t, err)
	ended := make(chan struct{})
	t.Cleanup(func() {
		_ = c.Close()
		<-ended
		_ = os.RemoveAll(dir)
	})
	go func() {
		defer close(ended)
		b := make([]byte, 64<<10)
		for {
			n, err := c.Read(b)
			if err != nil {
				return
			}
			s.mu.Lock()
			s.said = append(s.said, string(b[:n]))
			s.mu.Unlock()
		}
	}()
	return s
}

// Wait waits for a line that begins so, in a message behind the one of the Wait before, or in that one.
func (s *Systemd) Wait(line string) {
	s.t.Helper()
	testutil.Eventually(s.t, "systemd is told "+line, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		for i := max(s.next-1, 0); i < len(s.said); i++ {
			if strings.Contains("\n"+s.said[i], "\n"+line) {
				s.next = i + 1
				return true
			}
		}
		return false
	})
}
