package page

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/operator/health"
)

// situation is one of those for which etcd-manager-ctl's tests have made the report.
type situation struct {
	Name    string         `json:"name"`
	Verdict health.Verdict `json:"verdict"`
	View    View           `json:"view"`
}

func situations(t *testing.T) []situation {
	t.Helper()
	f, err := os.Open(filepath.Join("testdata", "situations.jsonl"))
	must(t, err)
	defer f.Close()
	var list []situation
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var s situation
		must(t, json.Unmarshal(lines.Bytes(), &s))
		list = append(list, s)
	}
	must(t, lines.Err())
	return list
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func render(t *testing.T, v View) string {
	t.Helper()
	b, err := Render(v)
	must(t, err)
	return string(b)
}

// visible is the text of a page, without markup.
func visible(page string) string {
	_, body, _ := strings.Cut(page, "<body>")
	text := regexp.MustCompile(`<[^>]*>`).ReplaceAllString(body, " ")
	for from, to := range map[string]string{"&#39;": "'", "&#43;": "+", "&lt;": "<", "&gt;": ">", "&#34;": `"`, "&amp;": "&"} {
		text = strings.ReplaceAll(text, from, to)
	}
	return strings.Join(strings.Fields(text), " ")
}

// TestSituations: each page says the verdict in words, every finding, and what to do about it, and is well formed.
func TestSituations(t *testing.T) {
	list := situations(t)
	if len(list) < 20 {
		t.Fatalf("%d situations", len(list))
	}
	for _, s := range list {
		t.Run(s.Name, func(t *testing.T) {
			html := render(t, s.View)
			text := visible(html)
			word := verdictState(s.Verdict).Word
			if !strings.Contains(text, word) || !strings.Contains(html, "<title>"+strings.ReplaceAll(word, "'", "&#39;")) {
				t.Errorf("it doesn't say %q", word)
			}
			for _, f := range s.View.Report.Findings {
				for _, want := range []string{capital(f.Text), f.Command} {
					if want = strings.Join(strings.Fields(want), " "); !strings.Contains(text, want) {
						t.Errorf("it lacks %q", want)
					}
				}
				if f.Command == "" && f.NoCommand != "" && !strings.Contains(text, sentence(f.NoCommand)) {
					t.Errorf("it lacks %q", f.NoCommand)
				}
			}
			for _, n := range s.View.Report.Nodes {
				if !strings.Contains(html, `scope="row">`+string(n.Node)+"</th>") {
					t.Errorf("node %s has no row", n.Node)
				}
			}
			checkMarkup(t, html)
			if dir := os.Getenv("PAGES"); dir != "" {
				must(t, os.WriteFile(filepath.Join(dir, strings.ReplaceAll(s.Name, " ", "-")+".html"), []byte(html), 0o600))
			}
		})
	}
}

// checkMarkup holds a page to what readers by ear and by keyboard need: well formed, ids once, labels that exist, headings in order.
func checkMarkup(t *testing.T, html string) {
	t.Helper()
	ids, used, level := map[string]int{}, []string{}, 0
	d := xml.NewDecoder(strings.NewReader(regexp.MustCompile(`<(meta|link)([^>]*)>`).ReplaceAllString(html, "<$1$2/>")))
	d.Entity, d.Strict = xml.HTMLEntity, true
	for {
		token, err := d.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatalf("it isn't well formed: %v", err)
		}
		e, ok := token.(xml.StartElement)
		if !ok {
			continue
		}
		a := map[string]string{}
		for _, x := range e.Attr {
			a[x.Name.Local] = x.Value
		}
		if a["id"] != "" {
			ids[a["id"]]++
		}
		used = append(used, strings.Fields(a["aria-labelledby"])...)
		switch e.Name.Local {
		case "h1", "h2", "h3":
			h := int(e.Name.Local[1] - '0')
			if h > level+1 {
				t.Errorf("a heading %d follows one of level %d", h, level)
			}
			level = h
		case "script", "img", "iframe", "object", "form":
			t.Errorf("there is an element %s", e.Name.Local)
		case "svg":
			if a["role"] == "" && a["aria-hidden"] == "" && a["x"] == "" {
				t.Errorf("a drawing has no role and isn't hidden: %v", a)
			}
		}
		if a["style"] != "" {
			t.Errorf("%s has a style, which the policy forbids", e.Name.Local)
		}
	}
	for id, n := range ids {
		if n > 1 {
			t.Errorf("id %s is there %d times", id, n)
		}
	}
	for _, id := range used {
		if ids[id] == 0 {
			t.Errorf("nothing has the id %s, which is a label", id)
		}
	}
	for _, want := range []string{"<header>", `<main id="main"`, "<footer>", "<nav aria-label", `<html lang="en">`} {
		if !strings.Contains(html, want) {
			t.Errorf("no %s", want)
		}
	}
}

