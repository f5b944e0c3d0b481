package node

import (
	"os"
	"path/filepath"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// layout knows where everything lies below the data dir. The first five names exist in the field (docs/format.md).
type layout string

func (l layout) state() string                   { return filepath.Join(string(l), "state") }
func (l layout) dataRoot() string                { return filepath.Join(string(l), "data") }
func (l layout) data(t cluster.Token) string     { return filepath.Join(l.dataRoot(), string(t)) }
func (l layout) pki(t cluster.Token) string      { return filepath.Join(string(l), "pki", string(t)) }
func (l layout) trashRoot() string               { return filepath.Join(string(l), "data-trashcan") }
func (l layout) own() string                     { return filepath.Join(string(l), "etcd-manager") }
func (l layout) journal() string                 { return filepath.Join(l.own(), "journal.json") }
func (l layout) vote() string                    { return filepath.Join(l.own(), "vote.json") }
func (l layout) pid() string                     { return filepath.Join(l.own(), "etcd.pid") }
func (l layout) lock() string                    { return filepath.Join(l.own(), "lock") }
func (l layout) stagingRoot() string             { return filepath.Join(l.own(), "staging") }
func (l layout) staging(operation string) string { return filepath.Join(l.stagingRoot(), operation) }
func (l layout) snapshot(operation string) string {
	return filepath.Join(l.staging(operation), "snapshot.db")
}

// stagePlan is what the proof has found out for the staging.
func (l layout) stagePlan(operation string) string {
	return filepath.Join(l.staging(operation), "plan.json")
}

// salvage is where the copy of a data dir is worked on.
func (l layout) salvage(operation string) string {
	return filepath.Join(l.staging(operation), "salvage")
}

// verifying is where a backup is proven while etcd serves.
func (l layout) verifying() string { return filepath.Join(l.own(), "verify") }

// halfStaged is what etcd.Stage leaves beside a data dir when it is killed.
func (l layout) halfStaged(t cluster.Token) string { return l.data(t) + halfStagedSuffix }

const halfStagedSuffix = ".staging"

func (l layout) memberDir(t cluster.Token) string { return filepath.Join(l.data(t), "member") }
func (l layout) hasMember(t cluster.Token) bool   { return exists(l.memberDir(t)) }
func exists(path string) bool                     { _, err := os.Stat(path); return err == nil }
