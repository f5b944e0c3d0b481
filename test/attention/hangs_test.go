package attention

import (
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// TestHangs has an S3 server not answer: nothing, or only some of what is written.
func TestHangs(t *testing.T) {
	testutil.Long(t)
	t.Parallel() // it mostly waits
	behindFront(t).play(hangingRows())
}

// hangingRows are played in a cluster of one whose store is behind a front.
func hangingRows() []row {
	goOn := func(s *scene) { s.soon(); s.store.goOn() }
	return []row{{
		kind: cluster.AttentionStore, what: "an S3 server takes no backup and answers all else", node: "a",
		text: []string{"it hangs", "put ", catalog.DataFile},
		cause: func(s *scene) {
			s.store.hang(func(r *http.Request) bool {
				return r.Method != http.MethodGet && strings.HasSuffix(r.URL.Path, "/"+catalog.DataFile)
			})
			s.ctl("create-backup")
		},
		none: "repair the store", mend: goOn,
	}, {
		kind: cluster.AttentionStore, what: "an S3 server takes no changes and answers all else", node: "a",
		text: []string{"it hangs", "put changes/"},
		cause: func(s *scene) {
			s.store.hang(func(r *http.Request) bool {
				return r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/changes/")
			})
			s.c.Put("/k", "v")
		},
		none: "repair the store", mend: goOn,
	}, {
		kind: cluster.AttentionStore, what: "an S3 server answers nothing", node: "a", text: []string{"list control/"},
		cause: func(s *scene) { s.store.hang(func(*http.Request) bool { return true }) },
		none:  "repair the store", mend: func(s *scene) { s.store.goOn() },
	}}
}

// waited is how long there was no answer, as it is said.
var waited = regexp.MustCompile(`without an answer for (\S+)$`)

// soon fails the test if a person is told of a store that hangs later than docs/design.md promises, with a minute for a slow machine.
func (s *scene) soon() {
	s.t.Helper()
	m := waited.FindStringSubmatch(s.printed.Text)
	if m == nil {
		s.t.Errorf("it isn't said for how long: %s", s.printed.Text)
		return
	}
	if d, err := time.ParseDuration(m[1]); err != nil || d > 3*time.Minute {
		s.t.Errorf("it is said after %s, %v", d, err)
	}
}

// TestFrozen has the file system of a store freeze: what is read is answered, and what is written hangs in the kernel.
func TestFrozen(t *testing.T) {
	testutil.Long(t)
	t.Parallel() // it mostly waits
	dir, freeze := ext4(t)
	// Nothing but backups and events is written, so that one of these hangs.
	c := harness.New(t, harness.Options{Nodes: 1, StoreURL: filepath.Join(dir, "store"),
		BackupInterval: 20 * time.Second, Args: quick("--change-log-interval=0")})
	t.Cleanup(func() { _ = freeze("--unfreeze") }) // before the managers are ended: what hangs in the kernel can't be
	c.StartAll()
	c.WaitHealthy(1)
	c.WaitBackups(1)
	s := &scene{t: t, c: c, freeze: freeze}
	s.play(frozenRows())
	taken := len(c.Backups())
	c.WaitBackups(taken + 1)
}

// frozenRows are played in a cluster of one whose store is on a file system that can be frozen.
func frozenRows() []row {
	return []row{{
		kind: cluster.AttentionStore, what: "the store's file system answers reads and hangs in writes", node: "a",
		text: []string{"it hangs", "put "},
		cause: func(s *scene) {
			if err := s.freeze("--freeze"); err != nil {
				s.t.Skipf("this file system can't be frozen: %v", err)
			}
		},
		none: "repair the store", mend: func(s *scene) {
			s.soon()
			must(s.t, s.freeze("--unfreeze"))
		},
	}}
}

// ext4 mounts a small file system of its own, and returns what freezes and thaws it. It is thawed
// and unmounted even if the test's process dies.
func ext4(t *testing.T) (dir string, freeze func(flag string) error) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("to mount and freeze a file system takes root")
	}
	for _, tool := range []string{"mkfs.ext4", "mount", "umount", "fsfreeze"} {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("%s is needed: %v", tool, err)
		}
	}
	base := t.TempDir()
	image, dir := filepath.Join(base, "image"), filepath.Join(base, "mnt")
	must(t, os.WriteFile(image, nil, 0o600))
	must(t, errors.Join(os.Truncate(image, 64<<20), os.Mkdir(dir, 0o700)))
	if out, err := exec.Command("mkfs.ext4", "-q", image).CombinedOutput(); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if out, err := exec.Command("mount", "-o", "loop", image, dir).CombinedOutput(); err != nil {
		t.Skipf("no file system can be mounted here: %v: %s", err, out)
	}
	// The shell waits for the end of this process, or of the test, which closes the pipe.
	guard := exec.Command("sh", "-c", `cat >/dev/null; fsfreeze --unfreeze "$1" 2>/dev/null; umount "$1" || umount --lazy "$1"`, "sh", dir)
	end, err := guard.StdinPipe()
	must(t, err)
	must(t, guard.Start())
	t.Cleanup(func() {
		_ = end.Close()
		if err := guard.Wait(); err != nil && !errors.Is(err, io.EOF) {
			t.Errorf("unmount %s: %v", dir, err)
		}
	})
	return dir, func(flag string) error { return exec.Command("fsfreeze", flag, dir).Run() }
}

