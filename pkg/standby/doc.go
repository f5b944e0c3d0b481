// Package standby keeps a copy of another cluster's data on this node: a full backup once, then every change as the other cluster's archive
// gets it. Now and then it takes a newer full backup and compares the two by HashKV.
//
// It runs no etcd, forms no cluster, and never writes into the other cluster's store. What it holds is behind by what the archive is
// behind;
// it must never say that it is less.
package standby
