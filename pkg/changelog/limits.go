package changelog

// Whoever can write to the store can make a few bytes say very much. What a segment may hold is
// therefore bounded by what is stored of it, and whoever reads one holds no more than one record,
// or one small entry, at a time.
const (
	// maxHeader bounds what is taken for a header, maxHeaderFields how many fields it has: a little more than the leases that one can name.
	maxHeader       = 1 << 20
	maxHeaderFields = maxOwed + 1<<10
	// maxEntry bounds one entry: a transaction of the largest that an etcd can be made to accept.
	maxEntry = 1 << 30
	// maxContent bounds what a segment's content is decompressed to: it ends with the entry that makes it large enough.
	maxContent = maxEntry + 256<<20
	// smallEntry is up to where an entry is held and decoded as a whole.
	smallEntry = 64 << 10
	// maxPart is how many bytes, and maxPartChanges how many changes, of a larger transaction are handed on at once.
	maxPart        = 256 << 10
	maxPartChanges = 1 << 10
	// keepAtOnce is how large a segment may be to be fetched before it is its turn. A larger one is read in a stream.
	keepAtOnce = 4 << 20
)

// bounds are what the content of a segment may have at most. What is stored uncompressed is always within them.
type bounds struct {
	// content is in bytes, record the largest key with its value, changes the number of changes, and of leases.
	content, record, changes int64
}

func boundsOf(stored int64) bounds {
	return bounds{content: min(64<<20+64*stored, maxContent), record: 32<<20 + stored, changes: 1<<20 + stored}
}

// hold tells whether so much is within the bounds.
func (b bounds) hold(content, record, changes int64) bool {
	return content <= b.content && record <= b.record && changes <= b.changes
}