// TestStopsWhileTheStoreHangs: a manager that is told to stop stops etcd and ends, although the store doesn't answer it.
func TestStopsWhileTheStoreHangs(t *testing.T) {
	testutil.Long(t)
	t.Run("s3", func(t *testing.T) {
		t.Parallel() // it mostly waits
		s := behindFront(t)
		for what, which := range map[string]func(*http.Request) bool{
			"all": func(*http.Request) bool { return true },
			"changes": func(r *http.Request) bool {
				return r.Method == http.MethodPut && strings.Contains(r.URL.Path, "/changes/")
			},
			// What makes a backup of the data that are there already, and what clears these away again.
			"backups": func(r *http.Request) bool {
				deletes := r.Method == http.MethodDelete || r.URL.Query().Has("delete")
				return deletes || r.Method == http.MethodPut && strings.HasSuffix(r.URL.Path, "/_etcd_manager_manifest.json")
			},
		} {
			s.store.hang(which)
			if s.c.Put("/stop", what); what == "backups" {
				s.ctl("create-backup")
			}
			s.c.WaitFor("a request of "+what+" hangs", time.Minute, func() string {
				if s.store.hanging() == 0 {
					return "none"
				}
				return ""
			})
			s.stops()
			s.store.goOn()
			s.c.Nodes[0].Start()
			s.c.WaitHealthy(1)
		}
	})
	t.Run("file system", func(t *testing.T) {
		t.Parallel() // it mostly waits
		dir, freeze := ext4(t)
		c := harness.New(t, harness.Options{Nodes: 1, StoreURL: filepath.Join(dir, "store"), BackupInterval: time.Hour, Args: quick()})
		t.Cleanup(func() { _ = freeze("--unfreeze") }) // before the manager is ended
		c.StartAll()
		c.WaitHealthy(1)
		c.WaitBackups(1)
		if err := freeze("--freeze"); err != nil {
			t.Skipf("this file system can't be frozen: %v", err)
		}
		s := &scene{t: t, c: c, freeze: freeze}
		c.Put("/stop", "frozen")
		raised(t, c, c.Nodes[0], cluster.AttentionStore)
		pid := c.Nodes[0].EtcdPID()
		c.Nodes[0].Signal(syscall.SIGTERM)
		c.WaitFor("etcd has ended", 20*time.Second, func() string { return alive(pid) })
		// A thread of the process is within the kernel's write, which nothing ends: the process is over when that is.
		must(t, s.freeze("--unfreeze"))
		if code := c.Nodes[0].WaitExit(20 * time.Second); code != 0 {
			t.Errorf("exit code %d", code)
		}
	})
}

// stops tells the manager to stop, and checks that it and its etcd soon have.
func (s *scene) stops() {
	s.t.Helper()
	n := s.c.Nodes[0]
	pid := n.EtcdPID()
	n.Signal(syscall.SIGTERM)
	if code := n.WaitExit(15 * time.Second); code != 0 {
		s.t.Errorf("exit code %d: %s", code, n.LogTail(20))
	}
	if what := alive(pid); what != "" {
		s.t.Error(what)
	}
}

// alive says that a process is there; it is empty if it isn't.
func alive(pid int) string {
	if err := syscall.Kill(pid, 0); err != nil {
		return ""
	}
	return fmt.Sprintf("process %d runs", pid)
}
