// Package docstest reads the documentation for tests that hold it to the programs: which pages there are, and which command lines stand
// on them. It must never run what it reads.
package docstest

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// Pages returns the pages for users and developers below the root of the repository: README.md, docs, contrib and test.
func Pages(t testing.TB, root string) []string {
	t.Helper()
	pages, err := filepath.Glob(filepath.Join(root, "*.md"))
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"docs", "contrib", "test"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, e fs.DirEntry, err error) error {
			if err == nil && !e.IsDir() && strings.HasSuffix(path, ".md") {
				pages = append(pages, path)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return pages
}

// Line is a command line on a page, as words.
type Line struct {
	Page  string
	Line  int
	Words []string
}

var inline = regexp.MustCompile("`([^`]+)`")

// Lines returns the command lines that begin with one of the programs: in fenced blocks, and in the text between backquotes.
func Lines(t testing.TB, page string, programs ...string) []Line {
	t.Helper()
	data, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var lines []Line
	add := func(number int, text string) {
		for _, part := range split(text) {
			if words := command(part, programs); words != nil {
				lines = append(lines, Line{page, number, words})
			}
		}
	}
	fenced, pending := false, ""
	for i, text := range strings.Split(string(data), "\n") {
		switch {
		case strings.HasPrefix(strings.TrimSpace(text), "```"):
			fenced, pending = !fenced, ""
		case fenced:
			if rest, ok := strings.CutSuffix(text, "\\"); ok {
				pending += rest
				continue
			}
			add(i+1, pending+text)
			pending = ""
		default:
			for _, m := range inline.FindAllStringSubmatch(text, -1) {
				if !strings.HasPrefix(m[1], "cmd/") { // the name of a test in that package
					add(i+1, m[1])
				}
			}
		}
	}
	return lines
}

var separator = regexp.MustCompile(`&&|\|\||[|;]|\$\(|\) `)

// split divides a line of a shell into commands, roughly: quotes keep their text together, and a comment ends the line.
func split(text string) []string {
	text, _, _ = strings.Cut(text, "  #")
	text, _, _ = strings.Cut(text, "   (")
	if strings.ContainsAny(text, `'"`) {
		quoted := regexp.MustCompile(`'[^']*'|"[^"]*"`)
		text = quoted.ReplaceAllStringFunc(text, strings.NewReplacer(" ", "\x00", "|", "\x01", ";", "\x02").Replace)
	}
	return separator.Split(text, -1)
}

// command returns the words of a command if it is one of the programs, without what stands before and behind: a prompt, sudo, redirections.
func command(text string, programs []string) []string {
	words := strings.Fields(text)
	before := []string{"$", "sudo", "exec", "do", "time", "until", "if", "then"}
	for len(words) > 0 && (slices.Contains(before, words[0]) || variable.MatchString(words[0])) {
		words = words[1:]
	}
	if len(words) == 0 || !slices.Contains(programs, filepath.Base(words[0])) {
		return nil
	}
	for i, w := range words {
		if strings.ContainsAny(w, "<>") || w == "&" {
			words = words[:i]
			break
		}
		words[i] = strings.NewReplacer("\x00", " ", "\x01", "|", "\x02", ";", `"`, "", "'", "").Replace(w)
	}
	return words
}

var variable = regexp.MustCompile(`^[A-Z_0-9]+=\S*$`)
