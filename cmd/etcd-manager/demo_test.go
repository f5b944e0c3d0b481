package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/etcd-manager/etcd-manager/pkg/operator/health"
	"github.com/etcd-manager/etcd-manager/pkg/status"
)

// terminal returns the two ends of a terminal of that size.
func terminal(t *testing.T, columns, rows uint16) (screen, program *os.File) {
	t.Helper()
	screen, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { screen.Close() })
	fd := int(screen.Fd())
	number, err := unix.IoctlGetInt(fd, unix.TIOCGPTN)
	if err := errors.Join(err, unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0),
		unix.IoctlSetWinsize(fd, unix.TIOCSWINSZ, &unix.Winsize{Col: columns, Row: rows})); err != nil {
		t.Fatal(err)
	}
	program, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { program.Close() })
	return screen, program
}

// fullLook is a cluster of which there is as much to say as there can be.
func fullLook() demoLook {
	now := time.Now()
	var s demoLook
	for i := range 3 {
		v := &status.View{Leading: i == 1, Term: 123456}
		v.Etcd.Running, v.Etcd.Healthy, v.Etcd.Revision = true, true, 1234567890123
		s.nodes = append(s.nodes, v)
	}
	s.leader, s.at = s.nodes[1], now
	s.leader.Doing, s.leader.NewestBackup, s.leader.Backups = strings.Repeat("a long reason ", 20), now.Add(-time.Hour), 100000
	for range 9 {
		s.leader.Recent = append(s.leader.Recent, status.Event{At: now, Text: strings.Repeat("a long decision ", 20)})
	}
	s.report.Window = &health.Window{From: now.Add(-24 * time.Hour), Until: now, Gaps: []health.Gap{{From: now.Add(-time.Hour)}}}
	return s
}

func manyNodes() []*demoNode { return []*demoNode{{name: "a"}, {name: "b"}, {name: "c"}} }

// TestDemoFits: whatever there is to say fits a terminal of 80 columns and 24 rows, and a smaller one gets what fits it.
func TestDemoFits(t *testing.T) {
	d := &demo{dir: t.TempDir(), nodes: manyNodes()}
	d.caption.set(d.help()...)
	lines := d.picture(fullLook())
	if len(lines) > screenRows {
		t.Errorf("the picture has %d lines:\n%s", len(lines), strings.Join(lines, "\n"))
	}
	if lines := d.picture(demoLook{nodes: make([]*status.View, 3)}); len(lines) > screenRows {
		t.Errorf("at the beginning the picture has %d lines", len(lines))
	}
	for _, size := range [][2]uint16{{80, 24}, {200, 50}, {40, 10}} {
		screen, program := terminal(t, size[0], size[1])
		s := demoScreen{out: program}
		if err := s.draw(lines, false); err != nil {
			t.Fatal(err)
		}
		if n := len(s.shown); n > int(size[1]) || n > screenRows {
			t.Errorf("%v: %d rows are drawn", size, n)
		}
		for _, line := range s.shown {
			if n := len([]rune(line)); n > int(size[0]) || n > screenColumns {
				t.Errorf("%v: a line of %d characters: %s", size, n, line)
			}
		}
		drawn(t, screen)
	}
}

// drawn is what was written to the terminal until now.
func drawn(t *testing.T, screen *os.File) string {
	t.Helper()
	var all bytes.Buffer
	buf := make([]byte, 64<<10)
	for {
		fds := []unix.PollFd{{Fd: int32(screen.Fd()), Events: unix.POLLIN}} //nolint:gosec // a file descriptor is small
		if n, err := unix.Poll(fds, 0); err != nil || n == 0 || fds[0].Revents&unix.POLLIN == 0 {
			return all.String()
		}
		n, err := screen.Read(buf)
		all.Write(buf[:n])
		if err != nil {
			return all.String()
		}
	}
}

// TestDemoRedrawsWhatChanges: of a screen on which one line changes, only that line is written.
func TestDemoRedrawsWhatChanges(t *testing.T) {
	screen, program := terminal(t, 80, 24)
	s := demoScreen{out: program}
	for _, lines := range [][]string{{"first", "second", "third"}, {"first", "changed", "third"}, {"first", "changed", "third"}} {
		if err := s.draw(lines, false); err != nil {
			t.Fatal(err)
		}
		text := drawn(t, screen)
		switch lines[1] {
		case "second":
			if !strings.Contains(text, "first") || !strings.Contains(text, "third") {
				t.Errorf("at first %q is drawn", text)
			}
		default:
			if strings.Contains(text, "first") || strings.Contains(text, "third") || strings.Contains(text, "\x1b[2J") {
				t.Errorf("for one line %q is drawn", text)
			}
		}
	}
	if text := drawn(t, screen); text != "" {
		t.Errorf("for nothing %q is drawn", text)
	}
}

