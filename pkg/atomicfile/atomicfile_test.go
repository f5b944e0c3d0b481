package atomicfile

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"time"
)

// childEnv names the file that this test binary, started as a child, writes in a loop until it is killed.
const childEnv = "ATOMICFILE_TEST_CHILD"

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		for i := 0; ; i++ {
			if err := Write(path, content(i), 0o640); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
	}
	os.Exit(m.Run())
}

// content is 100 KiB of one letter with its number in front: any mixture of two contents shows.
func content(i int) []byte {
	b := bytes.Repeat([]byte{'a' + byte(i%26)}, 100<<10)
	return append(fmt.Appendf(nil, "%08d\n", i), b...)
}

func check(t *testing.T, got []byte) {
	t.Helper()
	var i int
	if _, err := fmt.Sscanf(string(got[:min(9, len(got))]), "%08d\n", &i); err != nil {
		t.Fatalf("file starts with %q", got[:min(9, len(got))])
	}
	if !bytes.Equal(got, content(i)) {
		t.Fatalf("file with number %d is torn (%d bytes)", i, len(got))
	}
}

func TestWriteReplacesContentAndPermissions(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	for i, perm := range []fs.FileMode{0o600, 0o644, 0o666} {
		if err := Write(path, []byte{byte(i)}, perm); err != nil {
			t.Fatal(err)
		}
		got, err := os.ReadFile(path)
		if err != nil || !bytes.Equal(got, []byte{byte(i)}) {
			t.Fatalf("read %v, %v", got, err)
		}
		if st, _ := os.Stat(path); st.Mode().Perm() != perm {
			t.Errorf("permissions %v, want %v", st.Mode().Perm(), perm)
		}
	}
	if names, _ := os.ReadDir(filepath.Dir(path)); len(names) != 1 {
		t.Errorf("left behind: %v", names)
	}
}

func TestWriteErrors(t *testing.T) {
	dir := t.TempDir()
	if err := Write(filepath.Join(dir, "no", "f"), nil, 0o600); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("missing directory: %v", err)
	}
	if err := os.MkdirAll(filepath.Join(dir, "d", "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := Write(filepath.Join(dir, "d"), nil, 0o600); err == nil {
		t.Error("a directory was replaced")
	}
	if _, err := os.Lstat(TempName(filepath.Join(dir, "d"))); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("temporary file left behind: %v", err)
	}
	// A symbolic link under the temporary name must not lead the write elsewhere.
	victim := filepath.Join(dir, "victim")
	if err := os.WriteFile(victim, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(victim, TempName(filepath.Join(dir, "g"))); err != nil {
		t.Fatal(err)
	}
	if err := Write(filepath.Join(dir, "g"), []byte("x"), 0o600); err == nil {
		t.Error("a symbolic link was followed")
	}
	if got, _ := os.ReadFile(victim); string(got) != "precious" {
		t.Errorf("the link's target holds %q", got)
	}
}

// TestFullDisk writes to a device that is always full by way of the size limit of the process' files.
func TestFullDiskKeepsOldContent(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := Write(path, content(1), 0o600); err != nil {
		t.Fatal(err)
	}
	// ulimit -f counts 1 KiB blocks in bash: the child can't write 100 KiB.
	cmd := exec.Command("bash", "-c", "trap '' XFSZ; ulimit -f 50; exec \"$0\"", os.Args[0])
	cmd.Env = append(os.Environ(), childEnv+"="+path)
	out, err := cmd.CombinedOutput()
	if err == nil || !bytes.Contains(out, []byte("file too large")) {
		t.Fatalf("child: %v, %s", err, out)
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, content(1)) {
		t.Error("the old content is gone")
	}
	if _, err := os.Lstat(TempName(path)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("temporary file left behind: %v", err)
	}
}

func TestConcurrentWriters(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := Write(path, content(0), 0o600); err != nil {
		t.Fatal(err)
	}
	var writers sync.WaitGroup
	for w := range 4 {
		writers.Go(func() {
			for i := range 25 {
				if err := Write(path, content(w*100+i), 0o600); err != nil {
					t.Error(err)
				}
			}
		})
	}
	done := make(chan struct{})
	go func() { writers.Wait(); close(done) }()
	for {
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		check(t, got)
		select {
		case <-done:
			return
		default:
		}
	}
}

func TestKilledWriterLeavesOldOrNew(t *testing.T) {
	path := filepath.Join(t.TempDir(), "f")
	if err := Write(path, content(0), 0o600); err != nil {
		t.Fatal(err)
	}
	for round := range 15 {
		before, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+path)
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		// Not before the child has written something, then at an instant that differs from round to round.
		for deadline := time.Now().Add(20 * time.Second); ; time.Sleep(time.Millisecond) {
			if now, err := os.ReadFile(path); err == nil && (round == 0 || !bytes.Equal(now, before)) {
				break
			}
			if time.Now().After(deadline) {
				t.Fatal("the child never wrote")
			}
		}
		time.Sleep(time.Duration(round*700) * time.Microsecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the child ended by itself")
		}
		got, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		check(t, got)
		if names, _ := os.ReadDir(filepath.Dir(path)); len(names) > 2 {
			t.Fatalf("crashes pile up temporary files: %v", names)
		}
	}
	if err := Write(path, content(7), 0o600); err != nil {
		t.Fatal(err)
	}
	if names, _ := os.ReadDir(filepath.Dir(path)); len(names) != 1 {
		t.Errorf("left behind: %v", names)
	}
}

func TestCreateNeverReplaces(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "f")
	var starts sync.WaitGroup
	var mu sync.Mutex
	var made []int
	for i := range 8 {
		starts.Go(func() {
			err := Create(path, content(i), 0o600)
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				made = append(made, i)
			case !errors.Is(err, fs.ErrExist):
				t.Error(err)
			}
		})
	}
	starts.Wait()
	got, err := os.ReadFile(path)
	if err != nil || len(made) != 1 || !bytes.Equal(got, content(made[0])) {
		t.Fatalf("made by %v, read %d bytes, %v", made, len(got), err)
	}
	if st, _ := os.Stat(path); st.Mode().Perm() != 0o600 {
		t.Errorf("permissions %v", st.Mode().Perm())
	}
	if list, _ := os.ReadDir(dir); len(list) != 1 {
		t.Errorf("the directory has %v", list)
	}
}
