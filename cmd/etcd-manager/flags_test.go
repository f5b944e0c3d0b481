package main

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"strings"
	"testing"
)

var rewrite = flag.Bool("rewrite", false, "rewrite docs/flags.md")

const (
	flagsBegin = "<!-- flags: made by go test ./cmd/etcd-manager -run TestFlagReference -rewrite -->\n"
	flagsEnd   = "<!-- end of flags -->\n"
	adoptBegin = "<!-- flags of adopt: made by the same -->\n"
	adoptEnd   = "<!-- end of flags of adopt -->\n"
)

// TestFlagReference holds docs/flags.md to the flags that there are.
func TestFlagReference(t *testing.T) {
	const path = "../../docs/flags.md"
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	want := withFlags(t, string(page), flagsBegin, flagsEnd, newFlags(&options{}))
	want = withFlags(t, want, adoptBegin, adoptEnd, newAdoptFlags(&adoption{}))
	if want == string(page) {
		return
	}
	if *rewrite {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	t.Errorf("%s doesn't say what the flags are; run: go test ./cmd/etcd-manager -run TestFlagReference -rewrite", path)
}

// withFlags is the page with the table of the flags between two marks.
func withFlags(t *testing.T, page, begin, end string, f *flag.FlagSet) string {
	t.Helper()
	before, rest, ok := strings.Cut(page, begin)
	_, after, ok2 := strings.Cut(rest, end)
	if !ok || !ok2 {
		t.Fatalf("the page has no place for flags between %q and %q", begin, end)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "| flag | default | meaning |\n|---|---|---|\n")
	f.VisitAll(func(f *flag.Flag) {
		def := f.DefValue
		if def != "" {
			def = "`" + def + "`"
		}
		fmt.Fprintf(&b, "| `--%s` | %s | %s |\n", f.Name, def, strings.ReplaceAll(f.Usage, "|", "\\|"))
	})
	return before + begin + b.String() + end + after
}
