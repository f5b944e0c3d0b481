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

// TestAttentionAt: the commands that are printed can be copied.
func TestAttentionAt(t *testing.T) {
	a := Attention{Text: "run: etcd-manager-ctl --backup-store=URL get", Command: "etcd-manager-ctl --backup-store=URL get && x --backup-store=URL",
		NoCommand: "or --backup-store=URL"}
	got := a.At("s3://b/main")
	if got.Text != "run: etcd-manager-ctl --backup-store=s3://b/main get" || got.NoCommand != "or --backup-store=s3://b/main" ||
		got.Command != "etcd-manager-ctl --backup-store=s3://b/main get && x --backup-store=s3://b/main" {
		t.Errorf("%+v", got)
	}
	if a.At("") != a {
		t.Errorf("without a store: %+v", a.At(""))
	}
}

// TestMemberCountFor: the advised count is what runs, and always one that is possible.
func TestMemberCountFor(t *testing.T) {
	for running, want := range map[int]int{-1: 3, 0: 3, 1: 1, 2: 3, 3: 3, 4: 5, 5: 5, 8: 9, 9: 9, 10: 9, 12: 9} {
		if got := MemberCountFor(running); got != want || !ValidMemberCount(got) {
			t.Errorf("%d run: %d is advised", running, got)
		}
	}
}
