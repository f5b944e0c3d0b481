package main

import (
	"context"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// TestAllowOutage is a version that etcd can't go to while it serves, one that it can, and what is in the way.
func TestAllowOutage(t *testing.T) {
	w := newWorld(t)
	w.spec(3, "3.5.21")
	c := w.catalog()
	end := func(state catalog.OperationState, change func(*catalog.Operation)) func() {
		return func() {
			cmds, _, err := c.Commands(context.Background())
			must(t, err)
			name := cmds[len(cmds)-1].Name
			op := catalog.Operation{ID: name, Kind: catalog.KindBackup, State: state, Command: name, Created: w.now,
				Finished: w.now, Leader: "a", Term: 3}
			change(&op)
			_, err = c.PutOperation(context.Background(), op, "")
			must(t, err)
			must(t, c.RemoveCommand(context.Background(), name))
		}
	}
	w.goodBackup(backup1, "main", 1234, "on demand")
	taken := end(catalog.StateDone, func(op *catalog.Operation) { op.Backup = backup1 })

	w.do("configure-cluster", "--member-count=3", "--allow-outage")
	w.do("configure-cluster", "--etcd-version=3.6.1", "--wait")
	w.do("configure-cluster", "--etcd-version=2.3.1", "--allow-outage")
	w.steps = []func(){end(catalog.StateFailed, func(op *catalog.Operation) { op.Reason = "the disk is full" })}
	w.do("configure-cluster", "--etcd-version=3.4.23", "--allow-outage")
	w.do("configure-cluster", "--etcd-version=3.4.23", "--allow-outage") // interrupted
	w.do("list-commands")
	w.do("get")
	w.steps = []func(){taken}
	w.do("configure-cluster", "--etcd-version=3.6.16", "--allow-outage")
	w.do("list-commands")
	w.steps = []func(){taken}
	w.do("configure-cluster", "--etcd-version=3.4.23", "--allow-outage")
	w.do("get") // The restore writes the spec when it is done.
	w.do("list-commands", "--output=json")
	w.golden("outage")
}