// TestHostile: whatever others have written stays text.
func TestHostile(t *testing.T) {
	const evil = `"><script>alert(1)</script><b onmouseover='x()'>` + "\u202e\x1b[2J"
	v := full()
	r := &v.Report
	r.ClusterName, r.Store, r.Doing, r.Summary = evil, "javascript:"+evil, evil, evil
	r.Leader.Node, r.Versions = cluster.NodeID(evil), []string{evil}
	r.Findings = []health.Finding{{Severity: health.NeedsYou, Kind: evil, Node: cluster.NodeID(evil), Text: evil, Command: evil},
		{Severity: "x" + evil, Text: evil, NoCommand: evil}}
	for i := range r.Nodes {
		n := &r.Nodes[i]
		n.Node, n.Role, n.Version, n.Error, n.Manager, n.Alarms = cluster.NodeID(evil), evil, evil, evil, evil, []string{evil}
		n.SeenBy = cluster.NodeID(evil)
	}
	r.Operation = &health.Operation{ID: evil, Kind: evil, State: evil, Backup: evil, Waiting: evil}
	r.Ended = r.Operation
	r.Waiting = []health.Command{{Name: evil, Kind: evil, Backup: evil, For: evil}}
	r.Backup.Name, r.Verification.Backup, r.Verification.Bad, r.Window.Note = evil, evil, evil, evil
	r.Endings = []health.Ending{{What: evil, Nodes: []cluster.NodeID{evil}, Problem: evil}}
	v.Node, v.StoreProblem, v.Events = evil, evil, []Event{{Text: evil}}
	v.Marks[0].Name = evil
	html := render(t, v)
	checkMarkup(t, html)
	for _, bad := range []string{"<script", "<b ", "javascript:\"", "\u202e", "\x1b"} {
		if strings.Contains(html, bad) {
			t.Errorf("%q is in the page", bad)
		}
	}
	if strings.Count(html, "&lt;script&gt;") < 20 {
		t.Error("the names aren't shown at all")
	}
	if n := strings.Count(html, "href="); n != 4 {
		t.Errorf("%d links, so one may be made of data", n)
	}
}

