package page

import (
	"fmt"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/operator/health"
)

// timeline is what is stored, along the time. All lengths are in its own units, which are about pixels.
type timeline struct {
	ID, Class   string
	W, H        int
	Title, Desc string
	// Band is where the restorable times are drawn.
	Band  span
	Spans []span // of which any second can be restored
	Gaps  []span
	Ticks []tick
	Axis  []label
}

// span is a part of the band.
type span struct{ X, Y, W, H int }

// tick is a backup. Class is "plain", "good" (verified) or "bad".
type tick struct {
	X     int
	Class string
}

const (
	bandTop, bandHeight    = 8, 24
	ticksTop, timelineHigh = 44, 100
	// perTick is how much place a backup takes: those that are closer to each other are drawn as one.
	perTick = 4
)

// spansOfTime are how far back a time line may reach, and how far apart its labels are then.
var spansOfTime = [...]struct{ back, wide, narrow time.Duration }{
	{time.Hour, 10 * time.Minute, 20 * time.Minute},
	{6 * time.Hour, time.Hour, 2 * time.Hour},
	{24 * time.Hour, 3 * time.Hour, 6 * time.Hour},
}

// timelines draw the last day, or as much of it as there is, for narrow and for wide screens; and say the same in words.
func timelines(r health.Report, marks []health.Mark) (drawn []timeline, words []string, bad bool, gaps []string) {
	w := r.Window
	words, gaps = windowWords(r)
	bad = w == nil || w.From.IsZero() || len(gaps) > 0
	first := r.At
	if w != nil && !w.From.IsZero() {
		first = w.From
	}
	if len(marks) > 0 && marks[0].At.Before(first) {
		first = marks[0].At
	}
	if !first.Before(r.At) {
		return nil, words, bad, gaps
	}
	length := spansOfTime[len(spansOfTime)-1]
	for _, s := range spansOfTime {
		if r.At.Sub(first) <= s.back {
			length = s
			break
		}
	}
	desc := timelineWords(words, gaps, marks)
	for _, x := range []struct {
		id, class string
		width     int
		step      time.Duration
	}{{"time-narrow", "narrow", narrowWidth, length.narrow}, {"time-wide", "wide", wideWidth, length.wide}} {
		t := timeline{ID: x.id, Class: x.class, W: x.width, H: timelineHigh, Desc: desc,
			Title: fmt.Sprintf("Time line of the last %s", age(length.back))}
		t.draw(r, marks, r.At.Add(-length.back), x.step)
		drawn = append(drawn, t)
	}
	return drawn, words, bad, gaps
}

// timelineWords describe the drawing.
func timelineWords(words, gaps []string, marks []health.Mark) string {
	desc := ""
	for _, s := range append(words, gaps...) {
		desc += s + " "
	}
	verified, bad := 0, 0
	for _, m := range marks {
		if m.Verified {
			verified++
		}
		if m.Bad {
			bad++
		}
	}
	return desc + fmt.Sprintf("%s: %d verified, %d bad.", cluster.Count(len(marks), "backup"), verified, bad)
}

func windowWords(r health.Report) (words, gaps []string) {
	w := r.Window
	if w == nil || w.From.IsZero() {
		if w != nil && w.Note != "" {
			return []string{sentence(text(w.Note))}, nil
		}
		if r.Formed != "yes" {
			return []string{"There is no cluster yet, so there is nothing to restore."}, nil
		}
		return []string{"No time is known of which any second can be restored: no change is kept between backups, or the store wasn't read."}, nil
	}
	words = append(words, fmt.Sprintf("Any second from %s to %s can be restored.", clock(w.From), clock(w.Until)))
	if len(w.Gaps) > 0 {
		words[0] = fmt.Sprintf("Any second from %s to %s can be restored, but not these:", clock(w.From), clock(w.Until))
	}
	for _, g := range w.Gaps[max(len(w.Gaps)-mostGaps, 0):] {
		until := "the next backup"
		if !g.Until.IsZero() {
			until = clock(g.Until)
		}
		gaps = append(gaps, fmt.Sprintf("Gap: nothing between %s and %s.", clock(g.From), until))
	}
	if w.KeptSince.Before(w.From) && !w.KeptSince.IsZero() {
		words = append(words, fmt.Sprintf("Changes are kept since %s; before %s nothing was looked at here.", clock(w.KeptSince), clock(w.From)))
	}
	if w.Note != "" {
		words = append(words, sentence(text(w.Note)))
	}
	return words, gaps
}

// draw fills the drawing in, from a moment on until now.
func (t *timeline) draw(r health.Report, marks []health.Mark, from time.Time, step time.Duration) {
	const edge = 10 // so that what is at an end can be seen whole
	length := r.At.Sub(from)
	x := func(at time.Time) int {
		at = at.UTC()
		return edge + int(float64(t.W-2*edge)*min(max(float64(at.Sub(from))/float64(length), 0), 1))
	}
	t.Band = span{edge, bandTop, t.W - 2*edge, bandHeight}
	if w := r.Window; w != nil && !w.From.IsZero() {
		t.Spans = append(t.Spans, span{x(w.From), bandTop, max(x(w.Until)-x(w.From), 2), bandHeight})
		for _, g := range w.Gaps {
			until := g.Until
			if until.IsZero() {
				until = r.At
			}
			t.Gaps = append(t.Gaps, span{min(x(g.From), t.W-edge-6), bandTop, max(x(until)-x(g.From), 6), bandHeight})
		}
	}
	for _, m := range marks {
		k := tick{x(m.At), "plain"}
		switch {
		case m.Bad:
			k.Class = "bad"
		case m.Verified:
			k.Class = "good"
		}
		if n := len(t.Ticks); n > 0 && k.X-t.Ticks[n-1].X < perTick {
			if worse(k.Class, t.Ticks[n-1].Class) {
				t.Ticks[n-1].Class = k.Class
			}
			continue
		}
		t.Ticks = append(t.Ticks, k)
	}
	for at := from.UTC().Truncate(step).Add(step); at.Before(r.At.Add(-step / 2)); at = at.Add(step) {
		words := at.Format("15:04")
		if at.Hour() == 0 && at.Minute() == 0 {
			words = at.Format("2 Jan")
		}
		t.Axis = append(t.Axis, label{x(at), t.H - 6, words})
	}
	t.Axis = append(t.Axis, label{t.W - edge, t.H - 6, "now"})
}

// worse tells whether a mark hides another at the same place.
func worse(x, than string) bool { return x == "bad" || x == "good" && than == "plain" }
