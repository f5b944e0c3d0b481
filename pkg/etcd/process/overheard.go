package process

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
	"unicode"
)

const (
	// complaintBytes is how much of the end of what etcd has said is looked through for the reason why it ended.
	complaintBytes = 64 << 10
	// reasonRunes bounds the reason.
	reasonRunes = 300
	// followInterval is how often what etcd has said is handed on.
	followInterval = 200 * time.Millisecond
	// overheardMost is the size in bytes at which the file of an etcd that is overheard begins anew.
	overheardMost = 4 << 20
)

// overheardFile is where an etcd writes that is overheard; it is beside the pid file.
func overheardFile(pidFile string) string { return pidFile + ".stderr" }

// overheard hands on what an etcd writes into a file in place of the manager's own standard error, and remembers the end of it. It isn't a pipe, since
// that would end etcd together with the manager.
type overheard struct {
	f    *os.File
	path string
	to   io.Writer
	mu   sync.Mutex
	pos  int64
	tail []byte
}

// openOverheard makes the file, which etcd then appends to.
func openOverheard(pidFile string, to io.Writer) (o *overheard, stderr *os.File, err error) {
	path := overheardFile(pidFile)
	if stderr, err = os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY|os.O_APPEND|syscall.O_NOFOLLOW, 0o600); err != nil {
		return nil, nil, fmt.Errorf("open file for what etcd says: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		stderr.Close()
		return nil, nil, fmt.Errorf("open file for what etcd says: %w", err)
	}
	return &overheard{f: f, path: path, to: to}, stderr, nil
}

// Overhear goes on with an adopted process which an earlier manager has overheard. to may be nil.
func (p *Process) Overhear(to *os.File) {
	path := overheardFile(p.pidFile)
	theirs, err := os.Stat(fmt.Sprintf("/proc/%d/fd/2", p.info.PID))
	if err != nil {
		return
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return
	}
	ours, err := f.Stat()
	if err != nil || !os.SameFile(ours, theirs) {
		f.Close()
		return
	}
	// Some of it was handed on already; what was said while no manager ran was not.
	p.overhear(&overheard{f: f, path: path, to: writer(to), pos: max(0, ours.Size()-complaintBytes)})
}

func (p *Process) overhear(o *overheard) {
	p.heard.Store(o)
	go o.follow(p.done)
}

// writer is nil for no file.
func writer(f *os.File) io.Writer {
	if f == nil {
		return nil
	}
	return f
}

// follow hands on until the process has ended.
func (o *overheard) follow(done <-chan struct{}) {
	t := time.NewTicker(followInterval)
	defer t.Stop()
	for {
		select {
		case <-done:
			return
		case <-t.C:
			o.drain()
		}
	}
}

// drain hands on what is new. A file that has grown large begins anew when all of it was handed on.
func (o *overheard) drain() {
	o.mu.Lock()
	defer o.mu.Unlock()
	buf := make([]byte, complaintBytes)
	for {
		n, err := o.f.ReadAt(buf, o.pos)
		o.pos += int64(n)
		if n > 0 && o.to != nil {
			_, _ = o.to.Write(buf[:n]) // there is no better place to say that it can't be said
		}
		o.tail = append(o.tail, buf[:n]...)
		o.tail = o.tail[max(0, len(o.tail)-complaintBytes):]
		if err != nil || n == 0 {
			break
		}
	}
	if o.pos > overheardMost {
		if err := o.f.Truncate(0); err == nil {
			o.pos = 0
		}
	}
}

// end returns the reason, after the process has ended, and removes the file.
func (o *overheard) end() string {
	o.drain()
	o.mu.Lock()
	defer o.mu.Unlock()
	o.f.Close()
	_ = os.Remove(o.path) // the next one begins it anew
	return reasonOf(o.tail)
}

// reasonOf finds in etcd's last lines why it has ended: its last error, else its last warning with one, else the first line behind the log: a bad
// flag is followed by the whole usage.
func reasonOf(said []byte) string {
	var failure, warning, crash, text string
	for line := range bytes.Lines(said) {
		line = bytes.TrimSpace(line)
		var entry struct {
			Level, Msg, Error string
		}
		switch {
		case len(line) == 0:
			continue
		case json.Unmarshal(line, &entry) != nil || entry.Msg == "":
			switch plain := string(line); {
			case crash == "" && (strings.HasPrefix(plain, "panic: ") || strings.HasPrefix(plain, "fatal error: ")):
				crash = plain
			case text == "":
				text = plain
			}
			continue
		}
		text = ""
		words := entry.Msg
		if entry.Error != "" {
			words += ": " + entry.Error
		}
		switch entry.Level {
		case "error", "dpanic", "panic", "fatal":
			failure = words
		case "warn":
			if entry.Error != "" {
				warning = words
			}
		}
	}
	for _, words := range []string{failure, crash, warning, text} {
		if words != "" {
			return plainly(words)
		}
	}
	return ""
}

// plainly is a text in one line of bounded length.
func plainly(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsSpace(r) {
			return ' '
		}
		if !unicode.IsPrint(r) {
			return -1
		}
		return r
	}, strings.ToValidUTF8(s, ""))
	if r := []rune(s); len(r) > reasonRunes {
		s = string(r[:reasonRunes]) + "…"
	}
	return s
}
