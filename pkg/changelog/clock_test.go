package changelog

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// segments lists all of the recorder's incarnation.
func (w *world) segments(r *Recorder) (list []catalog.Segment) {
	w.t.Helper()
	for s, err := range w.catalog.Segments(w.t.Context(), r.Status().Incarnation, 0) {
		must(w.t, err)
		list = append(list, s)
	}
	return list
}

// TestClockWentBack: the clock of one leader was an hour ahead. What the next one records is reached by its own times.
func TestClockWentBack(t *testing.T) {
	w := newWorld(t, "etcd-3.6", "3.6.16")
	w.put("/first", "1")
	w.backup()
	r, stop := w.record(func(c *Config) { c.Now = func() time.Time { return time.Now().Add(time.Hour) } })
	w.began(r)
	w.archived(r, w.put("/ahead", "1"))
	stop()
	r, stop = w.record(nil)
	w.began(r)
	eventually(t, "a backup is asked for", func() bool { return len(w.gaps) > 0 })
	if why := <-w.gaps; !strings.Contains(why, "clock") {
		t.Errorf("gap: %s", why)
	}
	w.backup()
	w.archived(r, w.put("/wanted", "1"))
	p := w.point(r)
	w.archived(r, w.put("/unwanted", "1"))
	stop()
	w.wantHash(w.plan(Target{Time: p.at}), p.hash)
}

// TestDatedWhenItCame: what the recorder does when a change comes makes it no later. A point
// between the change and what it does then has the change.
func TestDatedWhenItCame(t *testing.T) {
	w := newWorld(t, "etcd-3.6", "3.6.16")
	busy, entered, release := make(chan struct{}), make(chan struct{}), make(chan struct{})
	r, stop := w.record(func(c *Config) {
		all := c.Members
		c.Members = func() []Dialer {
			select {
			case <-busy:
				select {
				case entered <- struct{}{}:
					<-release
				case <-release:
				}
			default:
			}
			return all()
		}
	})
	w.put("/first", "1")
	w.backup()
	w.archived(r, w.put("/before", "1"))
	close(busy)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	go func() { _ = r.flushTo(ctx, 1<<40) }()
	<-entered // the recorder looks whom it could ask, and is held up
	rev := w.put("/wanted", "1")
	time.Sleep(time.Second) // nobody tells when the change comes, so it has time
	at := time.Now()
	time.Sleep(10 * time.Millisecond)
	close(release)
	w.archived(r, w.put("/after", "1"))
	stop()
	if p := w.plan(Target{Time: at}); p.Revision != rev {
		t.Errorf("a point behind the change is planned as revision %d, the change is %d", p.Revision, rev)
	}
}

// TestTimesOfAChain never go back, though a leader's clock is a little behind that of the one before.
func TestTimesOfAChain(t *testing.T) {
	w := newWorld(t, "etcd-3.6", "3.6.16")
	w.put("/first", "1")
	w.backup()
	for i, ahead := range []time.Duration{time.Minute, 0, 30 * time.Second} {
		r, stop := w.record(func(c *Config) { c.Now = func() time.Time { return time.Now().Add(ahead) } })
		w.began(r)
		w.archived(r, w.put("/key", fmt.Sprint(i)))
		stop()
		list := w.segments(r)
		for j := range list[1:] {
			if list[j+1].Ended.Before(list[j].Ended) {
				t.Errorf("leader %d: %s comes after %s", i, list[j+1].SegmentName, list[j].SegmentName)
			}
			if list[j+1].Begins() {
				t.Errorf("leader %d began a chain", i)
			}
		}
	}
}

// TestOldTimesThatGoBack: in an archive whose times go back within a chain a moment that is passed twice isn't chosen silently.
func TestOldTimesThatGoBack(t *testing.T) {
	s := newShelf(t)
	base := s.backup(4*time.Hour, oldLife, 10)
	s.changes(oldLife, 11, 20, 3*time.Hour)
	s.changes(oldLife, 21, 30, time.Hour) // two hours ahead
	s.changes(oldLife, 31, 40, 170*time.Minute)
	s.changes(oldLife, 41, 50, 10*time.Minute)
	for ago, want := range map[time.Duration]int64{175 * time.Minute: 20, 20 * time.Minute: 40} {
		p, err := s.archive.Plan(t.Context(), Target{Time: s.now.Add(-ago)})
		must(t, err)
		if p.Base != base || p.Revision != want {
			t.Errorf("%s ago: revision %d, want %d", ago, p.Revision, want)
		}
	}
	var no *UnreachableError
	p, err := s.archive.Plan(t.Context(), Target{Time: s.now.Add(-2 * time.Hour)})
	if !errors.As(err, &no) || !strings.Contains(err.Error(), "--to-revision=20 ") || !strings.Contains(err.Error(), "--to-revision=40") {
		t.Errorf("planned %+v, %v", p, err)
	}
}
