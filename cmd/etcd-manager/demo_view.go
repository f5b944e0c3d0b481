package main

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.etcd.io/etcd/client/pkg/v3/transport"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/etcd-manager/etcd-manager/pkg/operator"
	"github.com/etcd-manager/etcd-manager/pkg/operator/health"
	"github.com/etcd-manager/etcd-manager/pkg/status"
)

// demoKey is the key that the demo writes every second.
const demoKey = "/demo/clock"

// demoWriter is what the demo's own client has done.
type demoWriter struct {
	mu              sync.Mutex
	written, failed int
	last            string
	took            time.Duration
}

// demoCaption are the lines below the view.
type demoCaption struct {
	mu    sync.Mutex
	lines []string
}

func (c *demoCaption) set(lines ...string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.lines = lines
}

func (c *demoCaption) get() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.lines)
}

// demoLook is one look at the cluster.
type demoLook struct {
	nodes  []*status.View // in the order of the nodes; nil if it doesn't answer
	leader *status.View
	report health.Report
	at     time.Time
}

func (s demoLook) serving() bool {
	return slices.ContainsFunc(s.nodes, func(v *status.View) bool { return v != nil && v.Etcd.Healthy && !v.Etcd.Quarantined })
}

// look asks all managers, and the store.
func (d *demo) look(ctx context.Context, c *operator.Client) demoLook {
	s := demoLook{at: time.Now()}
	for _, n := range d.nodes {
		v, err := fetchStatus(ctx, fmt.Sprintf("http://127.0.0.1:%d/status.json", n.client+4))
		if err != nil {
			v = nil
		} else if v.Leading {
			s.leader = v
		}
		s.nodes = append(s.nodes, v)
	}
	if c != nil {
		if r, err := c.Health(ctx, operator.HealthOptions{}); err == nil {
			s.report = r
		}
	}
	return s
}

func fetchStatus(ctx context.Context, url string) (*status.View, error) {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return nil, err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var v status.View
	if err := json.NewDecoder(resp.Body).Decode(&v); err != nil {
		return nil, err
	}
	return &v, nil
}

