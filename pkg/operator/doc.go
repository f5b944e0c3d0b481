// Package operator is all that an operator can do with the store of a cluster, as a Go API: list,
// verify and import backups, plan, queue, follow and undo restores, recover from a lost quorum,
// change the cluster's spec, look into the archive of changes, and prune.
//
// It needs the store alone, never a route to the nodes: what is to be done is queued in the store,
// and the managers do it. It prints nothing, asks nothing, and reads no environment: what is found
// comes back as values, events and typed errors, for a tool, a status page or a fleet view to show.
// etcd-manager-ctl is such a tool.
//
//	client, err := operator.Open(ctx, operator.Config{Store: "s3://bucket/prefix", Env: os.Getenv})
//
// # Plan, then do
//
// What can't be taken back easily has two steps: PlanRestore, PlanUndo and PlanRecovery find out
// what would happen and what would be lost, and change nothing; Restore, Undo and Recover take such
// a plan and queue it. So a person can be asked in between. A plan that is returned beside an error
// holds what was found out before the error.
//
// # Follow
//
// Follow looks at a command until it has ended, and yields an Event for whatever has changed:
//
//	for event, err := range client.Follow(ctx, queued.Command.Name, operator.FollowOptions{}) {
//		…
//	}
//
// # Time
//
// Config.Timeout bounds the few small requests of a method, each time anew. What takes long by its
// nature (transfers, reading the archive, following) is bounded by the context alone.
//
// # Errors
//
// Errors that a caller may want to act on, or to explain in words of its own, are types of this
// package. What the store says comes through: it is ErrNotFound, ErrDenied or ErrTransient. A
// request that makes no sense is an *InvalidError.
//
// # Databases
//
// A backup may be damaged, and reading a damaged database may crash a process. Verify, VerifyChain,
// Inspect, Import, Extract, Download of a point and OpenPoint therefore read it in a child: the program starts itself again. Its
// main function has to begin with ChildMain.
package operator
