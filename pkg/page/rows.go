package page

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/operator/health"
)

// operation is what is under way, with its steps.
type operation struct {
	Kind, ID, Backup, Why, Since string
	HasPercent                   bool
	Percent                      int
	Touched                      string
	Steps                        []step
}

type step struct {
	Text string
	// State is "done", "now" or "next".
	State string
}

// restoreSteps are the states of a restore, in their order, as an operator would say them.
func restoreSteps() []struct {
	state catalog.OperationState
	words string
} {
	return []struct {
		state catalog.OperationState
		words string
	}{
		{catalog.StateSalvaging, "Take the data out of the survivor"},
		{catalog.StateProving, "Fetch and check the backup on every node"},
		{catalog.StateStaging, "Stage the new data dirs beside the running cluster"},
		{catalog.StateSaving, "Make sure that the store has the cluster's last state"},
		{catalog.StateStopping, "Stop etcd"},
		{catalog.StateSwitching, "Start etcd with the restored data"},
		{catalog.StateVerifying, "Compare what runs with what was staged"},
	}
}

func newOperation(r health.Report) *operation {
	op := r.Operation
	if op == nil {
		return nil
	}
	o := &operation{Kind: text(string(op.Kind)), ID: text(op.ID), Backup: text(op.Backup),
		Why:     sentence(text(cmp.Or(op.Waiting, op.Reason))),
		Touched: "Nothing that runs was touched yet."}
	if op.Percent != nil {
		o.HasPercent, o.Percent = true, *op.Percent
	}
	if op.State.Committing() {
		o.Touched = "etcd may be stopped for this; clients wait."
	}
	if !op.Since.IsZero() {
		o.Since = age(r.At.Sub(op.Since)) + " ago, at " + clock(op.Since)
	}
	at := -1
	steps := restoreSteps()
	for i, s := range steps {
		if s.state == op.State {
			at = i
		}
	}
	if at < 0 { // rolling back, or a state of a newer version
		words := string(op.State)
		if op.State == catalog.StateReverting {
			words = "Take the restore back: the data from before serve again"
		}
		o.Steps = []step{{text(words), "now"}}
		return o
	}
	for i, s := range steps {
		if s.state == catalog.StateSalvaging && op.State != s.state {
			continue // only a recovery begins with it
		}
		x := step{s.words, "next"}
		switch {
		case i < at:
			x.State = "done"
		case i == at:
			x.State = "now"
		}
		o.Steps = append(o.Steps, x)
	}
	return o
}

func ended(r health.Report) string {
	op := r.Ended
	if op == nil {
		return ""
	}
	return fmt.Sprintf("Last %s: %s, %s, %s ago.", text(string(op.Kind)), text(op.ID), text(string(op.State)), age(r.At.Sub(op.Since)))
}

// nodeRow is a row of the table of members.
type nodeRow struct {
	Node, Role, Version, Database, Behind, Disk, Manager, Seen, Note string
	State                                                            state
}

func nodeRows(r health.Report) []nodeRow {
	var rows []nodeRow
	for _, n := range r.Nodes[:min(len(r.Nodes), mostNodes)] {
		x := nodeRow{Node: name(string(n.Node)), Role: role(n), Version: text(cmp.Or(n.Version, "–")),
			Database: "–", Behind: "–", Disk: "–", Manager: text(cmp.Or(n.Manager, "–")), Seen: "–",
			State: nodeState(r, n), Note: text(cmp.Or(n.Problem, n.Error, n.Busy))}
		if n.Healthy {
			x.Behind = fmt.Sprint(n.Lag)
		}
		if n.DBSize > 0 {
			x.Database = size(n.DBSize)
			if n.DBQuota > 0 {
				x.Database += " of " + size(n.DBQuota)
			}
		}
		if n.DiskTotal > 0 {
			x.Disk = fmt.Sprintf("%s (%d%%)", size(n.DiskFree), 100*n.DiskFree/n.DiskTotal)
		}
		if n.SeenBy != "" && !n.Silent {
			x.Seen = seconds(n.SeenSeconds) + " ago"
		}
		rows = append(rows, x)
	}
	return rows
}

