package disaster

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/pki"
	"github.com/etcd-manager/etcd-manager/test/harness"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

const quickstart = "../quickstart.md"

// TestQuickstart follows docs/quickstart.md on three machines that have nothing: each has an address, and its own /etc, /root, /var/lib and
// /usr/local/bin. The page's commands run as they are printed, but for addresses and the store's values.
func TestQuickstart(t *testing.T) {
	testutil.Long(t)
	t.Parallel()
	f := newFirstHour(t)
	p := readPage(t, quickstart)
	steps := regexp.MustCompile(`(?m)^\*\*(\d+)\.\*\*`).FindAllStringSubmatch(p.text, -1)
	if len(steps) != 10 || steps[9][1] != "10" {
		t.Errorf("the page has the steps %v, and promises ten", steps)
	}
	started := time.Now()
	for _, b := range p.blocks {
		f.one(p, b)
	}
	t.Logf("the quick start took %s", time.Since(started).Round(time.Second))

	for _, address := range f.addresses {
		key := filepath.Join(f.root, address, "etc/kubernetes/pki/etcd-manager", pki.PeersCA+".key")
		if info, err := os.Stat(key); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v", key, err)
		}
		env, err := os.ReadFile(filepath.Join(f.root, address, "etc/etcd-manager/env"))
		if err != nil || strings.Count(string(env), "address="+address+" ")+strings.Count(string(env), "address="+address+`"`) != 2 {
			t.Errorf("the settings of %s: %v\n%s", address, err, env)
		}
	}
}

// firstHour are three machines and the person in front of the first.
type firstHour struct {
	t         *testing.T
	root      string
	addresses []string
	values    *strings.Replacer
	requests  <-chan request
	env       []string
	said      string
}

// enterScript runs a command on a machine: with the machine's own directories in place of the real ones.
const enterScript = `#!/bin/sh
d=%[1]s/$1
export DISASTER_NODE=$1
shift
exec %[2]s sh -e -c 'd=$1; shift; for x in etc root var/lib usr/local/bin; do mount --bind "$d/$x" "/$x"; done; exec "$@"' - "$d" "$@"
`

const sshScript = `#!/bin/sh
m=${1#root@}
shift
exec %s/enter "$m" sh -c "$*"
`

func newFirstHour(t *testing.T) *firstHour {
	t.Helper()
	enter := namespace(t)
	need(t, "tar", "sed", "install")
	programs := harness.Build(t)
	server := servers.StartVersityGW(t)
	f := &firstHour{t: t, root: testutil.DiskDir(t)}
	net := fmt.Sprintf("127.%d.%d.", 16+rand.IntN(200), rand.IntN(250))
	f.guard(net)
	shims := filepath.Join(f.root, "shims")
	must(t, os.MkdirAll(shims, 0o755))
	socket, requests := serveShims(t, shims)
	f.requests = requests
	must(t, os.WriteFile(filepath.Join(f.root, "enter"), fmt.Appendf(nil, enterScript, f.root, enter), 0o755))
	must(t, os.WriteFile(filepath.Join(shims, "ssh"), fmt.Appendf(nil, sshScript, f.root), 0o755))
	for i := range 3 {
		address := fmt.Sprint(net, i+1)
		f.addresses = append(f.addresses, address)
		dir := filepath.Join(f.root, address)
		for _, d := range []string{"root/bin", "root/contrib", "var/lib", "usr/local/bin"} {
			must(t, os.MkdirAll(filepath.Join(dir, d), 0o755))
		}
		out, err := exec.Command("cp", "-a", "/etc", filepath.Join(dir, "etc")).CombinedOutput()
		if err != nil {
			t.Fatalf("copy /etc: %v\n%s", err, out)
		}
	}
	home := filepath.Join(f.root, f.addresses[0], "root")
	for name, path := range map[string]string{"etcd-manager": programs.Manager, "etcd-manager-ctl": programs.Ctl} {
		data, err := os.ReadFile(path)
		must(t, err)
		must(t, os.WriteFile(filepath.Join(home, "bin", name), data, 0o755))
	}
	must(t, os.CopyFS(filepath.Join(home, "contrib/systemd"), os.DirFS("../../contrib/systemd")))
	must(t, os.WriteFile(filepath.Join(home, ".state"), []byte("cd /root\n"), 0o600))
	f.values = strings.NewReplacer("10.0.0.1", f.addresses[0], "10.0.0.2", f.addresses[1], "10.0.0.3", f.addresses[2],
		"s3://my-bucket/my-cluster/main", server.URL("my-cluster/main"), "https://s3.example.com", server.Endpoint, "my-region",
		server.Region,
		"my-key-id", server.AccessKeyID, "my-secret-key", server.SecretAccessKey)
	f.env = []string{"PATH=" + shims + ":/usr/local/bin:" + os.Getenv("PATH"), "HOME=/root", envSocket + "=" + socket}
	return f
}

// guard ends everything that carries one of the machines' addresses when the test is over, or gone.
func (f *firstHour) guard(net string) {
	f.t.Helper()
	cmd := exec.Command("sh", "-c",
		`cat; for p in /proc/[0-9]*; do grep -qaF "$GUARDED" "$p/cmdline" 2>/dev/null && kill -9 "${p#/proc/}"; done; true`)
	cmd.Env = append(os.Environ(), "GUARDED="+net)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	pipe, err := cmd.StdinPipe()
	must(f.t, err)
	must(f.t, cmd.Start())
	f.t.Cleanup(func() {
		_ = pipe.Close()
		_ = cmd.Wait()
	})
}

