package hosts

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// childEnv makes this test binary rewrite the named file in a loop until it is killed.
const childEnv = "HOSTS_TEST_CHILD"

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		f := File{Path: path, KeepDir: filepath.Dir(path) + "/keep"}
		for i := 0; ; i++ {
			if _, err := f.Update(context.Background(), "etcd", many(i)); err != nil {
				fmt.Fprintln(os.Stderr, err)
				os.Exit(1)
			}
		}
	}
	os.Exit(m.Run())
}

func entry(addr string, names ...string) Entry {
	return Entry{Addr: netip.MustParseAddr(addr), Names: names}
}

// many gives blocks of very different sizes, large enough for several pages.
func many(i int) []Entry {
	var all []Entry
	for n := range 20 + i%7*100 {
		all = append(all, entry(fmt.Sprintf("10.%d.%d.%d", i%200, n/200, n%200), fmt.Sprintf("etcd-%d.internal.example.com", n)))
	}
	return all
}

const block = "# Begin host entries managed by etcd-manager[etcd] - do not edit\n" +
	"10.0.0.1\tetcd-a.internal.example.com\n" +
	"10.0.0.2\tetcd-b.internal.example.com\n" +
	"# End host entries managed by etcd-manager[etcd]\n"

func two() []Entry {
	return []Entry{entry("10.0.0.2", "etcd-b.internal.example.com"), entry("10.0.0.1", "etcd-a.internal.example.com")}
}

const events = "# Begin host entries managed by etcd-manager[etcd-events] - do not edit\n" +
	"10.0.0.1\tevents-a\n# End host entries managed by etcd-manager[etcd-events]\n"

func TestUpdate(t *testing.T) {
	const begin, end = "# Begin host entries managed by etcd-manager[etcd] - do not edit\n",
		"# End host entries managed by etcd-manager[etcd]\n"
	for _, c := range []struct{ name, before, after string }{
		{"empty file", "", block},
		{"user lines", "127.0.0.1 localhost\n", "127.0.0.1 localhost\n" + block},
		{"no final newline", "127.0.0.1 localhost", "127.0.0.1 localhost\n" + block},
		{"CRLF", "127.0.0.1 localhost\r\n# x\r\n", "127.0.0.1 localhost\r\n# x\r\n" + block},
		{"CRLF block", "1.1.1.1 u\r\n" + strings.ReplaceAll(block, "\n", "\r\n") + "1.1.1.2 v\r\n",
			"1.1.1.1 u\r\n" + block + "1.1.1.2 v\r\n"},
		{"stays in its place", "1.1.1.1 u\n" + begin + "9.9.9.9\told\n" + end + "1.1.1.2 v\n", "1.1.1.1 u\n" + block + "1.1.1.2 v\n"},
		{"beside another cluster's", events + "1.1.1.1 u\n", events + "1.1.1.1 u\n" + block},
		{"before another cluster's", begin + end + events, block + events},
		{"end at the end of the file without newline", "1.1.1.1 u\n" + strings.TrimSuffix(block, "\n"), "1.1.1.1 u\n" + block},
		{"twice", block + "1.1.1.1 u\n" + block + "1.1.1.2 v\n", block + "1.1.1.1 u\n1.1.1.2 v\n"},
		{"begin without end", "1.1.1.1 u\n" + begin + "1.1.1.2 v\n", "1.1.1.1 u\n" + block + "1.1.1.2 v\n"},
		{"begin without end, then our old lines", begin +
			"10.0.0.9\tetcd-a.internal.example.com\n1.1.1.2 v\n10.0.0.8 etcd-b.internal.example.com\n",
			block + "1.1.1.2 v\n10.0.0.8 etcd-b.internal.example.com\n"},
		{"begin without end, then a line with a name of the user's too",
			begin + "10.0.0.9 etcd-a.internal.example.com mine\n", block + "10.0.0.9 etcd-a.internal.example.com mine\n"},
		{"end without begin", "1.1.1.1 u\n" + end + "1.1.1.2 v\n", "1.1.1.1 u\n1.1.1.2 v\n" + block},
		{"begin without end, then a whole block", begin + "1.1.1.1 u\n" + block, "1.1.1.1 u\n" + block},
		{"another block within", begin + "1.1.1.1 u\n" + events + end, block + "1.1.1.1 u\n" + events},
		{"a name that ours begins with", strings.ReplaceAll(block, "[etcd]", "[etcd-x]"),
			strings.ReplaceAll(block, "[etcd]", "[etcd-x]") + block},
		{"what only looks like a marker", "# Begin host entries managed by etcd-manager[etcd]\n1.1.1.1 u\n",
			"# Begin host entries managed by etcd-manager[etcd]\n1.1.1.1 u\n" + block},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			f := File{Path: filepath.Join(dir, "hosts"), KeepDir: dir}
			if err := os.WriteFile(f.Path, []byte(c.before), 0o604); err != nil {
				t.Fatal(err)
			}
			before := stat(t, f.Path)
			if changed, err := f.Update(t.Context(), "etcd", two()); err != nil || !changed {
				t.Fatalf("changed %v, %v", changed, err)
			}
			if got := read(t, f.Path); got != c.after {
				t.Errorf("file is\n%s\nwant\n%s", got, c.after)
			}
			after := stat(t, f.Path)
			if after.Ino != before.Ino || after.Mode != before.Mode {
				t.Error("the file was replaced, not rewritten")
			}
			// Again: nothing is written, not even the same bytes.
			if changed, err := f.Update(t.Context(), "etcd", two()); err != nil || changed {
				t.Errorf("second time: changed %v, %v", changed, err)
			}
			if now := stat(t, f.Path); now.Mtim != after.Mtim || now.Ctim != after.Ctim {
				t.Error("the file was touched though nothing changed")
			}
			if left, _ := os.ReadDir(dir); len(left) != 1 {
				t.Errorf("left behind: %v", left)
			}
		})
	}
}

