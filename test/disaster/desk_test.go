package disaster

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/pki"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// desk is where the operator sits: a shell that goes on from block to block, with etcd-manager and
// etcd-manager-ctl in its path, and a way to each master. Only the test's goroutine may use it.
type desk struct {
	t *testing.T
	c *harness.Cluster
	// dir is the operator's home.
	dir string
	// values are what the operator puts in place of the printed value of `export NAME=…`.
	values map[string]string
	// groups are the masters that "sh on-GROUP" means.
	groups map[string][]*harness.Node
	// wrap, if set, goes before every command on a master: it gives the master a file system of its own.
	wrap map[string][]string

	socket   string
	requests <-chan request
	// said is what the last block printed.
	said string
	// marks are the sizes of the logs when the disaster began.
	marks map[string]int64
}

// blockLimit is how long a block may take; a restore waits up to three minutes for nodes that might still be alive somewhere.
const blockLimit = 5 * time.Minute

// newDesk gives the operator of a cluster a desk. Every master is in the group each-master.
func newDesk(t *testing.T, c *harness.Cluster) *desk {
	t.Helper()
	d := &desk{t: t, c: c, dir: filepath.Join(c.Dir, "desk"), values: map[string]string{}, wrap: map[string][]string{}}
	bin := filepath.Join(d.dir, "bin")
	must(t, os.MkdirAll(bin, 0o755))
	d.socket, d.requests = serveShims(t, bin)
	for name, path := range map[string]string{"etcd-manager": c.Programs.Manager, "etcd-manager-ctl": c.Programs.Ctl} {
		must(t, os.Symlink(path, filepath.Join(bin, name)))
	}
	d.groups = map[string][]*harness.Node{"each-master": c.Nodes}
	certs := d.certificates()
	d.values["STORE"] = c.StoreURL
	d.values["STATUS"] = statusURL(c, c.Nodes[0])
	d.values["ETCDCTL_ENDPOINTS"] = c.Nodes[0].ClientURL()
	d.values["ETCDCTL_CACERT"], d.values["ETCDCTL_CERT"], d.values["ETCDCTL_KEY"] = certs.ClientCA, certs.ServerCert, certs.ServerKey
	d.writeState("cd " + quote(d.dir))
	for _, n := range c.Nodes {
		d.unit(n)
	}
	d.mark()
	return d
}

func statusURL(c *harness.Cluster, n *harness.Node) string {
	return fmt.Sprintf("http://%s:%d/status", n.Address, c.Ports.Status)
}

// certificates are the operator's own, for etcdctl.
func (d *desk) certificates() pki.EtcdFiles {
	d.t.Helper()
	k, err := pki.NewKeeper(pki.Config{Dir: d.c.PKI, NodeID: "operator", Etcd: true, Policy: pki.DefaultPolicy()})
	must(d.t, err)
	files, err := k.EtcdFiles(filepath.Join(d.dir, "certs"), pki.EtcdName{Name: "operator"})
	must(d.t, err)
	return files
}

// unit writes a master's environment file, as contrib/systemd/etcd-manager.service reads it.
func (d *desk) unit(n *harness.Node) {
	d.t.Helper()
	text := fmt.Sprintf("ETCD_MANAGER_ARGS=%q\n", strings.Join(d.c.Args(n), " "))
	must(d.t, os.WriteFile(unitFile(n), []byte(text), 0o600))
}

func unitFile(n *harness.Node) string { return n.DataDir + ".unit" }

// mark remembers how far the logs are.
func (d *desk) mark() {
	d.marks = map[string]int64{}
	for _, n := range d.c.Nodes {
		if info, err := os.Stat(n.Log); err == nil {
			d.marks[n.Name] = info.Size()
		}
	}
}

// ran remembers which blocks have been run, of all tests.
var ran = struct {
	sync.Mutex
	blocks map[string]bool
}{blocks: map[string]bool{}}

// follow runs blocks in the order of the page.
func (d *desk) follow(p *page, blocks []block) {
	d.t.Helper()
	if len(blocks) == 0 {
		d.t.Fatalf("docs/disaster/%s has no such section, or nothing to run in it", p.name)
	}
	for _, b := range blocks {
		d.one(p, b)
	}
}

