// Package datadir looks at etcd's data dirs and makes new ones: what a directory holds, what its write-ahead log tells, and the staging of a
// snapshot as the data dir of a member of a new cluster.
//
// It must never write to a data dir that is there already, never change what it looks at, and never publish a data dir that isn't complete and
// on disk, or whose database wasn't checked to the last byte.
package datadir