func TestUpdateMakesAndRemoves(t *testing.T) {
	f := File{Path: filepath.Join(t.TempDir(), "hosts")}
	if _, err := f.Update(t.Context(), "etcd", two()); err != nil {
		t.Fatal(err)
	}
	if got := read(t, f.Path); got != block {
		t.Errorf("made %q", got)
	}
	if names, err := f.Blocks(); err != nil || !slices.Equal(names, []string{"etcd"}) {
		t.Errorf("blocks %v, %v", names, err)
	}
	if changed, err := f.Update(t.Context(), "etcd", nil); err != nil || !changed {
		t.Errorf("changed %v, %v", changed, err)
	}
	if got := read(t, f.Path); got != "" {
		t.Errorf("after removal %q", got)
	}
	if names, err := (File{Path: f.Path + "x"}).Blocks(); err != nil || names != nil {
		t.Errorf("blocks of no file: %v, %v", names, err)
	}
}

func TestRender(t *testing.T) {
	got, err := render("c", []Entry{
		entry("2001:db8::1", "b", "a"), entry("10.0.0.10", "x"), entry("10.0.0.9", "y"),
		entry("10.0.0.10", "w", "x"), entry("::ffff:10.0.0.9", "z"), entry("10.0.0.1"),
	})
	if err != nil {
		t.Fatal(err)
	}
	want := "# Begin host entries managed by etcd-manager[c] - do not edit\n10.0.0.9\ty z\n10.0.0.10\tw x\n2001:db8::1\ta b\n# End host entries managed by etcd-manager[c]\n"
	if string(got) != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	for _, bad := range []struct {
		cluster string
		entry   Entry
	}{
		{"", entry("10.0.0.1", "a")}, {"a]", entry("10.0.0.1", "a")}, {"a\nb", entry("10.0.0.1", "a")},
		{"c", Entry{Names: []string{"a"}}}, {"c", entry("10.0.0.1", "")}, {"c", entry("10.0.0.1", "a b")},
		{"c", entry("10.0.0.1", "a\n1.1.1.1 evil")}, {"c", entry("10.0.0.1", "#a")},
	} {
		if got, err := render(bad.cluster, []Entry{bad.entry}); err == nil {
			t.Errorf("%+v gave %q", bad, got)
		}
	}
}

