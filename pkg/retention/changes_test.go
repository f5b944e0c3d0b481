package retention

import (
	"cmp"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestSegmentScripts runs testdata/changes/*.txt. A script has three parts, separated by lines of "---": now, retention and the proven
// chain; the backups (time and revision) and segments (first, last, end); and what is expected of each segment.
func TestSegmentScripts(t *testing.T) {
	files, err := filepath.Glob("testdata/changes/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatalf("no scripts: %v", err)
	}
	for _, f := range files {
		t.Run(filepath.Base(f), func(t *testing.T) { runSegmentScript(t, f) })
	}
}

func runSegmentScript(t *testing.T, file string) {
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	parts := strings.SplitN(string(data), "---\n", 3)
	var now time.Time
	retention := DefaultChanges
	var c Changes
	var segments []Segment
	for _, line := range append(scriptLines(parts[0]), scriptLines(parts[1])...) {
		w := strings.Fields(line)
		switch w[0] {
		case "now":
			now = mustTime(t, w[1])
		case "retention":
			retention = mustRetention(t, w[1])
		case "proven":
			c.ProvenFrom, c.ProvenTo = mustInt(t, w[1]), mustInt(t, w[2])
		case "backup":
			c.Bases = append(c.Bases, ChangeBase{Name: w[1], Time: mustTime(t, w[1]), Revision: mustInt(t, w[2])})
		case "segment":
			segments = append(segments, Segment{First: mustInt(t, w[1]), Last: mustInt(t, w[2]), Ended: mustTime(t, w[3])})
		default:
			t.Fatalf("%s: unknown word %q", file, w[0])
		}
	}
	var out strings.Builder
	for _, d := range retainSegments(now, retention, c, segments) {
		word := "remove"
		if d.Keep {
			word = "keep  "
		}
		fmt.Fprintf(&out, "%s %d-%d: %s\n", word, d.Segment.First, d.Segment.Last, d.Reason)
	}
	if *updateRetention {
		if err := os.WriteFile(file, []byte(parts[0]+"---\n"+parts[1]+"---\n"+out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if len(parts) < 3 || parts[2] != out.String() {
		t.Errorf("%s: decisions differ; got:\n%s", file, out.String())
	}
}

func mustInt(t *testing.T, s string) int64 {
	t.Helper()
	var n int64
	if _, err := fmt.Sscan(s, &n); err != nil {
		t.Fatalf("%q: %v", s, err)
	}
	return n
}

// segmentModel says of one segment whether it must stay, by walking over everything: a young one,
// one in the proven chain, one that a walk from the newest old backup to a young one passes.
func segmentModel(now time.Time, retention time.Duration, c Changes, all []Segment, s Segment) bool {
	old := func(at time.Time) bool { return now.Sub(at) > retention }
	if !old(s.Ended) {
		return true
	}
	for rev := c.ProvenFrom; c.ProvenTo > 0 && rev <= c.ProvenTo; rev++ {
		if s.First <= rev && s.Last >= rev {
			return true
		}
	}
	someYoung := false
	for _, x := range all {
		someYoung = someYoung || !old(x.Ended)
	}
	if !someYoung {
		return false
	}
	from := int64(-1)
	for _, b := range c.Bases {
		if now.Sub(b.Time) >= retention+10*time.Minute {
			from = max(from, b.Revision) // revisions grow with time
		}
	}
	return from < 0 || s.Last >= from
}

// TestRetainSegmentsAgainstModel: the decisions are the model's, every young change that could be
// reached still can, and a second run changes nothing.
func TestRetainSegmentsAgainstModel(t *testing.T) {
	r := rand.New(rand.NewPCG(3, 4))
	now := time.Date(2026, 3, 1, 0, 30, 0, 0, time.UTC)
	removed := 0
	for round := range 4000 {
		retention := time.Duration(r.IntN(60)) * time.Minute
		var c Changes
		var all []Segment
		at, rev, previous := now.Add(-time.Duration(r.IntN(120))*time.Minute), int64(r.IntN(5)+1), ""
		for i := range r.IntN(60) {
			at = at.Add(time.Duration(r.IntN(4)) * time.Minute)
			if r.IntN(4) == 0 {
				c.Bases = append(c.Bases, ChangeBase{Name: fmt.Sprint("b", i), Time: at, Revision: rev - 1})
			}
			if r.IntN(15) == 0 {
				previous, rev = "", rev+int64(r.IntN(3)) // a gap
			}
			s := Segment{First: rev, Last: rev + int64(r.IntN(4)), Ended: at.Add(30 * time.Second), Previous: previous, Sum: fmt.Sprint(i)}
			all, previous, rev = append(all, s), s.Sum, s.Last+1
		}
		if r.IntN(3) == 0 {
			c.ProvenFrom, c.ProvenTo = int64(r.IntN(40)+1), int64(r.IntN(60)+1)
			c.ProvenTo = max(c.ProvenFrom, c.ProvenTo)
		}
		var kept []Segment
		for _, d := range retainSegments(now, retention, c, all) {
			if want := segmentModel(now, retention, c, all, d.Segment); d.Keep != want || d.Reason == "" {
				t.Fatalf("round %d: %+v: keep %v (%s), the model says %v; retention %s, %+v", round, d.Segment, d.Keep,
					d.Reason, want, retention, c)
			}
			if d.Keep {
				kept = append(kept, d.Segment)
			}
		}
		removed += len(all) - len(kept)
		for _, d := range retainSegments(now, retention, c, kept) {
			if !d.Keep {
				t.Fatalf("round %d: %+v goes in a second run", round, d.Segment)
			}
		}
		stillReachable(t, round, now.Add(-retention), c, all, kept)
	}
	if removed == 0 {
		t.Fatal("nothing was ever removed")
	}
}

// stillReachable: every young segment that some backup led to before is led to by one of the backups that have to stay.
func stillReachable(t *testing.T, round int, cutoff time.Time, c Changes, all, kept []Segment) {
	t.Helper()
	before, after := map[string]bool{}, map[string]bool{}
	anchor := AnchorOf(cutoff, c.Bases)
	for _, b := range c.Bases {
		for sum := range reached(b.Revision, all) {
			before[sum] = true
		}
		if anchor == nil || !b.Time.Before(anchor.Time) {
			for sum := range reached(b.Revision, kept) {
				after[sum] = true
			}
		}
	}
	for _, s := range kept {
		// What a gap before the anchor's chain has cut off is of the anchor's time at the latest.
		if !s.Ended.Before(cutoff) && before[s.Sum] && !after[s.Sum] {
			t.Fatalf("round %d: %+v can't be reached any more", round, s)
		}
	}
}

// TestDispensable: a backup inside an unbroken chain can go, one behind a gap can't.
func TestDispensable(t *testing.T) {
	a, b := ChangeBase{Revision: 10}, ChangeBase{Revision: 20}
	chain := []Segment{
		{First: 11, Last: 15, Sum: "1"}, {First: 16, Last: 22, Previous: "1", Sum: "2"}, {First: 23, Last: 30, Previous: "2", Sum: "3"},
	}
	if !Dispensable(b, a, chain) {
		t.Error("the chain from the earlier one goes through, and the later one counts as needed")
	}
	for name, broken := range map[string][]Segment{
		"missing revision":  {{First: 11, Last: 15, Sum: "1"}, {First: 20, Last: 22, Sum: "2"}},
		"begun anew":        {{First: 11, Last: 20, Sum: "1"}, {First: 21, Last: 22, Sum: "2"}},
		"other predecessor": {{First: 11, Last: 20, Sum: "1"}, {First: 21, Last: 22, Previous: "x", Sum: "2"}},
	} {
		if Dispensable(b, a, broken) {
			t.Errorf("%s: the later one is all that leads to what follows, and counts as dispensable", name)
		}
	}
	// That nothing has changed since the later one is told by a segment that hangs on it, and the earlier one leads there too.
	quiet := []Segment{{First: 11, Last: 20, Sum: "1"}, {First: 21, Last: 20, Previous: "1", Sum: "2"}}
	if !Dispensable(b, a, quiet) || !reached(20, quiet)["2"] || reached(9, quiet)["2"] {
		t.Errorf("a segment without changes: %v, %v, %v", Dispensable(b, a, quiet), reached(20, quiet), reached(9, quiet))
	}
	if !Dispensable(b, a, nil) {
		t.Error("nothing depends on it")
	}
}

// retainSegments decides about all segments of an incarnation, the oldest first.
func retainSegments(now time.Time, retention time.Duration, c Changes, segments []Segment) []segmentDecision {
	cutoff := now.Add(-retention)
	c.Live = slices.ContainsFunc(segments, func(s Segment) bool { return !s.Ended.Before(cutoff) })
	r := NewSegmentRule(now, retention, c)
	sorted := slices.Clone(segments)
	slices.SortStableFunc(sorted, func(a, b Segment) int {
		return cmp.Or(cmp.Compare(a.First, b.First), cmp.Compare(a.Last, b.Last))
	})
	out := make([]segmentDecision, 0, len(sorted))
	for _, s := range sorted {
		keep, reason := r.Decide(s)
		out = append(out, segmentDecision{Segment: s, Keep: keep, Reason: reason})
	}
	return out
}

// segmentDecision says of one segment whether it stays, and why.
type segmentDecision struct {
	Segment
	Keep   bool
	Reason string
}
