package main

import (
	"bytes"
	"errors"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

// kopsFlags are kOps' flags for a main cluster on AWS, joined by blanks as it joins them.
const kopsFlags = "--backup-store=s3://b/example.com/backups/etcd/main --client-urls=https://__name__:4001 --cluster-name=etcd " +
	"--containerized=true --dns-suffix=.internal.example.com --grpc-port=3996 --peer-urls=https://__name__:2380 " +
	"--quarantine-client-urls=https://__name__:3994 --v=6 --volume-name-tag=k8s.io/etcd/main --volume-provider=aws " +
	"--volume-tag=k8s.io/etcd/main --volume-tag=k8s.io/role/master=1 --volume-tag=kubernetes.io/cluster/example.com=owned"

const (
	before132 = "mkfifo /tmp/pipe; (tee -a /var/log/etcd.log < /tmp/pipe & ) ; exec /etcd-manager "
	from133   = "mkfifo /tmp/pipe; (tee -a /var/log/etcd.log < /tmp/pipe & ) ; exec /ko-app/etcd-manager "
	toPipe    = " > /tmp/pipe 2>&1"
)

// TestShellForms: what kOps has written, and what a shell would make the same of.
func TestShellForms(t *testing.T) {
	const static = `--static-config={"etcdVersion":"3.5.21","nodes":[{"id":"x--main--0","ip":["node0.main.x"]}]}`
	const log = "/var/log/etcd.log"
	for name, c := range map[string]struct {
		begin, words, end string
		want              []string
		log               string
	}{
		"to 1.32":        {before132, kopsFlags, toPipe, strings.Fields(kopsFlags), log},
		"1.33 to 1.35.1": {from133, kopsFlags, toPipe, strings.Fields(kopsFlags), log},
		"no flags":       {before132, "", toPipe, nil, log},
		"no blanks":      {"mkfifo /p;(tee -a /l</p&);exec /etcd-manager ", "--v=2", ">/p 2>&1", []string{"--v=2"}, "/l"},
		"many blanks": {"  mkfifo  /p ;\t( tee  -a /l  <  /p  & )  ;  exec  /etcd-manager ", "  --v=2\t --v=3 ", "  >  /p   2>&1 ",
			[]string{"--v=2", "--v=3"}, "/l"},
		"single quotes": {from133, "'" + static + "'", toPipe, []string{static}, log},
		"quoted value":  {from133, strings.Replace(static, "=", "='", 1) + "'", toPipe, []string{static}, log},
		"double quotes": {from133, `"` + strings.ReplaceAll(static, `"`, `\"`) + `" "a b" "" "\a"`, toPipe, []string{static, "a b", "",
			`\a`}, log},
		"backslashes": {from133, `--a=b\ c --d=\$e \;`, toPipe, []string{"--a=b c", "--d=$e", ";"}, log},
		// A pattern that no file matches stays as it is.
		"brackets": {from133, "--listen-metrics-urls=http://[::1]:8081,http://x?y", toPipe,
			[]string{"--listen-metrics-urls=http://[::1]:8081,http://x?y"}, log},
	} {
		o, err := parseShell([]string{"-c", c.begin + c.words + c.end})
		if err != nil || !slices.Equal(o.command[1:], c.want) || o.logFile != c.log || !o.alsoStdout || !o.redirectStderr {
			t.Errorf("%s: %+v, %v", name, o, err)
			continue
		}
		// A real shell makes the same of the words.
		out, err := exec.CommandContext(t.Context(), "sh", "-c", `for w in `+c.words+`; do printf '%s\n' "$w"; done`).Output()
		if got := strings.Join(append(c.want, ""), "\n"); err != nil || string(out) != got {
			t.Errorf("%s: sh makes %q of %q, %v", name, out, c.words, err)
		}
	}
}

// TestShellRefuses: the image has no shell, and says so.
func TestShellRefuses(t *testing.T) {
	whole := from133 + kopsFlags + toPipe
	for _, c := range []struct {
		args []string
		why  string
	}{
		{nil, "arguments []"},
		{[]string{"-c"}, "arguments"},
		{[]string{"-c", whole, "x"}, "arguments"},
		{[]string{"-x", whole}, "arguments"},
		{[]string{"-i"}, "arguments"},
		{[]string{"-c", ""}, `"mkfifo" should stand`},
		{[]string{"-c", "ls -l"}, `"ls" stands where "mkfifo" should`},
		{[]string{"-c", "exec /etcd-manager"}, `"exec" stands where`},
		{[]string{"-c", strings.Replace(whole, "/ko-app/etcd-manager", "/bin/ls", 1)}, `it starts "/bin/ls"`},
		{[]string{"-c", strings.Replace(whole, "/ko-app/etcd-manager", "etcd-manager", 1)}, `it starts "etcd-manager"`},
		{[]string{"-c", strings.Replace(whole, "tee -a", "tee", 1)}, `where "-a" should`},
		{[]string{"-c", strings.Replace(whole, "< /tmp/pipe", "< /tmp/other", 1)}, `"/tmp/other" stands where "/tmp/pipe" should`},
		{[]string{"-c", strings.Replace(whole, "> /tmp/pipe", ">> /tmp/pipe", 1)}, `">" stands where "/tmp/pipe" should`},
		{[]string{"-c", whole + "; ls"}, `";" stands after its end`},
		{[]string{"-c", whole + " &"}, `"&" stands after its end`},
		{[]string{"-c", strings.TrimSuffix(whole, " 2>&1")}, `it ends where "2>&1" should stand`},
		{[]string{"-c", from133 + "--v=$(id)" + toPipe}, "only a shell could expand"},
		{[]string{"-c", from133 + "--v=${X}" + toPipe}, "only a shell could expand"},
		{[]string{"-c", from133 + `"--v=$X"` + toPipe}, "only a shell could expand"},
		{[]string{"-c", from133 + "--v=`id`" + toPipe}, "only a shell could expand"},
		{[]string{"-c", from133 + "--v=1 && ls" + toPipe}, `"&" stands where ">" should`},
		{[]string{"-c", from133 + "--v=1 | ls" + toPipe}, `"|" stands where ">" should`},
		{[]string{"-c", from133 + "--v=1\nls" + toPipe}, `"\n" stands where ">" should`},
		{[]string{"-c", from133 + "--store=s3://b/p?a&b" + toPipe}, `"&" stands where ">" should`},
		{[]string{"-c", from133 + "~/x" + toPipe}, "begins with"},
		{[]string{"-c", from133 + "# x" + toPipe}, "begins with"},
		{[]string{"-c", from133 + "'x" + toPipe}, "is not closed"},
		{[]string{"-c", from133 + `x \`}, "ends with a backslash"},
		{[]string{"-c", `mkfifo ""; (tee -a /l < "" & ) ; exec /etcd-manager > "" 2>&1`}, "a path of the pipe"},
	} {
		_, err := parseShell(c.args)
		if !errors.Is(err, errRefused) || !strings.Contains(err.Error(), c.why) {
			t.Errorf("%q: %v, want %q", c.args, err, c.why)
		}
	}
}

// TestShellByName: the name decides, and what is refused is said with the reason and a way.
func TestShellByName(t *testing.T) {
	run := func(args ...string) (string, int) {
		cmd := exec.CommandContext(t.Context(), binary, args...)
		cmd.Args[0] = "/bin/sh"
		var errs bytes.Buffer
		cmd.Stderr = &errs
		_ = cmd.Run()
		return errs.String(), cmd.ProcessState.ExitCode()
	}
	log := filepath.Join(t.TempDir(), "no", "etcd.log")
	if said, code := run("-c", "ls"); code != exitUsage || !strings.Contains(said, `"ls" stands where`) || !strings.Contains(said,
		"no shell") {
		t.Errorf("code %d, %s", code, said)
	}
	// The program isn't there on this machine; it is what was meant to be run.
	if said, code := run("-c", "mkfifo /p; (tee -a "+log+" < /p & ) ; exec /etcd-manager > /p 2>&1"); code != exitNotFound ||
		!strings.Contains(said, "run /etcd-manager") {
		t.Errorf("code %d, %s", code, said)
	}
}

// TestLogThatAppearsLater: without its log file the command runs as beside tee, and the file is followed once it can be opened.
func TestLogThatAppearsLater(t *testing.T) {
	path := filepath.Join(t.TempDir(), "later", "etcd.log")
	l, err := openLog(path, 0)
	if err == nil {
		t.Fatal("a file in a directory that isn't there was opened")
	}
	defer l.Close()
	if _, err := l.Write([]byte("lost\n")); err == nil {
		t.Error("a write without a file succeeded")
	}
	if err := exec.CommandContext(t.Context(), "mkdir", filepath.Dir(path)).Run(); err != nil {
		t.Fatal(err)
	}
	l.checked = l.checked.Add(-reopenCheck)
	if _, err := l.Write([]byte("kept\n")); err != nil {
		t.Fatal(err)
	}
	if got := read(t, path); got != "go-runner: 5 bytes of output could not be written here\nkept\n" {
		t.Errorf("log %q", got)
	}
}
