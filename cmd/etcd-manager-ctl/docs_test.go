package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/spf13/pflag"

	"github.com/etcd-manager/etcd-manager/internal/testutil/docstest"
)

// TestCommandLinesOfTheDocs: every command line of the tool on a page, also in running text, has a command and flags that exist.
func TestCommandLinesOfTheDocs(t *testing.T) {
	seen := 0
	for _, page := range docstest.Pages(t, "../..") {
		for _, l := range docstest.Lines(t, page, "etcd-manager-ctl") {
			seen++
			if problem := impossible(l.Words[1:]); problem != "" {
				t.Errorf("%s:%d: %s: %s", l.Page, l.Line, strings.Join(l.Words, " "), problem)
			}
		}
	}
	if seen < 100 {
		t.Errorf("only %d command lines were found", seen)
	}
	for _, wrong := range []string{"restore-bakcup latest", "--backup-store=x list-backups --pinned", "pki made", "--no-such-flag get"} {
		if impossible(strings.Fields(wrong)) == "" {
			t.Errorf("%q was not refused", wrong)
		}
	}
}

// impossible says what in a command line doesn't exist. What stands for something, such as … and $FLAGS, is left out.
func impossible(words []string) string {
	var args []string
	for _, w := range words {
		stands := w == "…" || w == "..." || strings.HasPrefix(w, "[") || strings.HasPrefix(w, "$") && (len(args) == 0 || args[0][0] == '-')
		if !stands {
			args = append(args, strings.TrimRight(w, "]"))
		}
	}
	root := (&app{}).rootCommand()
	root.InitDefaultCompletionCmd()
	args, _ = arrange(root, args)
	cmd, rest, err := root.Find(args)
	if err != nil {
		return err.Error()
	}
	var unknown *pflag.NotExistError
	cmd.InitDefaultHelpFlag()
	cmd.InitDefaultVersionFlag()
	if err := cmd.ParseFlags(rest); errors.As(err, &unknown) {
		return err.Error()
	}
	if word := cmd.Flags().Args(); len(word) > 0 && (cmd == root || cmd.HasSubCommands()) && word[0] != strings.ToUpper(word[0]) {
		return "unknown command " + word[0]
	}
	return ""
}
