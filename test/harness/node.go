package harness

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/etcd-manager/etcd-manager/pkg/status"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// Node is one manager with its data dir and its etcd. Its methods may be called concurrently for different nodes.
type Node struct {
	Name    string
	Address string
	DataDir string
	// Log is the file with everything that manager and etcd have said, over all restarts.
	Log string
	// Args and Env are for this node only; they count from the next start on.
	Args []string
	Env  []string

	c  *Cluster
	t  testing.TB
	mu sync.Mutex
	// cmd is the process of the last start, exited is closed when it has ended.
	cmd    *exec.Cmd
	exited chan struct{}
	// from is the size of the log at the last start.
	from int64
}

// Start starts the manager.
func (n *Node) Start() {
	n.t.Helper()
	if n.Running() {
		n.t.Fatalf("start manager %s: it runs", n.Name)
	}
	log, err := os.OpenFile(n.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(n.t, err)
	defer log.Close()
	cmd := exec.Command(n.c.Programs.Manager, n.c.Args(n)...)
	if x := n.c.isolation; x != nil { // ip becomes the manager, so that the pid is its own
		cmd = exec.Command("ip", append([]string{"netns", "exec", x.namespace(n), n.c.Programs.Manager}, n.c.Args(n)...)...)
	}
	cmd.Dir, cmd.Env, cmd.Stdout, cmd.Stderr = n.c.Dir, n.c.Environ(n), log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	n.mu.Lock()
	defer n.mu.Unlock()
	if info, err := log.Stat(); err == nil {
		n.from = info.Size()
	}
	must(n.t, cmd.Start())
	exited := make(chan struct{})
	n.cmd, n.exited = cmd, exited
	go func() {
		_ = cmd.Wait() // how it ended is in cmd.ProcessState
		close(exited)
	}()
}

func (n *Node) process() (*exec.Cmd, chan struct{}) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.cmd, n.exited
}

// Running tells whether the manager's process exists.
func (n *Node) Running() bool {
	cmd, exited := n.process()
	if cmd == nil {
		return false
	}
	select {
	case <-exited:
		return false
	default:
		return true
	}
}

// PID is the manager's, 0 if it never ran.
func (n *Node) PID() int {
	cmd, _ := n.process()
	if cmd == nil {
		return 0
	}
	return cmd.Process.Pid
}

// Signal sends a signal to the manager, not to its etcd.
func (n *Node) Signal(sig syscall.Signal) {
	n.t.Helper()
	cmd, _ := n.process()
	if cmd == nil {
		n.t.Fatalf("signal manager %s: it was never started", n.Name)
	}
	if err := cmd.Process.Signal(sig); err != nil {
		n.t.Fatalf("signal manager %s: %v", n.Name, err)
	}
}

// Pause and Resume freeze the manager and let it go on; etcd isn't touched.
func (n *Node) Pause() { n.t.Helper(); n.Signal(syscall.SIGSTOP) }

// Resume ends Pause.
func (n *Node) Resume() { n.t.Helper(); n.Signal(syscall.SIGCONT) }

// WaitExit waits for the end of the manager and returns its exit code, -1 if a signal ended it.
func (n *Node) WaitExit(within time.Duration) int {
	n.t.Helper()
	cmd, exited := n.process()
	select {
	case <-exited:
	case <-time.After(within):
		n.t.Fatalf("manager %s still runs after %s", n.Name, within)
	}
	return cmd.ProcessState.ExitCode()
}

// Term sends SIGTERM and returns the exit code.
func (n *Node) Term() int {
	n.t.Helper()
	n.Signal(syscall.SIGTERM)
	return n.WaitExit(60 * time.Second)
}

// Kill ends the manager with SIGKILL and waits. Its etcd goes on.
func (n *Node) Kill() {
	n.t.Helper()
	n.Signal(syscall.SIGKILL)
	n.WaitExit(10 * time.Second)
}

// KillEtcd ends the node's etcd with SIGKILL and returns its pid; 0 if none runs.
func (n *Node) KillEtcd() int {
	n.t.Helper()
	pid := n.EtcdPID()
	if pid != 0 {
		_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended in between
	}
	return pid
}

// KillWhole ends manager and etcd with SIGKILL, as if the machine had lost power, and waits for both.
func (n *Node) KillWhole() {
	n.t.Helper()
	if n.Running() {
		n.Kill()
	}
	n.killEtcdAndWait()
}

