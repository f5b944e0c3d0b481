package main

import (
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil/manpage"
)

// TestManual: each command has a manual page with its flags. With -man=DIR they are written.
func TestManual(t *testing.T) {
	root := (&app{}).rootCommand()
	root.Use = strings.Replace(root.Use, " --backup-store=URL", "", 1) // the flag stands among the others
	pages := manpage.Make(t, root, "1")
	if p := pages["etcd-manager-ctl-restore-backup.1"]; !strings.Contains(p, `\-\-to-time`) && !strings.Contains(p, "--to-time") {
		t.Errorf("restore-backup:\n%s", p)
	}
	for _, c := range root.Commands() {
		if c.IsAvailableCommand() && pages["etcd-manager-ctl-"+c.Name()+".1"] == "" {
			t.Errorf("%s has no page", c.Name())
		}
	}
}
