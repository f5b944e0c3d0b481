package status

import (
	"encoding/json"
	"flag"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

var rewrite = flag.Bool("rewrite", false, "write docs/metrics.md as it should be")

const root = "../.."

var descForm = regexp.MustCompile(`^Desc\{fqName: "(.*)", help: "(.*?)"(?:, unit: ".*")?, constLabels: \{\}, variableLabels: \{(.*)\}\}$`)

// exported lists all metrics by name: their help and labels.
func exported(t *testing.T) map[string][2]string {
	t.Helper()
	all := map[string][2]string{}
	v := reflect.ValueOf(&metrics).Elem()
	for i := range v.NumField() {
		d := reflect.NewAt(v.Field(i).Type(), v.Field(i).Addr().UnsafePointer()).Elem().Interface().(*prometheus.Desc)
		m := descForm.FindStringSubmatch(d.String())
		if m == nil {
			t.Fatalf("%s isn't understood", d)
		}
		all[m[1]] = [2]string{m[2], m[3]}
	}
	return all
}

// fullView has everything in it that can be exported.
func fullView() View {
	now := time.Now()
	v := leaderView(now)
	v.Disk, v.CertificateExpiry = Disk{TotalBytes: 2, FreeBytes: 1}, now
	v.Proof = &Proof{Backup: "B", At: now, Seconds: 1}
	v.Changes = &Changes{Until: now}
	v.Standby = NewStandby(catalog.StandbyReport{Of: "s3://other"}, now)
	v.Webhooks = []Webhook{{Number: 1, Host: "h", Delivered: 1}, {Number: 2, Host: "h"}}
	v.Copies = []catalog.CopyReport{{Name: "s3://copy", Until: now}}
	return v
}

// types are those of the metrics that a view with everything in it has.
func types(t *testing.T) map[string]string {
	t.Helper()
	w := httptest.NewRecorder()
	Handler(fullView).ServeHTTP(w, httptest.NewRequestWithContext(t.Context(), http.MethodGet, "/metrics", nil))
	byName := map[string]string{}
	for line := range strings.Lines(w.Body.String()) {
		if f := strings.Fields(line); len(f) == 4 && f[1] == "TYPE" {
			byName[f[2]] = f[3]
		}
	}
	return byName
}

// TestMetricsPage: docs/metrics.md has every metric, as the code describes it; -rewrite writes it.
func TestMetricsPage(t *testing.T) {
	const path, begin, end = root + "/docs/metrics.md", "<!-- metrics: begin -->\n", "<!-- metrics: end -->\n"
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	head, rest, ok1 := strings.Cut(string(raw), begin)
	_, tail, ok2 := strings.Cut(rest, end)
	if !ok1 || !ok2 {
		t.Fatalf("%s has no table between its two markers", path)
	}
	all, byName := exported(t), types(t)
	var names []string
	for n := range all {
		names = append(names, n)
	}
	slices.Sort(names)
	table := "| metric | type | labels | meaning |\n|---|---|---|---|\n"
	for _, n := range names {
		if byName[n] == "" {
			t.Errorf("%s: fullView has nothing for it", n)
		}
		label := all[n][1]
		if label != "" {
			label = "`" + strings.ReplaceAll(label, ",", "`, `") + "`"
		}
		table += fmt.Sprintf("| `%s` | %s | %s | %s |\n", n, byName[n], label, all[n][0])
	}
	want := head + begin + table + end + tail
	if *rewrite {
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	} else if want != string(raw) {
		t.Errorf("%s isn't what the code exports; go test ./pkg/status -run TestMetricsPage -rewrite writes it", path)
	}
}

var metricName = regexp.MustCompile(`etcd_manager_\w+`)

// TestAlertsAndDashboard: what the alerts and the dashboard ask for exists, and each alert has a page that says what to do.
func TestAlertsAndDashboard(t *testing.T) {
	all := exported(t)
	known := func(where, expr string) {
		for _, n := range metricName.FindAllString(expr, -1) {
			if _, ok := all[n]; !ok {
				t.Errorf("%s: there is no metric %s", where, n)
			}
		}
	}
	rules, err := os.ReadFile(root + "/contrib/prometheus/alerts.yaml")
	if err != nil {
		t.Fatal(err)
	}
	known("alerts.yaml", string(rules))
	pages := map[string]bool{"README.md": true}
	for _, rule := range strings.Split(string(rules), "- alert: ")[1:] {
		name, rest, _ := strings.Cut(rule, "\n")
		_, page, ok := strings.Cut(rest, "/docs/runbooks/")
		page, _, _ = strings.Cut(page, "\n")
		text, err := os.ReadFile(filepath.Join(root, "docs/runbooks", page))
		if !ok || err != nil || !strings.HasPrefix(string(text), "# "+name+"\n") {
			t.Errorf("%s: its page %q doesn't begin with its name: %v", name, page, err)
		}
		pages[page] = true
		tests, err := os.ReadFile(root + "/contrib/prometheus/alerts_test.yaml")
		if err != nil || !strings.Contains(string(tests), "alertname: "+name+"\n") {
			t.Errorf("%s isn't tested in alerts_test.yaml: %v", name, err)
		}
	}
	files, err := filepath.Glob(root + "/docs/runbooks/*.md")
	if err != nil || len(files) != len(pages) {
		t.Errorf("%d pages for %d alerts, %v", len(files), len(pages), err)
	}
	raw, err := os.ReadFile(root + "/contrib/grafana/etcd-manager.json")
	if err != nil {
		t.Fatal(err)
	}
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	if err := json.Unmarshal(raw, &dashboard); err != nil || len(dashboard.Panels) == 0 {
		t.Fatalf("the dashboard: %v", err)
	}
	for _, p := range dashboard.Panels {
		for _, x := range p.Targets {
			known("panel "+p.Title, x.Expr)
		}
	}
}

// TestAlertRules: each alert fires and clears, by Prometheus' own judgement.
func TestAlertRules(t *testing.T) {
	promtool, err := exec.LookPath("promtool")
	if err != nil {
		t.Skip("promtool isn't installed: apt-get install prometheus")
	}
	for _, args := range [][]string{{"check", "rules", "alerts.yaml"}, {"test", "rules", "alerts_test.yaml"}} {
		cmd := exec.CommandContext(t.Context(), promtool, args...)
		cmd.Dir = root + "/contrib/prometheus"
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Errorf("promtool %s: %v\n%s", strings.Join(args, " "), err, out)
		}
	}
}
