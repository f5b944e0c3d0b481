package chaos

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"

	"github.com/anishathalye/porcupine"
)

// stored is a key's value and the revision at which it was written.
type stored struct {
	Value    string
	Revision int64
}

// era is the life of one etcd cluster, as a history saw it: from the restore that began it to the one that ended it.
type era struct {
	Cluster uint64
	// Content is what the restore brought back, read at its own revision; empty for the first one.
	Content map[string]stored
	// Call and Return are when the restore was asked for and when its record said that it was done.
	Call, Return int64
	// From is the era whose data were restored.
	From uint64
	// Reached is the revision of From up to which everything was brought back; math.MaxInt64 for all that was ever written there.
	Reached int64
	// AtMost is the revision of From that may have been reached, where Reached is only what the keys that came back show: the last
	// changes of a snapshot may have been deletions. 0 if Reached is exact.
	AtMost int64
	// Promised is a moment: what was acknowledged before it in From must be there. 0 promises nothing but what Reached says.
	Promised int64
	// What names the kind of restore, for messages.
	What string
}

// verdict is what a judgement has found.
type verdict struct {
	// Judged counts the requests that porcupine has looked at, Writes the acknowledged writes that
	// were compared with what a restore brought back.
	Judged, Writes int
	// Violations say what was wrong; empty if nothing was.
	Violations []string
}

func (v *verdict) violate(format string, args ...any) {
	if len(v.Violations) < 20 {
		v.Violations = append(v.Violations, fmt.Sprintf(format, args...))
	}
}

// judge holds a history to what is promised. eras are in the order in which they began.
func judge(requests []request, eras []era) verdict {
	var v verdict
	for i := range eras {
		v.linearizable(requests, eras, i)
		v.revisions(requests, &eras[i])
		if i > 0 {
			v.restored(requests, &eras[i], find(eras, eras[i].From))
		}
	}
	known := map[uint64]bool{}
	for _, e := range eras {
		known[e.Cluster] = true
	}
	for _, r := range requests {
		if !r.Unknown && !known[r.Cluster] {
			v.violate("%s of %s was answered by cluster %x, which no restore has made", r.Kind, r.Key, r.Cluster)
		}
	}
	return v
}

// find returns the era of a cluster; nil if there is none.
func find(eras []era, cluster uint64) *era {
	if i := slices.IndexFunc(eras, func(e era) bool { return e.Cluster == cluster }); i >= 0 {
		return &eras[i]
	}
	return nil
}

// register is what porcupine needs to know: a key with one value; "" is no value.
func register() porcupine.Model {
	return porcupine.Model{
		Init: func() any { return "" },
		Step: func(state, input, output any) (bool, any) {
			s, in, out := state.(string), input.(request), output.(request)
			switch in.Kind {
			case get:
				return out.Found == s, s
			case put:
				return true, in.Value
			case del:
				return true, ""
			case swap:
				held := s == in.Old
				if out.Unknown {
					if held {
						return true, in.Value
					}
					return true, s
				}
				if held {
					return out.Swapped, in.Value
				}
				return !out.Swapped, s
			}
			return false, s
		},
		DescribeOperation: func(input, output any) string { return fmt.Sprintf("%+v -> %+v", input, output) },
	}
}

// linearizable checks one era's requests, key by key.
func (v *verdict) linearizable(requests []request, eras []era, i int) {
	e := &eras[i]
	end := int64(math.MaxInt64)
	if i+1 < len(eras) {
		end = eras[i+1].Return
	}
	byKey := map[string][]porcupine.Operation{}
	seen := map[string]bool{}
	// A swap that failed doesn't say what it has found: it may have been any write without an answer.
	failed := map[string]bool{}
	for _, r := range requests {
		if r.Kind == swap && !r.Swapped && !r.Unknown && r.Cluster == e.Cluster {
			failed[r.Key] = true
		}
		if r.Kind == get && r.Cluster == e.Cluster {
			seen[r.Found] = true
		}
		if r.Kind == swap && r.Swapped && r.Cluster == e.Cluster {
			seen[r.Old] = true
		}
	}
	for j := i + 1; j < len(eras); j++ {
		if eras[j].From == e.Cluster {
			for _, s := range eras[j].Content {
				seen[s.Value] = true
			}
		}
	}
	for _, r := range requests {
		switch {
		case !r.Unknown && r.Cluster != e.Cluster:
			continue
		case r.Unknown && (r.Call >= end || r.Return <= e.Call):
			continue // it was sent to another one
		case r.Unknown && r.Kind != del && !seen[r.Value] && !failed[r.Key]:
			continue // nobody has ever seen it, so it constrains nothing
		}
		ret := r.Return
		if r.Unknown {
			ret = math.MaxInt64
		}
		byKey[r.Key] = append(byKey[r.Key], porcupine.Operation{ClientId: r.Client, Input: r, Output: r, Call: r.Call, Return: ret})
	}
	for _, key := range slices.Sorted(maps.Keys(byKey)) {
		ops := byKey[key]
		if s, ok := e.Content[key]; ok {
			first := request{Kind: put, Key: key, Value: s.Value}
			ops = append([]porcupine.Operation{{ClientId: 1000, Input: first, Output: first, Call: -2, Return: -1}}, ops...)
		}
		v.Judged += len(ops)
		if res := porcupine.CheckOperationsTimeout(register(), ops, judgeTimeout); res != porcupine.Ok {
			v.violate("cluster %x: the %d requests for key %s are not linearizable (%s): %s", e.Cluster, len(ops), key, res, describe(ops))
		}
	}
}