func (n *Node) killEtcdAndWait() {
	for range 200 {
		pid := n.EtcdPID()
		if pid == 0 {
			return
		}
		_ = syscall.Kill(pid, syscall.SIGKILL)
		time.Sleep(10 * time.Millisecond) // it isn't our child, so there is nothing to wait on
	}
}

func (n *Node) killQuietly() {
	cmd, exited := n.process()
	if cmd != nil {
		_ = cmd.Process.Kill()
		select {
		case <-exited:
		case <-time.After(10 * time.Second):
			n.t.Errorf("manager %s (pid %d) doesn't end after SIGKILL", n.Name, cmd.Process.Pid)
		}
	}
	n.killEtcdAndWait()
}

// EtcdPID is the process id of the etcd that runs on this node's data, 0 if none does. It is read from the pid file, and
// checked against the process's command line. A manager that was killed right after it started etcd has left no such file: then
// the process is looked for.
func (n *Node) EtcdPID() int {
	if pid := n.notedPID(); pid != 0 {
		return pid
	}
	lines, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, path := range lines {
		line, err := os.ReadFile(path)
		if err == nil && strings.Contains(string(line), "--data-dir="+n.DataDir+"/data/") {
			pid, _ := strconv.Atoi(filepath.Base(filepath.Dir(path)))
			return pid
		}
	}
	return 0
}

func (n *Node) notedPID() int {
	data, err := os.ReadFile(filepath.Join(n.DataDir, "etcd-manager", "etcd.pid"))
	if err != nil {
		return 0
	}
	var f struct {
		PID int `json:"pid"`
	}
	if json.Unmarshal(data, &f) != nil || f.PID <= 1 {
		return 0
	}
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", f.PID))
	if err != nil || !strings.Contains(string(line), n.DataDir+"/") {
		return 0
	}
	return f.PID
}

// Wipe empties the data dir. The node must be dead. keepID leaves the file with the node's id.
func (n *Node) Wipe(keepID bool) {
	n.t.Helper()
	if n.Running() || n.EtcdPID() != 0 {
		n.t.Fatalf("wipe node %s: it runs", n.Name)
	}
	entries, err := os.ReadDir(n.DataDir)
	must(n.t, err)
	for _, e := range entries {
		if keepID && e.Name() == "myid" {
			continue
		}
		must(n.t, os.RemoveAll(filepath.Join(n.DataDir, e.Name())))
	}
}

// ID is what stands in the file myid, empty if there is none.
func (n *Node) ID() string {
	data, err := os.ReadFile(filepath.Join(n.DataDir, "myid"))
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

// ClientURL and QuarantineURL are where etcd serves clients, and where it does while it is quarantined.
func (n *Node) ClientURL() string { return fmt.Sprintf("https://%s:%d", n.Address, n.c.Ports.Client) }

// QuarantineURL is where etcd listens while it is quarantined.
func (n *Node) QuarantineURL() string {
	return fmt.Sprintf("https://%s:%d", n.Address, n.c.Ports.Quarantine)
}

// PeerURL is where the other members reach this one.
func (n *Node) PeerURL() string { return fmt.Sprintf("https://%s:%d", n.Address, n.c.Ports.Peer) }

// State reads the state file; nil if there is none.
func (n *Node) State() (*protosv1.EtcdState, error) {
	data, err := os.ReadFile(filepath.Join(n.DataDir, "state"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var s protosv1.EtcdState
	return &s, proto.Unmarshal(data, &s)
}

// Status asks the manager's status page.
func (n *Node) Status(ctx context.Context) (*status.View, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, fmt.Sprintf("http://%s:%d/status.json", n.Address, n.c.Ports.Status), nil)
	if err != nil {
		return nil, err
	}
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var v status.View
	return &v, json.NewDecoder(resp.Body).Decode(&v)
}

// LogText is what manager and etcd have said since the manager's last start.
func (n *Node) LogText() string {
	n.mu.Lock()
	from := n.from
	n.mu.Unlock()
	data, err := os.ReadFile(n.Log)
	if err != nil || int64(len(data)) < from {
		return ""
	}
	return string(data[from:])
}

// LogTail returns the last lines of the log; etcd's own are left out, as they are many.
func (n *Node) LogTail(lines int) string {
	data, err := os.ReadFile(n.Log)
	if err != nil {
		return err.Error()
	}
	var keep []string
	for line := range strings.Lines(string(data)) {
		if !strings.HasPrefix(line, `{"level":"`) {
			keep = append(keep, line)
		}
	}
	return strings.Join(keep[max(0, len(keep)-lines):], "")
}
