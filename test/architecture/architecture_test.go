// Package architecture holds the code to docs/design.md: who may import whom, and the house rules that a
// compiler doesn't know.
package architecture

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

const (
	module = "github.com/etcd-manager/etcd-manager/"
	root   = "../.."
	design = root + "/docs/design.md"
)

// row is one row of the design's table.
type row struct {
	duty       string
	everything bool
	may        []string
}

// readTable reads the table of packages between its markers.
func readTable(doc string) (map[string]row, error) {
	_, rest, found := strings.Cut(doc, "<!-- imports: begin -->")
	table, _, closed := strings.Cut(rest, "<!-- imports: end -->")
	if !found || !closed {
		return nil, fmt.Errorf("the markers of the table are missing")
	}
	rows := map[string]row{}
	for line := range strings.Lines(table) {
		line = strings.TrimSpace(line)
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		cells := strings.Split(strings.Trim(line, "|"), "|")
		if len(cells) != 3 {
			return nil, fmt.Errorf("not three cells: %s", line)
		}
		name := strings.Trim(cells[0], " `")
		if _, twice := rows[name]; twice {
			return nil, fmt.Errorf("%s stands there twice", name)
		}
		r := row{duty: strings.TrimSpace(cells[1])}
		switch may := strings.TrimSpace(cells[2]); may {
		case "–":
		case "everything":
			r.everything = true
		default:
			for grant := range strings.SplitSeq(may, ",") {
				grant = strings.TrimSpace(grant)
				if len(grant) < 3 || grant[0] != '`' || grant[len(grant)-1] != '`' {
					return nil, fmt.Errorf("%s: %q is not a package", name, grant)
				}
				r.may = append(r.may, strings.Trim(grant, "`"))
			}
		}
		rows[name] = r
	}
	if len(rows) < 10 {
		return nil, fmt.Errorf("only %d rows were found", len(rows))
	}
	return rows, nil
}

// code is one package: its files without tests, parsed.
type code struct {
	files map[string]*ast.File // by path relative to the root
	fset  *token.FileSet
}

// generated tells whether a file says of itself that a tool wrote it.
func generated(f *ast.File) bool { return ast.IsGenerated(f) }

// readPackages parses every package below the directories, by path relative to the root.
func readPackages(t *testing.T, dirs ...string) map[string]*code {
	t.Helper()
	packages := map[string]*code{}
	for _, dir := range dirs {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			if d.IsDir() && (d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".")) {
				return filepath.SkipDir
			}
			if d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") {
				return nil
			}
			rel, err := filepath.Rel(root, path)
			if err != nil {
				return err
			}
			name := filepath.ToSlash(filepath.Dir(rel))
			p := packages[name]
			if p == nil {
				p = &code{files: map[string]*ast.File{}, fset: token.NewFileSet()}
				packages[name] = p
			}
			f, err := parser.ParseFile(p.fset, path, nil, parser.ParseComments)
			if err != nil {
				return err
			}
			p.files[filepath.ToSlash(rel)] = f
			return nil
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return packages
}

// imports lists what a package imports directly, each once.
func (c *code) imports() []string {
	all := map[string]bool{}
	for _, f := range c.files {
		for _, i := range f.Imports {
			if path, err := strconv.Unquote(i.Path.Value); err == nil {
				all[path] = true
			}
		}
	}
	return slices.Sorted(maps.Keys(all))
}

// checkImports returns every breach of the table.
func checkImports(table map[string]row, imports map[string][]string) []string {
	var breaches []string
	for _, name := range slices.Sorted(maps.Keys(imports)) {
		r, known := table[name]
		if !known {
			breaches = append(breaches, fmt.Sprintf("package %s is not in the table of docs/design.md", name))
			continue
		}
		for _, path := range imports[name] {
			own, ok := strings.CutPrefix(path, module)
			if !ok || r.everything || slices.Contains(r.may, own) {
				continue
			}
			breaches = append(breaches, fmt.Sprintf("package %s imports %s, which docs/design.md doesn't grant it", name, own))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(table)) {
		if _, exists := imports[name]; !exists {
			breaches = append(breaches, fmt.Sprintf("docs/design.md speaks of package %s, which doesn't exist", name))
		}
		for _, grant := range table[name].may {
			if _, exists := table[grant]; !exists {
				breaches = append(breaches, fmt.Sprintf("docs/design.md grants %s the package %s, which is not in the table", name, grant))
			}
		}
	}
	return breaches
}

func designTable(t *testing.T) map[string]row {
	t.Helper()
	doc, err := os.ReadFile(design)
	if err != nil {
		t.Fatal(err)
	}
	table, err := readTable(string(doc))
	if err != nil {
		t.Fatalf("table in docs/design.md: %v", err)
	}
	return table
}

func TestImportsFollowTheDesign(t *testing.T) {
	imports := map[string][]string{}
	for name, p := range readPackages(t, "pkg", "cmd", "protos") {
		imports[name] = p.imports()
	}
	for _, b := range checkImports(designTable(t), imports) {
		t.Error(b)
	}
}

// TestTheCheckItselfFails breaks every rule once.
func TestTheCheckItselfFails(t *testing.T) {
	table := map[string]row{"pkg/a": {may: []string{"pkg/b"}}, "pkg/b": {}, "cmd/x": {everything: true}}
	for _, c := range []struct {
		imports map[string][]string
		want    string
	}{
		{map[string][]string{"pkg/a": {module + "pkg/b", "fmt"}, "pkg/b": nil, "cmd/x": {module + "pkg/a"}}, ""},
		{map[string][]string{"pkg/a": nil, "pkg/b": {module + "pkg/a"}, "cmd/x": nil}, "pkg/b imports pkg/a"},
		{map[string][]string{"pkg/a": nil, "pkg/b": nil, "cmd/x": nil, "pkg/c": nil}, "pkg/c is not in the table"},
		{map[string][]string{"pkg/a": nil, "cmd/x": nil}, "pkg/b, which doesn't exist"},
		{map[string][]string{"pkg/a": {module + "pkg/b/c"}, "pkg/b": nil, "cmd/x": nil}, "pkg/a imports pkg/b/c"},
	} {
		got := strings.Join(checkImports(table, c.imports), "\n")
		if (c.want == "") != (got == "") || !strings.Contains(got, c.want) {
			t.Errorf("%v: %q, want %q", c.imports, got, c.want)
		}
	}
}

// position names a place in a file as compilers do.
func (c *code) position(path string, n ast.Node) string {
	return fmt.Sprintf("%s:%d", path, c.fset.Position(n.Pos()).Line)
}

// calls reports every use of pkg.name for which banned returns true, where pkg is the import path.
func (c *code) calls(banned func(pkg, name string) bool) []string {
	var found []string
	for _, path := range slices.Sorted(maps.Keys(c.files)) {
		f := c.files[path]
		local := map[string]string{} // name in the file → import path
		for _, i := range f.Imports {
			target, err := strconv.Unquote(i.Path.Value)
			if err != nil {
				continue
			}
			name := target[strings.LastIndex(target, "/")+1:]
			if strings.HasPrefix(target, "k8s.io/klog/") {
				name = "klog"
			}
			if strings.HasPrefix(target, "math/rand") {
				name = "rand"
			}
			if i.Name != nil {
				name = i.Name.Name
			}
			local[name] = target
		}
		ast.Inspect(f, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if x, ok := s.X.(*ast.Ident); ok && x.Obj == nil && local[x.Name] != "" && banned(local[x.Name], s.Sel.Name) {
				found = append(found, c.position(path, s)+" uses "+local[x.Name]+"."+s.Sel.Name)
			}
			return true
		})
	}
	return found
}

