package node

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/datadir"
)

// trashCan keeps the data dirs that were set aside, within bounds. All methods may be called concurrently.
type trashCan struct {
	cfg     *Config
	l       layout
	disk    *disk
	changes *changes
	// turn is held while an action changes the node, and operation is the one in the journal, or nil.
	turn      chan struct{}
	operation func() *journalOperation
	kicked    chan struct{}

	mu      sync.Mutex // guards what follows
	entries []cluster.TrashEntry
	// pinned is the entry that is being salvaged; it stays.
	pinned string
}

// kick has the trash can looked at soon.
func (t *trashCan) kick() {
	select {
	case t.kicked <- struct{}{}:
	default:
	}
}

// tend keeps the trash can, and what is told of it, within bounds until ctx ends. Nobody waits for it: it asks the store, and large
// files take long to remove.
func (t *trashCan) tend(ctx context.Context) {
	t.sweep(ctx)
	for {
		t.look()
		if t.empty(ctx) {
			t.look()
		}
		select {
		case <-ctx.Done():
			return
		case <-t.kicked:
		case <-time.After(trashInterval):
		}
	}
}

// sweep removes what a manager that was killed has left: entries half removed, notes of entries that never came, and staged data of operations
// that this node doesn't take part in any more.
func (t *trashCan) sweep(ctx context.Context) {
	select {
	case t.turn <- struct{}{}: // no action begins anything meanwhile
		defer func() { <-t.turn }()
	case <-ctx.Done():
		return
	}
	for _, path := range t.leftovers() {
		klog.Infof("removing %s, which was left from before", path)
		if err := t.l.removeAll(path); err != nil {
			klog.Warningf("%v", err)
		}
	}
}

// leftovers lists what belongs to nothing.
func (t *trashCan) leftovers() []string {
	op := journalOperation{}
	if now := t.operation(); now != nil {
		op = *now
	}
	var list []string
	for _, e := range names(t.l.trashRoot()) {
		entry := strings.TrimSuffix(strings.TrimPrefix(e, "."), ".json")
		orphan := strings.HasPrefix(e, ".") && strings.HasSuffix(e, ".json") && !exists(filepath.Join(t.l.trashRoot(), entry))
		if strings.HasPrefix(e, doomedPrefix) || orphan {
			list = append(list, filepath.Join(t.l.trashRoot(), e))
		}
	}
	for _, e := range names(t.l.stagingRoot()) {
		if e != string(op.ID) {
			list = append(list, filepath.Join(t.l.stagingRoot(), e))
		}
	}
	for _, e := range names(t.l.dataRoot()) {
		if token, half := strings.CutSuffix(e, halfStagedSuffix); half && cluster.Token(token) != op.Token {
			list = append(list, filepath.Join(t.l.dataRoot(), e))
		}
	}
	return list
}