// TestTornWriteIsMended cuts a write off at every third byte, in every way that the order of the write allows.
func TestTornWriteIsMended(t *testing.T) {
	user1, user2 := "127.0.0.1 localhost\n", "10.9.9.9 precious\n"
	small := "# Begin host entries managed by etcd-manager[etcd] - do not edit\n10.0.0.1\ta\n# End host entries managed by etcd-manager[etcd]\n"
	for name, c := range map[string]struct{ old, want string }{
		"growing":   {user1 + small + user2, user1 + block + user2},
		"shrinking": {user1 + block + user2, user1 + small + user2},
		"new":       {user1 + user2, user1 + user2 + block},
		"removed":   {user1 + block + user2, user1 + user2},
	} {
		t.Run(name, func(t *testing.T) {
			torn := map[string]bool{"": true}
			for k := 0; k <= len(c.want); k += 3 {
				if k < len(c.old) {
					torn[c.want[:k]+c.old[k:]] = true // written up to k
				} else {
					torn[c.want[:k]] = true
					torn[c.want[:k]+strings.Repeat("\x00", len(c.want)-k)] = true // the size is on disk, the data isn't
				}
			}
			for state := range torn {
				dir := t.TempDir()
				f := File{Path: filepath.Join(dir, "hosts"), KeepDir: dir}
				if err := os.WriteFile(f.Path, []byte(state), 0o644); err != nil {
					t.Fatal(err)
				}
				if err := f.keep([]byte(c.old), []byte(c.want)); err != nil {
					t.Fatal(err)
				}
				// Whichever cluster's manager comes first mends it.
				if _, err := f.Update(t.Context(), "etcd-events", []Entry{entry("10.0.0.1", "events-a")}); err != nil {
					t.Fatal(err)
				}
				got := read(t, f.Path)
				if got != c.want+events && !(state == c.old && got == c.old+events) {
					t.Fatalf("torn to\n%q\nbecame\n%q\nwant\n%q", state, got, c.want+events)
				}
				if _, err := os.Stat(f.keptPath()); !errors.Is(err, os.ErrNotExist) {
					t.Fatalf("the copy stays: %v", err)
				}
			}
		})
	}
}

