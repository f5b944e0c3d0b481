package cluster

import "time"

// walFile is what etcd lays out on disk for each file of its write-ahead log; it ends when it can't.
const walFile = 64 << 20

// DiskLeast is what must be free on a disk of that size so that etcd can go on; on a small one a twentieth is enough.
func DiskLeast(total int64) int64 { return min(walFile, total/20) }

// DiskFull tells whether less is free. A disk of which nothing is known isn't full.
func DiskFull(total, free int64) bool { return total > 0 && free < DiskLeast(total) }

// slowestDisk is how many bytes of its database an etcd reads or writes in a second, on the slowest disk that is expected.
const slowestDisk = 20_000_000

// LoadTime is how long it takes at most to go once through so many bytes. All deadlines of what grows with a database are made from it.
func LoadTime(bytes int64) time.Duration {
	return time.Duration(max(bytes, 0)/slowestDisk) * time.Second
}
