package architecture

import (
	"go/ast"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// fuzzedElsewhere are packages that decode bytes and have no fuzz target of their own, with the reason.
var fuzzedElsewhere = map[string]string{
	"cmd/etcd-manager-ctl": "answers of its own child processes, and what an operator types",
	"pkg/etcd/child":       "answers of child processes, by encoding/json into plain structs",
	"pkg/blob/gcs":         "answers of the store's provider and a file of credentials, by encoding/json into plain structs",
	"pkg/blob/azure":       "answers of the provider's token service, by encoding/json into plain structs",
	"pkg/manager":          "the leader's summary, by encoding/json into a plain struct",
	"pkg/standby":          "what it has written itself to a directory of its own, by encoding/json into a plain struct",
	"pkg/etcd/scratch":     "what the tool and a child process of its own tell each other, by encoding/json into plain structs",
	"pkg/detect":           "certificates of the machine's own etcd, by crypto/x509",
	"pkg/operator":         "records that it has written itself, into the parts of a sort",
	"pkg/operator/extsort": "parts of a sort, which it has written itself to a directory of its own",
	"pkg/operator/database": "databases: FuzzDatabase of pkg/etcd/database; gzip by the standard library, into a file, as long as " +
		"there is disk space",
}

// decoders are functions that make something of bytes, by package and name.
var decoders = regexp.MustCompile(`^(json|proto|protojson|yaml|xml)\.(Unmarshal|NewDecoder|UnmarshalOptions|YAMLToJSON.*)$` +
	`|^binary\.(Read.*|Uvarint|Varint)$|^pem\.Decode$|^x509\.Parse.*$|^protowire\.Consume.*$|^(zstd|gzip)\.NewReader$`)

// TestParsersAreFuzzed: a package that decodes bytes has a fuzz target, or the reason why it needs none stands above.
func TestParsersAreFuzzed(t *testing.T) {
	targets := fuzzTargets(t)
	found := 0
	for name, p := range readPackages(t, "pkg", "cmd") {
		decodes := ""
		for _, f := range p.files {
			if generated(f) {
				continue
			}
			ast.Inspect(f, func(n ast.Node) bool {
				if s, ok := n.(*ast.SelectorExpr); ok {
					if x, ok := s.X.(*ast.Ident); ok && decoders.MatchString(x.Name+"."+s.Sel.Name) {
						decodes = x.Name + "." + s.Sel.Name
					}
				}
				return true
			})
		}
		if decodes == "" {
			if fuzzedElsewhere[name] != "" {
				t.Errorf("%s decodes nothing: the reason in this test isn't needed", name)
			}
			continue
		}
		found++
		if len(targets[name]) == 0 && fuzzedElsewhere[name] == "" {
			t.Errorf("%s calls %s and has no fuzz target (func FuzzXxx): write one, or give the reason in this test", name, decodes)
		}
		if len(targets[name]) > 0 && fuzzedElsewhere[name] != "" {
			t.Errorf("%s has fuzz targets: the reason in this test isn't needed", name)
		}
	}
	if found < 15 {
		t.Errorf("only %d packages that decode bytes were found: the test looks in the wrong place", found)
	}
}

// TestFuzzTargetsAreListed: the table of test/README.md has a row for each fuzz target, and no other.
func TestFuzzTargetsAreListed(t *testing.T) {
	data, err := os.ReadFile(root + "/test/README.md")
	if err != nil {
		t.Fatal(err)
	}
	var listed, want []string
	for _, m := range regexp.MustCompile("(?m)^\\| `((?:pkg|cmd)/[a-z0-9/-]+)` \\|(.*)$").FindAllStringSubmatch(string(data), -1) {
		for _, name := range regexp.MustCompile("`(Fuzz[A-Za-z0-9]+)`").FindAllStringSubmatch(m[2], -1) {
			listed = append(listed, m[1]+" "+name[1])
		}
	}
	for dir, names := range fuzzTargets(t) {
		for _, name := range names {
			want = append(want, dir+" "+name)
		}
	}
	slices.Sort(listed)
	slices.Sort(want)
	if !slices.Equal(listed, want) {
		t.Errorf("the table of test/README.md has\n%s\nand the fuzz targets are\n%s", strings.Join(listed, "\n"), strings.Join(want, "\n"))
	}
}

// fuzzTargets are the names of all, by directory, as test/fuzz.sh finds them.
func fuzzTargets(t *testing.T) map[string][]string {
	t.Helper()
	targets := map[string][]string{}
	for _, top := range []string{"pkg", "cmd"} {
		err := filepath.WalkDir(filepath.Join(root, top), func(path string, d os.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			data, err := os.ReadFile(path)
			dir := filepath.ToSlash(strings.TrimPrefix(filepath.Dir(path), root+"/"))
			for _, m := range regexp.MustCompile(`(?m)^func (Fuzz[A-Za-z0-9]*)\(`).FindAllStringSubmatch(string(data), -1) {
				targets[dir] = append(targets[dir], m[1])
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return targets
}

// TestSecurityPageNamesTests: each test that docs/security.md names for a claim exists.
func TestSecurityPageNamesTests(t *testing.T) {
	data, err := os.ReadFile(root + "/docs/security.md")
	if err != nil {
		t.Fatal(err)
	}
	named := regexp.MustCompile("`((?:pkg|cmd|test)/[a-z0-9/-]+) ((?:Test|Fuzz)[A-Za-z0-9]+)`").FindAllStringSubmatch(string(data), -1)
	if len(named) < 40 {
		t.Errorf("the page names only %d tests: this test reads it wrongly", len(named))
	}
	for _, m := range named {
		files, err := filepath.Glob(filepath.Join(root, m[1], "*_test.go"))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.ContainsFunc(files, func(path string) bool {
			text, err := os.ReadFile(path)
			return err == nil && strings.Contains(string(text), "\nfunc "+m[2]+"(")
		}) {
			t.Errorf("docs/security.md names the test %s of %s, which doesn't exist", m[2], m[1])
		}
	}
}
