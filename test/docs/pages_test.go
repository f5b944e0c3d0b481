// Package docs holds the pages of the documentation to themselves: links lead somewhere, every page can be reached, and the README stays
// short. The commands on the pages are held to the programs by tests beside those, and followed by test/disaster.
package docs

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil/docstest"
)

const root = "../.."

var (
	link   = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	code   = regexp.MustCompile("(?s)```.*?```|`[^`\n]*`")
	anchor = regexp.MustCompile(`<a (?:id|name)="([^"]+)"`)
	scheme = regexp.MustCompile(`^[a-z]+:`)
)

// links are the targets of a page's links, without those in code.
func links(t *testing.T, page string) []string {
	t.Helper()
	data, err := os.ReadFile(page)
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, m := range link.FindAllStringSubmatch(code.ReplaceAllString(string(data), ""), -1) {
		list = append(list, m[1])
	}
	return list
}

// TestLinks: every link to a file and to a heading leads somewhere; a link to the web is https and has no blanks.
func TestLinks(t *testing.T) {
	seen := 0
	for _, page := range docstest.Pages(t, root) {
		for _, target := range links(t, page) {
			seen++
			if problem := broken(page, target); problem != "" {
				t.Errorf("%s links to %s: %s", page, target, problem)
			}
		}
	}
	if seen < 200 {
		t.Errorf("only %d links were found", seen)
	}
	readme := filepath.Join(root, "README.md")
	for _, wrong := range []string{"no-such-page.md", "docs/ctl.md#no-such-heading", "http://example.com"} {
		if broken(readme, wrong) == "" {
			t.Errorf("a link to %s is taken for good", wrong)
		}
	}
}

func broken(page, target string) string {
	if scheme.MatchString(target) {
		if !strings.HasPrefix(target, "https://") && !strings.HasPrefix(target, "mailto:") {
			return "it is not https"
		}
		return ""
	}
	path, heading, _ := strings.Cut(target, "#")
	full := page
	if path != "" {
		full = filepath.Join(filepath.Dir(page), path)
	}
	info, err := os.Stat(full)
	switch {
	case err != nil:
		return "there is no such file"
	case heading == "":
		return ""
	case info.IsDir() || !strings.HasSuffix(full, ".md"):
		return "only pages have headings"
	}
	data, err := os.ReadFile(full)
	if err != nil {
		return err.Error()
	}
	if !headings(string(data))[heading] {
		return "there is no such heading"
	}
	return ""
}

// headings are the anchors that GitHub makes of a page's headings.
func headings(text string) map[string]bool {
	set := map[string]bool{}
	for _, m := range anchor.FindAllStringSubmatch(text, -1) {
		set[m[1]] = true
	}
	fenced := false
	for line := range strings.Lines(text) {
		if strings.HasPrefix(strings.TrimSpace(line), "```") {
			fenced = !fenced
		}
		title := strings.TrimLeft(line, "#")
		if fenced || title == line || !strings.HasPrefix(title, " ") {
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
		}, strings.ToLower(strings.TrimSpace(link.ReplaceAllString(title, "]"))))
		for i := 0; ; i++ { // GitHub numbers headings of the same name
			name := id
			if i > 0 {
				name = fmt.Sprintf("%s-%d", id, i)
			}
			if !set[name] {
				set[name] = true
				break
			}
		}
	}
	return set
}

// TestEveryPageIsReached: from README.md, every page below docs can be reached by links.
func TestEveryPageIsReached(t *testing.T) {
	reached := map[string]bool{}
	var visit func(page string)
	visit = func(page string) {
		if reached[page] || !strings.HasSuffix(page, ".md") {
			return
		}
		reached[page] = true
		for _, target := range links(t, page) {
			path, _, _ := strings.Cut(target, "#")
			full := filepath.Join(filepath.Dir(page), path)
			if _, err := os.Stat(full); err == nil && path != "" && !scheme.MatchString(target) {
				visit(full)
			}
		}
	}
	visit(filepath.Join(root, "README.md"))
	for _, page := range docstest.Pages(t, root) {
		if strings.HasPrefix(page, filepath.Join(root, "docs")) && !reached[page] {
			t.Errorf("no link leads to %s", page)
		}
	}
}

// TestReadmeIsShort: the README fits on a screen, and has the command that continuous integration runs.
func TestReadmeIsShort(t *testing.T) {
	const most = 450
	data, err := os.ReadFile(filepath.Join(root, "README.md"))
	if err != nil {
		t.Fatal(err)
	}
	if words := len(strings.Fields(string(data))); words > most {
		t.Errorf("README.md has %d words; more than %d belong on pages below docs", words, most)
	}
	ci, err := os.ReadFile(filepath.Join(root, ".ci/run"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(data), "go test ./...") || !strings.Contains(string(ci), "go test -json ./...") {
		t.Error("README.md and .ci/run don't run the same tests")
	}
}