func (f *firstHour) one(p *page, b block) {
	f.t.Helper()
	switch {
	case b.lang == "sh" && b.arg == "":
		const keep = ". /root/.state\ntrap 'code=$?; { export -p; echo cd \"\\\"$PWD\\\"\"; } >/root/.state; exit $code' EXIT\n"
		f.said = f.shell(p, b, f.addresses[0], keep)
	case b.lang == "sh" && b.arg == "on-every-master":
		f.said = ""
		for _, address := range f.addresses {
			f.said += f.shell(p, b, address, "")
		}
	case b.lang == "console":
		if line := missing(b.text, f.said, false); line != "" {
			f.t.Errorf("%s: the line\n  %s\nisn't printed. Printed is\n%s", p.at(b), line, f.said)
		}
	default:
		f.t.Fatalf("%s: a block of kind %q", p.at(b), b.lang+" "+b.arg)
	}
}

// shell runs a block on a machine, and does meanwhile what systemd would do there. It ends the test if a command fails.
func (f *firstHour) shell(p *page, b block, address, before string) string {
	f.t.Helper()
	ctx, cancel := context.WithTimeout(f.t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, filepath.Join(f.root, "enter"), address, "sh", "-e", "-c", before+f.values.Replace(b.text))
	cmd.Env = f.env
	var out output
	cmd.Stdout, cmd.Stderr = &out, &out
	cmd.WaitDelay = 5 * time.Second
	started := time.Now()
	must(f.t, cmd.Start())
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case r := <-f.requests:
			r.answer(f.systemd(r))
		case err := <-ended:
			f.t.Logf("%s on %s, %s:\n%s--\n%s", p.at(b), address, time.Since(started).Round(10*time.Millisecond), b.text, out.String())
			if err != nil {
				f.t.Fatalf("%s: %v", p.at(b), err)
			}
			return out.String()
		}
	}
}

// limits is what a unit takes away, as far as it can be done without systemd: ProtectSystem=full and the capabilities.
func limits(t *testing.T, setting func(string) string) string {
	t.Helper()
	if setting("ProtectSystem") != "full" || setting("ReadWritePaths") != "-/etc/hosts" || setting("NoNewPrivileges") != "true" {
		t.Fatal("the unit protects something else than this test knows")
	}
	script := "mount --bind /etc/hosts /etc/hosts; mount -o remount,bind,ro /etc; mount -o remount,bind,ro /usr/local/bin\n" +
		"if touch /etc/x 2>/dev/null || ! test -w /etc/hosts; then echo /etc is not as the unit wants it; exit 1; fi\n"
	if _, err := exec.LookPath("setpriv"); err != nil {
		t.Log("setpriv isn't here (Debian: util-linux): the manager keeps all capabilities")
		return script
	}
	bounding := "-all"
	for _, c := range strings.Fields(setting("CapabilityBoundingSet")) {
		bounding += ",+" + strings.ToLower(strings.TrimPrefix(c, "CAP_"))
	}
	return script + "WITHIN='setpriv --no-new-privs --bounding-set=" + bounding + "'\n"
}

// systemd starts what an installed unit says.
func (f *firstHour) systemd(r request) reply {
	if r.Program != "systemctl" || strings.Join(r.Args, " ") != "enable --now etcd-manager" {
		return reply{fmt.Sprintf("%s %s isn't known here\n", r.Program, strings.Join(r.Args, " ")), 1}
	}
	unit, err := os.ReadFile(filepath.Join(f.root, r.Node, "etc/systemd/system/etcd-manager.service"))
	if err != nil {
		return reply{err.Error() + "\n", 1}
	}
	setting := func(name string) string {
		m := regexp.MustCompile(`(?m)^` + name + `=(.*)$`).FindSubmatch(unit)
		if m == nil {
			f.t.Fatalf("the unit has no %s", name)
		}
		return string(m[1])
	}
	log, err := os.Create(filepath.Join(f.root, r.Node+".log"))
	if err != nil {
		return reply{err.Error() + "\n", 1}
	}
	cmd := exec.Command(filepath.Join(f.root, "enter"), r.Node, "sh", "-e", "-c", limits(f.t, setting)+
		"set -a; . "+setting("EnvironmentFile")+"; set +a; exec $WITHIN "+setting("ExecStart"))
	cmd.Env, cmd.Stdout, cmd.Stderr = f.env, log, log
	if err := cmd.Start(); err != nil {
		return reply{err.Error() + "\n", 1}
	}
	f.t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		ended := make(chan struct{})
		go func() { _ = cmd.Wait(); close(ended) }()
		select {
		case <-ended:
		case <-time.After(30 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
			f.t.Errorf("the manager of %s doesn't end", r.Node)
		}
		log.Close()
		if text, _ := os.ReadFile(log.Name()); f.t.Failed() {
			f.t.Logf("the log of %s:\n%s", r.Node, lastLines(string(text), 60))
		}
	})
	return reply{}
}
