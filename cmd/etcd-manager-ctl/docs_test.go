package main

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
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

// TestRestartsOfTheDocs: what a restore's end says about restarts is what docs/kubernetes.md says, in the same order.
func TestRestartsOfTheDocs(t *testing.T) {
	page, err := os.ReadFile("../../docs/kubernetes.md")
	if err != nil {
		t.Fatal(err)
	}
	_, section, ok := strings.Cut(string(page), "## What to restart, and why\n")
	if !ok {
		t.Fatal("docs/kubernetes.md has no section that says what to restart")
	}
	quote := "\n> " + strings.Join(strings.Fields(afterRestore), " ") + ".\n"
	if !strings.Contains(section, quote) {
		t.Errorf("docs/kubernetes.md doesn't quote, in its section on restarts:%s", quote)
	}
	at := 0
	for _, what := range []string{"1. API servers, one after the other", "2. kube-controller-manager and kube-scheduler", "3. Your own operators"} {
		i := strings.Index(section, "\n"+what)
		if i < at {
			t.Errorf("docs/kubernetes.md doesn't list %q there, or in another order", what)
		}
		at = i
	}
}

var certificatePath = regexp.MustCompile("(?:ETCDCTL_(CACERT|CERT|KEY)=)?(/(?:srv|etc)/kubernetes/[^ \n`,)]*kube-apiserver/?[^ \n`,)]*)")

// TestCertificatePathsOfTheDocs: where pages say that kOps has an API server's certificates for etcd is where the tool looks first.
func TestCertificatePathsOfTheDocs(t *testing.T) {
	kops := installations()[0]
	files := map[string]string{"CACERT": kops.ca, "CERT": kops.cert, "KEY": kops.key}
	seen := 0
	for _, page := range docstest.Pages(t, "../..") {
		text, err := os.ReadFile(page)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range certificatePath.FindAllStringSubmatch(string(text), -1) {
			variable, path := m[1], strings.TrimSpace(m[2])
			if strings.HasSuffix(path, ".yaml") { // a static pod
				continue
			}
			seen++
			if variable != "" && path != files[variable] || !strings.HasPrefix(kops.ca, path) && !strings.HasPrefix(path, filepath.Dir(kops.ca)+"/") {
				t.Errorf("%s: %s isn't where the tool looks first, %s", page, path, filepath.Dir(kops.ca))
			}
		}
	}
	if seen < 25 {
		t.Errorf("only %d paths were found", seen)
	}
}
