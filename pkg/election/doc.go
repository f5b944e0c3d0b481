// Package election decides which of the managers leads.
//
// It is a pure state machine in the manner of etcd's raft library: ticks and messages go in, and what must be
// persisted and sent comes out. It owns no goroutine, reads no clock, disk or network and rolls no dice of its own.
// It replicates nothing: a leadership is a term and a lease, no log.
//
// A leadership needs the votes, and then the answered heartbeats, of a majority of the *wanted* member count, from
// distinct nodes. As long as no more nodes run than are wanted, two such majorities share a node, so that no term has
// two leaders and no two leases are valid at once. If more nodes run than are wanted, that does not hold, and whatever
// cannot be taken back must be fenced by the object store; see Machine.Exceed.
//
// DESIGN.md in this directory has the argument for the lease, and what a driver must do to keep it true.
package election
