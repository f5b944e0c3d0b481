package node

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/atomicfile"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

const (
	defaultKeepTrash = 3
	defaultTrashAge  = 7 * 24 * time.Hour
	// trashInterval is how often the bounds of the trash can are looked at when nothing is put in.
	trashInterval = 3 * time.Hour
	// trashPatience bounds the questions to the store.
	trashPatience = time.Minute
	// manifestTries is how many backups are looked at, newest first, for one that is complete.
	manifestTries = 10
	// doomedPrefix marks an entry that is being removed; names with a dot are no entries.
	doomedPrefix = ".removing-"
)

// trash is the entry of a token; a second one of the same token gets a number.
func (l layout) trash(t cluster.Token) string { return filepath.Join(l.trashRoot(), string(t)) }

// trashNote lies beside its entry: the directory of an etcd gets no foreign files.
func (l layout) trashNote(entry string) string {
	return filepath.Join(l.trashRoot(), "."+entry+".json")
}

// trashNote is what is remembered of an entry of the trash can. Entries of other tools have none.
type trashNote struct {
	Token cluster.Token `json:"token"`
	// EtcdVersion ran on it; empty if that isn't known.
	EtcdVersion string    `json:"etcdVersion,omitempty"`
	Since       time.Time `json:"since"`
	// RaftTerm and RaftIndex are filled in later, since that means to read the log.
	RaftTerm  uint64 `json:"raftTerm,omitempty"`
	RaftIndex uint64 `json:"raftIndex,omitempty"`
	// Members is how many members the cluster had when a restore replaced it; 0 if it was set aside for another reason.
	Members int `json:"members,omitempty"`
	// NeverServed is what no client was ever let into: it may go before there is a newer backup.
	NeverServed bool `json:"neverServed,omitempty"`
}

// trashItem is one entry.
type trashItem struct {
	name string
	path string
	note trashNote
}

// discardDir moves the data dir of a token into the trash can, with a note. What is not there counts as moved already.
func (l layout) discardDir(t cluster.Token, note trashNote) error {
	from := l.data(t)
	if !exists(from) {
		return nil
	}
	if err := l.makeDir(l.trashRoot()); err != nil {
		return fmt.Errorf("create trash can: %w", err)
	}
	to := l.trash(t)
	for i := 2; exists(to); i++ {
		to = fmt.Sprintf("%s.%d", l.trash(t), i)
	}
	now := time.Now()
	_ = os.Chtimes(from, now, now) // what counts where there is no note
	note.Token, note.Since = t, now.UTC()
	if err := l.writeNote(filepath.Base(to), note); err != nil {
		klog.Warningf("%v", err) // the entry is as good without
	}
	if err := l.rename(from, to); err != nil {
		return fmt.Errorf("move data dir to the trash can: %w", err)
	}
	klog.Infof("data dir %s is kept as %s", from, to)
	return nil
}

func (l layout) writeNote(entry string, n trashNote) error {
	data, err := json.MarshalIndent(n, "", "  ")
	if err != nil {
		return fmt.Errorf("encode note of the trash can: %w", err)
	}
	if err := atomicfile.Write(l.trashNote(entry), append(data, '\n'), 0o600); err != nil {
		return fmt.Errorf("write note of the trash can: %w", err)
	}
	return nil
}

// trashItems lists the entries, newest first.
func (l layout) trashItems() ([]trashItem, error) {
	entries, err := os.ReadDir(l.trashRoot())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("read trash can: %w", err)
	}
	var items []trashItem
	for _, e := range entries {
		if !e.IsDir() || strings.HasPrefix(e.Name(), ".") {
			continue
		}
		it := trashItem{name: e.Name(), path: filepath.Join(l.trashRoot(), e.Name())}
		data, err := os.ReadFile(l.trashNote(it.name))
		if err != nil || json.Unmarshal(data, &it.note) != nil || it.note.Since.IsZero() {
			info, err := e.Info()
			if err != nil {
				continue // gone meanwhile
			}
			it.note = trashNote{Token: tokenOfEntry(it.name), Since: info.ModTime().UTC()}
		}
		// A clock that was ahead must not keep an entry longer, nor let it push newer ones out.
		if now := time.Now().UTC(); it.note.Since.After(now.Add(catalog.FutureSlack)) {
			klog.Infof("trash can: %s is dated %s, in the future; it counts as set aside now", it.path, it.note.Since.Format(time.RFC3339))
			it.note.Since = now
			if err := l.redate(it, now); err != nil {
				klog.Warningf("%v", err)
			}
		}
		items = append(items, it)
	}
	slices.SortStableFunc(items, func(a, b trashItem) int { return b.note.Since.Compare(a.note.Since) })
	return items, nil
}

// redate writes down since when an entry is there.
func (l layout) redate(it trashItem, since time.Time) error {
	if exists(l.trashNote(it.name)) {
		return l.writeNote(it.name, it.note)
	}
	if err := os.Chtimes(it.path, since, since); err != nil {
		return fmt.Errorf("date entry of the trash can: %w", err)
	}
	return nil
}

var numbered = regexp.MustCompile(`\.[0-9]+$`)

// tokenOfEntry undoes the number that a second entry of a token gets.
func tokenOfEntry(name string) cluster.Token {
	return cluster.Token(numbered.ReplaceAllString(name, ""))
}
