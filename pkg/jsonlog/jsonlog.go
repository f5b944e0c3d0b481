// Package jsonlog writes what a program logs as JSON, one object a line, in place of klog's text. It changes nothing of what is logged, and
// must lose no line: one that it can't take apart is written as the message.
package jsonlog

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"regexp"
	"strings"
	"sync"
	"time"

	"github.com/go-logr/logr"
	"k8s.io/klog/v2"
)

// Text and JSON are the formats.
const (
	Text = "text"
	JSON = "json"
)

// Usage is the help of --logging-format.
const Usage = "how the program logs: text, or json (one object a line: ts, level, caller, msg)"

// Check refuses formats that don't exist.
func Check(format string) error {
	if format != Text && format != JSON {
		return fmt.Errorf("--logging-format=%.40s is not possible: use %s or %s", format, Text, JSON)
	}
	return nil
}

// Use has klog write to w in a format. Text is what klog does by itself.
func Use(format string, w io.Writer) {
	if format != JSON {
		return
	}
	out := &lines{w: w, now: time.Now}
	// klog's own calls, which are all that this project makes, come as finished text. A library's structured ones go to the handler.
	klog.SetLoggerWithOptions(logr.FromSlogHandler(slog.NewJSONHandler(out, &slog.HandlerOptions{ReplaceAttr: names})),
		klog.WriteKlogBuffer(out.klog))
}

// names makes the handler's attributes those of a line.
func names(groups []string, a slog.Attr) slog.Attr {
	if len(groups) == 0 && a.Key == slog.TimeKey {
		a.Key = "ts"
	}
	if len(groups) == 0 && a.Key == slog.LevelKey {
		a.Value = slog.StringValue(strings.ToLower(a.Value.String()))
	}
	return a
}

// line is one object.
type line struct {
	Time   time.Time `json:"ts"`
	Level  string    `json:"level"`
	Caller string    `json:"caller,omitempty"`
	Msg    string    `json:"msg"`
}

// lines writes whole lines. Its methods may be called concurrently.
type lines struct {
	mu  sync.Mutex
	w   io.Writer
	now func() time.Time
}

// Write writes what the handler has made.
func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.w.Write(p)
}

// header is how klog begins a line: severity, date, time, process, place.
var header = regexp.MustCompile(`^([IWEF])\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ ([^ \]]+:\d+)\] `)

// klog writes a line that klog has made.
func (l *lines) klog(text []byte) {
	out := line{Time: l.now(), Level: "info"}
	if m := header.FindSubmatch(text); m != nil {
		out.Level = map[string]string{"I": "info", "W": "warning", "E": "error", "F": "fatal"}[string(m[1])]
		out.Caller, text = string(m[2]), text[len(m[0]):]
	}
	out.Msg = strings.TrimSuffix(string(text), "\n")
	data, err := json.Marshal(out)
	if err != nil {
		data = []byte(`{"level":"error","msg":"a line could not be encoded"}`)
	}
	_, _ = l.Write(append(data, '\n')) // there is nowhere to say it
}
