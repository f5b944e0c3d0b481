package cluster

import (
	"go/ast"
	"go/parser"
	"go/token"
	"slices"
	"strconv"
	"testing"
)

// TestAttentionKinds: all kinds that the source has are listed, each once, and each has a way to end.
func TestAttentionKinds(t *testing.T) {
	f, err := parser.ParseFile(token.NewFileSet(), "attention.go", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var found []AttentionKind
	ast.Inspect(f, func(n ast.Node) bool {
		v, ok := n.(*ast.ValueSpec)
		if !ok {
			return true
		}
		if typ, ok := v.Type.(*ast.Ident); ok && typ.Name == "AttentionKind" {
			text, err := strconv.Unquote(v.Values[0].(*ast.BasicLit).Value)
			if err != nil {
				t.Fatal(err)
			}
			found = append(found, AttentionKind(text))
		}
		return true
	})
	kinds := AttentionKinds()
	if len(found) < 20 || len(found) != len(kinds) {
		t.Errorf("the source has %d kinds: %v; listed are %d", len(found), found, len(kinds))
	}
	for _, k := range found {
		if !slices.Contains(kinds, k) {
			t.Errorf("%s isn't listed", k)
		}
		if a := (Attention{Kind: k, Text: "x"}).Ended(); a.NoCommand == "" {
			t.Errorf("nothing ends %s", k)
		}
	}
}
