package disaster

import (
	"bufio"
	"encoding/json"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// Programs that masters have and test machines don't: this test binary runs under their names, and passes on to the test what it is asked.
const (
	envSocket = "DISASTER_SOCKET"
	envNode   = "DISASTER_NODE"
)

// request is what a shim asks, reply what the test answers.
type request struct {
	Program string
	Args    []string
	Node    string
	// answer is called once.
	answer func(reply)
}

type reply struct {
	Out  string
	Code int
}

func shims() map[string]func([]string) int {
	ask := func(program string) func([]string) int {
		return func(args []string) int {
			return askTest(request{Program: program, Args: args, Node: os.Getenv(envNode)})
		}
	}
	return map[string]func([]string) int{"systemctl": ask("systemctl"), "journalctl": ask("journalctl")}
}

// askTest is the shim's side.
func askTest(r request) int {
	fail := func(err error) int {
		fmt.Fprintf(os.Stderr, "%s: %v\n", r.Program, err)
		return 1
	}
	c, err := net.Dial("unix", os.Getenv(envSocket))
	if err != nil {
		return fail(err)
	}
	defer c.Close()
	if err := json.NewEncoder(c).Encode(r); err != nil {
		return fail(err)
	}
	var answer reply
	if err := json.NewDecoder(c).Decode(&answer); err != nil {
		return fail(err)
	}
	fmt.Print(answer.Out)
	return answer.Code
}

// serveShims is the test's side: requests come out of the channel, one at a time, for the test's own goroutine to answer.
func serveShims(t testing.TB, dir string) (socket string, requests <-chan request) {
	t.Helper()
	// A socket's path may have about 100 bytes, and the directories of tests are long.
	short, err := os.MkdirTemp("", "shim")
	must(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(short) })
	socket = filepath.Join(short, "s")
	l, err := net.Listen("unix", socket)
	must(t, err)
	t.Cleanup(func() { l.Close() })
	out := make(chan request)
	done := make(chan struct{})
	t.Cleanup(func() { close(done) })
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go serveShim(c, out, done)
		}
	}()
	exe, err := os.Executable()
	must(t, err)
	for name := range shims() {
		must(t, os.Symlink(exe, filepath.Join(dir, name)))
	}
	return socket, out
}

func serveShim(c net.Conn, out chan<- request, done <-chan struct{}) {
	defer c.Close()
	var r request
	if json.NewDecoder(bufio.NewReader(c)).Decode(&r) != nil {
		return
	}
	answered := make(chan reply, 1)
	r.answer = func(a reply) { answered <- a }
	select {
	case out <- r:
	case <-done:
		return
	}
	select {
	case a := <-answered:
		_ = json.NewEncoder(c).Encode(a)
	case <-done:
	}
}

// need skips the test if a program that the page uses isn't on this machine.
func need(t testing.TB, programs ...string) {
	t.Helper()
	for _, p := range programs {
		if _, err := exec.LookPath(p); err != nil {
			skipped.Store(true)
			t.Skipf("the page uses %s, which this machine doesn't have", p)
		}
	}
}
