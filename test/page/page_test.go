// Package page looks at the page for people in a real browser: every situation, on a phone and on a wide screen, light and dark.
//
//	make test-page                                 needs Chromium; without one it is skipped
//	PICTURES=/tmp/pictures make test-page          keeps the pictures, to be looked at
//	DOCS=1 make test-page                          makes those of docs/images again
package page

import (
	"bufio"
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/operator/health"
	"github.com/etcd-manager/etcd-manager/pkg/page"
)

//go:embed checks.js
var checks string

// situation is one of those that etcd-manager-ctl's tests make.
type situation struct {
	Name string    `json:"name"`
	View page.View `json:"view"`
}

func situations(t *testing.T) []situation {
	t.Helper()
	f, err := os.Open(filepath.Join("..", "..", "pkg", "page", "testdata", "situations.jsonl"))
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
	if len(list) < 20 {
		t.Fatalf("%d situations", len(list))
	}
	return append(list, fullDay(t, list[0]), manyNodes(t, list[0]))
}

// copyOf is another view that shares nothing.
func copyOf(t *testing.T, s situation) situation {
	t.Helper()
	data, err := json.Marshal(s)
	must(t, err)
	var c situation
	must(t, json.Unmarshal(data, &c))
	return c
}

// fullDay is a day of backups every 15 minutes, one of them bad, with a gap, at a node, with names as a cloud gives them.
func fullDay(t *testing.T, healthy situation) situation {
	s := copyOf(t, healthy)
	s.Name = "a full day"
	r := &s.View.Report
	r.ClusterName, r.Store = "main", "s3://acme-clusters/prod-eu.example.com/backups/etcd/main"
	names := []string{"ip-10-0-12-31.eu-central-1", "ip-10-0-47-8.eu-central-1", "ip-10-0-90-115.eu-central-1"}
	for i := range r.Nodes {
		if r.Leader.Node == r.Nodes[i].Node {
			r.Leader.Node = cluster.NodeID(names[i])
		}
		r.Nodes[i].Node = cluster.NodeID(names[i])
	}
	s.View.Node, s.View.StoreRead = cluster.NodeID(names[0]), r.At.Add(-8*time.Second)
	r.Window = &health.Window{From: r.At.Add(-24 * time.Hour), Until: r.At.Add(-4 * time.Second), KeptSince: r.At.Add(-7 * 24 * time.Hour),
		Gaps: []health.Gap{{From: r.At.Add(-10 * time.Hour), Until: r.At.Add(-9 * time.Hour)}}}
	s.View.Marks = nil
	for i := range 96 {
		s.View.Marks = append(s.View.Marks, health.Mark{Name: fmt.Sprint(i),
			At: r.At.Add(time.Duration(i-96)*15*time.Minute + 8*time.Minute), Verified: i%24 == 3, Bad: i == 60})
	}
	s.View.Events = []page.Event{{At: r.At.Add(-3 * time.Hour), Text: "node ip-10-0-47-8.eu-central-1 leads, term 4"},
		{At: r.At.Add(-15 * time.Minute), Text: "took backup 2026-02-01T11:53:00Z-000000 because the interval has passed"}}
	return s
}

// manyNodes is more than anybody has.
func manyNodes(t *testing.T, healthy situation) situation {
	s := copyOf(t, healthy)
	s.Name = "many nodes"
	n := s.View.Report.Nodes[0]
	for i := range 12 {
		n.Node = cluster.NodeID(fmt.Sprintf("control-plane-%02d-with-a-name-that-is-long.example.com", i))
		n.Healthy, n.Running = i != 3, i != 3
		n.Error = ""
		if i == 3 {
			n.Error = "exited with code 1: " + strings.Repeat("no space left on device ", 6)
		}
		s.View.Report.Nodes = append(s.View.Report.Nodes, n)
	}
	return s
}

// variants are how a page is looked at. zoomed is 1280 pixels wide at 200 %.
var variants = []struct {
	name          string
	width, height int
	scale         float64
	scheme        string
}{
	{"narrow-light", 390, 844, 1, "light"}, {"narrow-dark", 390, 844, 1, "dark"}, {"wide-light", 1280, 900, 1, "light"},
	{"wide-dark", 1280, 900, 1, "dark"}, {"smallest-light", 320, 640, 1, "light"}, {"zoomed-light", 640, 450, 2, "light"},
}

