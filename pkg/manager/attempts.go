package manager

import (
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

const (
	// attemptFirst is how long a failed action waits; it doubles with each failure up to attemptLongest.
	attemptFirst   = 200 * time.Millisecond
	attemptLongest = 10 * time.Second
	// attemptFree is how often the same action may succeed in a row and be asked for again before it counts as one that changes nothing.
	attemptFree = 3
	// attemptForgotten is when an action that nobody asks for any more is forgotten, and attemptsKept how many are remembered.
	attemptForgotten = 5 * time.Minute
	attemptsKept     = 100
)

// attempts remembers what was tried in vain, by subject. Whatever wakes the loop, an action isn't tried before its time.
type attempts map[string]*attempt

type attempt struct {
	times int
	err   string
	last  time.Time
	until time.Time
}

// failed counts a failure and returns how long the action waits.
func (t attempts) failed(a model.Action, err error, now time.Time) time.Duration {
	x := t.of(a, now)
	if x.err == "" {
		x.times = 0 // it did succeed before
	}
	x.err = err.Error()
	x.times++
	return x.wait(x.times-1, now)
}

// done counts a success. One that is asked for again at once, over and over, changes nothing.
func (t attempts) done(a model.Action, now time.Time) {
	x := t.of(a, now)
	if x.err != "" || now.Sub(x.last) > 2*attemptLongest {
		x.times = 0
	}
	x.err, x.last, x.until = "", now, time.Time{}
	x.times++
	if x.times > attemptFree {
		x.wait(x.times-attemptFree-1, now)
	}
}

// forget makes actions ones that were never tried.
func (t attempts) forget(list ...model.Action) {
	for _, a := range list {
		delete(t, model.Subject(a))
	}
}

func (t attempts) of(a model.Action, now time.Time) *attempt {
	key := model.Subject(a)
	if t[key] == nil {
		t.clean(now)
		t[key] = &attempt{last: now}
	}
	return t[key]
}

func (x *attempt) wait(doublings int, now time.Time) time.Duration {
	d := min(attemptFirst<<min(doublings, 10), attemptLongest)
	x.last, x.until = now, now.Add(d)
	return d
}

func (t attempts) clean(now time.Time) {
	oldest := ""
	for key, x := range t {
		if now.Sub(x.last) > attemptForgotten {
			delete(t, key)
		} else if oldest == "" || x.last.Before(t[oldest].last) {
			oldest = key
		}
	}
	if len(t) >= attemptsKept {
		delete(t, oldest)
	}
}

// postponed are the actions that were tried in vain, also when their wait is over: how often may decide what is done instead.
func (t attempts) postponed(now time.Time) map[string]model.Postponed {
	list := map[string]model.Postponed{}
	for key, x := range t {
		if now.Before(x.until) || x.err != "" && now.Sub(x.last) <= attemptForgotten {
			list[key] = model.Postponed{For: max(x.until.Sub(now), 0), Times: x.times, Error: x.err}
		}
	}
	return list
}
