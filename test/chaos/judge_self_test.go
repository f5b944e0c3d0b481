package chaos

import (
	"math"
	"slices"
	"strings"
	"testing"
)

// sound is a history in which a restore to the latest state lost nothing: two clusters, one key, one write without an answer.
func sound() ([]request, []era) {
	requests := []request{
		{Client: 1, Kind: put, Key: "a", Value: "1", Call: 0, Return: 10, Revision: 2, Cluster: 1},
		{Client: 2, Kind: get, Key: "a", Found: "1", Call: 11, Return: 20, Revision: 2, Cluster: 1},
		{Client: 1, Kind: swap, Key: "a", Old: "1", Value: "2", Swapped: true, Call: 21, Return: 30, Revision: 3, Cluster: 1},
		{Client: 2, Kind: put, Key: "b", Value: "3", Call: 22, Return: 32, Revision: 4, Cluster: 1},
		{Client: 2, Kind: del, Key: "b", Call: 33, Return: 36, Revision: 5, Cluster: 1},
		{Client: 3, Kind: put, Key: "c", Value: "4", Call: 37, Return: 40, Revision: 6, Cluster: 1},
		{Client: 3, Kind: put, Key: "c", Value: "5", Call: 41, Return: 60, Unknown: true},
		{Client: 1, Kind: put, Key: "a", Value: "late", Call: 62, Return: 64, Revision: 8, Cluster: 1},
		{Client: 1, Kind: get, Key: "a", Found: "2", Call: 110, Return: 120, Revision: 1010, Cluster: 2},
		{Client: 2, Kind: swap, Key: "c", Old: "4", Value: "6", Call: 121, Return: 130, Revision: 1010, Cluster: 2},
		{Client: 3, Kind: get, Key: "c", Found: "5", Call: 131, Return: 140, Revision: 1010, Cluster: 2},
		{Client: 3, Kind: put, Key: "b", Value: "7", Call: 141, Return: 150, Revision: 1011, Cluster: 2},
	}
	eras := []era{{Cluster: 1}, {Cluster: 2, From: 1, Call: 61, Return: 100, Promised: 61, Reached: 7, What: "latest",
		Content: map[string]stored{"a": {"2", 3}, "c": {"5", 7}}}}
	return requests, eras
}

// named is the sound history with a restore of a whole snapshot, which ends somewhere between revisions 4 and most.
func named(most int64) ([]request, []era) {
	r, e := sound()
	e[1] = era{Cluster: 2, From: 1, Call: 61, Return: 100, Reached: 4, AtMost: most, What: "name",
		Content: map[string]stored{"a": {"2", 3}}}
	return slices.Delete(r, 9, 11), e
}

// TestJudgeWritesThatNobodyReads: a write without an answer that nobody has read may be why a swap failed. Without such a write the swap
// should have been done.
func TestJudgeWritesThatNobodyReads(t *testing.T) {
	requests := []request{
		{Client: 1, Kind: put, Key: "a", Value: "1", Call: 0, Return: 10, Revision: 2, Cluster: 1},
		{Client: 2, Kind: put, Key: "a", Value: "2", Call: 11, Return: 15, Unknown: true},
		{Client: 1, Kind: swap, Key: "a", Old: "1", Value: "3", Call: 16, Return: 20, Revision: 3, Cluster: 1},
	}
	eras := []era{{Cluster: 1}}
	if v := judge(requests, eras); len(v.Violations) > 0 {
		t.Errorf("a swap that failed after a write without an answer: %v", v.Violations)
	}
	without := slices.Delete(slices.Clone(requests), 1, 2)
	if v := judge(without, eras); len(v.Violations) != 1 || !strings.Contains(v.Violations[0], "not linearizable") {
		t.Errorf("a swap that failed for nothing: %v", v.Violations)
	}
	later := slices.Clone(requests)
	later[1].Call, later[1].Return = 21, 30
	if v := judge(later, eras); len(v.Violations) != 1 {
		t.Errorf("a swap that failed before that write was sent: %v", v.Violations)
	}
}

