package architecture

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// suites reads the packages of the long suites from the Makefile.
func suites(t *testing.T) []string {
	t.Helper()
	data, err := os.ReadFile(root + "/Makefile")
	if err != nil {
		t.Fatal(err)
	}
	text := strings.ReplaceAll(string(data), "\\\n", " ")
	value := func(name string) []string {
		m := regexp.MustCompile(`(?m)^` + name + ` := (.*)$`).FindStringSubmatch(text)
		if m == nil {
			t.Fatalf("the Makefile has no line %q", name+" := …")
		}
		return strings.Fields(m[1])
	}
	var packages []string
	for _, suite := range value("SUITES") {
		packages = append(packages, value(suite)...)
	}
	return packages
}

// TestLongSuitesAreComplete: a package with tests that "go test ./..." leaves out belongs to exactly one long suite, or nobody runs them.
func TestLongSuitesAreComplete(t *testing.T) {
	listed := suites(t)
	slices.Sort(listed)
	var want []string
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		data, err := os.ReadFile(path)
		if err == nil && (strings.Contains(string(data), "testutil."+"Long(") || strings.Contains(string(data), "testutil."+"IsLong(")) {
			want = append(want, "./"+filepath.ToSlash(strings.TrimPrefix(filepath.Dir(path), root+"/")))
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(want)
	if want = slices.Compact(want); !slices.Equal(listed, want) {
		t.Errorf("the Makefile's long suites have\n%s\nand tests with testutil.Long are in\n%s",
			strings.Join(listed, "\n"), strings.Join(want, "\n"))
	}
}
