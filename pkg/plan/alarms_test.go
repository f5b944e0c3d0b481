package plan

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
)

// open is why a sentence has no script that nobody has written yet.
const open = "no script reaches it yet"

// unscripted are sentences that call for a person and that no script has, with why.
var unscripted = map[string]string{
	"%s": "it is given on as it is",
	"forming can't start over: node %s belongs to another cluster (token %s); it is not touched; move its data dir away":                      open,
	"node %s can't join: it has data of cluster %s, and the store doesn't say that they aren't needed; move its data dir away if they aren't": open,
	"%s; this can't be taken back, so it waits for the store: %s":                                                                             open,
	"%d members run and %d are wanted, but only %d are healthy; none is removed":                                                              "a victim is only healthy if all are, and then a quorum is left: it guards what follows",
}

// TestEveryAlarmHasAScript: each sentence that calls for a person is the answer to a question in testdata.
func TestEveryAlarmHasAScript(t *testing.T) {
	files, err := filepath.Glob("testdata/*.txt")
	if err != nil {
		t.Fatal(err)
	}
	var scripts strings.Builder
	for _, file := range files {
		data, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		scripts.Write(data)
	}
	sources, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	set := token.NewFileSet()
	n := 0
	for _, source := range sources {
		if strings.HasSuffix(source, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(set, source, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(f, func(node ast.Node) bool {
			sentence, ok := calls(node)
			if !ok || unscripted[sentence] != "" {
				return true
			}
			n++
			if !said(sentence).MatchString(scripts.String()) {
				t.Errorf("%s: no script has %q", set.Position(node.Pos()), sentence)
			}
			return true
		})
	}
	if n < 60 {
		t.Errorf("only %d sentences were found", n)
	}
}

// calls is the sentence of a call for a person.
func calls(n ast.Node) (string, bool) {
	c, ok := n.(*ast.CallExpr)
	if !ok {
		return "", false
	}
	f, ok := c.Fun.(*ast.Ident)
	at := map[string]int{"alarm": 0, "needs": 1}
	if !ok {
		return "", false
	}
	i, ok := at[f.Name]
	if !ok || len(c.Args) <= i {
		return "", false
	}
	return literal(c.Args[i])
}

// literal is what is written down of a string; a constant stands for any words.
func literal(e ast.Expr) (string, bool) {
	switch e := e.(type) {
	case *ast.BasicLit:
		s, err := strconv.Unquote(e.Value)
		return s, err == nil
	case *ast.BinaryExpr:
		x, ok := literal(e.X)
		y, ok2 := literal(e.Y)
		return x + y, ok && ok2
	case *ast.Ident:
		return "%s", true
	}
	return "", false
}

// said matches a sentence whatever stands for its verbs.
func said(sentence string) *regexp.Regexp {
	parts := regexp.MustCompile(`%[-+#.\d]*[a-z]`).Split(sentence, -1)
	for i := range parts {
		parts[i] = regexp.QuoteMeta(parts[i])
	}
	return regexp.MustCompile(strings.Join(parts, ".*"))
}
