package seeds

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

func write(t *testing.T, dir, name, content string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestFind(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "a", "# first\n10.0.0.1:8000\n\n  [fd00::1]:8000  \r\n")
	write(t, dir, "b", `["b.example.com:3996"]`)
	write(t, dir, "c", `{"endpoints":["10.0.0.3:8000"],"addresses":["10.0.0.3"]}`)
	write(t, dir, "six", "[fd00::6]:8000")
	write(t, dir, ".hidden", "nonsense")
	write(t, dir, "a~", "nonsense")
	if err := os.Mkdir(filepath.Join(dir, "..data"), 0o755); err != nil {
		t.Fatal(err)
	}
	write(t, filepath.Join(dir, "..data"), "real", "10.0.0.4:8000")
	if err := os.Symlink("..data/real", filepath.Join(dir, "linked")); err != nil { // as a mounted ConfigMap has it
		t.Fatal(err)
	}
	s := New(dir)
	found, err := s.Find(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := map[cluster.NodeID][]string{
		"a": {"10.0.0.1:8000", "[fd00::1]:8000"}, "b": {"b.example.com:3996"}, "c": {"10.0.0.3:8000"}, "linked": {"10.0.0.4:8000"},
		"six": {"[fd00::6]:8000"},
	}
	if !reflect.DeepEqual(found, want) {
		t.Errorf("found %v", found)
	}

	// Changes are seen the next time.
	write(t, dir, "a", "10.0.0.9:8000")
	if err := os.Remove(filepath.Join(dir, "b")); err != nil {
		t.Fatal(err)
	}
	if found, err = s.Find(t.Context()); err != nil || found["a"][0] != "10.0.0.9:8000" || found["b"] != nil {
		t.Errorf("found %v, %v", found, err)
	}
}

func TestBadSeedsDontHideGoodOnes(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, "good", "10.0.0.1:8000")
	bad := map[string]string{
		"empty": "", "comment": "# nothing", "noport": "10.0.0.1", "port": "10.0.0.1:99999",
		"words": "see the wiki: 8000", "json": `{"endpoints":`,
		"other": `{"nodes":["10.0.0.1:8000"]}`, "numbers": `[1,2]`, "huge": strings.Repeat("10.0.0.1:8000\n", 10000),
	}
	for name, content := range bad {
		write(t, dir, name, content)
	}
	found, err := New(dir).Find(t.Context())
	if len(found) != 1 || found["good"] == nil {
		t.Errorf("found %v", found)
	}
	for name := range bad {
		if err == nil || !strings.Contains(err.Error(), filepath.Join(dir, name)) {
			t.Errorf("the error doesn't name %s: %v", name, err)
		}
	}
}

func TestMissingDirectory(t *testing.T) {
	_, err := New(filepath.Join(t.TempDir(), "none")).Find(t.Context())
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("Find: %v", err)
	}
}