// names lists a directory; one that can't be read has nothing in it.
func names(dir string) []string {
	entries, _ := os.ReadDir(dir)
	var list []string
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

// look finds out what is in the trash can, for the status.
func (t *trashCan) look() {
	items, err := t.l.trashItems()
	if err != nil {
		klog.Warningf("%v", err)
		return
	}
	var list []cluster.TrashEntry
	for _, it := range items {
		n := t.logged(it)
		list = append(list, cluster.TrashEntry{Token: n.Token, SizeBytes: diskUsage(it.path), Since: n.Since, RaftTerm: n.RaftTerm, RaftIndex: n.RaftIndex, Members: n.Members})
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !slices.Equal(t.entries, list) {
		t.entries = list
		t.changes.note()
	}
}

// logged is the note of an entry with what its write-ahead log tells, which is read once.
func (t *trashCan) logged(it trashItem) trashNote {
	n := it.note
	if n.RaftIndex != 0 {
		return n
	}
	term, index, err := datadir.LastEntry(it.path)
	if err != nil {
		klog.V(2).Infof("trash can: %s: %v", it.path, err)
		return n
	}
	n.RaftTerm, n.RaftIndex = term, index
	if exists(t.l.trashNote(it.name)) { // the age of an entry without a note is read from its directory, also later
		if err := t.l.writeNote(it.name, n); err != nil {
			klog.V(2).Infof("%v", err)
		}
	}
	return n
}

// empty removes what is beyond the bounds, and tells whether it removed anything. Nothing goes before a backup that is newer than it
// is in the store: until then it may be the only copy of something. What has never served isn't.
func (t *trashCan) empty(ctx context.Context) (removed bool) {
	items, err := t.l.trashItems()
	if err != nil {
		return false // said already
	}
	type doomed struct {
		trashItem
		why string
	}
	var due []doomed
	tooLarge := t.over(items)
	for i, it := range items {
		switch age := time.Since(it.note.Since); {
		case tooLarge[i] != "":
			due = append(due, doomed{it, tooLarge[i]})
		case i >= t.cfg.KeepTrash:
			due = append(due, doomed{it, fmt.Sprintf("%d newer ones are kept", t.cfg.KeepTrash)})
		case age > t.cfg.TrashAge:
			due = append(due, doomed{it, fmt.Sprintf("it was set aside %s ago", age.Round(time.Minute))})
		}
	}
	if len(due) == 0 {
		return false
	}
	remove := func(d doomed, but string) {
		size := diskUsage(d.path)
		if err := t.remove(d.trashItem); err != nil {
			klog.Warningf("trash can: %v", err)
			return
		}
		klog.Infof("trash can: removed %s (%d MiB): %s, and %s", d.path, size>>20, d.why, but)
		removed = true
	}
	var rest []doomed
	for _, d := range due {
		if d.note.NeverServed {
			remove(d, "no client was ever let into it")
			continue
		}
		rest = append(rest, d)
	}
	if len(rest) == 0 {
		return removed
	}
	newest, err := t.newestBackup(ctx)
	if err != nil {
		klog.V(2).Infof("trash can: %d entries are beyond the bounds and stay: %v", len(rest), err)
		return removed
	}
	for _, d := range rest {
		if !newest.After(d.note.Since) {
			klog.V(2).Infof("trash can: %s is beyond the bounds (%s) and stays until there is a newer backup", d.path, d.why)
			continue
		}
		remove(d, "there is a backup of "+newest.Format(time.RFC3339))
	}
	return removed
}

// over says, by entry, which are too large together. They may take a quarter of the disk and never what etcd needs; the oldest go first. The
// newest is what an undo goes back to: it goes only when the disk is about to be full, as the store has that cluster's last backup too.
func (t *trashCan) over(items []trashItem) map[int]string {
	total, free := diskSpace(t.cfg.DataDir)
	return overBytes(diskUsages(items), total, free, t.disk.least())
}

func diskUsages(items []trashItem) []int64 {
	var list []int64
	for _, it := range items {
		list = append(list, diskUsage(it.path))
	}
	return list
}

// overBytes picks from entries, newest first, by their sizes.
func overBytes(sizes []int64, total, free, least int64) map[int]string {
	over := map[int]string{}
	if total <= 0 {
		return over
	}
	var sum int64
	for _, n := range sizes {
		sum += n
	}
	for i := len(sizes) - 1; i >= 0; i-- {
		switch {
		case free < least && (i > 0 || free < cluster.DiskLeast(total)):
			over[i] = fmt.Sprintf("only %d of %d MiB are free on the disk", free>>20, total>>20)
		case i > 0 && sum > total/4:
			over[i] = fmt.Sprintf("the trash can takes %d MiB, more than a quarter of the disk", sum>>20)
		default:
			continue
		}
		sum, free = sum-sizes[i], free+sizes[i]
	}
	return over
}

// remove removes an entry unless it is being salvaged. It gets another name first, so that nobody finds half of it.
func (t *trashCan) remove(it trashItem) error {
	away := filepath.Join(t.l.trashRoot(), doomedPrefix+it.name)
	if err := t.l.removeAll(away); err != nil {
		return err
	}
	t.mu.Lock()
	if t.pinned == it.path {
		t.mu.Unlock()
		return fmt.Errorf("%s is being salvaged and stays", it.path)
	}
	err := t.l.rename(it.path, away)
	t.mu.Unlock()
	if err != nil {
		return fmt.Errorf("remove %s: %w", it.path, err)
	}
	_ = t.l.removeAll(t.l.trashNote(it.name)) // one that stays behind is swept away later
	if err := t.l.removeAll(away); err != nil {
		return err
	}
	return nil
}

// newestBackup tells when the newest good backup of this cluster was begun that is complete, as far as its manifest and its size tell. One that a proof
// has found bad frees nothing, and one that is dated ahead counts from when the store had it.
func (t *trashCan) newestBackup(ctx context.Context) (time.Time, error) {
	if t.cfg.Catalog == nil {
		return time.Time{}, errors.New("there is no store that could have a newer backup")
	}
	ctx, cancel := context.WithTimeout(ctx, trashPatience)
	defer cancel()
	list, _, err := t.cfg.Catalog.LastBackups(ctx, time.Now(), manifestTries)
	if err != nil {
		return time.Time{}, fmt.Errorf("the store doesn't say which backups there are: %w", err)
	}
	tries := 0
	now := time.Now()
	sorted := slices.SortedStableFunc(slices.Values(list.Backups), func(x, y catalog.Backup) int { return x.At().Compare(y.At()) })
	for _, b := range slices.Backward(sorted) {
		if !b.HasManifest || !b.Sound() || b.At().After(now.Add(catalog.FutureSlack)) {
			continue
		}
		if tries++; tries > manifestTries {
			break
		}
		m, err := t.cfg.Catalog.Manifest(ctx, b.Name)
		if errors.Is(err, cluster.ErrCorrupt) || errors.Is(err, cluster.ErrFuture) || errors.Is(err, catalog.ErrNotFound) {
			continue
		}
		if err != nil {
			return time.Time{}, fmt.Errorf("the store doesn't say whether backup %s is complete: %w", b.Name, err)
		}
		if m.ClusterName == t.cfg.ClusterName && m.Stored.Size == b.Size {
			if b.Modified.IsZero() || m.Started.Before(b.Modified) {
				return m.Started, nil
			}
			return b.Modified, nil
		}
	}
	return time.Time{}, errors.New("there is no complete backup in the store")
}

// diskUsage is what a directory takes on disk. What can't be looked at counts as nothing.
func diskUsage(dir string) int64 {
	var sum int64
	_ = filepath.WalkDir(dir, func(_ string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return nil
		}
		if st, ok := info.Sys().(*syscall.Stat_t); ok {
			sum += st.Blocks * 512
		}
		return nil
	})
	return sum
}

// list is what is in the trash can, newest first, as it was last looked at.
func (t *trashCan) list() []cluster.TrashEntry {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.entries)
}

