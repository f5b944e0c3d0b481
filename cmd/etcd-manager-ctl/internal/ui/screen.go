package ui

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Screen is a View for a terminal: what was said scrolls by above a line with the present state and a bar for each node.
type Screen struct {
	p     *mpb.Progress
	plain *Pipe // prints above the bars
	head  *mpb.Bar
	state *headline
	nodes map[cluster.NodeID]*meter
	now   func() time.Time
}

const refreshRate = 200 * time.Millisecond

// NewScreen returns a Screen on a terminal. now is asked for how long a state lasts, from another goroutine.
func NewScreen(out io.Writer, now func() time.Time) *Screen {
	p := mpb.New(mpb.WithOutput(out), mpb.WithRefreshRate(refreshRate), mpb.WithAutoRefresh())
	b := &Screen{p: p, plain: NewPipe(p), state: &headline{now: now}, nodes: map[cluster.NodeID]*meter{}, now: now}
	b.head = p.New(0, mpb.NopStyle(), mpb.BarPriority(-1),
		mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return b.state.String() })))
	return b
}

// headline is the line with the present state and for how long it is that.
type headline struct {
	now func() time.Time

	mu    sync.Mutex
	text  string
	since time.Time
}

func (h *headline) set(text string, since time.Time) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.text, h.since = text, since
}

func (h *headline) String() string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.text == "" {
		return "reading the store"
	}
	return fmt.Sprintf("%s, for %s", h.text, Age(max(h.now().Sub(h.since), 0)))
}

// Say implements View.
func (b *Screen) Say(at time.Time, line string) { b.plain.Say(at, line) }

// Show implements View.
func (b *Screen) Show(s State) {
	if s.Doing != "" {
		b.state.set(s.Doing, s.Since)
	}
	progress := s.Progress
	for id, m := range b.nodes {
		if p, ok := progress[id]; !ok || p.Phase != m.phase {
			m.bar.Abort(true)
			delete(b.nodes, id)
		}
	}
	for _, id := range slices.Sorted(maps.Keys(progress)) {
		p := progress[id]
		if b.nodes[id] == nil {
			b.nodes[id] = newMeter(b.p, fmt.Sprintf("  %s: %s", id, p.Phase), p.Phase, p.Done, b.now)
		}
		b.nodes[id].set(p.Done, p.Total)
	}
}

// Close takes the bars away and waits until all is written.
func (b *Screen) Close() {
	for _, m := range b.nodes {
		m.bar.Abort(true)
	}
	b.head.Abort(true)
	b.p.Wait()
}

// meter is one bar with bytes and speed.
type meter struct {
	bar   *mpb.Bar
	phase string
	now   func() time.Time
	// begun is when it had first bytes.
	begun time.Time
	first int64
}

func newMeter(p *mpb.Progress, name, phase string, first int64, now func() time.Time) *meter {
	m := &meter{phase: phase, now: now, begun: now(), first: first}
	m.bar = p.AddBar(0,
		mpb.PrependDecorators(decor.Name(name, decor.WCSyncSpaceR), decor.Percentage(decor.WCSyncSpace)),
		mpb.AppendDecorators(decor.Any(m.bytes, decor.WCSyncSpaceR)))
	return m
}

// bytes is what stands behind the bar.
func (m *meter) bytes(s decor.Statistics) string {
	text := Size(s.Current)
	if s.Total > 0 {
		text += " of " + Size(s.Total)
	}
	if d := m.now().Sub(m.begun).Seconds(); d >= 1 && s.Current > m.first {
		text += fmt.Sprintf(", %s/s", Size(int64(float64(s.Current-m.first)/d)))
	}
	return text
}

func (m *meter) set(done, total int64) {
	m.bar.SetTotal(total, false)
	m.bar.SetCurrent(done)
}