// TestJudgeDeletionsAtTheEnd: no key that came back shows that a snapshot has its last changes, if they were deletions.
func TestJudgeDeletionsAtTheEnd(t *testing.T) {
	if v := judge(named(5)); len(v.Violations) > 0 {
		t.Errorf("a deletion that the snapshot may have: %q", v.Violations)
	}
	if v := judge(named(4)); !strings.Contains(strings.Join(v.Violations, "\n"), "key b is missing") {
		t.Errorf("a deletion behind the snapshot: found %q", v.Violations)
	}
}

// TestJudge shows that the judge lets a sound history pass, and finds each way of spoiling it.
func TestJudge(t *testing.T) {
	if v := judge(sound()); len(v.Violations) > 0 || v.Judged == 0 || v.Writes == 0 {
		t.Fatalf("a sound history: %+v", v)
	}
	for _, x := range []struct {
		name  string
		spoil func(r []request, e []era) []request
		want  string
	}{
		{"a read of what was overwritten", func(r []request, _ []era) []request { r[1].Found = ""; return r }, "not linearizable"},
		{"a read of what nobody wrote", func(r []request, _ []era) []request { r[8].Found = "x"; return r }, "not linearizable"},
		{"a swap that should have failed", func(r []request, _ []era) []request { r[2].Old = "0"; return r }, "not linearizable"},
		{"a swap that should have been done", func(r []request, _ []era) []request { r[9].Old = "5"; return r }, "not linearizable"},
		{"a read in the restored cluster of what came back otherwise",
			func(r []request, _ []era) []request { r[10].Found = "4"; return r }, "not linearizable"},
		{"a revision that goes back", func(r []request, _ []era) []request { r[4].Revision = 3; return r }, "after 4 had been seen"},
		{"a revision of the old cluster in the new one",
			func(r []request, _ []era) []request { r[8].Revision = 3; return r }, "the restored key"},
		{"a cluster that no restore has made", func(r []request, _ []era) []request { r[11].Cluster = 9; return r },
			"which no restore has made"},
		{"a write that was acknowledged before, and not reached", func(r []request, e []era) []request {
			e[1].Reached = 5
			e[1].Content = map[string]stored{"a": {"2", 3}}
			return slices.Delete(r, 9, 11)
		}, "only revision 5 was reached"},
		{"a key that is missing", func(r []request, e []era) []request { delete(e[1].Content, "a"); return slices.Delete(r, 8, 9) },
			"key a is missing"},
		{"an older value", func(r []request, e []era) []request {
			e[1].Content["a"] = stored{"1", 2}
			return slices.Delete(r, 8, 9)
		}, "key a came back"},
		{"another value", func(r []request, e []era) []request {
			e[1].Content["a"] = stored{"x", 3}
			return slices.Delete(r, 8, 9)
		}, "has value"},
		{"a deleted key", func(r []request, e []era) []request { e[1].Content["b"] = stored{"3", 4}; return r }, "key b came back"},
		{"a key that nobody wrote", func(r []request, e []era) []request { e[1].Content["d"] = stored{"x", 4}; return r },
			"which nobody wrote"},
		{"a change of after the point", func(r []request, e []era) []request {
			e[1].Content["a"] = stored{"late", 8}
			return slices.Delete(r, 8, 9)
		}, "the restore went to 7"},
		{"everything of what was undone, but the last write", func(r []request, e []era) []request {
			e[1].Reached, e[1].What = math.MaxInt64, "undo"
			return r
		}, "key a came back"},
		{"the data of a cluster that nobody knows", func(r []request, e []era) []request { e[1].From = 77; return r },
			"which nobody knows"},
	} {
		r, e := sound()
		v := judge(x.spoil(r, e), e)
		if !strings.Contains(strings.Join(v.Violations, "\n"), x.want) {
			t.Errorf("%s: found %q, want something with %q", x.name, v.Violations, x.want)
		}
	}
}
