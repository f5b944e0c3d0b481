package main

import (
	"bytes"
	"errors"
	"fmt"
	"html"
	"os"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The demo's screen, and the smallest terminal that shows all of it.
const screenColumns, screenRows = 80, 24

// errOutputGone ends the demo: nobody can see it any more.
var errOutputGone = errors.New("the output was closed")

// demoScreen draws on a terminal. It writes only the lines that have changed.
type demoScreen struct {
	out   *os.File
	shown []string
	// recording keeps what is drawn for svg.
	recording bool
	started   time.Time
	frames    []frame
	last      [screenRows]string
}

// frame is a line that stood on the screen from a moment on.
type frame struct {
	row  int
	at   time.Duration
	text string
}

// windowSize fails if the file is no terminal.
func windowSize(f *os.File) (columns, rows int, err error) {
	w, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil {
		return 0, 0, err
	}
	return int(w.Col), int(w.Row), nil
}

// fit cuts a line to a number of characters.
func fit(line string, columns int) string {
	r := []rune(line)
	if len(r) <= columns {
		return line
	}
	return string(r[:max(0, columns-1)]) + "…"
}

// draw shows lines from the top.
func (s *demoScreen) draw(lines []string, plain bool) error {
	lines = lines[:min(len(lines), screenRows)]
	s.keep(lines)
	if plain {
		return nil
	}
	columns, rows, err := windowSize(s.out)
	if err != nil {
		return errOutputGone
	}
	if columns == 0 || rows == 0 { // a terminal that doesn't say
		columns, rows = screenColumns, screenRows
	}
	var b bytes.Buffer
	if s.shown == nil {
		b.WriteString("\x1b[?25l\x1b[2J")
	}
	for i := range min(screenRows, rows) {
		line := ""
		if i < len(lines) {
			line = fit(lines[i], min(screenColumns, columns))
		}
		if i < len(s.shown) && s.shown[i] == line {
			continue
		}
		fmt.Fprintf(&b, "\x1b[%d;1H%s\x1b[K", i+1, line)
		for len(s.shown) <= i {
			s.shown = append(s.shown, "\x00")
		}
		s.shown[i] = line
	}
	if b.Len() == 0 {
		return nil
	}
	if _, err := s.out.Write(b.Bytes()); err != nil {
		return errOutputGone
	}
	return nil
}

// end puts the cursor below what was drawn.
func (s *demoScreen) end() {
	if s.shown != nil {
		fmt.Fprintf(s.out, "\x1b[%d;1H\x1b[?25h\n", len(s.shown))
	}
}

// maxFrames bounds what a recording keeps: about twenty minutes of a screen of which ten lines change each second.
const maxFrames = 12000

// keep remembers what changed, for svg.
func (s *demoScreen) keep(lines []string) {
	if !s.recording {
		return
	}
	if s.started.IsZero() {
		s.started = time.Now()
	}
	for row := range screenRows {
		text := ""
		if row < len(lines) {
			text = fit(lines[row], screenColumns)
		}
		if text != s.last[row] && len(s.frames) < maxFrames {
			s.last[row] = text
			s.frames = append(s.frames, frame{row, time.Since(s.started).Round(100 * time.Millisecond), text})
		}
	}
}

// svg is the recording: each line is visible for as long as it stood there. It needs no script, and begins again at its end.
func (s *demoScreen) svg() []byte {
	const width, height, left, top = 9, 19, 14, 26
	var b bytes.Buffer
	end := time.Since(s.started).Round(time.Second) + 5*time.Second
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 %d %d" role="img" `+
		`aria-label="etcd-manager demo: three masters on one machine">`+"\n", screenColumns*width+2*left, screenRows*height+2*top)
	b.WriteString(`<rect width="100%" height="100%" rx="8" fill="#101418"/>` + "\n")
	fmt.Fprintf(&b, `<rect width="0" height="0">`+
		`<animate id="all" attributeName="x" from="0" to="1" begin="0s;all.end" dur="%s"/></rect>`+"\n", inSeconds(end))
	b.WriteString(`<g font-family="ui-monospace,Menlo,Consolas,monospace" font-size="15" fill="#d7dee6" xml:space="preserve">` + "\n")
	until := map[int]time.Duration{}
	for i := len(s.frames) - 1; i >= 0; i-- {
		f := s.frames[i]
		to, again := until[f.row]
		until[f.row] = f.at
		if strings.TrimSpace(f.text) == "" {
			continue
		}
		// What stands there at the end is visible for a reader that shows no movement, too.
		first, then, begin, lasts := "hidden", "visible", f.at, to-f.at
		if !again {
			first, then, begin, lasts = "visible", "hidden", 0, f.at
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" textLength="%d" visibility="%s">%s`, left, top+f.row*height+height/2, len([]rune(f.text))*width,
			first, html.EscapeString(f.text))
		if lasts > 0 {
			fmt.Fprintf(&b, `<set attributeName="visibility" to="%s" begin="all.begin+%s" dur="%s"/>`, then,
				inSeconds(begin), inSeconds(lasts))
		}
		b.WriteString("</text>\n")
	}
	b.WriteString("</g>\n</svg>\n")
	return b.Bytes()
}

func inSeconds(d time.Duration) string { return fmt.Sprintf("%.1fs", d.Seconds()) }

// readerGone tells whether a pipe has nobody any more who reads it. A terminal that was closed sends a signal instead.
func readerGone(f *os.File) bool {
	fds := []unix.PollFd{{Fd: int32(f.Fd())}} //nolint:gosec // a file descriptor is small
	n, err := unix.Poll(fds, 0)
	return err == nil && n > 0 && fds[0].Revents&(unix.POLLERR|unix.POLLHUP|unix.POLLNVAL) != 0
}
