// Package client asks one member of an etcd cluster, of any version from 3.4 to 3.7: its status and health, the members, snapshots, maintenance,
// and the stream of all that changes.
//
// It must never ask another member than the one that it was made for, never retry by itself what may have been done already, and never hand on a
// snapshot as whole that isn't.
package client
