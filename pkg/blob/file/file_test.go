package file

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
)

// helperVar makes the test binary act as another process: its value says what that one does.
const helperVar = "ETCD_MANAGER_FILE_TEST_HELPER"

func TestMain(m *testing.M) {
	if job := os.Getenv(helperVar); job != "" {
		if err := helper(job); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// helper runs "add DIR N": it adds N to the counter in the store, one at a time; "put DIR": it puts one object and prints the error;
// or "machine DIR": it is a machine with the store.
func helper(job string) error {
	fields := strings.Fields(job)
	s, err := New(fields[1])
	if err != nil {
		return err
	}
	if fields[0] == "machine" {
		return actAsMachine(s)
	}
	if fields[0] == "put" {
		_, err := s.Put(context.Background(), "dir/k", strings.NewReader("x"), blob.PutOptions{})
		fmt.Println(err)
		return nil
	}
	n, err := strconv.Atoi(fields[2])
	if err != nil {
		return err
	}
	for done := 0; done < n; {
		data, info, err := blob.ReadAll(context.Background(), s, "counter", 100)
		if err != nil {
			return err
		}
		value, err := strconv.Atoi(string(data))
		if err != nil {
			return err
		}
		_, err = s.Put(context.Background(), "counter", strings.NewReader(strconv.Itoa(value+1)), blob.PutOptions{IfVersion: info.Version})
		switch {
		case err == nil:
			done++
		case !errors.Is(err, blob.ErrPreconditionFailed):
			return err
		}
	}
	return nil
}

func helperCommand(job string) *exec.Cmd {
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), helperVar+"="+job)
	return cmd
}

func TestConformance(t *testing.T) {
	blobtest.Run(t, func(t *testing.T) blob.Store { return open(t, t.TempDir()) }, blobtest.Capabilities{})
}

