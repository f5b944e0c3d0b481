package mutate

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	run    = flag.Bool("mutate", false, "make mutants and run the tests against each")
	seed   = flag.Uint64("seed", 1, "which mutants are taken")
	number = flag.Int("mutants", 60, "how many of each package; 0 is all")
	only   = flag.String("package", "", "mutate only this package, for example pkg/election")
)

const root = "../.."

// targets are the packages that are mutated, with the tests that have to notice.
var targets = []struct{ pkg, tests string }{
	{"pkg/election", "./pkg/election"},
	{"pkg/retention", "./pkg/retention"},
	{"pkg/plan/safety", "./pkg/plan/safety ./pkg/plan"},
}

// mutant is one change of a file.
type mutant struct {
	file         string
	line, offset int
	from, to     string
}

func (m mutant) String() string { return fmt.Sprintf("%s:%d: %s -> %s", m.file, m.line, m.from, m.to) }

// swaps is what takes the place of an operator.
var swaps = map[token.Token]string{
	token.LAND: "||", token.LOR: "&&", token.EQL: "!=", token.NEQ: "==", token.LSS: "<=", token.LEQ: "<", token.GTR: ">=", token.GEQ: ">",
	token.ADD: "-", token.SUB: "+", token.MUL: "/", token.QUO: "*",
}

// mutants are all changes that are made to a file: operators are swapped, negations left out, true becomes false, and branches that end a
// loop or a step are not taken.
func mutants(name string, src []byte) ([]mutant, error) {
	set := token.NewFileSet()
	f, err := parser.ParseFile(set, name, src, parser.SkipObjectResolution)
	if err != nil {
		return nil, err
	}
	var list []mutant
	add := func(at token.Pos, from, to string) {
		p := set.Position(at)
		list = append(list, mutant{name, p.Line, p.Offset, from, to})
	}
	ast.Inspect(f, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.GenDecl:
			return n.Tok != token.IMPORT
		case *ast.BinaryExpr:
			if to := swaps[n.Op]; to != "" && !isText(n.X) && !isText(n.Y) {
				add(n.OpPos, n.Op.String(), to)
			}
		case *ast.UnaryExpr:
			if n.Op == token.NOT {
				add(n.OpPos, "!", "")
			}
		case *ast.Ident:
			if n.Name == "true" || n.Name == "false" {
				add(n.Pos(), n.Name, map[string]string{"true": "false", "false": "true"}[n.Name])
			}
		case *ast.IncDecStmt:
			add(n.TokPos, n.Tok.String(), map[token.Token]string{token.INC: "--", token.DEC: "++"}[n.Tok])
		case *ast.BranchStmt:
			if n.Tok == token.CONTINUE && n.Label == nil {
				add(n.Pos(), "continue", "break")
			}
		}
		return true
	})
	slices.SortFunc(list, func(a, b mutant) int { return a.offset - b.offset })
	return list, nil
}

// isText tells whether an operand is a text, for which + is something else.
func isText(e ast.Expr) bool {
	switch e := e.(type) {
	case *ast.BasicLit:
		return e.Kind == token.STRING
	case *ast.BinaryExpr:
		return isText(e.X) || isText(e.Y)
	case *ast.CallExpr:
		s, ok := e.Fun.(*ast.SelectorExpr)
		return ok && s.Sel.Name == "Sprintf"
	}
	return false
}

// apply makes the change.
func (m mutant) apply(src []byte) []byte {
	return slices.Concat(src[:m.offset], []byte(m.to), src[m.offset+len(m.from):])
}

func TestMutants(t *testing.T) {
	src := []byte(`package p

import "fmt"

func f(a, b int) bool {
	for range 3 {
		if a < b && !(a == 1) {
			continue
		}
		a++
	}
	fmt.Println("a" + "b")
	return a-b > 0 || true
}
`)
	list, err := mutants("p.go", src)
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, m := range list {
		got = append(got, m.String())
		changed := string(m.apply(src))
		if changed == string(src) || !strings.HasPrefix(changed[m.offset:], m.to) {
			t.Errorf("%s makes:\n%s", m, changed)
		}
	}
	want := []string{"p.go:7: < -> <=", "p.go:7: && -> ||", "p.go:7: ! -> ", "p.go:7: == -> !=", "p.go:8: continue -> break",
		"p.go:10: ++ -> --", "p.go:13: - -> +", "p.go:13: > -> >=", "p.go:13: || -> &&", "p.go:13: true -> false"}
	if !slices.Equal(got, want) {
		t.Errorf("got:\n%s", strings.Join(got, "\n"))
	}
}

// TestMutate prints the score of each package and the mutants that survive. It judges nothing: whether a survivor matters is for a person.
func TestMutate(t *testing.T) {
	if !*run {
		t.Skip("takes a quarter of an hour: make mutate")
	}
	for _, target := range targets {
		if *only != "" && *only != target.pkg {
			continue
		}
		all := mutantsOf(t, target.pkg)
		r := rand.New(rand.NewPCG(*seed, 1))
		r.Shuffle(len(all), func(i, j int) { all[i], all[j] = all[j], all[i] })
		chosen := all
		if *number > 0 {
			chosen = all[:min(*number, len(all))]
		}
		began := time.Now()
		killed, unbuilt := 0, 0
		var survivors []string
		for _, m := range chosen {
			switch noticed, builds := try(t, m, strings.Fields(target.tests)); {
			case !builds:
				unbuilt++
			case noticed:
				killed++
			default:
				survivors = append(survivors, m.String())
				t.Logf("survives: %s", m)
			}
		}
		slices.Sort(survivors)
		t.Logf("%s: %d of %d mutants, %d can't be built, %d of %d noticed (%d %%), %s; survivors:\n%s", target.pkg, len(chosen), len(all), unbuilt,
			killed, len(chosen)-unbuilt, 100*killed/max(1, len(chosen)-unbuilt), time.Since(began).Round(time.Second), strings.Join(survivors, "\n"))
	}
}

func mutantsOf(t *testing.T, pkg string) []mutant {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, pkg, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %v, %v", pkg, files, err)
	}
	var all []mutant
	for _, file := range files {
		if strings.HasSuffix(file, "_test.go") {
			continue
		}
		src, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		list, err := mutants(filepath.ToSlash(file), src)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, list...)
	}
	return all
}

// try runs the tests against a mutant. One that runs for ever is noticed.
func try(t *testing.T, m mutant, tests []string) (noticed, builds bool) {
	t.Helper()
	src, err := os.ReadFile(m.file)
	if err != nil {
		t.Fatal(err)
	}
	real, err := filepath.Abs(m.file)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	changed, overlay := filepath.Join(dir, "changed.go"), filepath.Join(dir, "overlay.json")
	data, err := json.Marshal(map[string]map[string]string{"Replace": {real: changed}})
	if err != nil {
		t.Fatal(err)
	}
	for path, content := range map[string][]byte{changed: m.apply(src), overlay: data} {
		if err := os.WriteFile(path, content, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	args := append([]string{"test", "-vet=off", "-count=1", "-failfast", "-timeout=2m", "-overlay=" + overlay}, tests...)
	cmd := exec.CommandContext(ctx, "go", args...) //nolint:gosec // it is the test's
	cmd.Dir = root
	out, err := cmd.CombinedOutput()
	return err != nil, !strings.Contains(string(out), "[build failed]")
}
