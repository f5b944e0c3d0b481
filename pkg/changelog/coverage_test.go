package changelog

import (
	"fmt"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// TestCover draws chains: each letter is a segment of ten revisions and ten seconds, a dot is one that is lacking.
func TestCover(t *testing.T) {
	began := time.Date(2026, 11, 30, 12, 0, 0, 0, time.UTC)
	at := func(s int) time.Time { return began.Add(time.Duration(s) * time.Second) }
	for _, c := range []struct {
		name, segments string
		// backups are begun at seconds, with the revision of that second.
		backups []int
		want    string
	}{
		{"whole", "aaaaa", []int{0}, "0..50"},
		{"nothing kept", "", []int{0}, "0..0"},
		{"a gap, with a backup behind it", "aa..bb", []int{0, 41}, "0..60 gap 20..41 of 21..40"},
		{"a gap, and no backup yet", "aa..bb", []int{0}, "0..20 gap 20..? of 21..40"},
		{"two gaps", "aa.bb.cc", []int{0, 31, 62}, "0..80 gap 20..31 of 21..30 gap 50..62 of 51..60"},
		{"a backup that is older than the chain", "aa..bb", []int{0, 30}, "0..20 gap 20..? of 21..40"},
		{"a new chain without a loss", "aabb", []int{0, 21}, "0..40 gap 20..21 of 21..20"},
	} {
		var segments []catalog.Segment
		before, previous := byte('.'), catalog.NoSegment
		for i := range len(c.segments) {
			letter := c.segments[i]
			if letter == '.' {
				before = letter
				continue
			}
			if letter != before {
				previous = catalog.NoSegment
			}
			sum := catalog.SegmentSum(fmt.Sprintf("%016x", i+1))
			segments = append(segments, catalog.Segment{SegmentName: catalog.SegmentName{First: int64(10*i + 1), Last: int64(10*i + 10),
				Ended: at(10*i + 10), Previous: previous, Sum: sum}})
			before, previous = letter, sum
		}
		got, err := cover(segments, 0, at(0), func(after time.Time, revision int64) (time.Time, bool, error) {
			for _, b := range c.backups {
				if !at(b).Before(after) && int64(b) >= revision {
					return at(b), true, nil
				}
			}
			return time.Time{}, false, nil
		})
		must(t, err)
		second := func(t time.Time) string {
			if t.IsZero() {
				return "?"
			}
			return fmt.Sprint(int(t.Sub(began).Seconds()))
		}
		words := second(got.From) + ".." + second(got.Until)
		for _, g := range got.Gaps {
			words += fmt.Sprintf(" gap %s..%s of %d..%d", second(g.From), second(g.Until), g.First, g.Last)
		}
		if words != c.want {
			t.Errorf("%s: %s, want %s", c.name, words, c.want)
		}
	}
}