// full is a cluster with a day of backups, of which one is bad, and a gap.
func full() View {
	at := time.Date(2026, 2, 1, 12, 0, 0, 0, time.UTC)
	v := View{Node: "a", StoreRead: at.Add(-5 * time.Second), Report: health.Report{Version: 1, At: at, Store: "s3://backups/main",
		ClusterName: "main", Verdict: health.Healthy, Summary: "3 of 3 members are healthy", Formed: "yes", MembersKnown: true,
		MembersHealthy: 3, MembersWanted: 3, Versions: []string{"3.6.16"},
		Leader: &health.Leader{Node: "b", Term: 4, Current: true},
		Backup: &health.Backup{Name: "2026-02-01T11:53:00Z-000000", At: at.Add(-7 * time.Minute), AgeSeconds: 420, SizeBytes: 12 << 20,
			IntervalSeconds: 900, Stored: 193},
		Verification: &health.Verification{Backup: "2026-02-01T06:08:00Z-000000", Good: true, AgeSeconds: 21000},
		Archive:      &health.Archive{Until: at.Add(-5 * time.Second), LagSeconds: 5},
		Window: &health.Window{From: at.Add(-24 * time.Hour), Until: at.Add(-5 * time.Second), KeptSince: at.Add(-100 * time.Hour),
			Gaps: []health.Gap{{From: at.Add(-10 * time.Hour), Until: at.Add(-9 * time.Hour)}}}}}
	for i, n := range []cluster.NodeID{"a", "b", "c"} {
		role := catalog.RoleFollower
		if n == "b" {
			role = catalog.RoleLeader
		}
		v.Report.Nodes = append(v.Report.Nodes, health.Node{SeenBy: "b", SeenSeconds: int64(i), NodeReport: catalog.NodeReport{
			Node: n, Role: role, Version: "3.6.16", Running: true, Healthy: true, DBSize: 200 << 20, DBQuota: 2 << 30, DiskFree: 1 << 34,
			DiskTotal: 1 << 35, Manager: "1.2.3"}})
	}
	for i := range 96 {
		m := health.Mark{Name: fmt.Sprint(i), At: at.Add(time.Duration(i-96)*15*time.Minute + 8*time.Minute),
			Verified: i%24 == 3, Bad: i == 60}
		v.Marks = append(v.Marks, m)
	}
	return v
}

// TestBounded: a page stays small, whatever there is.
func TestBounded(t *testing.T) {
	v := full()
	v.Marks = nil
	for i := range 1000 {
		v.Marks = append(v.Marks, health.Mark{At: v.Report.At.Add(-time.Duration(1000-i) * time.Minute), Name: fmt.Sprint(i),
			Bad: i == 500})
	}
	n := v.Report.Nodes[2]
	for i := range 50 {
		n.Node = cluster.NodeID(fmt.Sprintf("node-%02d-%s", i, strings.Repeat("x", 400)))
		n.Error = strings.Repeat("<", 100000)
		v.Report.Nodes = append(v.Report.Nodes, n)
		v.Events = append(v.Events, Event{At: v.Report.At, Text: n.Error})
	}
	for i := range 500 {
		v.Report.Findings = append(v.Report.Findings, health.Finding{Severity: health.Degraded, Text: fmt.Sprintf("finding %d", i)})
		v.Report.Waiting = append(v.Report.Waiting, health.Command{Name: fmt.Sprint(i)})
		v.Report.Endings = append(v.Report.Endings, health.Ending{What: fmt.Sprint(i)})
	}
	html := render(t, v)
	if len(html) > 768<<10 {
		t.Errorf("%d bytes", len(html))
	}
	checkMarkup(t, html)
	text := visible(html)
	for _, want := range []string{"460 more are left out", "and 41 more nodes, in the table", "node-49"} {
		if !strings.Contains(text, want) {
			t.Errorf("it doesn't say %q", want)
		}
	}
	if n := strings.Count(html, `class="tick bad"`); n != 3 { // narrow, wide, legend
		t.Errorf("the bad backup among many is drawn %d times", n)
	}
	plain := full()
	plain.Report.Window.Gaps = nil
	if n := len(render(t, plain)); n > 64<<10 {
		t.Errorf("an ordinary page has %d bytes", n)
	}
}

