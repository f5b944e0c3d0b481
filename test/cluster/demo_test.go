package cluster

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// demo is a running demo in a pipe.
type demo struct {
	t      *testing.T
	dir    string
	cmd    *exec.Cmd
	pipe   io.ReadCloser
	stderr bytes.Buffer
	mu     sync.Mutex
	said   strings.Builder
}

func startDemo(t *testing.T, args ...string) *demo {
	t.Helper()
	d := &demo{t: t, dir: filepath.Join(testutil.DiskDir(t), "demo")}
	d.cmd = exec.Command(harness.Build(t).Manager, append([]string{"demo", "--dir=" + d.dir}, args...)...)
	d.cmd.Stderr = &d.stderr
	r, w, err := os.Pipe()
	must(t, err)
	d.cmd.Stdout, d.pipe = w, r
	must(t, d.cmd.Start())
	w.Close()
	t.Cleanup(func() {
		_ = d.cmd.Process.Kill() // what it has started ends with it
		testutil.Eventually(t, "the end of all processes", func() bool { return d.left() == "" })
		r.Close()
	})
	return d
}

// fill leaves no space in the pipe, so that the demo's next word waits.
func (d *demo) fill() {
	d.t.Helper()
	f, err := os.OpenFile(fmt.Sprintf("/proc/%d/fd/1", d.cmd.Process.Pid), os.O_WRONLY|syscall.O_NONBLOCK, 0)
	must(d.t, err)
	defer f.Close()
	for _, n := range []int{4096, 1} { // a write of up to a page is all or nothing
		for err = nil; err == nil; _, err = syscall.Write(int(f.Fd()), make([]byte, n)) {
			must(d.t, syscall.SetNonblock(int(f.Fd()), true))
		}
	}
}

// read takes what is said until a line has the text, or until the end.
func (d *demo) read(until string) bool {
	s := bufio.NewScanner(d.pipe)
	for s.Scan() {
		d.mu.Lock()
		fmt.Fprintln(&d.said, s.Text())
		d.mu.Unlock()
		if until != "" && strings.Contains(s.Text(), until) {
			return true
		}
	}
	return until == ""
}

// left names the processes that work on the demo's data.
func (d *demo) left() string {
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	var list []string
	for _, path := range lines {
		if line, err := os.ReadFile(path); err == nil && bytes.Contains(line, []byte(d.dir+"/")) {
			list = append(list, strings.ReplaceAll(string(line), "\x00", " "))
		}
	}
	return strings.Join(list, "\n")
}

// TestDemoOwnsWhatItStarts: whether its output is closed in the middle, its terminal, or it is killed: no manager and no etcd stays.
func TestDemoOwnsWhatItStarts(t *testing.T) {
	testutil.Long(t)
	for name, end := range map[string]func(*demo){
		"the pipe is closed":     func(d *demo) { d.pipe.Close() },
		"the terminal is closed": func(d *demo) { must(d.t, d.cmd.Process.Signal(syscall.SIGHUP)) },
		"it is killed":           func(d *demo) { must(d.t, d.cmd.Process.Kill()) },
		"nobody reads any more, and it is asked to end": func(d *demo) {
			d.fill()
			must(d.t, d.cmd.Process.Signal(syscall.SIGTERM))
		},
	} {
		t.Run(name, func(t *testing.T) {
			d := startDemo(t)
			if !d.read("etcd: leader") {
				t.Fatalf("the cluster doesn't serve:\n%s%s", &d.said, &d.stderr)
			}
			if d.left() == "" {
				t.Fatal("nothing runs")
			}
			end(d)
			if name == "the terminal is closed" {
				d.read("")
			}
			_ = d.cmd.Wait()
			testutil.Eventually(t, "the end of all processes", func() bool { return d.left() == "" })
		})
	}
}

// TestDemoTour walks through the tour: its own checks fail if something doesn't come back.
func TestDemoTour(t *testing.T) {
	testutil.Long(t)
	picture := filepath.Join(t.TempDir(), "tour.svg")
	d := startDemo(t, "--tour", "--record="+picture)
	d.read("")
	if err := d.cmd.Wait(); err != nil {
		t.Fatalf("the tour: %v\n%s%s", err, &d.said, &d.stderr)
	}
	for _, want := range []string{"A member was killed", "The namespace is back: 10 keys", "The order is back", "That was the tour"} {
		if !strings.Contains(d.said.String(), want) {
			t.Errorf("it doesn't say %q:\n%s", want, &d.said)
		}
	}
	if svg, err := os.ReadFile(picture); err != nil || !bytes.Contains(svg, []byte("The order is back")) || len(svg) > 1<<20 {
		t.Errorf("the recording has %d bytes: %v", len(svg), err)
	}
	if left := d.left(); left != "" {
		t.Errorf("these processes stay:\n%s", left)
	}
}
