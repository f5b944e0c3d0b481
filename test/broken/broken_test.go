package broken

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"
)

var (
	breakIt = flag.Bool("broken", false, "break the code in one place after the other, and run what has to find it")
	only    = flag.String("only", "", "break only where the variant's name matches this regular expression")
)

const root = "../.."

// variant is one way in which the code is broken.
type variant struct {
	name, what string
	// seeds is within how many seeds the simulation finds it; 0 if the tests of packages have to.
	seeds int
	// tests are the arguments of "go test" for the tests that find it.
	tests []string
	// open says why nothing finds it yet, or is empty.
	open  string
	edits []edit
}

// edit replaces a text that the file has once.
type edit struct{ file, from, to string }

// read reads testdata/variants.txt. A variant begins with "== NAME". Lines "what:", "sim:", "tests:" and "open:" say what is broken and what
// finds it, "file:" begins an edit, and lines that begin with - and + are what is there and what takes its place.
func read(t *testing.T) []variant {
	t.Helper()
	data, err := os.ReadFile("testdata/variants.txt")
	if err != nil {
		t.Fatal(err)
	}
	var list []variant
	for i, line := range strings.Split(string(data), "\n") {
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		if name, ok := strings.CutPrefix(line, "== "); ok {
			list = append(list, variant{name: name})
			continue
		}
		if len(list) == 0 || !list[len(list)-1].take(line) {
			t.Fatalf("testdata/variants.txt:%d: %q isn't understood", i+1, line)
		}
	}
	return list
}

// take takes one line of a variant.
func (v *variant) take(line string) bool {
	key, value, _ := strings.Cut(line, ": ")
	var e *edit
	if len(v.edits) > 0 {
		e = &v.edits[len(v.edits)-1]
	}
	switch {
	case e != nil && strings.HasPrefix(line, "-"):
		if e.to != "" { // another place in the same file
			v.edits = append(v.edits, edit{file: e.file})
			e = &v.edits[len(v.edits)-1]
		}
		e.from += line[1:] + "\n"
	case e != nil && strings.HasPrefix(line, "+"):
		e.to += line[1:] + "\n"
	case key == "what":
		v.what = value
	case key == "sim":
		v.seeds, _ = strconv.Atoi(value)
		return v.seeds > 0
	case key == "tests":
		v.tests = strings.Fields(value)
	case key == "open":
		v.open = value
	case key == "file":
		v.edits = append(v.edits, edit{file: value})
	default:
		return false
	}
	return true
}

// apply is the content of the files that a variant changes.
func (v *variant) apply() (map[string]string, error) {
	files := map[string]string{}
	for _, e := range v.edits {
		text, ok := files[e.file]
		if !ok {
			data, err := os.ReadFile(filepath.Join(root, e.file))
			if err != nil {
				return nil, err
			}
			text = string(data)
		}
		if n := strings.Count(text, e.from); n != 1 || e.from == "" {
			return nil, fmt.Errorf("%s has this %d times, want once:\n%s", e.file, n, e.from)
		}
		files[e.file] = strings.Replace(text, e.from, e.to, 1)
	}
	return files, nil
}

// TestApply: each variant still says what finds it, and still fits the code.
func TestApply(t *testing.T) {
	names := map[string]bool{}
	for _, v := range read(t) {
		if names[v.name] || v.what == "" || len(v.edits) == 0 || (v.seeds > 0) == (len(v.tests) > 0) {
			t.Errorf("%s: named twice, or it doesn't say what is broken, where, and what finds it", v.name)
		}
		names[v.name] = true
		if _, err := v.apply(); err != nil {
			t.Errorf("%s: %v", v.name, err)
		}
	}
	if len(names) < 25 {
		t.Errorf("only %d variants", len(names))
	}
}

// TestBroken breaks the code, and fails for each variant that isn't found.
func TestBroken(t *testing.T) {
	if !*breakIt {
		t.Skip("takes a quarter of an hour: make broken")
	}
	match, err := regexp.Compile(*only)
	if err != nil {
		t.Fatal(err)
	}
	var table strings.Builder
	for _, v := range read(t) {
		if !match.MatchString(v.name) {
			continue
		}
		began := time.Now()
		by, says, err := v.find(t)
		if err != nil {
			t.Errorf("%s: %v", v.name, err)
			continue
		}
		switch {
		case by == "" && v.open != "":
			by, says = "nothing", v.open
		case by == "":
			by = "NOTHING"
			t.Errorf("%s isn't found: %s", v.name, v.what)
		}
		line := fmt.Sprintf("| `%s` | %s | %s | %s |", v.name, v.what, by, says)
		fmt.Fprintln(&table, line)
		t.Logf("%s (%s)", line, time.Since(began).Round(time.Second))
	}
	t.Logf("\n| variant | broken | found by | as |\n|---|---|---|---|\n%s", table.String())
}

var (
	seedSaid = regexp.MustCompile(`sim_test\.go:\d+: seed (\d+): (.*)`)
	testSaid = regexp.MustCompile(`--- FAIL: (\S+)`)
)

// find runs what has to find a variant. It says by what it was found and as what; empty if it wasn't.
func (v *variant) find(t *testing.T) (by, says string, err error) {
	files, err := v.apply()
	if err != nil {
		return "", "", err
	}
	dir := t.TempDir()
	overlay := map[string]map[string]string{"Replace": {}}
	for name, text := range files {
		real, err := filepath.Abs(filepath.Join(root, name))
		if err != nil {
			return "", "", err
		}
		changed := filepath.Join(dir, strings.ReplaceAll(name, "/", "_"))
		if err := os.WriteFile(changed, []byte(text), 0o600); err != nil {
			return "", "", err
		}
		overlay["Replace"][real] = changed
	}
	data, err := json.Marshal(overlay)
	if err != nil {
		return "", "", err
	}
	path := filepath.Join(dir, "overlay.json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		return "", "", err
	}
	args := v.tests
	if v.seeds > 0 {
		args = []string{"./test/sim", "-run=TestSimulation", "-failures=1", "-seeds=" + strconv.Itoa(v.seeds)}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	args = append([]string{"test", "-vet=off", "-count=1", "-overlay=" + path}, args...)
	cmd := exec.CommandContext(ctx, "go", args...) //nolint:gosec // it is the test's
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	said := string(out)
	switch {
	case err == nil:
		return "", "", nil
	case strings.Contains(said, "[build failed]") || strings.Contains(said, "[setup failed]"):
		return "", "", fmt.Errorf("it can't be built: %s", said)
	case v.seeds > 0:
		if m := seedSaid.FindStringSubmatch(said); m != nil {
			return "seed " + m[1], m[2], nil
		}
		if i := strings.Index(said, "panic: "); i >= 0 {
			line, _, _ := strings.Cut(said[i:], "\n")
			return "a seed", line, nil
		}
	default:
		if m := testSaid.FindStringSubmatch(said); m != nil {
			return "`" + m[1] + "`", "its failure", nil
		}
	}
	return "", "", fmt.Errorf("it ended with %w: %s", err, said[:min(len(said), 4000)])
}
