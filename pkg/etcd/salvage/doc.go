// Package salvage makes a database out of the data dir of a cluster that has no quorum any more: it copies a stopped member, and an etcd of its
// own applies all that is in the copy's write-ahead log.
//
// It must never write to the data dir that it reads, never let anybody else reach its etcd, never leave that etcd running, and never hand on a
// database that wasn't checked.
package salvage
