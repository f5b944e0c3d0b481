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
)

// TestFlagReference holds docs/flags.md to the flags that there are.
func TestFlagReference(t *testing.T) {
	const path = "../../docs/flags.md"
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	before, rest, ok := strings.Cut(string(page), flagsBegin)
	_, after, ok2 := strings.Cut(rest, flagsEnd)
	if !ok || !ok2 {
		t.Fatalf("%s has no place for the flags between %q and %q", path, flagsBegin, flagsEnd)
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "| flag | default | meaning |\n|---|---|---|\n")
	newFlags(&options{}).VisitAll(func(f *flag.Flag) {
		def := f.DefValue
		if def != "" {
			def = "`" + def + "`"
		}
		fmt.Fprintf(&b, "| `--%s` | %s | %s |\n", f.Name, def, strings.ReplaceAll(f.Usage, "|", "\\|"))
	})
	want := before + flagsBegin + b.String() + flagsEnd + after
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