// TestPages looks at every situation in every variant: contrast, sizes, nothing cut off, nothing loaded, nothing refused by the policy; and
// once in each at what a screen reader and a keyboard get.
func TestPages(t *testing.T) {
	testutil.Long(t)
	b := startBrowser(t)
	var view page.View
	dir := os.Getenv("PICTURES")
	if dir != "" {
		must(t, os.MkdirAll(dir, 0o755))
	}
	looked := 0
	for _, s := range situations(t) {
		view = s.View
		h, err := page.Handler(func(context.Context) page.View { return view })
		must(t, err)
		server := httptest.NewServer(page.LocalOnly(h))
		for _, v := range variants {
			b.open(server.URL, v.width, v.height, v.scale, v.scheme)
			var problems []string
			b.eval(checks, &problems)
			b.mu.Lock()
			if b.requests != 1 {
				problems = append(problems, fmt.Sprintf("%d requests for one page", b.requests))
			}
			problems = append(problems, b.violations...)
			b.mu.Unlock()
			slices.Sort(problems)
			for _, p := range slices.Compact(problems) {
				t.Errorf("%s, %s: %s", s.Name, v.name, p)
			}
			if name := kept[s.Name+" "+v.name]; name != "" && os.Getenv("DOCS") != "" {
				must(t, os.WriteFile(filepath.Join("..", "..", "docs", "images", name), small(t, b.picture()), 0o600))
			}
			if dir != "" {
				must(t, os.WriteFile(filepath.Join(dir, strings.ReplaceAll(s.Name, " ", "-")+"-"+v.name+".png"), b.picture(), 0o600))
			}
			looked++
		}
		b.checkReader(s)
		server.Close()
	}
	t.Logf("%d pages were looked at", looked)
	b.checkKeyboard(view)
}

// checkReader checks what a screen reader gets: landmarks once, headings, names of pictures and tables.
func (b *browser) checkReader(s situation) {
	b.t.Helper()
	type value struct {
		Value any `json:"value"`
	}
	var tree struct {
		Nodes []struct {
			Ignored bool  `json:"ignored"`
			Role    value `json:"role"`
			Name    value `json:"name"`
		} `json:"nodes"`
	}
	b.call("Accessibility.getFullAXTree", nil, &tree)
	roles := map[string]int{}
	for _, n := range tree.Nodes {
		role, name := fmt.Sprint(n.Role.Value), fmt.Sprint(n.Name.Value)
		if n.Ignored {
			continue
		}
		roles[role]++
		switch role {
		case "image", "img", "table", "heading", "link", "navigation", "region", "progressbar", "progressIndicator":
			if n.Name.Value == nil || strings.TrimSpace(name) == "" {
				b.t.Errorf("%s: a %s has no name", s.Name, role)
			}
		}
	}
	for role, want := range map[string]int{"banner": 1, "main": 1, "contentinfo": 1, "navigation": 1} {
		if roles[role] != want {
			b.t.Errorf("%s: %d landmarks %s", s.Name, roles[role], role)
		}
	}
	if len(s.View.Report.Nodes) > 0 && (roles["table"] == 0 || roles["rowheader"] == 0 || roles["image"]+roles["img"] == 0) {
		b.t.Errorf("%s: no table or no picture: %v", s.Name, roles)
	}
}

// checkKeyboard goes through a page by Tab: the way past the head is first, then the links in their order, each with a ring.
func (b *browser) checkKeyboard(v page.View) {
	t := b.t
	t.Helper()
	h, err := page.Handler(func(context.Context) page.View { return v })
	must(t, err)
	server := httptest.NewServer(h)
	defer server.Close()
	b.open(server.URL, 390, 844, 1, "light")
	const active = `(() => { const e = document.activeElement, s = getComputedStyle(e), r = e.getBoundingClientRect();
		return [e.id || e.textContent, s.outlineStyle, String(r.left >= 0 && r.top >= 0)]; })()`
	var order []string
	for range 4 {
		b.press("Tab", 9)
		var got []string
		b.eval(active, &got)
		if order = append(order, got[0]); len(order) <= 3 && (got[1] == "none" || got[2] != "true") {
			t.Errorf("%q has the focus, and that isn't seen: %v", got[0], got)
		}
	}
	if want := []string{"Skip to the content", "Load again", "Load again every 30 s"}; !slices.Equal(order[:3], want) {
		t.Errorf("the order of the focus is %q, not %q", order, want)
	}
	b.open(server.URL, 390, 844, 1, "light")
	b.press("Tab", 9)
	for _, kind := range []string{"keyDown", "keyUp"} {
		b.call("Input.dispatchKeyEvent",
			map[string]any{"type": kind, "key": "Enter", "code": "Enter", "windowsVirtualKeyCode": 13, "text": "\r"}, nil)
	}
	testutil.Eventually(t, "the content to have the focus", func() bool {
		var got []string
		b.eval(active, &got)
		return got[0] == "main"
	})
}