// TestDrawing: what the pictures say in words, and whom the arrows lead to.
func TestDrawing(t *testing.T) {
	v := full()
	c := &v.Report.Nodes[2]
	c.Silent, c.SilentSeconds, c.Healthy, c.Running = true, 200, false, false
	for _, p := range pictures(v.Report) {
		if p.Desc != "Node b: etcd leader, healthy. Node a: etcd follower, healthy. Node c: unknown role, no answer for 3 min. "+
			"Etcd on node b copies its log to the others. The manager of node b writes backups and changes to the store." {
			t.Errorf("%s: %s", p.ID, p.Desc)
		}
		if len(p.Boxes) != 4 || len(p.Arrows) != 3 || p.Arrows[0].Off || !p.Arrows[1].Off || p.Arrows[2].Off {
			t.Errorf("%s: %+v", p.ID, p.Arrows)
		}
		for _, b := range p.Boxes {
			if b.X < 0 || b.X+b.W > p.W || b.Y < 0 || b.Y+b.H > p.H {
				t.Errorf("%s: box %s is outside", p.ID, b.Name)
			}
		}
	}
	lines, words, bad, gaps := timelines(v.Report, v.Marks)
	if len(lines) != 2 || !bad || len(gaps) != 1 || !strings.Contains(words[0], "but not these") ||
		!strings.HasSuffix(lines[0].Desc, "96 backups: 4 verified, 1 bad.") {
		t.Errorf("%v %v %v", words, gaps, lines)
	}
	for _, l := range lines {
		if len(l.Spans) != 1 || len(l.Gaps) != 1 || !slices.ContainsFunc(l.Ticks, func(k tick) bool { return k.Class == "bad" }) {
			t.Errorf("%+v", l)
		}
	}
}

// TestHandler: the page is served with a policy that lets nothing but its own style in, and to this machine only if it is for that.
func TestHandler(t *testing.T) {
	asked := 0
	h, err := Handler(func(context.Context) View { asked++; return full() })
	must(t, err)
	get := func(h http.Handler, method, path, host string) *httptest.ResponseRecorder {
		w := httptest.NewRecorder()
		r := httptest.NewRequestWithContext(t.Context(), method, path, nil)
		r.Host = host
		h.ServeHTTP(w, r)
		return w
	}
	w := get(h, http.MethodGet, "/", "127.0.0.1:2390")
	style := regexp.MustCompile(`(?s)<style>(.*?)</style>`).FindStringSubmatch(w.Body.String())
	policy := w.Header().Get("Content-Security-Policy")
	if w.Code != 200 || len(style) != 2 || style[1] != styleText ||
		!strings.Contains(policy, "default-src 'none'; style-src '"+styleHash()+"'") {
		t.Errorf("%d, policy %s", w.Code, policy)
	}
	if strings.Contains(w.Body.String(), "http-equiv") || !strings.Contains(get(h, http.MethodGet, "/?refresh=30", "localhost").Body.String(),
		`<meta http-equiv="refresh" content="30">`) {
		t.Error("it loads itself again unasked, or doesn't when asked")
	}
	if asked != 1 {
		t.Errorf("two requests within a second were %d looks", asked)
	}
	for _, c := range []struct {
		method, path string
		code         int
	}{{http.MethodPost, "/", 405}, {http.MethodGet, "/x", 404}, {http.MethodHead, "/", 200}} {
		if w := get(h, c.method, c.path, "localhost"); w.Code != c.code {
			t.Errorf("%s %s: %d", c.method, c.path, w.Code)
		}
	}
	for host, code := range map[string]int{"localhost:1": 200, "127.0.0.1": 200, "[::1]:2390": 200, "evil.example": 421, "10.0.0.1:2390": 421,
		"127.0.0.1.evil.example": 421, "": 421} {
		if w := get(LocalOnly(h), http.MethodGet, "/", host); w.Code != code {
			t.Errorf("host %q: %d", host, w.Code)
		}
	}
}