// pin finds the entry of a token and keeps it until release is called.
func (t *trashCan) pin(token cluster.Token) (it trashItem, release func(), err error) {
	if it, err = t.newestOf(token); err != nil {
		return trashItem{}, nil, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if !exists(it.path) {
		return trashItem{}, nil, fmt.Errorf("%s was removed a moment ago", it.path)
	}
	t.pinned = it.path
	return it, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		t.pinned = ""
	}, nil
}

// newestOf finds the entry of a token in the trash can; where a token has several, the one whose log is the longest.
func (t *trashCan) newestOf(token cluster.Token) (trashItem, error) {
	items, err := t.l.trashItems()
	if err != nil {
		return trashItem{}, err
	}
	var best *trashItem
	for _, it := range items {
		if it.note.Token != token && it.name != string(token) || !exists(filepath.Join(it.path, "member")) {
			continue
		}
		it.note = t.logged(it)
		if best == nil || cmp.Or(cmp.Compare(it.note.RaftTerm, best.note.RaftTerm), cmp.Compare(it.note.RaftIndex, best.note.RaftIndex)) > 0 {
			best = &it
		}
	}
	if best == nil {
		return trashItem{}, fmt.Errorf("this node has no data of cluster %s, neither as its own nor in %s: %w", token, t.l.trashRoot(), cluster.ErrPermanent)
	}
	return *best, nil
}
