package main

import (
	"cmp"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// row is one line of the table.
type row struct {
	what, ours, reference, compared, limit string
	good, judged                           bool
}

// report gathers rows, and shows each as soon as it is there.
type report struct {
	live  io.Writer
	rows  []row
	notes []string
}

func (r *report) add(x row) {
	r.rows = append(r.rows, x)
	logTo(r.live, "   %s", x.line())
}

func (r *report) note(format string, a ...any) {
	r.notes = append(r.notes, fmt.Sprintf(format, a...))
	logTo(r.live, "   %s", r.notes[len(r.notes)-1])
}

func (x row) verdict() string {
	switch {
	case !x.judged:
		return ""
	case x.good:
		return "met"
	}
	return "**missed**"
}

func (x row) line() string {
	return "| " + strings.Join([]string{x.what, x.ours, x.reference, x.compared, x.limit, x.verdict()}, " | ") + " |"
}

func (r *report) markdown(head string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s\n\n| what | etcd-manager | reference | compared | limit | |\n|---|---|---|---|---|---|\n", head)
	for _, x := range r.rows {
		fmt.Fprintln(&b, x.line())
	}
	if len(r.notes) > 0 {
		fmt.Fprintln(&b)
		for _, n := range r.notes {
			fmt.Fprintf(&b, "- %s\n", n)
		}
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// median of an odd number is the middle one, of an even number the mean of the two in the middle.
func median[T time.Duration | float64](list []T) T {
	if len(list) == 0 {
		return 0
	}
	s := slices.Sorted(slices.Values(list))
	if n := len(s); n%2 == 0 {
		return (s[n/2-1] + s[n/2]) / 2
	}
	return s[len(s)/2]
}

// percentile is the smallest value that at least p percent of all are not above.
func percentile[T cmp.Ordered](list []T, p float64) T {
	var zero T
	if len(list) == 0 {
		return zero
	}
	s := slices.Sorted(slices.Values(list))
	i := int(p/100*float64(len(s)) + 0.9999999)
	return s[min(max(i-1, 0), len(s)-1)]
}

func round(d time.Duration) time.Duration {
	switch {
	case d >= 10*time.Second:
		return d.Round(100 * time.Millisecond)
	case d >= time.Second:
		return d.Round(10 * time.Millisecond)
	}
	return d.Round(time.Millisecond)
}

func durations(list []time.Duration) string {
	if len(list) == 0 {
		return "–"
	}
	text := round(median(list)).String()
	if len(list) > 1 {
		text += fmt.Sprintf(" (%s–%s)", round(slices.Min(list)), round(slices.Max(list)))
	}
	return text
}

func numbers(list []float64, format string) string {
	if len(list) == 0 {
		return "–"
	}
	text := fmt.Sprintf(format, median(list))
	if len(list) > 1 {
		text += fmt.Sprintf(" ("+format+"–"+format+")", slices.Min(list), slices.Max(list))
	}
	return text
}

// addMore is for what may take so much longer than the reference.
func (r *report) addMore(what string, ours, reference []time.Duration, limit time.Duration) {
	more := median(ours) - median(reference)
	r.add(row{what: what, ours: durations(ours), reference: durations(reference), compared: fmt.Sprintf("%+.2f s", more.Seconds()),
		limit: fmt.Sprintf("+%g s", limit.Seconds()), good: more <= limit, judged: true})
}

// addTime is for what may take so long; the reference, if there is one, is only shown.
func (r *report) addTime(what string, ours, reference []time.Duration, limit time.Duration) {
	compared := "–"
	if len(reference) > 0 {
		compared = fmt.Sprintf("%+.2f s", (median(ours) - median(reference)).Seconds())
	}
	r.add(row{what: what, ours: durations(ours), reference: durations(reference), compared: compared,
		limit: limit.String(), good: median(ours) <= limit, judged: true})
}

// addRatio is for what may take so many times as much as the reference.
func (r *report) addRatio(what string, ours, reference []time.Duration, limit float64) {
	ratio := float64(median(ours)) / float64(median(reference))
	r.add(row{what: what, ours: durations(ours), reference: durations(reference),
		compared: fmt.Sprintf("%.2f ×", ratio), limit: fmt.Sprintf("%.2f ×", limit),
		good: ratio <= limit, judged: true})
}

// addMost is for what must not be above a limit; the worst run counts.
func (r *report) addMost(what, format string, ours, reference []float64, limit float64) {
	r.add(row{what: what, ours: numbers(ours, format), reference: numbers(reference, format), compared: "–",
		limit: fmt.Sprintf(format, limit),
		good:  len(ours) > 0 && slices.Max(ours) <= limit, judged: true})
}

// addLeast is for what must not be below a limit; the worst run counts.
func (r *report) addLeast(what, format string, ours []float64, limit float64) {
	r.add(row{what: what, ours: numbers(ours, format), reference: "–", compared: "–", limit: "at least " + fmt.Sprintf(format, limit),
		good: len(ours) > 0 && slices.Min(ours) >= limit, judged: true})
}

// addShown is for what is only shown beside the reference.
func (r *report) addShown(what, format string, ours, reference []float64) {
	r.add(row{what: what, ours: numbers(ours, format), reference: numbers(reference, format), compared: "–", limit: "–"})
}