func (d *desk) one(p *page, b block) {
	d.t.Helper()
	switch {
	case b.lang == "sh":
		ran.Lock()
		ran.blocks[p.at(b)] = true
		ran.Unlock()
		d.run(p, b)
	case b.lang == "console" && b.arg == "":
		if line := missing(b.text, d.said, false); line != "" {
			d.t.Errorf("%s: the line\n  %s\nisn't printed. Printed is\n%s", p.at(b), line, d.said)
		}
	case b.lang == "console" && b.arg == "log":
		d.see(p, b, d.logs)
	case b.lang == "console" && b.arg == "status":
		d.see(p, b, d.status)
	}
}

// see waits until something shows every line of the block.
func (d *desk) see(p *page, b block, source func() string) {
	d.t.Helper()
	d.c.WaitFor(p.at(b), blockLimit, func() string {
		text := source()
		if line := missing(b.text, text, true); line != "" {
			return fmt.Sprintf("the line\n  %s\nisn't there. There is\n%s", line, lastLines(text, 40))
		}
		return ""
	})
}

func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}

// logs is what all managers have said since the mark, without etcd's own lines.
func (d *desk) logs() string {
	var out strings.Builder
	for _, n := range d.c.Nodes {
		out.WriteString(d.log(n, d.marks[n.Name]))
	}
	return out.String()
}

func (d *desk) log(n *harness.Node, from int64) string {
	data, err := os.ReadFile(n.Log)
	if err != nil || int64(len(data)) < from {
		return ""
	}
	var keep []string
	for line := range strings.Lines(string(data[from:])) {
		if !strings.HasPrefix(line, `{"level":"`) {
			keep = append(keep, line)
		}
	}
	return strings.Join(keep, "")
}

// status is the status page of the leader, or of all that answer if nobody leads.
func (d *desk) status() string {
	if n := d.c.Leader(); n != nil {
		return d.statusOf(n)
	}
	var out strings.Builder
	for _, n := range d.c.Nodes {
		if n.Running() {
			out.WriteString(d.statusOf(n))
		}
	}
	return out.String()
}

