// Package database looks at files that may be etcd databases, and may be damaged: what they hold, and whether they are sound.
//
// Reading a damaged database may crash a process, so it is read in a child: a program that uses this package begins its main function with
// ChildMain. The package never changes a file that it was given.
package database

import (
	"context"
	"errors"

	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
)

// ErrBad: a file is not a sound etcd database.
var ErrBad = errors.New("bad database")

// Facts are what a sound database says of itself.
type Facts struct {
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

	facts database.Facts
}

// Fits returns nil if the database can be restored into that version of etcd.
func (f Facts) Fits(version string) error { return f.facts.FitsVersion(version) }

// Key is a key that exists at the database's revision.
type Key struct {
	Key       []byte
	ValueSize int64
	Lease     int64
	Revision  int64
}

// BadError is what is wrong with a file. It is ErrBad.
type BadError struct{ Err error }

func (e *BadError) Error() string { return e.Err.Error() }

// Is tells that it is ErrBad.
func (e *BadError) Is(target error) bool { return target == ErrBad }

// Checker reads databases that may be damaged. It is safe for concurrent use.
type Checker interface {
	// Check reads a database file, or a snapshot with its checksum behind it, to the last page. A
	// bad one is ErrBad, any other error says nothing of the file.
	Check(ctx context.Context, path string) (Facts, error)
	// Keys visits the keys that exist in a file that was checked. The key is valid during the call only.
	Keys(ctx context.Context, path string, visit func(Key) error) error
}
