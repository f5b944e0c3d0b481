package packages

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

// systemctl stands for systemd's where none runs: the scripts of the packages call it. It does what they ask for, and notes it.
const systemctl = `#!/bin/sh
echo "$*" >> /run/systemctl.log
case "$*" in
  "is-active etcd-manager.service") if [ -e /run/main.pid ]; then echo active; else echo inactive; exit 3; fi ;;
  "kill --kill-who=main --signal=SIGKILL etcd-manager.service") kill -KILL "$(cat /run/main.pid)" ;;
  "disable --now etcd-manager.service")
    touch /run/stopped
    if [ -e /run/main.pid ]; then kill -TERM "$(cat /run/main.pid)"; while [ -e /run/main.pid ]; do sleep 0.1; done; fi ;;
  "daemon-reload"|"try-restart etcd-backup.service"|"disable --now etcd-backup.service") ;;
  *) echo "systemctl $*: nobody expects that" >&2; exit 1 ;;
esac
`

// machine is a Debian root.
type machine struct {
	t    *testing.T
	root string
	port [5]int
}

// at is where a file of the machine lies.
func (m *machine) at(path string) string { return filepath.Join(m.root, path) }

func (m *machine) run(args ...string) string {
	m.t.Helper()
	return command(m.t, "/", "chroot", append([]string{m.root}, args...)...)
}

func (m *machine) read(path string) string {
	data, _ := os.ReadFile(m.at(path)) // what isn't there is empty
	return string(data)
}

func newMachine(t *testing.T) *machine {
	t.Helper()
	if _, err := exec.LookPath("debootstrap"); err != nil || os.Getuid() != 0 {
		t.Skip("debootstrap isn't installed here, or this isn't root: nothing was installed (Debian: debootstrap)")
	}
	m := &machine{t: t, root: filepath.Join(t.TempDir(), "root")}
	command(t, "/", "debootstrap", "--variant=minbase", "bookworm", m.root)
	testutil.Must(t, syscall.Mount("proc", m.at("/proc"), "proc", 0, ""))
	t.Cleanup(func() { testutil.Must(t, syscall.Unmount(m.at("/proc"), syscall.MNT_DETACH)) })
	testutil.Must(t, os.MkdirAll(m.at("/run/systemd/system"), 0o755))
	testutil.Must(t, os.WriteFile(m.at("/usr/bin/systemctl"), []byte(systemctl), 0o755))
	testutil.Must(t, os.MkdirAll(m.at("/var/backups/etcd"), 0o700))
	for i := range m.port {
		m.port[i] = testutil.FreePort(t)
	}
	return m
}