func (d *desk) statusOf(n *harness.Node) string {
	client := http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get(statusURL(d.c, n))
	if err != nil {
		return err.Error() + "\n"
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	return string(text)
}

// run runs a block where it says.
func (d *desk) run(p *page, b block) {
	d.t.Helper()
	group, on := strings.CutPrefix(b.arg, "on-")
	typed, asks := strings.CutPrefix(b.arg, "typing ")
	switch {
	case b.arg == "":
		d.shell(p, b, nil, "")
		return
	case asks:
		d.shell(p, b, nil, typed)
		return
	case !on:
		d.t.Fatalf("%s: the info string %q isn't known", p.at(b), "sh "+b.arg)
	}
	nodes, ok := d.groups[group]
	if !ok {
		d.t.Fatalf("%s: the test doesn't say which masters %s are", p.at(b), group)
	}
	said := ""
	for _, n := range nodes {
		d.shell(p, b, n, "")
		said += d.said
	}
	d.said = said
}

var exportLine = regexp.MustCompile(`(?m)^export (\w+)=(\S*).*$`)

// script is the block with the operator's own values in place of the printed ones, and a master's own places in place of the usual ones.
func (d *desk) script(p *page, b block, n *harness.Node) string {
	d.t.Helper()
	text := exportLine.ReplaceAllStringFunc(b.text, func(line string) string {
		m := exportLine.FindStringSubmatch(line)
		value, ok := d.values[m[1]]
		switch {
		case ok:
			return fmt.Sprintf("export %s=%s", m[1], quote(value))
		case strings.Contains(m[2], "$"):
			return line // it is computed
		}
		d.t.Fatalf("%s: the test has no value for %s", p.at(b), m[1])
		return ""
	})
	if n != nil {
		text = strings.NewReplacer("/var/lib/etcd-manager", n.DataDir, "/etc/etcd-manager/env", unitFile(n)).Replace(text)
	}
	return text
}

func quote(s string) string { return "'" + strings.ReplaceAll(s, "'", `'\''`) + "'" }

func (d *desk) stateFile() string { return filepath.Join(d.dir, ".state") }

func (d *desk) writeState(text string) {
	d.t.Helper()
	must(d.t, os.WriteFile(d.stateFile(), []byte(text+"\n"), 0o600))
}

// shell runs one script, answering meanwhile what it asks of the masters. A script ends at the first command that fails. If something is
// typed, it is on a terminal.
func (d *desk) shell(p *page, b block, n *harness.Node, typed string) {
	d.t.Helper()
	started := time.Now()
	ctx, cancel := context.WithTimeout(d.t.Context(), blockLimit)
	defer cancel()
	text := d.script(p, b, n)
	state := d.stateFile()
	argv := []string{"sh", "-e", "-c", ". " + state + "\n" + text}
	if n == nil { // variables and the directory stay for the next block
		argv[3] = ". " + state + "\ntrap 'code=$?; { export -p; echo cd \"\\\"$PWD\\\"\"; } >" + state + "; exit $code' EXIT\n" + text
	} else {
		argv = append(slices.Clone(d.wrap[n.Name]), argv...)
	}
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir, cmd.Env = d.dir, d.environ(n)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = 5 * time.Second
	var out output
	cmd.Stdout, cmd.Stderr = &out, &out
	seen := func() {}
	if typed != "" {
		s := newTerminal(d.t, typed, &out)
		cmd.Stdin, cmd.Stderr, seen = s.keys, s.keys, s.end
	}
	must(d.t, cmd.Start())
	group := cmd.Process.Pid
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	for {
		select {
		case r := <-d.requests:
			r.answer(d.serve(r))
			continue
		case err := <-ended:
			if syscall.Kill(-group, 0) == nil { // it has left something in the background
				d.t.Cleanup(func() { _ = syscall.Kill(-group, syscall.SIGKILL) })
			}
			seen()
			d.said = out.String()
			where := "the operator's machine"
			if n != nil {
				where = "master " + n.Name
			}
			d.t.Logf("%s on %s, %s:\n%s--\n%s", p.at(b), where, time.Since(started).Round(10*time.Millisecond), text, d.said)
			if err != nil {
				d.t.Fatalf("%s: %v", p.at(b), cmp.Or(ctx.Err(), err))
			}
		}
		return
	}
}

func (d *desk) environ(n *harness.Node) []string {
	env := []string{"PATH=" + filepath.Join(d.dir, "bin") + ":" + os.Getenv("PATH"), "HOME=" + d.dir, "TMPDIR=" + d.dir,
		envSocket + "=" + d.socket}
	for k, v := range d.c.StoreEnv {
		env = append(env, k+"="+v)
	}
	if n != nil {
		env = append(env, envNode+"="+n.Name)
	}
	return env
}

// serve does on a master what systemd would do there.
func (d *desk) serve(r request) reply {
	if r.Node == "" {
		return reply{r.Program + ": this is not a master\n", 1}
	}
	n := d.c.Node(r.Node)
	switch {
	case r.Program == "journalctl" && slices.Contains(r.Args, "etcd-manager"):
		return reply{d.log(n, 0), 0}
	case r.Program != "systemctl" || len(r.Args) != 2 || r.Args[1] != "etcd-manager":
		return reply{fmt.Sprintf("%s %s isn't known here\n", r.Program, strings.Join(r.Args, " ")), 1}
	}
	switch r.Args[0] {
	case "stop":
		d.stop(n)
	case "start":
		d.start(n)
	case "restart":
		d.stop(n)
		d.start(n)
	case "is-active":
		if !n.Running() {
			return reply{"inactive\n", 3}
		}
		return reply{"active\n", 0}
	default:
		return reply{fmt.Sprintf("systemctl %s isn't known here\n", r.Args[0]), 1}
	}
	return reply{}
}

func (d *desk) stop(n *harness.Node) {
	d.t.Helper()
	if !n.Running() {
		return
	}
	if code := n.Term(); code != 0 {
		d.t.Errorf("manager %s exited with %d after SIGTERM", n.Name, code)
	}
}

// start starts a manager with what stands in its environment file.
func (d *desk) start(n *harness.Node) {
	d.t.Helper()
	if n.Running() {
		return
	}
	data, err := os.ReadFile(unitFile(n))
	must(d.t, err)
	line, ok := strings.CutPrefix(strings.TrimSpace(string(data)), `ETCD_MANAGER_ARGS="`)
	if !ok || !strings.HasSuffix(line, `"`) || strings.Contains(line, "\n") {
		d.t.Fatalf("the environment file of %s isn't one: %s", n.Name, data)
	}
	n.Args = strings.Fields(strings.TrimSuffix(line, `"`)) // they stand behind the harness's own and win
	n.Start()
}
