package packages

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
)

// TestPostinst: an upgrade ends the old program wherever the unit stands, also while it waits to be ready, and starts nothing.
func TestPostinst(t *testing.T) {
	if _, err := exec.LookPath("sh"); err != nil {
		t.Skip("sh isn't installed here")
	}
	script, err := os.ReadFile("../../contrib/packages/etcd-manager.postinst")
	testutil.Must(t, err)
	for _, c := range []struct {
		state          string // what is-active prints
		process, kills bool
		fails          bool
	}{
		{state: "active", process: true, kills: true},
		{state: "reloading", process: true, kills: true},
		{state: "activating", process: true, kills: true},
		{state: "activating", kills: true}, // between two attempts
		{state: "active", kills: true, fails: true},
		{state: "inactive"},
		{state: "failed"},
		{state: "deactivating", process: true},
	} {
		dir := t.TempDir()
		log := filepath.Join(dir, "log")
		fake := "#!/bin/sh\necho \"$*\" >> " + log + "\ncase \"$1\" in\n  is-active) echo " + c.state + "; [ " + c.state + " = active ] ;;\n" +
			"  kill) " + map[bool]string{true: "true", false: "false"}[c.process] + " ;;\nesac\n"
		testutil.Must(t, os.WriteFile(filepath.Join(dir, "systemctl"), []byte(fake), 0o755))
		testutil.Must(t, os.WriteFile(filepath.Join(dir, "postinst"), []byte(strings.ReplaceAll(string(script), "/run/systemd/system", dir)), 0o755))
		cmd := exec.Command("sh", filepath.Join(dir, "postinst"), "configure")
		cmd.Env = append(os.Environ(), "PATH="+dir+":"+os.Getenv("PATH"))
		out, err := cmd.CombinedOutput()
		if (err != nil) != c.fails {
			t.Errorf("%+v: %v: %s", c, err, out)
		}
		calls, err := os.ReadFile(log)
		testutil.Must(t, err)
		want := "daemon-reload\nis-active etcd-manager.service\n"
		if c.kills {
			want += "kill --kill-who=main --signal=SIGKILL etcd-manager.service\n"
		}
		if string(calls) != want {
			t.Errorf("%+v: it called\n%swant\n%s", c, calls, want)
		}
	}
}