// show draws until ctx ends, or until nobody can see it.
func (d *demo) show(ctx context.Context) error {
	d.screen.out, d.screen.recording = d.out, d.record != ""
	if !d.plain {
		defer d.screen.end()
	}
	client, err := operator.Open(ctx, operator.Config{Store: d.store(), Env: os.Getenv, AllowEmpty: true})
	if err != nil {
		return err
	}
	if _, err := fmt.Fprintf(d.out, "etcd-manager demo: three masters on this machine. Data, store and logs: %s\n", d.dir); err != nil {
		return errOutputGone
	}
	last, helped := "", false
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		s := d.look(ctx, client)
		if !helped && s.serving() && !d.toured {
			helped = true
			d.caption.set(d.help()...)
		}
		if err := d.screen.draw(d.picture(s), d.plain); err != nil {
			return err
		}
		if d.plain {
			if text := d.inWords(s); text != last {
				last = text
				if _, err := fmt.Fprint(d.out, text); err != nil {
					return errOutputGone
				}
			}
			if readerGone(d.out) {
				return errOutputGone
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// roles are what a node is, in two lines.
func roles(v *status.View) (manager, member string) {
	if v == nil {
		return "manager doesn't answer", ""
	}
	manager, member = "manager", "no etcd runs"
	if v.Leading {
		manager = fmt.Sprintf("manager leads, term %d", v.Term)
	}
	switch {
	case v.Etcd.Healthy && v.Etcd.Quarantined:
		member = "etcd: no clients yet"
	case v.Etcd.Healthy && v.Etcd.MemberID == v.Etcd.LeaderID:
		member = "etcd: leader"
	case v.Etcd.Healthy:
		member = "etcd: healthy"
	case v.Etcd.Running:
		member = "etcd starts"
	}
	return manager, member
}

// picture is the screen.
func (d *demo) picture(s demoLook) []string {
	const inner = 22
	box := func(text string) string { return "│ " + fmt.Sprintf("%-*s", inner, fit(text, inner)) + " │" }
	rows := make([][]string, 6)
	for i, v := range s.nodes {
		manager, member := roles(v)
		size := ""
		if v != nil && v.Etcd.Running {
			size = fmt.Sprintf("revision %d", v.Etcd.Revision)
		}
		bottom := "└" + strings.Repeat("─", inner+2) + "┘"
		if v != nil && v.Leading {
			bottom = "└───────────┬" + strings.Repeat("─", inner-10) + "┘"
		}
		top := "┌ master " + d.nodes[i].name + " " + strings.Repeat("─", inner-8) + "┐"
		for r, text := range []string{top, box(manager), box(member), box(size), bottom} {
			rows[r] = append(rows[r], text)
		}
		below := strings.Repeat(" ", inner+4)
		if v != nil && v.Leading {
			below = fmt.Sprintf("%-*s", inner+4, "            ▼ writes")
		}
		rows[5] = append(rows[5], below)
	}
	lines := []string{"etcd-manager demo                                              Ctrl-C ends it"}
	for _, r := range rows {
		lines = append(lines, strings.TrimRight(strings.Join(r, " "), " "))
	}
	lines = append(lines, d.storeLine(s), d.windowLine(s), d.keysLine(), "now      "+nowWords(s), "")
	if s.leader != nil {
		for _, e := range s.leader.Recent[max(0, len(s.leader.Recent)-4):] {
			lines = append(lines, e.At.Local().Format("15:04:05")+" "+e.Text)
		}
	}
	for len(lines) < 17 {
		lines = append(lines, "")
	}
	return append(lines, d.caption.get()...)
}

func (d *demo) storeLine(s demoLook) string {
	if s.leader == nil || s.leader.NewestBackup.IsZero() {
		return "store    no backup yet"
	}
	return fmt.Sprintf("store    %d backups, the newest %s ago; and every change between them", s.leader.Backups,
		max(0, s.at.Sub(s.leader.NewestBackup)).Round(time.Second))
}

func (d *demo) keysLine() string {
	d.writer.mu.Lock()
	defer d.writer.mu.Unlock()
	if d.writer.written == 0 {
		return "keys     none written yet"
	}
	text := fmt.Sprintf("keys     %d written by the demo, the last in %s: %s = %s", d.writer.written,
		d.writer.took.Round(time.Millisecond), demoKey, d.writer.last)
	if d.writer.failed > 0 {
		text += fmt.Sprintf("; %d failed", d.writer.failed)
	}
	return text
}

// windowLine shows of which time any second can be restored.
func (d *demo) windowLine(s demoLook) string {
	w := s.report.Window
	if w == nil || w.From.IsZero() || !w.Until.After(w.From) {
		return "restore  nothing can be restored yet"
	}
	const cells = 24
	whole := s.at.Sub(w.From)
	var bar strings.Builder
	for i := range cells {
		at := w.From.Add(whole * time.Duration(2*i+1) / (2 * cells))
		gap := at.After(w.Until) || slices.ContainsFunc(w.Gaps, func(g health.Gap) bool {
			return at.After(g.From) && (g.Until.IsZero() || at.Before(g.Until))
		})
		if gap {
			bar.WriteRune('·')
		} else {
			bar.WriteRune('█')
		}
	}
	return fmt.Sprintf("restore  any second of %s: %s %s %s", w.Until.Sub(w.From).Round(time.Second), w.From.Local().Format("15:04:05"), &bar,
		s.at.Local().Format("15:04:05"))
}

func nowWords(s demoLook) string {
	if s.leader == nil {
		return "no manager leads yet"
	}
	if len(s.leader.Attention) > 0 {
		return "A PERSON IS NEEDED: " + s.leader.Attention[0].Text
	}
	return cmp.Or(strings.TrimPrefix(s.leader.Restore, ": "), s.leader.Doing) // an undo has no backup to name
}

// inWords is the same for a pipe, without what changes each second.
func (d *demo) inWords(s demoLook) string {
	var b strings.Builder
	for i, v := range s.nodes {
		manager, member := roles(v)
		fmt.Fprintf(&b, "master %s: %s", d.nodes[i].name, manager)
		if member != "" {
			fmt.Fprintf(&b, ", %s", member)
		}
		b.WriteString("\n")
	}
	fmt.Fprintf(&b, "now: %s\n", nowWords(s))
	if s.leader != nil && !s.leader.NewestBackup.IsZero() {
		fmt.Fprintf(&b, "newest backup: %s, %d in the store\n", s.leader.NewestBackup.UTC().Format(time.RFC3339), s.leader.Backups)
	}
	for _, line := range d.caption.get() {
		fmt.Fprintf(&b, "%s\n", line)
	}
	return b.String() + "\n"
}

// client connects to the demo's etcd.
func (d *demo) client() (*clientv3.Client, error) {
	dir := filepath.Join(d.dir, "client", "clients")
	config, err := transport.TLSInfo{TrustedCAFile: filepath.Join(dir, "ca.crt"), CertFile: filepath.Join(dir, "server.crt"),
		KeyFile: filepath.Join(dir, "server.key")}.ClientConfig()
	if err != nil {
		return nil, err
	}
	return clientv3.New(clientv3.Config{Endpoints: d.endpoints(), TLS: config, DialTimeout: time.Second, DialKeepAliveTime: 2 * time.Second,
		DialKeepAliveTimeout: time.Second, Logger: zap.NewNop()})
}

func (d *demo) endpoints() []string {
	var list []string
	for _, n := range d.nodes {
		list = append(list, fmt.Sprintf("https://127.0.0.1:%d", n.client))
	}
	return list
}

// write writes a key every second, as a program would that uses the cluster.
func (d *demo) write(ctx context.Context) {
	c, err := d.client()
	if err != nil {
		d.caption.set("the demo's own client can't be made: " + err.Error())
		return
	}
	defer c.Close()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		begun := time.Now()
		value := begun.Local().Format("15:04:05")
		put, cancel := context.WithTimeout(ctx, 2*time.Second)
		_, err := c.Put(put, demoKey, value)
		cancel()
		d.writer.mu.Lock()
		if err == nil {
			d.writer.written, d.writer.last, d.writer.took = d.writer.written+1, value, time.Since(begun)
		} else if d.writer.written > 0 && ctx.Err() == nil {
			d.writer.failed++
		}
		d.writer.mu.Unlock()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// self is how a program of this project is called from a shell while the demo runs.
func self(name string) string {
	exe, err := os.Executable()
	if err != nil || strings.Contains(exe, "go-build") {
		return "go run ./cmd/" + name
	}
	return filepath.Join(filepath.Dir(exe), name)
}

// writeEnv writes what another terminal needs, so that the commands are short.
func (d *demo) writeEnv() error {
	c := filepath.Join(d.dir, "client", "clients")
	text := fmt.Sprintf("export ETCDCTL_ENDPOINTS=%s\n"+
		"export ETCDCTL_CACERT='%s/ca.crt' ETCDCTL_CERT='%s/server.crt' ETCDCTL_KEY='%s/server.key'\n"+
		"export ETCD_MANAGER_BACKUP_STORE='%s'\netcdctl() { %s etcdctl \"$@\"; }\nctl() { %s \"$@\"; }\n",
		strings.Join(d.endpoints(), ","), c, c, c, d.store(), self("etcd-manager"), self("etcd-manager-ctl"))
	return os.WriteFile(filepath.Join(d.dir, "env"), []byte(text), 0o600)
}

// help is what to try, in seven lines.
func (d *demo) help() []string {
	env := filepath.Join(d.dir, "env")
	if wd, err := os.Getwd(); err == nil {
		if rel, err := filepath.Rel(wd, env); err == nil && len(rel) < len(env) {
			env = rel
		}
	}
	return []string{
		"Try it in another terminal. First:  . " + env,
		"  ctl status                           how it does     etcdctl put greeting hi",
		"  ctl history --since=1m               what changed    ctl list-backups",
		"  ctl restore-backup --to-time=30s --now --wait        30 seconds back",
		"  ctl undo-restore --now --wait --yes                  and forth again",
		fmt.Sprintf("  kill -9 %-10d                   a manager: its etcd serves on", d.nodes[0].pid()),
		"Or let it show itself: the same command with --tour",
	}
}