// TestDemoRecording: the moving picture has each line with its times, and no text that could be markup.
func TestDemoRecording(t *testing.T) {
	s := demoScreen{recording: true}
	for _, lines := range [][]string{{"one <line>", "stays"}, {"another", "stays"}} {
		if err := s.draw(lines, true); err != nil {
			t.Fatal(err)
		}
	}
	svg := string(s.svg())
	for _, want := range []string{`"hidden">one &lt;line&gt;<`, `"visible">another<`} {
		if !strings.Contains(svg, want) {
			t.Errorf("%q isn't in\n%s", want, svg)
		}
	}
	if strings.Count(svg, ">stays<") != 1 {
		t.Errorf("a line that stays is kept more than once:\n%s", svg)
	}
}

// way is what a demo says before it starts anything.
func way(t *testing.T, d *demo) (said string, err error) {
	t.Helper()
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	d.out = w
	release, failed := d.clearWay()
	w.Close()
	text, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	if failed == nil {
		t.Cleanup(release)
	}
	return string(text), failed
}

// freeRange is the first of ports that nobody uses now.
func freeRange(t *testing.T) int {
	t.Helper()
	for port := 21001; port < 30000; port += 211 {
		if d := (&demo{port: port}); d.takenPort() == 0 {
			d.port += demoStep
			if d.takenPort() == 0 {
				return port
			}
		}
	}
	t.Skip("no free ports")
	return 0
}

// TestDemoSaysWhatIsInItsWay: a taken port, a second demo, and a directory that can't be made.
func TestDemoSaysWhatIsInItsWay(t *testing.T) {
	port, dir := freeRange(t), t.TempDir()
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port+13))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	// The port was asked for: the demo says so and takes no other.
	_, err = way(t, &demo{dir: filepath.Join(dir, "asked"), port: port, ownPort: true})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("port %d on 127.0.0.1 is taken", port+13)) || !strings.Contains(err.Error(), "--port") {
		t.Errorf("with a taken port: %v", err)
	}
	// It wasn't: the demo takes others, says which, and the next one with these data takes the same.
	first := &demo{dir: filepath.Join(dir, "first"), port: port}
	said, err := way(t, first)
	if err != nil || first.port != port+demoStep || !strings.Contains(said, fmt.Sprintf("uses %d to %d", first.port, first.port+24)) {
		t.Errorf("instead of port %d the demo takes %d: %v, and says %q", port, first.port, err, said)
	}
	// A second one in the same directory would disturb the first.
	_, err = way(t, &demo{dir: first.dir, port: port})
	if err == nil || !strings.Contains(err.Error(), first.dir) || !strings.Contains(err.Error(), fmt.Sprintf("kill %d", os.Getpid())) {
		t.Errorf("a second demo: %v", err)
	}
	if _, err = way(t, &demo{dir: "/dev/null/demo", port: port}); err == nil || !strings.Contains(err.Error(), "--dir") {
		t.Errorf("a directory that can't be made: %v", err)
	}
}

// TestDemoKeepsItsPorts: the members of an earlier demo are known by their ports.
func TestDemoKeepsItsPorts(t *testing.T) {
	port, dir := freeRange(t), t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "port"), fmt.Appendln(nil, port), 0o600); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := way(t, &demo{dir: dir, port: demoPort}); err == nil || !strings.Contains(err.Error(), "known by these ports") {
		t.Errorf("its port is taken: %v", err)
	}
	l.Close()
	if _, err := way(t, &demo{dir: dir, port: port + 1, ownPort: true}); err == nil || !strings.Contains(err.Error(), fmt.Sprint(port)) {
		t.Errorf("another port is asked for: %v", err)
	}
	d := &demo{dir: dir, port: demoPort}
	if _, err := way(t, d); err != nil || d.port != port {
		t.Errorf("it takes port %d: %v", d.port, err)
	}
	// An older demo has written no file.
	older := t.TempDir()
	if l, err = net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	if err := errors.Join(os.Mkdir(filepath.Join(older, "node-a"), 0o700), os.WriteFile(filepath.Join(older, "node-a", "myid"), []byte("a"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if _, err := way(t, &demo{dir: older, port: port}); err == nil {
		t.Error("a cluster is moved to other ports")
	}
}

// TestDemoOnAFullDisk says it before anything is started.
func TestDemoOnAFullDisk(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skip("needs root:", err)
	}
	defer syscall.Unmount(dir, syscall.MNT_DETACH)
	small := &demo{dir: dir, port: demoPort}
	if _, err := way(t, small); err == nil || !strings.Contains(err.Error(), "MiB are free") || !strings.Contains(err.Error(), "--dir") {
		t.Errorf("on a small disk: %v", err)
	}
	if err := os.WriteFile(filepath.Join(dir, "filler"), make([]byte, 2<<20), 0o600); !errors.Is(err, syscall.ENOSPC) {
		t.Fatalf("fill the disk: %v", err)
	}
	if _, err := way(t, &demo{dir: filepath.Join(dir, "demo"), port: demoPort}); err == nil || !strings.Contains(err.Error(), "--dir") {
		t.Errorf("on a full disk: %v", err)
	}
}

// TestReaderGone: a pipe whose reader has ended is noticed without a write.
func TestReaderGone(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	if readerGone(w) {
		t.Error("the reader counts as gone while it is there")
	}
	r.Close()
	if !readerGone(w) {
		t.Error("nobody notices that the reader is gone")
	}
}