// exits tells whether a function ends the process.
func exits(pkg, name string) bool {
	switch {
	case pkg == "os":
		return name == "Exit"
	case pkg == "log":
		return strings.HasPrefix(name, "Fatal")
	case strings.HasPrefix(pkg, "k8s.io/klog/"):
		return strings.HasPrefix(name, "Fatal") || strings.HasPrefix(name, "Exit")
	}
	return false
}

func TestLibrariesNeverExit(t *testing.T) {
	for _, p := range readPackages(t, "pkg") {
		for _, f := range p.calls(exits) {
			t.Errorf("%s: only main may end the process", f)
		}
	}
}

func TestNoInit(t *testing.T) {
	for _, p := range readPackages(t, "pkg", "cmd") {
		for path, f := range p.files {
			if generated(f) {
				continue
			}
			for _, d := range f.Decls {
				if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
					t.Errorf("%s: init runs before flags and the env file are read", p.position(path, fn))
				}
			}
		}
	}
}

func TestEveryPackageHasADocComment(t *testing.T) {
	for name, p := range readPackages(t, "pkg", "cmd", "test") {
		if strings.HasPrefix(name, "test/tools/") {
			continue
		}
		documented := false
		for _, f := range p.files {
			documented = documented || f.Doc != nil && len(strings.TrimSpace(f.Doc.Text())) > 20
		}
		if !documented {
			t.Errorf("package %s has no doc comment", name)
		}
	}
}

// impure tells whether a function or package gives a result that its arguments don't determine.
func impure(pkg, name string) bool {
	switch pkg {
	case "time":
		return slices.Contains([]string{"Now", "Since", "Until", "Sleep", "After", "AfterFunc", "Tick", "NewTimer", "NewTicker"}, name)
	case "os", "net", "net/http", "math/rand", "math/rand/v2", "crypto/rand", "syscall", "os/exec":
		return true
	}
	return false
}

// purePackages must stay pure, whatever the table says of others.
var purePackages = []string{"pkg/plan", "pkg/plan/model", "pkg/plan/safety", "pkg/election", "pkg/retention"}

func TestPurePackagesArePure(t *testing.T) {
	packages := readPackages(t, "pkg")
	var pure []string
	for name, r := range designTable(t) {
		if !strings.HasPrefix(r.duty, "**pure**") {
			continue
		}
		pure = append(pure, name)
		p := packages[name]
		if p == nil {
			continue // the other test says that it is missing
		}
		for _, f := range p.calls(impure) {
			t.Errorf("%s: %s is pure: time and chance are inputs", f, name)
		}
	}
	for _, name := range purePackages {
		if !slices.Contains(pure, name) {
			t.Errorf("docs/design.md doesn't call %s pure", name)
		}
	}
}

// TestTheCallsAreFound shows that the search for calls can fail.
func TestTheCallsAreFound(t *testing.T) {
	const source = `package p
import ("os"; l "log"; "time"; "k8s.io/klog/v2"; "math/rand/v2")
func f() { os.Exit(1); l.Fatalf(""); klog.Fatal(""); klog.ExitDepth(1); klog.Info(""); _ = time.Now(); _ = time.Second; _ = rand.Int() }
func g(os interface{ Exit(int) }) { os.Exit(1) }
`
	fset := token.NewFileSet()
	f, err := parser.ParseFile(fset, "p.go", source, 0)
	if err != nil {
		t.Fatal(err)
	}
	p := &code{files: map[string]*ast.File{"p.go": f}, fset: fset}
	if got := p.calls(exits); len(got) != 4 {
		t.Errorf("calls that exit: %q, want 4", got)
	}
	if got := p.calls(impure); len(got) != 3 { // os.Exit, time.Now, rand.Int
		t.Errorf("impure calls: %q, want 3", got)
	}
}
