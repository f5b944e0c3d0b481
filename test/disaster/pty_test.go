package disaster

import (
	"bytes"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// terminal is one on which text has been typed already: the tool asks only where a person can answer.
type terminal struct {
	screen, keys *os.File
	shown        chan struct{}
}

// newTerminal returns a terminal that copies to out what is shown on it.
func newTerminal(t testing.TB, typed string, out io.Writer) *terminal {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	t.Cleanup(func() { master.Close() })
	fd := int(master.Fd())
	must(t, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0))
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	must(t, err)
	keys, err := os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	must(t, err)
	t.Cleanup(func() { keys.Close() })
	_, err = master.WriteString(typed + "\n")
	must(t, err)
	s := &terminal{screen: master, keys: keys, shown: make(chan struct{})}
	go func() {
		defer close(s.shown)
		_, _ = io.Copy(out, master) // ends with an error when nobody has the other side open any more
	}()
	return s
}

// end waits until everything has been shown.
func (s *terminal) end() {
	_ = s.keys.Close()
	<-s.shown
}

// output collects what several write.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

// Write never fails.
func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return strings.ReplaceAll(o.text.String(), "\r\n", "\n")
}
