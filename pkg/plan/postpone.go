package plan

import (
	"fmt"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// stubborn is how often something is tried in vain before a person is told.
const stubborn = 12

// Postpone turns what is to be done into a wait if its last attempt was in vain and its time hasn't come.
func Postpone(o *model.Observation, d Decision) Decision {
	if p, late := o.Postponed[model.Subject(d.Do)]; late && p.For > 0 && d.Do != nil {
		return d.postponed(p)
	}
	return d
}

// postponed is the decision not to do yet what was to be done.
func (d Decision) postponed(p model.Postponed) Decision {
	why := fmt.Sprintf("%s; it has failed %s and is tried again %s: %s", d.Why, cluster.Times(p.Times), cluster.In(p.For), p.Error)
	if p.Error == "" {
		why = fmt.Sprintf("%s; it was done %s and changed nothing; it is done again %s", d.Why, cluster.Times(p.Times), cluster.In(p.For))
	}
	return Decision{Why: why, Key: "postponed: " + model.Subject(d.Do), Waits: true, Alarm: p.Times >= stubborn, After: p.For}
}

// figure is what changes in a sentence while nothing happens: a counter, or the words of an error. Sentences are compared without.
type figure struct{ v any }

// Format prints the value as if it stood there itself.
func (f figure) Format(s fmt.State, verb rune) { fmt.Fprintf(s, fmt.FormatString(s, verb), f.v) }

// keyOf is what a sentence is recognized by when it comes again: all of it but times and figures.
func keyOf(format string, args []any) string {
	still := make([]any, len(args))
	for i, a := range args {
		switch a.(type) {
		case time.Duration, figure:
			still[i] = figure{"*"}
		default:
			still[i] = a
		}
	}
	return fmt.Sprintf(format, still...)
}
