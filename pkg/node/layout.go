package node

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// layout knows where everything lies below the data dir. The first five names exist in the field (docs/format.md).
type layout string

func (l layout) state() string               { return filepath.Join(string(l), "state") }
func (l layout) dataRoot() string            { return filepath.Join(string(l), "data") }
func (l layout) data(t cluster.Token) string { return filepath.Join(l.dataRoot(), string(t)) }
func (l layout) pkiRoot() string             { return filepath.Join(string(l), "pki") }
func (l layout) pki(t cluster.Token) string  { return filepath.Join(l.pkiRoot(), string(t)) }
func (l layout) trashRoot() string           { return filepath.Join(string(l), "data-trashcan") }
func (l layout) own() string                 { return filepath.Join(string(l), "etcd-manager") }
func (l layout) journal() string             { return filepath.Join(l.own(), "journal.json") }
func (l layout) vote() string                { return filepath.Join(l.own(), "vote.json") }
func (l layout) pid() string                 { return filepath.Join(l.own(), "etcd.pid") }
func (l layout) lock() string                { return filepath.Join(l.own(), "lock") }
func (l layout) stagingRoot() string         { return filepath.Join(l.own(), "staging") }
func (l layout) staging(operation cluster.OperationID) string {
	return filepath.Join(l.stagingRoot(), string(operation))
}
func (l layout) snapshot(operation cluster.OperationID) string {
	return filepath.Join(l.staging(operation), "snapshot.db")
}

// stagePlan is what the proof has found out for the staging.
func (l layout) stagePlan(operation cluster.OperationID) string {
	return filepath.Join(l.staging(operation), "plan.json")
}

// salvage is where the copy of a data dir is worked on.
func (l layout) salvage(operation cluster.OperationID) string {
	return filepath.Join(l.staging(operation), "salvage")
}

// verifying is where a backup is proven while etcd serves.
func (l layout) verifying() string { return filepath.Join(l.own(), "verify") }

// halfStaged is what datadir.Stage leaves beside a data dir when it is killed.
func (l layout) halfStaged(t cluster.Token) string { return l.data(t) + halfStagedSuffix }

const halfStagedSuffix = cluster.StagingSuffix

func (l layout) memberDir(t cluster.Token) string { return filepath.Join(l.data(t), "member") }
func (l layout) logDir(t cluster.Token) string    { return filepath.Join(l.memberDir(t), "wal") }
func exists(path string) bool                     { _, err := os.Stat(path); return err == nil }

// hasMember tells whether etcd has begun a log. Directories say nothing: it makes them before it finds out whether it may begin one. A log
// that can't be looked at is there.
func (l layout) hasMember(t cluster.Token) bool {
	entries, err := os.ReadDir(l.logDir(t))
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, syscall.ENOTDIR) {
		return true
	}
	return slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return strings.HasSuffix(e.Name(), ".wal") })
}

// errOutside: a path isn't one that a name of ours can lead to.
var errOutside = errors.New("not an entry of the data dir")

// entry opens the data dir, out of which nothing leads, also no symlink, and returns what path is called in
// there. Only what lies directly in one of
// the directories of many is an entry: those themselves, and what lies beside them, are never removed or renamed.
func (l layout) entry(path string) (*os.Root, string, error) {
	parents := []string{l.dataRoot(), l.trashRoot(), l.stagingRoot(), l.pkiRoot()}
	name, err := filepath.Rel(string(l), path)
	if err != nil || !slices.Contains(parents, filepath.Dir(path)) {
		return nil, "", fmt.Errorf("%s: %w", path, errOutside)
	}
	root, err := os.OpenRoot(string(l))
	if err != nil {
		return nil, "", fmt.Errorf("open data dir: %w", err)
	}
	return root, name, nil
}

// removeAll removes an entry with everything in it.
func (l layout) removeAll(path string) error {
	root, name, err := l.entry(path)
	if err != nil {
		return fmt.Errorf("remove: %w", err)
	}
	defer root.Close()
	if err := root.RemoveAll(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", path, err)
	}
	return nil
}

// rename gives an entry another place among the entries.
func (l layout) rename(from, to string) error {
	root, name, err := l.entry(from)
	if err != nil {
		return fmt.Errorf("rename: %w", err)
	}
	defer root.Close()
	other, target, err := l.entry(to)
	if err != nil {
		return fmt.Errorf("rename: %w", err)
	}
	other.Close()
	if err := root.Rename(name, target); err != nil {
		return fmt.Errorf("rename %s to %s: %w", from, to, err)
	}
	return nil
}

// makeDir makes the directory of an entry. It fails if the way there leads out of the data dir.
func (l layout) makeDir(path string) error {
	root, err := os.OpenRoot(string(l))
	if err != nil {
		return fmt.Errorf("open data dir: %w", err)
	}
	defer root.Close()
	name, err := filepath.Rel(string(l), path)
	if err != nil {
		return fmt.Errorf("make directory: %w", err)
	}
	if err := root.MkdirAll(name, 0o700); err != nil {
		return fmt.Errorf("make directory %s: %w", path, err)
	}
	return nil
}
