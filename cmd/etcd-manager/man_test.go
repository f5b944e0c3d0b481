package main

import (
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil/manpage"
)

// TestManual: the manager and what it can do beside that have manual pages with their flags. With -man=DIR they are written.
func TestManual(t *testing.T) {
	root := manpage.Flags("etcd-manager", "form, keep, back up and restore an etcd cluster",
		"etcd-manager runs on every master beside etcd. docs/flags.md says more of flags, variables and exit codes, docs/quickstart.md how to begin.\n\n"+
			"As a unit of systemd it takes its flags from ETCD_MANAGER_ARGS in /etc/etcd-manager/env.", newFlags(&options{}))
	root.AddCommand(
		manpage.Flags("check", "say what is wrong before the first start", "Takes the flags of etcd-manager, and -o json.", newFlags(&options{})),
		manpage.Flags("adopt", "take over an etcd that something else runs", "docs/adopt.md says how.", newAdoptFlags(&adoption{})),
		manpage.Flags("demo", "run a whole cluster on this machine", "docs/demo.md says what can be seen.", newDemoFlags(&demo{})),
	)
	pages := manpage.Make(t, root, "8")
	for _, name := range []string{"etcd-manager.8", "etcd-manager-check.8", "etcd-manager-adopt.8", "etcd-manager-demo.8"} {
		if pages[name] == "" {
			t.Errorf("there is no %s", name)
		}
	}
	if p := pages["etcd-manager.8"]; !strings.Contains(p, "volume-provider") || !strings.Contains(p, "/etc/etcd-manager/env") {
		t.Errorf("the page lacks flags:\n%s", p)
	}
}
