package disaster

import (
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// sections is what every page has, in this order.
var sections = []string{"You see", "What is lost and what isn't", "Do this", "When it doesn't work", "Afterwards"}

var (
	heading = regexp.MustCompile(`(?m)^## (.+)$`)
	link    = regexp.MustCompile(`\]\(([^)#\s]+\.md)?(#[^)\s]+)?\)`)
)

// TestPages holds all pages to one form: in the night nobody wants to learn a new one.
func TestPages(t *testing.T) {
	readme := readPage(t, "README.md")
	for _, name := range append(pages(t), "README.md") {
		p := readPage(t, name)
		if name != "README.md" {
			var found []string
			for _, m := range heading.FindAllStringSubmatch(p.text, -1) {
				found = append(found, m[1])
			}
			if !slices.Equal(found, sections) {
				t.Errorf("%s has the sections %q; want %q", name, found, sections)
			}
			if !strings.Contains(readme.text, "("+name+")") {
				t.Errorf("README.md doesn't link to %s", name)
			}
		}
		for _, b := range p.blocks {
			known := b.lang == "sh" || b.lang == "mermaid" || b.lang == "console" && slices.Contains([]string{"", "log", "status"}, b.arg)
			if !known {
				t.Errorf("%s: a block of kind %q", p.at(b), b.lang+" "+b.arg)
			}
		}
		for _, m := range link.FindAllStringSubmatch(p.text, -1) {
			target := name
			if m[1] != "" {
				target = m[1]
			}
			data, err := os.ReadFile(filepath.Join(docsDir, target))
			if err != nil {
				t.Errorf("%s links to %s: %v", name, m[1], err)
				continue
			}
			if m[2] != "" && !hasAnchor(string(data), m[2][1:]) {
				t.Errorf("%s links to %s, which has no such heading", name, m[0])
			}
		}
	}
}

// hasAnchor tells whether a heading of the text has that anchor, as GitHub makes them.
func hasAnchor(text, anchor string) bool {
	for line := range strings.Lines(text) {
		title := strings.TrimLeft(line, "#")
		if title == line {
			continue
		}
		id := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z':
				return r
			}
			return -1
		}, strings.ToLower(strings.TrimSpace(title)))
		if id == anchor {
			return true
		}
	}
	return false
}

var (
	cell   = regexp.MustCompile(`(?m)^\| (.*?) \|`)
	quoted = regexp.MustCompile("`([^`]+)`")
	varies = regexp.MustCompile(`…|[0-9]+`)
)

// TestQuotes looks for every sentence that a page says will be seen, in the first column of a table, in the source of what could say it.
func TestQuotes(t *testing.T) {
	source := sources(t)
	for _, name := range append(pages(t), "README.md") {
		for _, row := range cell.FindAllStringSubmatch(readPage(t, name).text, -1) {
			for _, q := range quoted.FindAllStringSubmatch(row[1], -1) {
				for _, part := range varies.Split(q[1], -1) {
					part = strings.Trim(part, " ,:;.()")
					if len(part) > 3 && !strings.Contains(source, part) {
						t.Errorf("%s quotes %q, but nothing says %q", name, q[1], part)
					}
				}
			}
		}
	}
}

// sources is the text of all programs, without tests.
func sources(t *testing.T) string {
	t.Helper()
	var all strings.Builder
	for _, root := range []string{"../../pkg", "../../cmd"} {
		must(t, filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if err != nil || e.IsDir() || !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
				return err
			}
			data, err := os.ReadFile(path)
			all.Write(data)
			return err
		}))
	}
	return all.String()
}

// notFollowed returns the blocks with commands that no test has run. It is asked after all tests.
func notFollowed() ([]string, error) {
	names, err := filepath.Glob(filepath.Join(docsDir, "*.md"))
	if err != nil {
		return nil, err
	}
	ran.Lock()
	defer ran.Unlock()
	var list []string
	for _, path := range names {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, err
		}
		p, err := parsePage(filepath.Base(path), string(data))
		if err != nil {
			return nil, err
		}
		if p.name == regionPage && !*regionFlag {
			continue // "make region" follows it
		}
		for _, b := range p.blocks {
			if b.lang == "sh" && !ran.blocks[p.at(b)] {
				list = append(list, fmt.Sprintf("%s (%s)", p.at(b), b.section))
			}
		}
	}
	return list, nil
}
