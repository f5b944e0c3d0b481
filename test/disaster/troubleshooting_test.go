package disaster

import (
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// TestTroubleshooting: the page has every kind of attention and of finding, no other, and no message that nothing says.
func TestTroubleshooting(t *testing.T) {
	p := readPage(t, "../troubleshooting.md")
	kinds := map[string]bool{}
	for _, k := range cluster.AttentionKinds() {
		kinds[string(k)] = true
	}
	for _, k := range findingKinds(t) {
		kinds[k] = true
	}
	if len(kinds) < 35 {
		t.Errorf("only %d kinds were found", len(kinds))
	}
	_, rest, _ := strings.Cut(p.text, "## What status says")
	table, messages, ok := strings.Cut(rest, "## Starting the manager")
	if !ok {
		t.Fatal("the page has other headings")
	}
	onPage := map[string]bool{}
	for _, m := range regexp.MustCompile("(?m)^\\| `([a-z-]+)` \\|").FindAllStringSubmatch(table, -1) {
		onPage[m[1]] = true
		if !kinds[m[1]] {
			t.Errorf("the page has the kind %q, which doesn't exist", m[1])
		}
	}
	for k := range kinds {
		if !onPage[k] {
			t.Errorf("the page has nothing about %q", k)
		}
	}
	source := sources(t)
	quotes := 0
	for _, row := range cell.FindAllStringSubmatch(messages, -1) {
		for _, q := range quoted.FindAllStringSubmatch(row[1], -1) {
			for _, part := range varies.Split(q[1], -1) {
				if part = strings.Trim(part, " ,:;.()"); len(part) > 3 {
					quotes++
					if !strings.Contains(source, part) {
						t.Errorf("the page quotes %q, but nothing says %q", q[1], part)
					}
				}
			}
		}
	}
	if quotes < 25 {
		t.Errorf("only %d messages were checked", quotes)
	}
}

// findingKinds are the values of the constants Kind… of package health.
func findingKinds(t *testing.T) []string {
	t.Helper()
	names, err := filepath.Glob("../../pkg/operator/health/*.go")
	must(t, err)
	var list []string
	for _, name := range names {
		file, err := parser.ParseFile(gotoken.NewFileSet(), name, nil, 0)
		must(t, err)
		ast.Inspect(file, func(n ast.Node) bool {
			v, ok := n.(*ast.ValueSpec)
			if !ok || len(v.Names) != 1 || len(v.Values) != 1 || !strings.HasPrefix(v.Names[0].Name, "Kind") {
				return true
			}
			if lit, ok := v.Values[0].(*ast.BasicLit); ok {
				value, err := strconv.Unquote(lit.Value)
				must(t, err)
				list = append(list, value)
			}
			return true
		})
	}
	return list
}
