package plan

import (
	"os"
	"reflect"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// TestTheDesignNamesTheRules holds the table in DESIGN.md to the rules of Next: the same names, in the same order.
func TestTheDesignNamesTheRules(t *testing.T) {
	page, err := os.ReadFile("DESIGN.md")
	if err != nil {
		t.Fatal(err)
	}
	_, rest, ok := strings.Cut(string(page), "\n## The rules of Next, in order\n")
	if !ok {
		t.Fatal("DESIGN.md has no section with the rules")
	}
	section, _, _ := strings.Cut(rest, "\n## ")
	var named []string
	name := regexp.MustCompile("`([^`]+)`")
	for line := range strings.Lines(section) {
		cells := strings.Split(line, "|")
		if len(cells) < 4 {
			continue
		}
		for _, m := range name.FindAllStringSubmatch(cells[1], -1) {
			named = append(named, m[1])
		}
	}
	var asked []string
	for _, rule := range (&rules{o: sorted(&model.Observation{})}).ordered() {
		f := runtime.FuncForPC(reflect.ValueOf(rule.ask).Pointer()).Name() // …/plan.(*rules).otherLeader-fm
		asked = append(asked, strings.TrimSuffix(f[strings.LastIndex(f, ".")+1:], "-fm"))
	}
	if len(asked) < 25 || !slices.Equal(named, asked) {
		t.Errorf("the table of DESIGN.md names\n%v\nand Next asks\n%v", named, asked)
	}
}

// TestTheDesignNamesWhatYields holds the sentence below the table to the rules.
func TestTheDesignNamesWhatYields(t *testing.T) {
	page, err := os.ReadFile("DESIGN.md")
	if err != nil {
		t.Fatal(err)
	}
	words := strings.Join(strings.Fields(string(page)), " ")
	_, rest, _ := strings.Cut(words, "A rule that wants it again is answered with a hold; the rules ")
	list, _, ok := strings.Cut(rest, " yield: ")
	if !ok {
		t.Fatal("DESIGN.md doesn't say which rules yield")
	}
	var named, yields []string
	for _, m := range regexp.MustCompile("`([^`]+)`").FindAllStringSubmatch(list, -1) {
		named = append(named, m[1])
	}
	for _, rule := range (&rules{o: sorted(&model.Observation{})}).ordered() {
		if f := runtime.FuncForPC(reflect.ValueOf(rule.ask).Pointer()).Name(); rule.yields {
			yields = append(yields, strings.TrimSuffix(f[strings.LastIndex(f, ".")+1:], "-fm"))
		}
	}
	if !slices.Equal(named, yields) {
		t.Errorf("DESIGN.md names\n%v\nand these yield\n%v", named, yields)
	}
}
