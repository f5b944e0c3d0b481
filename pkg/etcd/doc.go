// Package etcd runs and talks to etcd: one process of any version from 3.4 to 3.7, clients for its
// members, status and snapshots, the staging of data dirs, and the proof that a database is sound.
//
// It knows nothing of clusters as a whole, of leadership or of the object store; it does one thing to
// one etcd when asked, and says what happened. It must never start a second etcd on a data dir, never
// write to a data dir that an etcd may be using, and never hand on a database that it hasn't checked
// to the last byte.
//
// Some work is done by processes of their own, started by re-executing the manager with a hidden subcommand ([ChildCommand]): etcd itself, and
// what reads a database that may be corrupt, or works on one. All but the first give way to etcd: they have the lowest priority for CPU and disk.
package etcd