func open(t *testing.T, dir string) *Store {
	t.Helper()
	s, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func put(t *testing.T, s *Store, key, content string) blob.Info {
	t.Helper()
	info, err := s.Put(t.Context(), key, strings.NewReader(content), blob.PutOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return info
}

// Several processes share a directory, as managers do over a network file system.
func TestProcessesDoNotLoseUpdates(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	put(t, s, "counter", "0")
	const processes, additions = 4, 25
	var cmds []*exec.Cmd
	for range processes {
		cmd := helperCommand(fmt.Sprintf("add %s %d", dir, additions))
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		cmds = append(cmds, cmd)
	}
	for _, cmd := range cmds {
		if err := cmd.Wait(); err != nil {
			t.Error(err)
		}
	}
	if data, _, err := blob.ReadAll(t.Context(), s, "counter", 100); string(data) != strconv.Itoa(processes*additions) || err != nil {
		t.Errorf("the counter is %q, %v; want %d", data, err, processes*additions)
	}
}

// A version must not come back, even if replacements follow each other faster than the file system's clock ticks and inodes are used again.
func TestVersionsDoNotRepeat(t *testing.T) {
	s := open(t, t.TempDir())
	seen := map[string]bool{}
	for i := range 300 {
		v := put(t, s, "k", "same").Version
		if seen[v] {
			t.Fatalf("version %s came back at put %d", v, i)
		}
		seen[v] = true
	}
}

func TestMissingBase(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "not", "mounted")
	s := open(t, dir)
	check := func(op string, err error) {
		t.Helper()
		if !errors.Is(err, blob.ErrInvalid) || errors.Is(err, blob.ErrNotFound) || !strings.Contains(fmt.Sprint(err), dir) {
			t.Errorf("%s without the base: %v", op, err)
		}
	}
	_, err := s.Stat(t.Context(), "k")
	check("stat", err)
	_, _, err = s.Get(t.Context(), "k", blob.Range{})
	check("get", err)
	for _, err = range s.List(t.Context(), "", blob.ListOptions{}) {
	}
	check("list", err)
	_, err = s.Purge(t.Context(), "", func(string) bool { return true })
	check("purge", err)
	put(t, s, "k", "x")
	if _, err := s.Stat(t.Context(), "k"); err != nil {
		t.Errorf("after the first put: %v", err)
	}
}

func TestPurgeRemovesEmptyDirectories(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for _, key := range []string{"a/b/c/1", "a/b/2", "a/3"} {
		put(t, s, key, "x")
	}
	purge := func(prefix string) {
		t.Helper()
		if _, err := s.Purge(t.Context(), prefix, func(string) bool { return true }); err != nil {
			t.Fatal(err)
		}
	}
	exists := func(name string) bool { _, err := os.Stat(filepath.Join(dir, name)); return err == nil }
	purge("a/b/c/")
	if exists("a/b/c") || !exists("a/b/2") {
		t.Error("a/b/c stayed or a/b/2 went")
	}
	purge("")
	if exists("a") || !exists("") {
		t.Error("a stayed or the base went")
	}
	if err := os.MkdirAll(filepath.Join(dir, "empty", "dir"), 0o755); err != nil {
		t.Fatal(err)
	}
	for e, err := range s.List(t.Context(), "", blob.ListOptions{Delimiter: "/"}) {
		t.Errorf("List yields %+v, %v", e, err)
	}
}

// What is not ours, or not finished, is neither shown nor touched.
// TestListWhileDirectoriesComeAndGo lists, one after the other, while the directories that are
// being read are emptied, removed and made again.
func TestListWhileDirectoriesComeAndGo(t *testing.T) {
	s := open(t, t.TempDir())
	put(t, s, "x/stays", "x")
	stop := make(chan struct{})
	var churn sync.WaitGroup
	for i := range 3 {
		churn.Go(func() {
			key := fmt.Sprintf("x/%d/deep/%d", i, i)
			for {
				select {
				case <-stop:
					return
				default:
				}
				_, err := s.Put(t.Context(), key, strings.NewReader("x"), blob.PutOptions{})
				if err == nil {
					_, err = s.Purge(t.Context(), fmt.Sprintf("x/%d/", i), func(string) bool { return true })
				}
				if err != nil {
					t.Errorf("put and delete %s: %v", key, err)
					return
				}
			}
		})
	}
	for _, o := range []blob.ListOptions{{}, {Delimiter: "/"}} {
		for range 2000 {
			stays := false
			for e, err := range s.List(t.Context(), "x/", o) {
				if err != nil {
					t.Fatalf("list %+v: %v", o, err)
				}
				stays = stays || e.Key == "x/stays"
			}
			if !stays {
				t.Fatal("an object that stays isn't listed")
			}
		}
	}
	close(stop)
	churn.Wait()
}

func TestReservedAndForeignNames(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	put(t, s, "k", "x")
	outside := filepath.Join(t.TempDir(), "outside")
	if err := os.WriteFile(outside, []byte("secret"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(outside, filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Dir(outside), filepath.Join(dir, "linkdir")); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	fresh, stale := filepath.Join(dir, tmpPrefix+"1-1"), filepath.Join(dir, tmpPrefix+"2-2")
	for _, name := range []string{fresh, stale} {
		if err := os.WriteFile(name, []byte("half"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	old := time.Now().Add(-staleAfter - time.Hour)
	if err := os.Chtimes(stale, old, old); err != nil {
		t.Fatal(err)
	}
	var keys []string
	for _, prefix := range []string{"", reserved, reserved + "/"} {
		for e, err := range s.List(t.Context(), prefix, blob.ListOptions{}) {
			if err != nil {
				t.Fatal(err)
			}
			keys = append(keys, e.Key)
		}
	}
	if !slices.Equal(keys, []string{"k"}) {
		t.Errorf("List = %q", keys)
	}
	if _, err := s.Put(t.Context(), reserved+"/x", strings.NewReader(""), blob.PutOptions{}); !errors.Is(err, blob.ErrInvalid) {
		t.Errorf("Put of a reserved key: %v", err)
	}
	for _, key := range []string{"link", "linkdir/outside", "fifo"} {
		if data, _, err := blob.ReadAll(t.Context(), s, key, 100); err == nil {
			t.Errorf("%s reads %q", key, data)
		}
	}
	if _, err := s.Put(t.Context(), "linkdir/new", strings.NewReader("x"), blob.PutOptions{}); err == nil {
		t.Error("a put left the base through a link")
	}
	put(t, s, "k2", "x")
	if _, err := os.Stat(stale); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the forgotten temporary file: %v", err)
	}
	if _, err := os.Stat(fresh); err != nil {
		t.Errorf("a temporary file that may be in use: %v", err)
	}
	if data, err := os.ReadFile(outside); string(data) != "secret" || err != nil {
		t.Errorf("outside: %q, %v", data, err)
	}
}

func TestChangedInPlace(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for name, change := range map[string]func(path string) error{
		"cut short": func(path string) error { return os.Truncate(path, 1000) },
		"rewritten": func(path string) error { return os.WriteFile(path, make([]byte, 100_000), 0o600) },
	} {
		put(t, s, name, strings.Repeat("x", 100_000))
		rc, _, err := s.Get(t.Context(), name, blob.Range{})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.ReadFull(rc, make([]byte, 500)); err != nil {
			t.Fatal(err)
		}
		if err := change(filepath.Join(dir, name)); err != nil {
			t.Fatal(err)
		}
		if data, err := io.ReadAll(rc); !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%s: read %d bytes, %v", name, len(data), err)
		}
		rc.Close()
	}
}

func TestFileInTheWay(t *testing.T) {
	s := open(t, t.TempDir())
	put(t, s, "a", "x")
	put(t, s, "b/c", "x")
	for _, key := range []string{"a/b", "b"} {
		if _, err := s.Put(t.Context(), key, strings.NewReader("x"), blob.PutOptions{}); !errors.Is(err, blob.ErrInvalid) {
			t.Errorf("Put(%q): %v", key, err)
		}
	}
}

// denied runs a put as a user without rights.
func TestDenied(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("needs root to become somebody else")
	}
	dir := t.TempDir()
	// The test binary and the directory must be in reach of that user.
	for d := dir; d != "/" && d != os.TempDir(); d = filepath.Dir(d) {
		if err := os.Chmod(d, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	binary := filepath.Join(dir, "binary")
	data, err := os.ReadFile(os.Args[0])
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(binary, data, 0o755); err != nil {
		t.Fatal(err)
	}
	base := filepath.Join(dir, "base")
	if err := os.Mkdir(base, 0o755); err != nil {
		t.Fatal(err)
	}
	cmd := helperCommand("put " + base)
	cmd.Path = binary
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	if want := "access denied (needs write to " + base; !strings.Contains(string(out), want) {
		t.Errorf("the error is %s, want %q in it", out, want)
	}
}

// mountTmpfs mounts a file system of the given size, or skips the test.
func mountTmpfs(t *testing.T, size string) string {
	t.Helper()
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size="+size); err != nil {
		t.Skipf("can't mount a file system: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	return dir
}

func TestFullDisk(t *testing.T) {
	dir := mountTmpfs(t, "1m")
	s := open(t, dir)
	put(t, s, "old", "old")
	_, err := s.Put(t.Context(), "old", bytes.NewReader(make([]byte, 4<<20)), blob.PutOptions{})
	if !errors.Is(err, blob.ErrTransient) || !strings.Contains(err.Error(), "no space is left on the file system of "+dir) {
		t.Errorf("Put: %v", err)
	}
	if data, _, err := blob.ReadAll(t.Context(), s, "old", 100); string(data) != "old" || err != nil {
		t.Errorf("the old object: %q, %v", data, err)
	}
	entries, err := os.ReadDir(filepath.Join(dir, reserved))
	if err != nil || len(entries) != 1 { // The lock.
		t.Errorf("%d temporary files are left, %v", len(entries)-1, err)
	}
	put(t, s, "small", "x")
}

func TestReadOnly(t *testing.T) {
	dir := mountTmpfs(t, "1m")
	s := open(t, dir)
	put(t, s, "k", "x")
	if err := syscall.Mount("", dir, "", syscall.MS_REMOUNT|syscall.MS_RDONLY, ""); err != nil {
		t.Skipf("can't remount: %v", err)
	}
	_, err := s.Put(t.Context(), "k", strings.NewReader("y"), blob.PutOptions{})
	if !errors.Is(err, blob.ErrDenied) || !strings.Contains(err.Error(), "needs a writable file system at "+dir) {
		t.Errorf("Put: %v", err)
	}
	if _, err = s.Purge(t.Context(), "", func(string) bool { return true }); !errors.Is(err, blob.ErrDenied) {
		t.Errorf("Purge: %v", err)
	}
	if _, err := s.Stat(t.Context(), "k"); err != nil {
		t.Errorf("Stat: %v", err)
	}
}

// A lock that somebody else holds is waited for, but not longer than the context lasts.
func TestLockIsBounded(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	put(t, s, "k", "x")
	f, err := os.Open(filepath.Join(dir, lockName))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := s.Put(ctx, "k", strings.NewReader("y"), blob.PutOptions{}); !errors.Is(err, context.DeadlineExceeded) ||
		!strings.Contains(err.Error(), "lock") {
		t.Errorf("Put: %v", err)
	}
	done := make(chan error)
	go func() {
		_, err := s.Put(context.Background(), "k", strings.NewReader("z"), blob.PutOptions{})
		done <- err
	}()
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func TestNew(t *testing.T) {
	for _, dir := range []string{"", "relative", "./x", "/a\x00b"} {
		if _, err := New(dir); err == nil {
			t.Errorf("New(%q) succeeded", dir)
		}
	}
}

// TestBaseGone removes the base under a store that was used: it isn't made anew, as a file system
// may have been unmounted; somebody who makes it has the store go on.
func TestBaseGone(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "base")
	s, err := New(dir)
	if err != nil {
		t.Fatal(err)
	}
	put := func(key string) error {
		_, err := s.Put(t.Context(), key, strings.NewReader("x"), blob.PutOptions{})
		return err
	}
	if err := put("a"); err != nil {
		t.Fatal(err)
	}
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	for _, err := range []error{put("b"), func() error { _, err := s.Stat(t.Context(), "a"); return err }()} {
		if !errors.Is(err, blob.ErrInvalid) || errors.Is(err, blob.ErrNotFound) || !strings.Contains(err.Error(), "it was there before") {
			t.Errorf("the base is gone: %v", err)
		}
	}
	if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the base was made: %v", err)
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := put("b"); err != nil {
		t.Errorf("the base is there again: %v", err)
	}
}

// A disk that is full may have room again soon, whatever writes steadily thinks of it.
func TestFullDiskIsTriedAgain(t *testing.T) {
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, "size=4194304"); err != nil {
		t.Skipf("a file system of its own needs root: %v", err)
	}
	defer func() {
		if err := syscall.Unmount(dir, syscall.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}()
	s, err := New(filepath.Join(dir, "store"))
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Put(t.Context(), "large", bytes.NewReader(make([]byte, 8<<20)), blob.PutOptions{})
	if !errors.Is(err, blob.ErrTransient) || !errors.Is(err, syscall.ENOSPC) || strings.Contains(err.Error(), "larger volume") {
		t.Fatalf("a full disk: %v", err)
	}
}
