package main

import (
	"slices"
	"strings"
	"testing"
)

// TestKnownCommandLines: every flag that scripts for the known tool have, before every command that it has,
// in every spelling. The flags of a spec
// change something only where the command is about a spec; elsewhere they are passed over, and standard output is the same.
func TestKnownCommandLines(t *testing.T) {
	const name = "2026-01-30T01:02:03Z-000001"
	spellings := func(flag, value string) [][]string {
		return [][]string{{"-" + flag + "=" + value}, {"--" + flag + "=" + value}, {"-" + flag, value}, {"--" + flag, value}}
	}
	flags := [][]string{{"-logtostderr"}, {"--logtostderr=true"}, {"-alsologtostderr"}, {"-one_output"}, {"-skip_headers"},
		{"-skip_log_headers"}, {"-add_dir_header"}}
	for flag, value := range map[string]string{"v": "6", "vmodule": "x=2", "stderrthreshold": "2", "log_backtrace_at": "x.go:1",
		"log_dir": "", "log_file": "", "log_file_max_size": "1800",
		"member-count": "3", "etcd-version": "3.5.21"} {
		flags = append(flags, spellings(flag, value)...)
	}
	commands := [][]string{nil, {"get"}, {"configure-cluster"}, {"list-backups"}, {"list-commands"}, {"delete-command", name},
		{"restore-backup", name}}
	for _, command := range commands {
		plain := ""
		for _, flag := range append([][]string{nil}, flags...) {
			w := newWorld(t)
			w.spec(3, "3.5.21")
			w.backup(name, false)
			w.queueByKnownTool(name)
			if command != nil && command[0] == "configure-cluster" && !slices.ContainsFunc(flag,
				func(s string) bool { return strings.Contains(s, "member-count") || strings.Contains(s, "etcd-version") }) {
				continue // it needs one of them
			}
			for _, store := range [][]string{{"-backup-store=mem://bucket/main"}, {"--backup-store", "mem://bucket/main"}} {
				code, out, errOut := w.exec(slices.Concat(store, flag, command)...)
				if code == exitUsage || strings.Contains(errOut, "unknown flag") {
					t.Errorf("%v %v: exit code %d\n%s", flag, command, code, errOut)
				}
				if flag == nil && plain == "" {
					plain = out
				}
				if known := command == nil || command[0] == "get" || strings.HasPrefix(command[0], "list-"); known && out != plain {
					t.Errorf("%v %v prints\n%s\nwithout the flag\n%s", flag, command, out, plain)
				}
			}
		}
	}
}

// queueByKnownTool queues a restore as the known tool does.
func (w *world) queueByKnownTool(backup string) {
	w.put("control/2026-01-31T00:00:00Z-000000/_command.json",
		`{"timestamp":"1516000000000000000","restoreBackup":{"clusterSpec":{"memberCount":3,"etcdVersion":"3.5.21"},"backup":"`+
			backup+`"}}`)
}

// TestIgnoredIsSaid: a flag that is passed over is named on standard error; behind the command, and where it
// is mistyped, it is an error as ever.
func TestIgnoredIsSaid(t *testing.T) {
	w := newWorld(t)
	w.spec(3, "3.5.21")
	code, out, errOut := w.exec("-member-count", "5", "-etcd-version=3.6.1", "--backup-store=mem://bucket/main", "list-commands")
	if code != exitOK || strings.Contains(out, "member-count") || !strings.Contains(errOut,
		"--member-count is not used by this command") || !strings.Contains(errOut, "--etcd-version is not used") {
		t.Errorf("exit code %d\n%s%s", code, out, errOut)
	}
	if code, out, _ := w.exec("--backup-store=mem://bucket/main"); code != exitOK || !strings.Contains(out, "member count: 3") {
		t.Errorf("the spec was changed: %d %s", code, out)
	}
	for _, args := range [][]string{{"list-backups", "--member-count=3"}, {"-member-counts=3", "list-backups"}, {"--etcd=3", "get"}} {
		if code, _, errOut := w.exec(append([]string{"--backup-store=mem://bucket/main"}, args...)...); code != exitUsage {
			t.Errorf("%v: exit code %d, %s", args, code, errOut)
		}
	}
}
