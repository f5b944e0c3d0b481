// Package backup streams etcd snapshots into the catalog and out of it.
//
// On the way in a snapshot is checked against etcd's own trailing SHA-256, hashed, compressed, sealed (if the catalog has a key for that) and uploaded in constant
// memory, without a temporary file; only a stream that was whole and right becomes a backup. On the way out every checksum
// there is gets checked again: those of the manifest, the seal's, gzip's and etcd's. The package opens no database and never
// takes "the store doesn't answer" or "the key is missing" for "the backup is bad".
package backup

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/envelope"
)

// Sentinels to branch on. A backup that has bytes, but the wrong ones, is cluster.ErrCorrupt.
var (
	// ErrMissing: there is no such backup, or a file of it is gone.
	ErrMissing = errors.New("missing")
	// ErrTruncated: the backup, or the snapshot that was to become one, ends too early.
	ErrTruncated = errors.New("cut short")
	// ErrBusy: this process is writing a backup already.
	ErrBusy = errors.New("another backup is being written")
)

// Error says what is wrong with a backup or a snapshot. Trying again with the same one can't help, so
// errors.Is(err, cluster.ErrPermanent) holds beside the kind.
type Error struct {
	// Backup is the backup's name.
	Backup string
	// Kind is ErrMissing, ErrTruncated, cluster.ErrCorrupt or cluster.ErrFuture.
	Kind error
	// Where says in which part, and at which byte if that is known.
	Where string
	// Err is what was found.
	Err error
}

// Error names the backup, the part and what was found there.
func (e *Error) Error() string {
	s := fmt.Sprintf("backup %s: %v: %s", e.Backup, e.Kind, e.Where)
	if e.Err != nil {
		s += ": " + e.Err.Error()
	}
	return s
}

// Unwrap gives the kind, cluster.ErrPermanent and the cause.
func (e *Error) Unwrap() []error {
	errs := []error{e.Kind, cluster.ErrPermanent}
	if e.Err != nil {
		errs = append(errs, e.Err)
	}
	return errs
}

// KeyError says that a backup is sealed and can't be opened here and now, which says nothing of the backup. Err is of pkg/envelope: which
// key lacks (envelope.ErrNoKey), that it is refused (envelope.ErrKeyDenied), or that the key service doesn't answer (envelope.ErrUnavailable). For
// the first two errors.Is(err, cluster.ErrPermanent) holds: the operator has to act.
type KeyError struct {
	// Backup is the backup's name.
	Backup string
	// Err is why it can't be opened.
	Err error
}

// Error names the backup, the keys, and the flag to give one with.
func (e *KeyError) Error() string {
	s := fmt.Sprintf("backup %s is encrypted and can't be opened: %v", e.Backup, e.Err)
	if errors.Is(e.Err, envelope.ErrNoKey) {
		s += "; name the file with the key by --backup-identity (etcd-manager-ctl: --identity)"
	}
	return s
}

// Unwrap gives the cause, and cluster.ErrPermanent if trying again can't help.
func (e *KeyError) Unwrap() []error {
	if errors.Is(e.Err, envelope.ErrNoKey) || errors.Is(e.Err, envelope.ErrKeyDenied) {
		return []error{e.Err, cluster.ErrPermanent}
	}
	return []error{e.Err}
}

// Progress says how far a transfer is, in bytes.
type Progress struct {
	// Done counts snapshot bytes when writing and stored bytes when fetching.
	Done int64
	// Total is what Done will be in the end; 0 if unknown.
	Total int64
}

// progressStep is how many bytes lie between two reports.
const progressStep = 4 << 20

// meter reports progress, not for every read but every few MiB.
type meter struct {
	report      func(Progress)
	done, total int64
	next        int64
}

func (m *meter) add(n int) {
	m.done += int64(n)
	if m.report != nil && m.done >= m.next {
		m.next = m.done + progressStep
		m.report(Progress{Done: m.done, Total: m.total})
	}
}

func (m *meter) finish() {
	if m.report != nil {
		m.report(Progress{Done: m.done, Total: m.total})
	}
}

// snapshotHash checks a snapshot while it passes: etcd ends it with the SHA-256 over all that came before.
type snapshotHash struct {
	hash hash.Hash
	// tail is the end of what passed; it is held back from hash because it may be the checksum.
	tail []byte
	size int64
}

func newSnapshotHash() *snapshotHash {
	return &snapshotHash{hash: sha256.New(), tail: make([]byte, 0, 2*sha256.Size)}
}

// Write takes the next bytes of the snapshot. It never fails.
func (s *snapshotHash) Write(p []byte) (int, error) {
	s.size += int64(len(p))
	if len(p) >= sha256.Size {
		s.hash.Write(s.tail)
		s.hash.Write(p[:len(p)-sha256.Size])
		s.tail = append(s.tail[:0], p[len(p)-sha256.Size:]...)
		return len(p), nil
	}
	s.tail = append(s.tail, p...)
	if over := len(s.tail) - sha256.Size; over > 0 {
		s.hash.Write(s.tail[:over])
		s.tail = append(s.tail[:0], s.tail[over:]...)
	}
	return len(p), nil
}

// check compares the trailing checksum once all has passed, and returns the SHA-256 over everything, checksum included.
func (s *snapshotHash) check(name string) (string, error) {
	where := fmt.Sprintf("snapshot of %d bytes", s.size)
	if s.size <= sha256.Size {
		return "", &Error{Backup: name, Kind: ErrTruncated, Where: where, Err: errors.New("it is too short to be a database")}
	}
	sum := s.hash.Sum(nil)
	if string(sum) != string(s.tail) {
		// A database consists of pages; their size is a multiple of 512 everywhere.
		switch s.size % 512 {
		case sha256.Size:
			return "", &Error{Backup: name, Kind: cluster.ErrCorrupt, Where: where, Err: errors.New("etcd's checksum at its end doesn't match")}
		case 0:
			return "", &Error{Backup: name, Kind: cluster.ErrCorrupt, Where: where, Err: errors.New("etcd's checksum at its end is lacking: it is cut short, or a copied database file instead of a snapshot")}
		}
		return "", &Error{Backup: name, Kind: ErrTruncated, Where: where, Err: errors.New("etcd's checksum at its end is lacking")}
	}
	s.hash.Write(s.tail)
	return hex.EncodeToString(s.hash.Sum(nil)), nil
}
