package retention

import (
	"flag"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

var updateRetention = flag.Bool("update-retention", false, "rewrite the expected decisions in testdata/backups")

// TestRetentionScripts runs testdata/backups/*.txt. A script has three parts, separated by lines of "---": now and policy;
// the backups (a name and its marks, or "series COUNT EVERY LAST" for many); and what is expected: a line for each backup, or,
// if the first part says "summary", how many stay and go for each reason.
func TestRetentionScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/backups/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) { runRetentionScript(t, f) })
	}
}

func runRetentionScript(t *testing.T, file string) {
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.SplitN(string(data), "---\n", 3)
	if len(parts) < 2 {
		t.Fatalf("%s: want parts separated by ---", file)
	}
	policy, now, summary := Default(), time.Time{}, false
	for _, line := range scriptLines(parts[0]) {
		word, value, _ := strings.Cut(line, " ")
		switch word {
		case "now":
			now = mustTime(t, value)
		case "hourly":
			policy.Hourly = mustRetention(t, value)
		case "daily":
			policy.Daily = mustRetention(t, value)
		case "summary":
			summary = true
		default:
			t.Fatalf("%s: unknown word %q", file, word)
		}
	}
	var backups []Backup
	for _, line := range scriptLines(parts[1]) {
		backups = append(backups, scriptBackups(t, line)...)
	}
	var out strings.Builder
	counts := map[string]int{}
	for _, d := range Decide(now, backups, policy) {
		word := "remove"
		if d.Keep {
			word = "keep  "
		}
		if summary {
			counts[fmt.Sprintf("%s %s", word, d.Reason)]++
		} else {
			fmt.Fprintf(&out, "%s %s: %s\n", word, d.Name, d.Reason)
		}
	}
	var keys []string
	for k := range counts {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	for _, k := range keys {
		fmt.Fprintf(&out, "%5d %s\n", counts[k], k)
	}
	if *updateRetention {
		text := parts[0] + "---\n" + parts[1] + "---\n" + out.String()
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if len(parts) < 3 || parts[2] != out.String() {
		t.Errorf("%s: decisions differ; got:\n%s", file, out.String())
	}
}

func scriptLines(part string) []string {
	var lines []string
	for line := range strings.Lines(part) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	return lines
}

func scriptBackups(t *testing.T, line string) []Backup {
	words := strings.Fields(line)
	if words[0] == "series" {
		var count int
		if _, err := fmt.Sscan(words[1], &count); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		every, last := mustRetention(t, words[2]), mustTime(t, words[3])
		var out []Backup
		for i := range count {
			at := last.Add(-time.Duration(count-1-i) * every)
			out = append(out, Backup{Name: fmt.Sprintf("%s-%06d", at.Format(time.RFC3339), i), Time: at, Complete: true})
		}
		return out
	}
	b := Backup{Name: words[0], Complete: true}
	if len(b.Name) >= 20 {
		b.Time, _ = time.Parse(time.RFC3339, b.Name[:20])
	}
	for _, w := range words[1:] {
		switch w {
		case "incomplete":
			b.Complete = false
		case "proven":
			b.Proven = true
		case "bad":
			b.Disproven = true
		case "pinned":
			b.Pinned = true
		case "base":
			b.Base = true
		default:
			t.Fatalf("%q: unknown mark %q", line, w)
		}
	}
	return []Backup{b}
}

func mustTime(t *testing.T, s string) time.Time {
	t.Helper()
	at, err := time.Parse(time.RFC3339, s)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func mustRetention(t *testing.T, s string) time.Duration {
	t.Helper()
	d, err := ParseDuration(s)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// keepModel is the policy once more, said as plainly as possible and as slow as that is.
func keepModel(now time.Time, all []Backup, b Backup, p Policy) bool {
	if b.Pinned || b.Base && b.Complete || b.Time.IsZero() || b.Time.After(now) {
		return true
	}
	age := now.Sub(b.Time)
	if !b.Complete {
		return age < 24*time.Hour
	}
	newest, newestProven, firstOfHour, firstOfDay := true, b.Proven, true, true
	for _, o := range all {
		if !o.Complete {
			continue
		}
		earlier := o.Time.Before(b.Time) || o.Time.Equal(b.Time) && o.Name < b.Name
		later := o.Time.After(b.Time) || o.Time.Equal(b.Time) && o.Name > b.Name
		if later && !o.Time.After(now) {
			newest = false
			if o.Proven {
				newestProven = false
			}
		}
		if earlier && o.Time.Format("2006-01-02T15") == b.Time.Format("2006-01-02T15") {
			firstOfHour = false
		}
		if earlier && o.Time.Format("2006-01-02") == b.Time.Format("2006-01-02") {
			firstOfDay = false
		}
	}
	return newest || newestProven || age <= time.Hour || age <= p.Hourly && firstOfHour || age <= p.Daily && firstOfDay
}

func TestRetainAgainstModel(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	now := time.Date(2026, 3, 1, 0, 30, 0, 0, time.UTC)
	for round := range 3000 {
		p := Policy{Hourly: time.Duration(r.IntN(100)) * time.Hour, Daily: time.Duration(r.IntN(10)) * 24 * time.Hour}
		var backups []Backup
		for i := range r.IntN(40) {
			at := now.Add(time.Duration(r.IntN(200)-195) * time.Hour).Add(time.Duration(r.IntN(4)*15) * time.Minute)
			if r.IntN(30) == 0 {
				at = time.Time{}
			}
			backups = append(backups, Backup{Name: fmt.Sprintf("%s-%06d", at.Format(time.RFC3339), i), Time: at,
				Complete: r.IntN(8) > 0, Proven: r.IntN(5) == 0, Pinned: r.IntN(20) == 0, Base: r.IntN(25) == 0})
		}
		r.Shuffle(len(backups), func(i, j int) { backups[i], backups[j] = backups[j], backups[i] })
		byName := map[string]Backup{}
		for _, b := range backups {
			byName[b.Name] = b
		}
		decisions := Decide(now, backups, p)
		if len(decisions) != len(backups) {
			t.Fatalf("round %d: %d decisions for %d backups", round, len(decisions), len(backups))
		}
		var kept []Backup
		for _, d := range decisions {
			b := byName[d.Name]
			if want := keepModel(now, backups, b, p); d.Keep != want || d.Reason == "" {
				t.Fatalf("round %d: now %s policy %v backup %+v: keep %v (%s), the model says %v", round, now, p, b, d.Keep, d.Reason, want)
			}
			if d.Keep {
				kept = append(kept, b)
			}
		}
		for _, d := range Decide(now, kept, p) {
			if !d.Keep {
				t.Fatalf("round %d: %s is removed in a second run (%s)", round, d.Name, d.Reason)
			}
		}
	}
}

func TestParseRetention(t *testing.T) {
	for s, want := range map[string]time.Duration{
		"168h": 168 * time.Hour, "7d": 168 * time.Hour, "1y": 8760 * time.Hour, "1y6d12h30m": (8760+144+12)*time.Hour + 30*time.Minute,
		"1.5d": 36 * time.Hour, "0": 0, "90s": 90 * time.Second, " 2d ": 48 * time.Hour, "1h30m": 90 * time.Minute, "12h1d": 36 * time.Hour,
		"000": 0, "1h9d": 217 * time.Hour, "1h.5d": 13 * time.Hour, "1h0d": time.Hour,
	} {
		if got, err := ParseDuration(s); err != nil || got != want {
			t.Errorf("ParseDuration(%q) = %v, %v; want %v", s, got, err, want)
		}
	}
	for _, s := range []string{"", "7", "d", "-1h", "7 d", "1w", "5days", "1e3d", "1..5d", "300000000y", "h1", "1d0", "1h0", "0s0",
		strconv.FormatFloat(math.MaxInt64/float64(24*time.Hour), 'f', -1, 64) + "d"} { // one more than the longest duration
		if got, err := ParseDuration(s); err == nil {
			t.Errorf("ParseDuration(%q) = %v, want an error", s, got)
		}
	}
}

// TestFlag: a flag shows what it would read, also one that points nowhere, as the package flag makes it for its help.
func TestFlag(t *testing.T) {
	var d time.Duration
	f := Flag{&d}
	for text, want := range map[string]string{"168h": "7d", "36h": "36h0m0s", "0": "0s"} {
		if err := f.Set(text); err != nil || f.String() != want {
			t.Errorf("%s: %s, %v; want %s", text, f, err, want)
		}
	}
	was := d
	if err := f.Set("soon"); err == nil || d != was {
		t.Errorf("a wrong value: %v, and it is %s", err, d)
	}
	if s := (Flag{}).String(); s != "" {
		t.Errorf("one that points nowhere: %q", s)
	}
}

// TestEdges has the cases that only the last of a window, or the first of a list, decides.
func TestEdges(t *testing.T) {
	now := time.Date(2026, 3, 4, 12, 30, 0, 0, time.UTC)
	ago := func(d time.Duration, change func(*Backup)) Backup {
		b := Backup{Name: now.Add(-d).Format(time.RFC3339), Time: now.Add(-d), Complete: true}
		if change != nil {
			change(&b)
		}
		return b
	}
	bad, latest := func(b *Backup) { b.Disproven = true }, func(b *Backup) { b.Latest = true }
	two := []Backup{ago(50*time.Hour, nil), ago(2*time.Hour, nil)}
	keep := []bool{true, true}
	for _, c := range []struct {
		name    string
		policy  Policy
		backups []Backup
		want    []bool
	}{
		{"the only good one is older than the bad one", Policy{}, []Backup{ago(50*time.Hour, nil), ago(40*time.Hour, bad)}, []bool{true, false}},
		{"the newest of its incarnation", Policy{}, []Backup{ago(50*time.Hour, latest), ago(2*time.Hour, nil)}, keep},
		{"exactly at the end of the hours", Policy{Hourly: 50 * time.Hour}, two, keep},
		{"exactly at the end of the days", Policy{Daily: 50 * time.Hour}, two, keep},
		{"exactly an hour old", Policy{}, []Backup{ago(time.Hour, nil), ago(time.Minute, nil)}, []bool{true, true}},
		{"its name has no time", Policy{}, []Backup{{Name: "x", Complete: true}, ago(time.Minute, nil)}, []bool{true, true}},
		{"incomplete, exactly a day old", Policy{}, []Backup{ago(24*time.Hour, func(b *Backup) { b.Complete = false })}, []bool{false}},
		{"incomplete, nearly a day old", Policy{}, []Backup{ago(24*time.Hour-1, func(b *Backup) { b.Complete = false })}, []bool{true}},
	} {
		for i, d := range Decide(now, c.backups, c.policy) {
			if d.Keep != c.want[i] {
				t.Errorf("%s: %s stays %t (%s), want %t", c.name, d.Name, d.Keep, d.Reason, c.want[i])
			}
		}
	}
}
