package main

import (
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil/docstest"
)

// TestCommandLinesOfTheDocs: every command line of the manager on a page, also in running text, has a command and flags that exist.
func TestCommandLinesOfTheDocs(t *testing.T) {
	seen := 0
	for _, page := range docstest.Pages(t, "../..") {
		for _, l := range docstest.Lines(t, page, "etcd-manager") {
			seen++
			if problem := impossible(l.Words[1:]); problem != "" {
				t.Errorf("%s:%d: %s: %s", l.Page, l.Line, strings.Join(l.Words, " "), problem)
			}
		}
	}
	if seen < 20 {
		t.Errorf("only %d command lines were found", seen)
	}
	for _, wrong := range []string{"--no-such-flag", "chekc --cluster-name=x", "demo --tuor", "adopt --no-such-flag"} {
		if impossible(strings.Fields(wrong)) == "" {
			t.Errorf("%q was not refused", wrong)
		}
	}
}

// impossible says what in a command line doesn't exist.
func impossible(words []string) string {
	flags := newFlags(&options{})
	if len(words) > 0 {
		switch words[0] {
		case "etcdctl", "version", "--version":
			return ""
		case "adopt":
			flags = newAdoptFlags(&adoption{})
		case "demo":
			flags = newDemoFlags(&demo{})
		case "config":
			if len(words) < 2 || words[1] != "show" && words[1] != "schema" {
				return "unknown command config"
			}
		case "check":
			flags.String("o", "", "")
		default:
			if first := words[0][0]; first >= 'a' && first <= 'z' {
				return "unknown command " + words[0]
			}
		}
	}
	for _, w := range words {
		if w == "--" {
			break
		}
		name, _, _ := strings.Cut(strings.TrimLeft(strings.Trim(w, "[]"), "-"), "=")
		if strings.HasPrefix(w, "-") && name != "h" && name != "help" && flags.Lookup(name) == nil {
			return "unknown flag " + w
		}
	}
	return ""
}
