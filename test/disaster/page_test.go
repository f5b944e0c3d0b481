package disaster

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// docsDir is where the pages are, as seen from this package.
const docsDir = "../../docs/disaster"

// page is one page of docs/disaster, as far as it can be run.
type page struct {
	name   string
	title  string
	blocks []block
	text   string
}

// block is a fenced block. Its info string says what it is:
//
//	sh                   run on the operator's machine; variables and directory stay for the next one
//	sh typing WORD       the same, by a person who types WORD when asked
//	sh on-GROUP          run on each master of that group, one after the other
//	console              what the block before prints; other lines may be printed too, and in another order
//	console log          lines that a manager's log has by now
//	console status       lines that the leader's status page has by now
//	text, mermaid, …     for the reader alone
type block struct {
	line int
	// section is the headings above it, joined by " / ".
	section string
	lang    string
	arg     string
	text    string
}

func (p *page) at(b block) string { return fmt.Sprintf("docs/disaster/%s:%d", p.name, b.line) }

// readPage reads a page of docs/disaster.
func readPage(t testing.TB, name string) *page {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(docsDir, name))
	must(t, err)
	p, err := parsePage(name, string(data))
	must(t, err)
	return p
}

// parsePage finds headings and fenced blocks. A fence may be indented, as it is below a list item; its indentation is taken off.
func parsePage(name, text string) (*page, error) {
	p := &page{name: name, text: text}
	var headings []string
	var open *block
	indent, fence := "", ""
	for i, line := range strings.Split(text, "\n") {
		trimmed := strings.TrimLeft(line, " ")
		switch {
		case open != nil && strings.TrimSpace(line) == fence:
			p.blocks = append(p.blocks, *open)
			open = nil
		case open != nil:
			if rest, ok := strings.CutPrefix(line, indent); ok {
				line = rest
			} else if trimmed != "" {
				return nil, fmt.Errorf("%s:%d: the line is indented less than its block", name, i+1)
			}
			open.text += line + "\n"
		case strings.HasPrefix(trimmed, "```"):
			indent = line[:len(line)-len(trimmed)]
			fence = "```"
			lang, arg, _ := strings.Cut(strings.TrimPrefix(trimmed, fence), " ")
			open = &block{line: i + 1, section: strings.Join(headings, " / "), lang: lang, arg: arg}
		case strings.HasPrefix(line, "# "):
			p.title = strings.TrimPrefix(line, "# ")
		case strings.HasPrefix(line, "##"):
			level := len(line) - len(strings.TrimLeft(line, "#"))
			headings = append(headings[:min(level-2, len(headings))], strings.TrimSpace(line[level:]))
		}
	}
	if open != nil {
		return nil, fmt.Errorf("%s:%d: the block has no end", name, open.line)
	}
	return p, nil
}

// in returns the blocks below headings that contain word, as they stand on the page.
func (p *page) in(word string) []block {
	var list []block
	for _, b := range p.blocks {
		if strings.Contains(b.section, word) {
			list = append(list, b)
		}
	}
	return list
}

// loose are the parts of printed output that differ from one time to the next, each with what may stand in its place. Everything
// else has to be printed as the page says, except that spaces count as one.
var loose = []struct{ on, off string }{
	{`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ-\d{6}`, `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ-\w+`},
	{`\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ`, `\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d+)?Z`},
	{`\b[A-Z2-7]{16}\b`, `[A-Z2-7]{16}`},
	{`s3://[^\s,;'")]+`, `[^\s,;'")]+`},
	{`/(?:var/lib|root)/[^\s,;'")]+`, `/[^\s,;'")]+`},
	{`\b[0-9a-f]{14,16}\b`, `[0-9a-f]{10,16}`},
	{`\b\d+(?:\.\d+)? ?(?:[KMG]iB|[kMG]?B)\b`, `\d+(?:\.\d+)? ?(?:[KMG]iB|[kMG]?B)`},
	{`\b(?:\d+(?:\.\d+)?(?:ms|[µsmhd]))+\b`, `(?:\d+(?:\.\d+)?(?:ms|µs|[smhd]))+`},
	{`\d[\d,]*`, `\d[\d,]*`},
	{`…`, `.*`},
	{`\s+`, `\s+`},
}

var looseParts = func() *regexp.Regexp {
	var parts []string
	for _, l := range loose {
		parts = append(parts, "("+l.on+")")
	}
	return regexp.MustCompile(strings.Join(parts, "|"))
}()

// pattern makes a regular expression out of a line of expected output.
func pattern(line string) string {
	var out strings.Builder
	rest := 0
	for _, m := range looseParts.FindAllStringSubmatchIndex(line, -1) {
		out.WriteString(regexp.QuoteMeta(line[rest:m[0]]))
		rest = m[1]
		for i, l := range loose {
			if m[2*i+2] >= 0 {
				out.WriteString(l.off)
				break
			}
		}
	}
	return out.String() + regexp.QuoteMeta(line[rest:])
}

// missing returns the first line of want for which got has none, or "". With inside, a line may stand in a longer one, and one
// line of got may do for several.
func missing(want, got string, inside bool) string {
	lines := strings.Split(got, "\n")
	for _, w := range strings.Split(want, "\n") {
		w = strings.TrimSpace(w)
		if w == "" || w == "…" {
			continue
		}
		expr := `^\s*` + pattern(w) + `\s*$`
		if inside {
			expr = pattern(w)
		}
		i := slices.IndexFunc(lines, regexp.MustCompile(expr).MatchString)
		if i < 0 {
			return w
		}
		if !inside {
			lines = slices.Delete(lines, i, i+1)
		}
	}
	return ""
}
