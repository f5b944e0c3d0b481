package main

import (
	"io"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil/manpage"
)

// TestManual: the sidecar and its init have manual pages with their flags. With -man=DIR they are written.
func TestManual(t *testing.T) {
	flags := newFlags(&options{})
	flags.SetOutput(io.Discard)
	root := manpage.Flags("etcd-backup", "back up an etcd that something else runs",
		"etcd-backup is a sidecar. It changes nothing in etcd. docs/etcd-backup.md says more, docs/sidecar has a page for each kind of machine.\n\n"+
			"As a unit of systemd it takes its flags from ETCD_BACKUP_ARGS in /etc/etcd-manager/backup-env.", flags)
	root.AddCommand(manpage.Flags("init", "find the etcd of this machine, and write what starts the sidecar",
		"It says what was found and what is missing. Flags of etcd-backup itself follow after --.", newInitFlags(&initOptions{}, io.Discard)))
	pages := manpage.Make(t, root, "8")
	if p := pages["etcd-backup.8"]; !strings.Contains(p, "client-password-file") || !strings.Contains(p, "backup-env") {
		t.Errorf("the page lacks flags:\n%s", p)
	}
	if p := pages["etcd-backup-init.8"]; !strings.Contains(p, "offline") {
		t.Errorf("the page of init lacks flags:\n%s", p)
	}
}
