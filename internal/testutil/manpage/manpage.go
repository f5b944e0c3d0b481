// Package manpage makes manual pages of a program's commands and flags, and checks them. Tests make them, so that no program has to hold
// the code for it; with -man=DIR they are written there, for packages.
package manpage

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/cobra/doc"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

var to = flag.String("man", "", "directory to which the manual pages are written")

// Flags is a command with the flags of a program that doesn't use cobra.
func Flags(use, short, long string, flags *flag.FlagSet) *cobra.Command {
	c := &cobra.Command{Use: use, Short: short, Long: long, Run: func(*cobra.Command, []string) {}}
	c.Flags().AddGoFlagSet(flags)
	return c
}

// Make makes a page for the command and each below it, and returns them by name. The date is that of SOURCE_DATE_EPOCH.
func Make(t *testing.T, root *cobra.Command, section string) map[string]string {
	t.Helper()
	dir := *to
	if dir == "" {
		dir = t.TempDir()
	}
	root.DisableAutoGenTag = true
	header := &doc.GenManHeader{Section: section, Source: "etcd-manager", Manual: "etcd-manager"}
	testutil.Must(t, doc.GenManTree(root, header, dir))
	paths, err := filepath.Glob(filepath.Join(dir, root.Name()+"*."+section))
	testutil.Must(t, err)
	pages := map[string]string{}
	home, err := os.UserHomeDir()
	testutil.Must(t, err)
	for _, path := range paths {
		text, err := os.ReadFile(path)
		testutil.Must(t, err)
		name := filepath.Base(path)
		if pages[name] = string(text); !strings.Contains(pages[name], ".SH NAME") || !strings.Contains(pages[name], ".SH SYNOPSIS") {
			t.Errorf("%s has no name or no synopsis:\n%s", name, text)
		}
		if home != "/" && strings.Contains(pages[name], home+"/") {
			t.Errorf("%s depends on the home directory %s", name, home)
		}
	}
	return pages
}
