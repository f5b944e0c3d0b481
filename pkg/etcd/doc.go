// Package etcd has what all that deals with etcd shares: the configuration of a member, versions, errors, locks, the layout of a data dir and the
// form of snapshots. Its packages do the work: process runs one etcd, client asks one, database and datadir read and make what it keeps, salvage
// saves what is left of one, and child is how any of it is done in a process of its own.
//
// Neither it nor they know of clusters as a whole, of leadership or of the object store. It must never import one of its packages, and never start
// anything.
package etcd
