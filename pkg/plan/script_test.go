package plan

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "write what the scripts in testdata print now as what is expected")

// TestScripts runs testdata/*.txt. A script is a list of lines that make a world (world_test.go has the words) and of questions,
// which are lines that begin with "next" or "check". Below a question stand "----" and the expected answer, up to a blank line.
// Lines that begin with # are comments.
func TestScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) { runScript(t, file) })
	}
}

func runScript(t *testing.T, file string) {
	raw, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	w := newWorld()
	lines := strings.Split(strings.TrimRight(string(raw), "\n"), "\n")
	for i := 0; i < len(lines); {
		line := lines[i]
		i++
		out.WriteString(line + "\n")
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		at := i
		words, err := splitWords(line)
		if err != nil {
			t.Fatalf("%s:%d: %v", file, at, err)
		}
		got, err := w.do(words)
		if err != nil {
			t.Fatalf("%s:%d: %s: %v", file, at, line, err)
		}
		if got == "" {
			continue
		}
		var want strings.Builder
		if i < len(lines) && lines[i] == "----" {
			for i++; i < len(lines) && lines[i] != ""; i++ {
				want.WriteString(lines[i] + "\n")
			}
		}
		out.WriteString("----\n" + got)
		if got != want.String() && !*rewrite {
			t.Errorf("%s:%d: %s\ngot:\n%swant:\n%s", file, at, line, got, want.String())
		}
	}
	if *rewrite {
		if err := os.WriteFile(file, []byte(out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