func role(n health.Node) string {
	switch {
	case n.Silent:
		return "–"
	case n.Role == catalog.RoleNone:
		return "no member"
	}
	return text(cmp.Or(n.Role, "–"))
}

// nodeState is one word for a node. It repeats what the report says and judges nothing.
func nodeState(r health.Report, n health.Node) state {
	s := state{"ok", "healthy"}
	switch {
	case n.Silent && n.SilentSeconds > 0:
		s = state{"bad", "no answer for " + seconds(n.SilentSeconds)}
	case n.Silent:
		s = state{"bad", "no answer"}
	case n.Role == catalog.RoleNone:
		s = state{"unknown", "no member"}
	case !n.Running:
		s = state{"bad", "not running"}
	case !n.Healthy:
		s = state{"bad", "not healthy"}
	case len(n.Alarms) > 0:
		s = state{"bad", "alarm " + name(n.Alarms[0])}
	case n.Quarantined:
		s = state{"warn", "quarantined"}
	case n.Role == catalog.RoleLearner:
		s = state{"warn", "catches up"}
	}
	if !r.MembersKnown {
		s = state{"unknown", "was " + s.Word}
	}
	return s
}

// ending is a row of what ends.
type ending struct{ What, Nodes, At, Left, Note string }

func newEnding(e health.Ending) ending {
	var nodes []string
	for _, n := range e.Nodes {
		nodes = append(nodes, name(string(n)))
	}
	if n := len(nodes) - 5; n > 0 {
		nodes = append(nodes[:5], fmt.Sprintf("%d more", n))
	}
	x := ending{What: text(e.What), Nodes: strings.Join(nodes, ", "), At: clock(e.At), Left: cluster.Count(e.Days, "day"),
		Note: "put a new one in place before"}
	if e.Days < 0 {
		x.Left = "over"
	}
	if e.Renewed {
		x.Note = "renewed before by the manager"
	}
	if e.Problem != "" {
		x.Note = "its renewal fails: " + text(e.Problem)
	}
	return x
}

// copyFacts say how far each copy of the store is; of a store that is a copy, of which one it is.
func copyFacts(r health.Report) []fact {
	var list []fact
	if r.CopyOf != "" {
		list = append(list, fact{"This store", "is a copy of " + text(r.CopyOf)})
	}
	for _, c := range r.Copies[:min(len(r.Copies), mostNodes)] {
		words := "no changes"
		switch {
		case c.LagSeconds != nil:
			words = fmt.Sprintf("every change up to %s, %s behind", clock(c.Until), seconds(*c.LagSeconds))
		case c.NewestBackup.IsZero():
			words = "nothing was copied yet"
		}
		if !c.NewestBackup.IsZero() {
			words += fmt.Sprintf("; newest backup %s old", age(r.At.Sub(c.NewestBackup)))
		}
		if c.Missing > 0 {
			words += "; " + cluster.Count(c.Missing, "backup") + " to be copied"
		}
		if c.Error != "" {
			words += "; it fails: " + text(c.Error)
		}
		list = append(list, fact{text(c.Name), words})
	}
	return list
}

// standbyFacts say how far the nodes are that follow another cluster.
func standbyFacts(r health.Report) []fact {
	var list []fact
	for _, s := range r.Standbys[:min(len(r.Standbys), mostNodes)] {
		words := "follows " + text(s.Of)
		if s.Base == "" {
			words += "; it has no copy yet"
		} else {
			words += fmt.Sprintf("; revision %d, %s behind, %s", s.Revision, seconds(s.BehindSeconds), size(s.Bytes))
		}
		switch {
		case s.Compared != "" && s.Differs != "":
			words += fmt.Sprintf("; not the same as backup %s, found %s ago", text(s.Compared), age(r.At.Sub(s.ComparedAt)))
		case s.Compared != "":
			words += fmt.Sprintf("; the same as backup %s, found %s ago", text(s.Compared), age(r.At.Sub(s.ComparedAt)))
		}
		if s.Error != "" {
			words += "; it fails: " + text(s.Error)
		}
		list = append(list, fact{"Node " + name(string(s.Node)), words + "; seen " + seconds(s.SeenSeconds) + " ago"})
	}
	return list
}