// start is what systemd does with the unit: it starts the program again whenever it ends, unless it is to stop.
func (m *machine) start() {
	m.t.Helper()
	_ = os.Remove(m.at("/run/stopped"))
	var line string
	for l := range strings.Lines(m.read("/usr/lib/systemd/system/etcd-manager.service")) {
		if command, ok := strings.CutPrefix(l, "ExecStart="); ok {
			line = strings.TrimSpace(command)
		}
	}
	if !strings.HasPrefix(line, "/usr/bin/etcd-manager ") {
		m.t.Fatalf("the unit starts %q", line)
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for m.read("/run/stopped") == "" {
			cmd := exec.Command("chroot", m.root, "/bin/sh", "-c", ". /etc/etcd-manager/env && exec "+line)
			log, err := os.OpenFile(m.at("/run/log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
			if err != nil {
				return
			}
			cmd.Stdout, cmd.Stderr, cmd.SysProcAttr = log, log, &syscall.SysProcAttr{Setpgid: true}
			if err := cmd.Start(); err != nil {
				return
			}
			if err := os.WriteFile(m.at("/run/main.pid"), []byte(strconv.Itoa(cmd.Process.Pid)), 0o600); err != nil {
				return
			}
			_ = cmd.Wait()
			_ = os.Remove(m.at("/run/main.pid"))
			_ = log.Close()
			if _, err := os.Stat(m.at("/run/stopped")); err == nil {
				return
			}
		}
	}()
	m.t.Cleanup(func() {
		_ = os.WriteFile(m.at("/run/stopped"), []byte("x"), 0o600)
		if pid, err := strconv.Atoi(m.read("/run/main.pid")); err == nil {
			_ = syscall.Kill(pid, syscall.SIGTERM)
		}
		<-ended
		if m.t.Failed() {
			m.t.Logf("the manager's log:\n%s", m.read("/run/log"))
		}
	})
}

// page is the manager's status page.
func (m *machine) page() string {
	resp, err := http.Get(fmt.Sprintf("http://127.0.0.1:%d/status", m.port[4]))
	if err != nil {
		return ""
	}
	defer resp.Body.Close()
	var b strings.Builder
	buf := make([]byte, 32<<10)
	for {
		n, err := resp.Body.Read(buf)
		b.Write(buf[:n])
		if err != nil {
			return b.String()
		}
	}
}

// etcd is the pid of the etcd of the machine.
func (m *machine) etcd() string {
	m.t.Helper()
	list, err := filepath.Glob("/proc/[0-9]*/cmdline")
	testutil.Must(m.t, err)
	for _, path := range list {
		line, _ := os.ReadFile(path) // one that ends meanwhile
		root, _ := os.Readlink(filepath.Join(filepath.Dir(path), "root"))
		if root == m.root && strings.Contains(string(line), "--initial-cluster-token") {
			return filepath.Base(filepath.Dir(path))
		}
	}
	return ""
}

// installs: the packages are installed, the unit's program forms a cluster, the next version takes over while etcd serves, and removal
// leaves data and settings.
func installs(t *testing.T, debs, newer []string) {
	m := newMachine(t)
	install := func(list []string) {
		t.Helper()
		args := []string{"dpkg", "-i"}
		for _, path := range list {
			data, err := os.ReadFile(path)
			testutil.Must(t, err)
			testutil.Must(t, os.WriteFile(m.at(filepath.Join("/var/tmp", filepath.Base(path))), data, 0o600))
			args = append(args, filepath.Join("/var/tmp", filepath.Base(path)))
		}
		m.run(args...)
	}
	install(debs)
	if fi, err := os.Stat(m.at("/etc/etcd-manager/env")); err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatalf("settings: %v, %v", fi, err)
	}
	// Of what doesn't run nothing is restarted.
	if log := m.read("/run/systemctl.log"); strings.Contains(strings.ReplaceAll(log, "try-restart", ""), "start") || m.etcd() != "" {
		t.Errorf("something was started: %s", log)
	}
	if out := m.run("etcd-manager-ctl", "version"); !strings.Contains(out, "v0.0.1") {
		t.Errorf("the tool is %s", out)
	}
	settings := fmt.Sprintf(`ETCD_MANAGER_ARGS="--cluster-name=t --backup-store=/var/backups/etcd --data-dir=/var/lib/etcd-manager --insecure --etcd-insecure `+
		`--address=127.0.0.1 --client-urls=http://127.0.0.1:%d --peer-urls=http://127.0.0.1:%d --quarantine-client-urls=http://127.0.0.1:%d --grpc-port=%d `+
		`--etcd-manager-metrics-port=%d --page-listen= --etcd-binaries=/opt"`+"\n", m.port[0], m.port[1], m.port[2], m.port[3], m.port[4])
	testutil.Must(t, os.WriteFile(m.at("/etc/etcd-manager/env"), []byte(settings), 0o600))
	m.run("etcd-manager-ctl", "--backup-store=/var/backups/etcd", "configure-cluster", "--member-count=1")
	m.start()
	client, err := clientv3.New(clientv3.Config{Endpoints: []string{fmt.Sprintf("http://127.0.0.1:%d", m.port[0])}, Logger: zap.NewNop()})
	testutil.Must(t, err)
	defer client.Close()
	put := func(key string) bool {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := client.Put(ctx, key, "x")
		return err == nil
	}
	testutil.Eventually(t, "etcd serves", func() bool { return put("before") })

	m.upgrade(put, func() { install(newer) })
	if m.read("/etc/etcd-manager/env") != settings {
		t.Error("an upgrade wrote over the settings")
	}

	m.run("dpkg", "-r", "etcd-manager")
	if m.etcd() != "" || m.read("/run/main.pid") != "" {
		t.Error("something runs of a package that was removed")
	}
	data, err := filepath.Glob(m.at("/var/lib/etcd-manager/data/*/member/snap/db"))
	if err != nil || len(data) != 1 || m.read("/etc/etcd-manager/env") != settings {
		t.Errorf("a removal took data or settings: %v, %v", data, err)
	}
	install(newer)
	m.start()
	testutil.Eventually(t, "etcd serves again", func() bool { return put("again") })
	r, err := client.Get(t.Context(), "before")
	if err != nil || len(r.Kvs) != 1 {
		t.Errorf("the data after a removal and another installation: %v, %v", r, err)
	}
	m.run("dpkg", "-P", "etcd-manager", "etcd-backup", "etcd-manager-ctl")
	if data, err := filepath.Glob(m.at("/var/lib/etcd-manager/data/*/member/snap/db")); err != nil || len(data) != 1 {
		t.Errorf("a purge took data: %v, %v", data, err)
	}
	if m.read("/etc/etcd-manager/env") != "" {
		t.Error("a purge left the settings, which may hold credentials")
	}
}

// upgrade installs the next version while a client writes.
func (m *machine) upgrade(put func(string) bool, install func()) {
	m.t.Helper()
	etcd, manager := m.etcd(), m.read("/run/main.pid")
	if etcd == "" || manager == "" {
		m.t.Fatalf("etcd %q, manager %q", etcd, manager)
	}
	var writes, failed atomic.Int64
	var longest atomic.Int64
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for last := time.Now(); ; {
			if put("during") {
				writes.Add(1)
				longest.Store(max(longest.Load(), int64(time.Since(last))))
				last = time.Now()
			} else {
				failed.Add(1)
			}
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	install()
	testutil.Eventually(m.t, "the new manager leads", func() bool {
		text := m.page()
		return strings.Contains(text, "manager v0.0.2") && strings.Contains(text, "this node, term")
	})
	close(stop)
	<-ended
	m.t.Logf("through the upgrade: %d writes, %d failed, the longest took %s", writes.Load(), failed.Load(),
		time.Duration(longest.Load()).Round(time.Millisecond))
	if now := m.etcd(); now != etcd || failed.Load() > 0 {
		m.t.Errorf("etcd was %s and is %s; %d writes failed", etcd, now, failed.Load())
	}
	if now := m.read("/run/main.pid"); now == manager {
		m.t.Error("the old manager runs still")
	}
}
