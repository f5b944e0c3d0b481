// Package background is for large work on a machine on which an etcd serves at the same time: it runs at a low priority,
// writes its files steadily, and doesn't fill up the disk.
//
// Priorities are Linux's; elsewhere, where no etcd is managed, the work is done all the same.
//
// Whatever is to be kept is still to be synced by its writer. Nothing here is for work that an etcd waits for.
package background
