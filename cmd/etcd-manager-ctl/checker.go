package main

import (
	"context"
	"errors"
)

// checker reads databases that may be corrupt.
type checker interface {
	// prove checks a database file, or a snapshot with its checksum behind it, to the last page. A bad one is errBadDatabase, any
	// other error says nothing of the file.
	prove(ctx context.Context, path string) (facts, error)
	// keys visits the live keys of a file that was proven. The key is valid during the call only.
	keys(ctx context.Context, path string, visit func(liveKey) error) error
}

// errBadDatabase: a file is not a sound etcd database.
var errBadDatabase = errors.New("bad database")

// facts are what a sound database says of itself.
type facts struct {
	Revision        int64 `json:"revision"`
	CompactRevision int64 `json:"compactRevision"`
	Keys            int64 `json:"keys"`
	LeasedKeys      int64 `json:"leasedKeys"`
	// Records counts all revisions of all keys, deletions included.
	Records int64 `json:"records"`
	Leases  int   `json:"leases"`
	// Members are those of the cluster that it was taken from.
	Members    int   `json:"members"`
	SizeBytes  int64 `json:"sizeBytes"`
	InUseBytes int64 `json:"inUseBytes"`
	// Hash is what etcd's HashKV answers at Revision.
	Hash uint32 `json:"hashKV"`
	// Format is the minor version of etcd whose format it has.
	Format string `json:"format"`
	// TrailingHash is false for a file that was copied from a data dir.
	TrailingHash bool `json:"-"`
	// fits returns nil if it can be restored into that version of etcd.
	fits func(version string) error
}

type liveKey struct {
	key       []byte
	valueSize int64
	lease     int64
	revision  int64
}

// badDatabase is what is wrong with a file, in the checker's words.
type badDatabase struct{ err error }

func (e *badDatabase) Error() string        { return e.err.Error() }
func (e *badDatabase) Is(target error) bool { return target == errBadDatabase }
