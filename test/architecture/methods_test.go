package architecture

import (
	"go/ast"
	"maps"
	"slices"
	"strings"
	"testing"
)

const mostMethods = 40

// TestTypesDontKnowEverything: a type has at most 40 methods, or its comment has a sentence "Many methods, since …".
func TestTypesDontKnowEverything(t *testing.T) {
	reasons := 0
	for name, p := range readPackages(t, "pkg", "cmd", "test") {
		methods, comments := map[string]int{}, map[string]string{}
		for _, f := range p.files {
			if generated(f) {
				continue
			}
			for _, d := range f.Decls {
				switch d := d.(type) {
				case *ast.FuncDecl:
					if d.Recv != nil {
						methods[receiver(d.Recv.List[0].Type)]++
					}
				case *ast.GenDecl:
					for _, s := range d.Specs {
						if s, ok := s.(*ast.TypeSpec); ok {
							comments[s.Name.Name] = d.Doc.Text() + s.Doc.Text()
						}
					}
				}
			}
		}
		for _, typ := range slices.Sorted(maps.Keys(methods)) {
			n, reason := methods[typ], strings.Contains(comments[typ], "Many methods, since ")
			switch {
			case n > mostMethods && reason:
				reasons++
			case n > mostMethods:
				t.Errorf("%s.%s has %d methods, at most %d are allowed: divide it into parts, or say in its comment \"Many methods, since …\"", name, typ, n, mostMethods)
			case reason:
				t.Errorf("%s.%s has %d methods: the reason for many in its comment isn't needed", name, typ, n)
			}
		}
	}
	if reasons == 0 {
		t.Error("no type with a reason was found: the test looks in the wrong place")
	}
}

// receiver is the name of a method's type.
func receiver(e ast.Expr) string {
	switch e := e.(type) {
	case *ast.StarExpr:
		return receiver(e.X)
	case *ast.IndexExpr:
		return receiver(e.X)
	case *ast.IndexListExpr:
		return receiver(e.X)
	case *ast.Ident:
		return e.Name
	}
	return ""
}
