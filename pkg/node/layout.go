package node

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// layout knows where everything lies below the data dir. The first five names exist in the field (docs/format.md).
type layout string

func (l layout) state() string                   { return filepath.Join(string(l), "state") }
func (l layout) data(t cluster.Token) string     { return filepath.Join(string(l), "data", string(t)) }
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
func (l layout) memberDir(t cluster.Token) string { return filepath.Join(l.data(t), "member") }
func (l layout) hasMember(t cluster.Token) bool   { return exists(l.memberDir(t)) }
func exists(path string) bool                     { _, err := os.Stat(path); return err == nil }
func (l layout) trash(t cluster.Token) string     { return filepath.Join(l.trashRoot(), string(t)) }

// discardDir moves the data dir of a token into the trash can. What is not there counts as moved already.
func (l layout) discardDir(t cluster.Token) error {
	from := l.data(t)
	if !exists(from) {
		return nil
	}
	if err := os.MkdirAll(l.trashRoot(), 0o700); err != nil {
		return fmt.Errorf("create trash can: %w", err)
	}
	to := l.trash(t)
	for i := 2; exists(to); i++ {
		to = fmt.Sprintf("%s.%d", l.trash(t), i)
	}
	now := time.Now()
	_ = os.Chtimes(from, now, now) // the trash can is emptied by age of arrival
	if err := os.Rename(from, to); err != nil {
		return fmt.Errorf("move data dir to the trash can: %w", err)
	}
	klog.Infof("data dir %s is kept as %s", from, to)
	return nil
}

// emptyTrash keeps the newest entries of the trash can.
func (l layout) emptyTrash(keep int) error {
	entries, err := os.ReadDir(l.trashRoot())
	if os.IsNotExist(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read trash can: %w", err)
	}
	type item struct {
		path string
		at   time.Time
	}
	var items []item
	for _, e := range entries {
		info, err := e.Info()
		if err != nil {
			continue
		}
		items = append(items, item{filepath.Join(l.trashRoot(), e.Name()), info.ModTime()})
	}
	slices.SortFunc(items, func(a, b item) int { return b.at.Compare(a.at) })
	for i := keep; i < len(items); i++ {
		klog.Infof("trash can: removing %s, %d newer ones are kept", items[i].path, keep)
		if err := os.RemoveAll(items[i].path); err != nil {
			return fmt.Errorf("empty trash can: %w", err)
		}
	}
	return nil
}