// TestReader: a store is read only if somebody looks, by one at a time, and one that hangs or fails hides nothing that was read.
func TestReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, end := context.WithCancel(t.Context())
		defer end()
		reads, hang := 0, true
		var fails error
		r := NewReader(ctx, func(ctx context.Context) (health.Facts, error) {
			reads++
			if hang {
				<-ctx.Done()
				return health.Facts{}, ctx.Err()
			}
			return health.Facts{Store: fmt.Sprint(reads)}, fails
		})
		look := func() (string, bool, error) {
			f, at, err := r.Look(ctx)
			return f.Store, !at.IsZero(), err
		}
		began := time.Now()
		if _, read, err := look(); read || !errors.Is(err, errNotYet) || time.Since(began) != firstWait {
			t.Errorf("a store that hangs: read %v, %v after %s", read, err, time.Since(began))
		}
		time.Sleep(readTimeout)
		synctest.Wait()
		if _, _, err := look(); !errors.Is(err, context.DeadlineExceeded) || reads != 1 {
			t.Errorf("after its time: %v, %d reads", err, reads)
		}
		hang = false
		time.Sleep(readShare * readTimeout)
		if s, read, err := look(); s != "2" || !read || err != nil {
			t.Errorf("a store that is back: %q %v %v", s, read, err)
		}
		time.Sleep(time.Hour)
		if reads != 2 {
			t.Errorf("nobody looked, and it was read %d times", reads)
		}
		fails = errors.New("refused")
		if s, read, err := look(); s != "2" || !read || err == nil {
			t.Errorf("a store that fails: %q %v %v", s, read, err)
		}
		look()
		if reads != 3 {
			t.Errorf("%d reads within a moment", reads)
		}
	})
}

// TestGoldenParts: the parts of a page that a reader by ear, or a tool, would miss if they changed.
func TestGoldenParts(t *testing.T) {
	for _, s := range situations(t) {
		if s.Name != "quorum lost" {
			continue
		}
		html := render(t, s.View)
		_, section, _ := strings.Cut(html, "<main")
		section, _, _ = strings.Cut(section, "</section>")
		got := []byte("<main" + section + "</section>\n")
		path := filepath.Join("testdata", "verdict.html")
		if os.Getenv("UPDATE") != "" {
			must(t, os.WriteFile(path, got, 0o600))
		}
		want, err := os.ReadFile(path)
		must(t, err)
		if !bytes.Equal(got, want) {
			t.Errorf("%s differs; UPDATE=1 writes it again; got\n%s", path, got)
		}
	}
}

// TestCopiesAndStandbys: the page shows how far the copies of the store are, and who follows which cluster.
func TestCopiesAndStandbys(t *testing.T) {
	now, lag := time.Date(2026, 2, 1, 12, 0, 0, 0, time.UTC), int64(4)
	r := health.Report{At: now, Formed: "yes", Copies: []health.Copy{
		{LagSeconds: &lag,
			CopyReport: catalog.CopyReport{Name: "s3://far/main", Until: now.Add(-4 * time.Second), NewestBackup: now.Add(-time.Minute)}},
		{CopyReport: catalog.CopyReport{Name: "file:///mnt/main", Error: "refused"}},
	}}
	got := visible(render(t, View{Report: r}))
	for _, want := range []string{"Copies of the store",
		"s3://far/main every change up to 2026-02-01 11:59:56 UTC, 4 s behind; newest backup 1 min old",
		"file:///mnt/main nothing was copied yet; it fails: refused"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in %s", want, got)
		}
	}
	r = health.Report{At: now, Formed: "no", CopyOf: "s3://first/main", Standbys: []health.Standby{
		{Node: "a", StandbyReport: catalog.StandbyReport{Of: "s3://other/main"}, SeenSeconds: 2},
		{Node: "b", BehindSeconds: 3,
			StandbyReport: catalog.StandbyReport{Of: "s3://other/main", Base: "x", Revision: 7, Bytes: 2048}},
	}}
	got = visible(render(t, View{Report: r, ManagerRead: now.Add(-time.Minute)}))
	for _, want := range []string{"This store is a copy of s3://first/main", "Node a follows s3://other/main; it has no copy yet; seen 2 s ago",
		"Node b follows s3://other/main; revision 7, 3 s behind, 2.0 KiB; seen 0 s ago", "this manager has said nothing for 1 min"} {
		if !strings.Contains(got, want) {
			t.Errorf("%q is missing in %s", want, got)
		}
	}
}