func describe(ops []porcupine.Operation) string {
	s := ""
	slices.SortFunc(ops, func(a, b porcupine.Operation) int { return cmp.Compare(a.Call, b.Call) })
	for i, op := range ops {
		if i == 40 {
			return s + " …"
		}
		r := op.Input.(request)
		s += fmt.Sprintf("\n  %d %s value=%q old=%q found=%q swapped=%t unknown=%t revision=%d [%d, %d]", op.ClientId,
			r.Kind, r.Value, r.Old, r.Found, r.Swapped, r.Unknown, r.Revision, r.Call/1e6, r.Return/1e6)
	}
	return s
}

// revisions checks that no answer has a lower revision than one that had come before its request left.
func (v *verdict) revisions(requests []request, e *era) {
	var mine []request
	for _, r := range requests {
		if !r.Unknown && r.Cluster == e.Cluster {
			mine = append(mine, r)
		}
	}
	byReturn := slices.Clone(mine)
	slices.SortFunc(byReturn, func(a, b request) int { return cmp.Compare(a.Return, b.Return) })
	slices.SortFunc(mine, func(a, b request) int { return cmp.Compare(a.Call, b.Call) })
	highest, next := int64(0), 0
	for _, r := range mine {
		for next < len(byReturn) && byReturn[next].Return < r.Call {
			highest = max(highest, byReturn[next].Revision)
			next++
		}
		if r.Revision < highest {
			v.violate("cluster %x: %s of %s was answered with revision %d after %d had been seen", e.Cluster, r.Kind,
				r.Key, r.Revision, highest)
		}
	}
	for key, s := range e.Content {
		for _, r := range mine {
			if r.Revision <= s.Revision {
				v.violate("cluster %x answered with revision %d; the restored key %s has %d", e.Cluster, r.Revision, key, s.Revision)
				return
			}
		}
	}
}

// restored compares what a restore brought back with what clients had been told.
func (v *verdict) restored(requests []request, e, from *era) {
	last := map[string]request{}      // the last acknowledged write of a key that had to come back
	unknown := map[string][]request{} // writes without an answer
	if from == nil {
		v.violate("%s: the restored data are of cluster %x, which nobody knows", e.What, e.From)
		return
	}
	for key, s := range from.Content {
		last[key] = request{Kind: put, Key: key, Value: s.Value, Revision: s.Revision}
	}
	for _, r := range requests {
		if !r.writes() {
			continue
		}
		if r.Unknown {
			unknown[r.Key] = append(unknown[r.Key], r)
			continue
		}
		if r.Cluster != e.From {
			continue
		}
		if r.Return < e.Promised && r.Revision > e.Reached {
			v.violate("%s: %s of %s was acknowledged with revision %d, %d ms before the restore was asked for; only revision %d was reached", e.What, r.Kind, r.Key, r.Revision,
				(e.Promised-r.Return)/1e6, e.Reached)
		}
		if r.Revision > e.Reached {
			if r.Kind == del && r.Revision <= e.AtMost {
				unknown[r.Key] = append(unknown[r.Key], r)
			}
			continue
		}
		v.Writes++
		if r.Revision > last[r.Key].Revision {
			last[r.Key] = r
		}
	}
	for key, want := range last {
		got, ok := e.Content[key]
		switch {
		case ok && got.Revision == want.Revision:
			if want.Kind == del || got.Value != want.Value {
				v.violate("%s: key %s has value %q at revision %d, where %s of %q was acknowledged", e.What, key,
					got.Value, got.Revision, want.Kind, want.Value)
			}
		case ok && got.Revision > want.Revision && maybe(unknown[key], got.Value):
		case ok:
			v.violate("%s: key %s came back as %q of revision %d; %s of %q was acknowledged with %d", e.What, key,
				got.Value, got.Revision, want.Kind, want.Value, want.Revision)
		case want.Kind != del && !slices.ContainsFunc(unknown[key], func(r request) bool { return r.Kind == del }):
			v.violate("%s: key %s is missing; %s of %q was acknowledged with revision %d", e.What, key, want.Kind,
				want.Value, want.Revision)
		}
	}
	for key, got := range e.Content {
		if _, ok := last[key]; !ok && !maybe(unknown[key], got.Value) {
			v.violate("%s: key %s came back as %q of revision %d, which nobody wrote", e.What, key, got.Value, got.Revision)
		}
		if got.Revision > e.Reached {
			v.violate("%s: key %s has revision %d; the restore went to %d", e.What, key, got.Revision, e.Reached)
		}
	}
}

func maybe(unknown []request, value string) bool {
	return slices.ContainsFunc(unknown, func(r request) bool { return r.Kind != del && r.Value == value })
}