// TestOthersChangesAreNotMended: what somebody wrote after the crash is theirs.
func TestOthersChangesAreNotMended(t *testing.T) {
	for name, now := range map[string]string{
		"a line added":     "127.0.0.1 localhost\n10.1.1.1 added-since\n",
		"a line changed":   "127.0.0.2 localhost\n",
		"something longer": "127.0.0.1 localhost\n" + block + "10.1.1.1 added-since\n",
	} {
		dir := t.TempDir()
		f := File{Path: filepath.Join(dir, "hosts"), KeepDir: dir}
		if err := os.WriteFile(f.Path, []byte(now), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := f.keep([]byte("127.0.0.1 localhost\n"), []byte("127.0.0.1 localhost\n"+block)); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Update(t.Context(), "etcd-events", []Entry{entry("10.0.0.1", "events-a")}); err != nil {
			t.Fatal(err)
		}
		if got := read(t, f.Path); got != now+events {
			t.Errorf("%s: became\n%s", name, got)
		}
	}
	// A copy of another file, or one that can't be read, is no reason to touch this one.
	dir := t.TempDir()
	f := File{Path: filepath.Join(dir, "hosts"), KeepDir: dir}
	other, _ := json.Marshal(kept{Path: "/elsewhere", Old: []byte("x"), New: []byte("y")})
	for _, data := range [][]byte{other, []byte("{"), nil} {
		if err := os.WriteFile(f.keptPath(), data, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(f.Path, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := f.Update(t.Context(), "etcd", two()); err != nil {
			t.Fatal(err)
		}
		if got := read(t, f.Path); got != block {
			t.Errorf("copy %q: became %q", data, got)
		}
	}
}

func TestKilledWriterLosesNoUserLines(t *testing.T) {
	dir := t.TempDir()
	f := File{Path: filepath.Join(dir, "hosts"), KeepDir: filepath.Join(dir, "keep")}
	if err := os.Mkdir(f.KeepDir, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Update(t.Context(), "etcd", many(3)); err != nil {
		t.Fatal(err)
	}
	tail := strings.Repeat("10.9.9.9 precious\n", 1000)
	if err := os.WriteFile(f.Path, []byte("127.0.0.1 localhost\n"+read(t, f.Path)+tail), 0o644); err != nil {
		t.Fatal(err)
	}
	for round := range 15 {
		before := stat(t, f.Path)
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+f.Path)
		cmd.Stderr = os.Stderr
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		for deadline := time.Now().Add(20 * time.Second); stat(t, f.Path).Mtim == before.Mtim; time.Sleep(time.Millisecond) {
			if time.Now().After(deadline) {
				t.Fatal("the child never wrote")
			}
		}
		time.Sleep(time.Duration(round*300) * time.Microsecond)
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Fatal("the child ended by itself")
		}
		// The kernel has dropped the dead writer's lock.
		if _, err := f.Update(t.Context(), "etcd", two()); err != nil {
			t.Fatal(err)
		}
		if got, want := read(t, f.Path), "127.0.0.1 localhost\n"+block+tail; got != want {
			t.Fatalf("round %d: file is\n%.3000s", round, got)
		}
	}
}

func TestTwoClustersAtOnce(t *testing.T) {
	dir := t.TempDir()
	f := File{Path: filepath.Join(dir, "hosts"), KeepDir: dir}
	if err := os.WriteFile(f.Path, []byte("127.0.0.1 localhost\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	var writers sync.WaitGroup
	for _, cluster := range []string{"etcd", "etcd-events", "etcd-cilium"} {
		writers.Go(func() {
			for i := range 30 {
				if _, err := f.Update(t.Context(), cluster, many(i)); err != nil {
					t.Error(err)
				}
			}
		})
	}
	writers.Wait()
	want := []byte("127.0.0.1 localhost\n")
	names, err := f.Blocks()
	if err != nil || len(names) != 3 {
		t.Fatalf("blocks %v, %v", names, err)
	}
	for _, cluster := range names {
		b, err := render(cluster, many(29))
		if err != nil {
			t.Fatal(err)
		}
		want = append(want, b...)
	}
	if got := read(t, f.Path); got != string(want) {
		t.Error("writers of different clusters disturbed each other")
	}
}

func TestLockIsWaitedForUntilTheContextEnds(t *testing.T) {
	f := File{Path: filepath.Join(t.TempDir(), "hosts")}
	other, err := os.Create(f.Path)
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	if err := syscall.Flock(int(other.Fd()), syscall.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Millisecond)
	defer cancel()
	if _, err := f.Update(ctx, "etcd", two()); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), f.Path) {
		t.Errorf("error %v", err)
	}
	if err := syscall.Flock(int(other.Fd()), syscall.LOCK_UN); err != nil {
		t.Fatal(err)
	}
	if _, err := f.Update(t.Context(), "etcd", two()); err != nil {
		t.Error(err)
	}
}

func TestUpdateErrors(t *testing.T) {
	dir := t.TempDir()
	if _, err := (File{Path: filepath.Join(dir, "no", "hosts")}).Update(t.Context(), "etcd", two()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory: %v", err)
	}
	// Without the copy the file is not touched.
	f := File{Path: filepath.Join(dir, "hosts"), KeepDir: filepath.Join(dir, "no")}
	if _, err := f.Update(t.Context(), "etcd", two()); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("no directory for the copy: %v", err)
	}
	if got := read(t, f.Path); got != "" {
		t.Errorf("written nevertheless: %q", got)
	}
}

// FuzzReplaceBlock holds the promises for any file: other lines stay in their order, and twice is once.
func FuzzReplaceBlock(f *testing.F) {
	f.Add("127.0.0.1 localhost\n" + block + events)
	f.Add("x\r\n# End host entries managed by etcd-manager[etcd]")
	f.Add("# Begin host entries managed by etcd-manager[etcd] - do not edit\n\n" + block)
	f.Fuzz(func(t *testing.T, data string) {
		once := replaceBlock([]byte(data), "etcd", []byte(block))
		if twice := replaceBlock(once, "etcd", []byte(block)); string(twice) != string(once) {
			t.Fatalf("%q\nonce  %q\ntwice %q", data, once, twice)
		}
		if n := strings.Count(string(once), block); n < 1 {
			t.Fatalf("%q became %q: %d blocks", data, once, n)
		}
		// What remains of it without the block is in its order a part of the lines before, and what is missing was ours to take.
		rest := splitLines(replaceBlock(once, "etcd", nil))
		i := 0
		lines := splitLines([]byte(data))
		for n, l := range lines {
			last := n == len(lines)-1
			if i < len(rest) && (string(rest[i]) == string(l) || last && string(rest[i]) == string(l)+"\n") {
				i++
				continue
			}
			if kind, name := marker(l); kind != none && name == "etcd" || superseded(l, []byte(block)) || inBlock(lines, n) {
				continue
			}
			t.Fatalf("%q became %q: line %q is lost", data, once, l)
		}
		if i != len(rest) {
			t.Fatalf("%q became %q: %q was added", data, once, rest[i])
		}
	})
}

// inBlock is the deliberately simple second opinion: is there a begin above and an end below with no marker between?
func inBlock(lines [][]byte, n int) bool {
	above, below := -1, -1
	for i := n - 1; i >= 0 && above < 0; i-- {
		if kind, _ := marker(lines[i]); kind != none {
			above = i
		}
	}
	for i := n + 1; i < len(lines) && below < 0; i++ {
		if kind, _ := marker(lines[i]); kind != none {
			below = i
		}
	}
	if above < 0 || below < 0 {
		return false
	}
	ka, na := marker(lines[above])
	kb, nb := marker(lines[below])
	return ka == begin && kb == end && na == "etcd" && nb == "etcd"
}

func read(t *testing.T, path string) string {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

func stat(t *testing.T, path string) *syscall.Stat_t {
	t.Helper()
	st, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return st.Sys().(*syscall.Stat_t)
}
