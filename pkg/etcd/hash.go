package etcd

// HashKV is etcd's hash over all that it keeps up to a revision.
type HashKV struct {
	// Revision is what the hash is of; CompactRevision must be equal too for hashes to be comparable. It is -1 or 0 if nothing was ever compacted.
	Revision        int64
	CompactRevision int64
	Hash            uint32
}
