package changelog

import (
	"bytes"
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// Deleted says whose deletion is looked for.
type Deleted struct {
	// Key is a key, or what all keys begin with if Prefix is true.
	Key    string
	Prefix bool
	// With, if not nil, picks keys that were deleted together with the key, so that they are
	// counted: what was in a namespace. It moves nothing.
	With func(key []byte) bool
	// Dying, if not nil, tells of a value whether its object was being deleted already, and since
	// when: Kubernetes first marks an object, and whoever restored it marked would see it deleted
	// again. So marking counts as a part of the deletion.
	Dying func(value []byte) (since time.Time, ok bool)
	// Until, if not zero, is the moment, and UntilRevision the revision, from which on backwards is looked. Both belong to it.
	Until         time.Time
	UntilRevision int64
}

// Before is the point before a deletion, and what was found of the deletion.
type Before struct {
	Incarnation catalog.Incarnation
	// Revision is the one to go to: the last one before anything of the deletion happened.
	Revision int64
	// Marked, if its revision isn't 0, is when the object was marked for deletion; First and Last
	// are the first and the last deletion of a key.
	Marked, First, Last Happened
	// Deletions counts those between First and Last; Keys has the newest of them, the oldest first, at most MaxDeletedKeys.
	Deletions int
	Keys      []string
	// With counts the deletions that Deleted.With picked, since the key was marked; WithFirst and WithLast are the first and the last.
	With                int
	WithFirst, WithLast Happened
	// Notes say in words what lies between the deletion and the end: changes that are lacking,
	// where a newer deletion would not be known, and restores.
	Notes []string
}

// Happened is when a change came. Since is zero unless it came late, and was made at some time between the two.
type Happened struct {
	Revision    int64
	Time, Since time.Time
}

func happened(e Event) Happened { return Happened{Revision: e.Revision, Time: e.Time, Since: e.Since} }

// MaxDeletedKeys bounds how many keys a Before names.
const MaxDeletedKeys = 1000

const (
	// burstPause is the longest pause between two deletions of one burst.
	burstPause = 5 * time.Minute
	// markPause is how long before its deletion a key is looked for marked at least: the last step
	// of a deletion is to take off what held it up.
	markPause = time.Hour
)

// NotDeletedError says that no deletion was found. It is catalog.ErrNotFound.
type NotDeletedError struct {
	Name string
	// Exists is the newest change of the key if that is no deletion, and Created the revision with which its present life began.
	Exists  Happened
	Created int64
	// Looked is the oldest change that was looked at; its revision is 0 if there is none at all.
	Looked Happened
	// Notes say in words where changes are lacking, and of restores.
	Notes []string
}

// Error says so, and up to where was looked.
func (e *NotDeletedError) Error() string {
	var s string
	switch {
	case e.Looked.Revision == 0:
		return fmt.Sprintf("no deletion of %s is known: no changes are kept", e.Name)
	case e.Exists.Revision != 0:
		s = fmt.Sprintf("%s exists: it was last changed by revision %d, at %s", e.Name, e.Exists.Revision, e.Exists.Time.Format(moment))
		if e.Created > 1 {
			s += fmt.Sprintf(", and was created by revision %d; an earlier deletion is found with --until-revision=%d",
				e.Created, e.Created-1)
		}
	default:
		s = fmt.Sprintf("no deletion of %s is known: searched back to revision %d, at %s, where the kept changes begin",
			e.Name, e.Looked.Revision, e.Looked.Time.Format(moment))
	}
	for _, m := range e.Notes {
		s += "; " + m
	}
	return s
}

// Unwrap gives catalog.ErrNotFound.
func (e *NotDeletedError) Unwrap() error { return catalog.ErrNotFound }

// LastBefore finds the newest deletion of a key, and the revision before it; of a prefix the newest
// burst of deletions below it, which is all of them between which was no pause of more than five
// minutes, and the revision before the first. It reads backwards, so what was deleted lately is
// found soon.
func (a *Archive) LastBefore(ctx context.Context, d Deleted) (*Before, error) {
	s := search{d: d}
	r := Range{To: d.UntilRevision, Until: d.Until, Match: s.match}
	looked, err := a.backwards(ctx, r, s.visit)
	if err != nil {
		return nil, err
	}
	if s.found.Last.Revision == 0 {
		return nil, &NotDeletedError{Name: d.Key, Exists: s.exists, Created: s.created, Looked: looked, Notes: s.found.Notes}
	}
	b := &s.found
	begin := b.First
	if m := b.Marked.Revision; m != 0 && m < begin.Revision {
		begin = b.Marked
	}
	b.With, b.WithFirst, b.WithLast = s.withMarked.With, s.withMarked.WithFirst, s.withMarked.WithLast
	b.Revision = begin.Revision - 1
	slices.Reverse(b.Keys)
	return b, nil
}

// search goes backwards through the changes.
type search struct {
	d       Deleted
	found   Before
	exists  Happened
	created int64
	// asked is when the object was asked to be deleted, by what its value says; zero if it was never seen marked.
	asked time.Time
	// withMarked has what went together with the key between when it was marked and when it was deleted.
	withMarked Before
}

func (s *search) match(key []byte) bool {
	return s.subject(key) || s.d.With != nil && s.d.With(key)
}

func (s *search) subject(key []byte) bool {
	if s.d.Prefix {
		return bytes.HasPrefix(key, []byte(s.d.Key))
	}
	return string(key) == s.d.Key
}

// visit takes what is older than all before: the changes of a segment, oldest first, or a note. It returns false when all is known.
func (s *search) visit(events []Event, began time.Time) bool {
	for _, e := range slices.Backward(events) {
		switch {
		case e.Note != "":
			if s.found.Last.Revision == 0 {
				s.found.Notes = append(s.found.Notes, e.Note)
				continue
			}
			return false // a deletion is not told across a gap, or a restore
		case !s.take(e):
			return false
		}
	}
	return s.found.Last.Revision == 0 || began.IsZero() || !began.Before(s.horizon())
}

// horizon is how far back something may still belong to the deletion.
func (s *search) horizon() time.Time {
	h := s.found.First.Time.Add(-burstPause)
	if s.d.Dying != nil && !s.d.Prefix {
		h = s.found.First.Time.Add(-markPause)
	}
	if !s.asked.IsZero() {
		h = s.asked.Add(-clockSlack)
	}
	return h
}

// take takes one change. It returns false when nothing older belongs to the deletion.
func (s *search) take(e Event) bool {
	f := &s.found
	switch {
	case f.Last.Revision != 0 && e.Time.Before(s.horizon()):
		return false
	case !s.subject(e.Key):
		s.with(e)
	case e.Deleted && (s.d.Prefix || f.Last.Revision == 0):
		if f.Last.Revision == 0 {
			f.Incarnation, f.Last = e.Incarnation, happened(e)
		}
		f.First = happened(e)
		f.Deletions++
		if len(f.Keys) < MaxDeletedKeys {
			f.Keys = append(f.Keys, string(e.Key))
		}
	case e.Deleted: // an earlier life of the key
		return false
	case f.Last.Revision == 0:
		if !s.d.Prefix {
			s.exists, s.created = happened(e), e.CreateRevision
			return false
		}
	default:
		return s.marked(e)
	}
	return true
}

// marked looks at a value from before a deletion. For a single key the first one that isn't marked ends the search.
func (s *search) marked(e Event) bool {
	if s.d.Dying == nil {
		return s.d.Prefix
	}
	since, ok := s.d.Dying(e.Value)
	if !ok {
		return s.d.Prefix
	}
	s.found.Marked, s.withMarked = happened(e), s.found
	if !s.d.Prefix && (s.asked.IsZero() || since.Before(s.asked)) {
		s.asked = since
	}
	return true
}

// with counts what went together with the key.
func (s *search) with(e Event) {
	f := &s.found
	if f.Last.Revision == 0 || !e.Deleted {
		return
	}
	if f.WithLast.Revision == 0 {
		f.WithLast = happened(e)
	}
	f.WithFirst = happened(e)
	f.With++
}

// window is how far back is listed at once: what was deleted lately is found soon, and what was deleted long ago with few requests.
func window(n int) time.Duration { return min(time.Hour<<min(n, 5), 24*time.Hour) }

// emptySteps is how many windows in a row without any change are listed one by one.
const emptySteps = 6

// backwards visits the changes of a range, the newest segment first, until visit returns false.
// Each time it gets the events of one segment in their order and when that began, or a note. It
// returns the oldest that was looked at.
func (a *Archive) backwards(ctx context.Context, r Range, visit func(events []Event, began time.Time) bool) (Happened, error) {
	var looked Happened
	lives, err := (&history{a: a, r: Range{Until: r.Until}}).lives(ctx)
	if err != nil {
		return looked, err
	}
	more := false
	for i, l := range slices.Backward(lives) {
		more, err = a.lifeBackwards(ctx, l, r, &looked, visit)
		if err != nil || !more {
			return looked, err
		}
		if i > 0 && looked.Revision != 0 && !visit([]Event{{Note: l.words(lives[:i])}}, time.Time{}) {
			break
		}
	}
	return looked, nil
}

// lifeBackwards is backwards for one incarnation. It lists a window of time after the other.
func (a *Archive) lifeBackwards(ctx context.Context, l life, r Range, looked *Happened, visit func([]Event, time.Time) bool) (bool, error) {
	lowest := int64(0) // all from this revision on is done; 0 if nothing is
	from, err := a.start(ctx, l, r)
	if err != nil {
		return false, err
	}
	empty := 0
	for n := 0; ; n++ {
		list, err := a.listWindow(ctx, l.id, from, lowest, r)
		if err != nil {
			return false, err
		}
		more, err := a.segmentsBackwards(ctx, list, r, &lowest, looked, visit)
		if err != nil || !more || from == 0 {
			return more, err
		}
		// Where nothing is, as before the oldest changes that are kept, steps get longer until they reach the beginning.
		if empty++; len(list) > 0 {
			empty = 0
		}
		next := int64(0)
		if looked.Revision != 0 && !looked.Time.IsZero() && empty < emptySteps {
			if next, err = a.revisionBefore(ctx, l.id, looked.Time.Add(-window(n)<<empty)); err != nil {
				return false, err
			}
		}
		from = min(next, from-1)
	}
}

// start is the revision from which on the first window is listed.
func (a *Archive) start(ctx context.Context, l life, r Range) (int64, error) {
	if r.To > 0 {
		t := Target{Revision: r.To}
		list, err := a.stored(ctx, t)
		if err != nil {
			return 0, err
		}
		near, err := a.near(ctx, list.soundWith(), t)
		if err != nil || len(near) == 0 {
			return 0, err
		}
		return a.revisionBefore(ctx, l.id, near[len(near)-1].Time)
	}
	t := r.Until
	if t.IsZero() {
		list, _, err := a.Catalog.LastBackups(ctx, time.Now(), 1)
		if err != nil {
			return 0, err
		}
		newest, ok := list.NewestSound(time.Now())
		if !ok {
			return 0, nil
		}
		t = newest.At()
	}
	if !l.ended.IsZero() && l.ended.Before(t) {
		t = l.ended
	}
	return a.revisionBefore(ctx, l.id, t.Add(-clockSlack))
}

// listWindow lists what is from a revision on and not done, what reaches farthest first.
func (a *Archive) listWindow(ctx context.Context, id catalog.Incarnation, from, lowest int64, r Range) ([]catalog.Segment, error) {
	var list []catalog.Segment
	var known time.Time
	for s, err := range a.Catalog.Segments(ctx, id, from) {
		if err != nil {
			return nil, err
		}
		if lowest > 0 && s.First >= lowest || r.To > 0 && s.First > r.To || !r.Until.IsZero() && known.After(r.Until.Add(clockSlack)) {
			break
		}
		known = s.Ended
		if s.Last >= s.First {
			list = append(list, s)
		}
	}
	slices.SortFunc(list, func(x, y catalog.Segment) int {
		return cmp.Or(cmp.Compare(y.Last, x.Last), cmp.Compare(x.First, y.First))
	})
	return list, nil
}

// segmentsBackwards visits segments that are sorted so, each revision once, and fetches ahead.
func (a *Archive) segmentsBackwards(ctx context.Context, list []catalog.Segment, r Range, lowest *int64,
	looked *Happened, visit func([]Event, time.Time) bool) (bool, error) {
	var todo []catalog.Segment
	for low := *lowest; len(list) > 0; list = list[1:] {
		if s := list[0]; low == 0 || s.First < low {
			todo, low = append(todo, s), s.First
		}
	}
	for c, err := range a.contents(ctx, todo) {
		if err != nil {
			return false, err
		}
		s := c.Segment
		if *lowest > 0 && s.Last < *lowest-1 {
			note := fmt.Sprintf("the changes from revision %d to %d, after %s, are missing", s.Last+1, *lowest-1, s.Ended.Format(moment))
			if !visit([]Event{{Incarnation: s.Incarnation, Note: note, Missing: true}}, time.Time{}) {
				return false, nil
			}
		}
		to := r
		if *lowest > 0 && (to.To == 0 || to.To >= *lowest) {
			to.To = *lowest - 1
		}
		events, err := a.events(ctx, c, to, 0)
		if err != nil {
			return false, err
		}
		began := time.UnixMilli(c.Header.GetStartedUnixMillis()).UTC()
		*lowest, *looked = s.First, Happened{Revision: s.First, Time: began}
		if !visit(events, began) {
			return false, nil
		}
	}
	return true, nil
}
