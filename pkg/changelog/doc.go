// Package changelog keeps what changes in etcd between backups, and brings a backup forward with it.
//
// A [Recorder] follows all changes of a cluster and stores them as segments, every few seconds,
// each of which names the one before by its checksum. An [Archive] reads them: it plans how to
// reach a revision or a moment from a backup, replays a plan, lists what has changed, and proves
// that backups and segments agree. A change is never kept twice under different revisions and never
// passed over in silence: where something is missing a chain ends, and the next begins with a
// backup. The package stops nothing and never writes to etcd.
package changelog
