package catalog

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// lastHeld is how many backups are held before the list is cut down to those that are asked for.
const lastHeld = 4096

// LastBackups lists all backups and holds few, whatever there is: those of which Recent chooses n, of all, of those with a manifest,
// of the good ones among them and of the verified ones; the one that was verified or found bad last; the newest for intervals; and the
// oldest with a manifest.
// Of a store with less than a few thousand backups it returns all, and whole is true. Leftovers are left out.
func (c *Catalog) LastBackups(ctx context.Context, now time.Time, n int) (list BackupList, whole bool, err error) {
	return c.lastBackups(ctx, now, n, lastHeld, partsSlow)
}

func (c *Catalog) lastBackups(ctx context.Context, now time.Time, n, held int, slow time.Duration) (list BackupList,
	whole bool, err error) {
	whole = true
	list, err = c.listBackups(ctx, slow, func(l *BackupList) {
		l.Leftovers = l.Leftovers[:0]
		if len(l.Backups) >= held {
			whole = false
			l.sort()
			l.Backups = append(l.Backups[:0], l.last(now, n)...)
		}
	})
	if err != nil {
		return BackupList{}, false, err
	}
	list.sort()
	return list, whole, nil
}

// last are the backups of a sorted list that LastBackups promises.
func (l BackupList) last(now time.Time, n int) []Backup {
	var with, good, proven BackupList
	for _, b := range l.Backups {
		if b.HasManifest {
			with.addBackup(b)
		}
		if b.HasManifest && b.Sound() {
			good.addBackup(b)
		}
		if b.Proven {
			proven.addBackup(b)
		}
	}
	chosen := l.Recent(now, n)
	for _, some := range []BackupList{with, good, proven} {
		chosen = append(chosen, some.Recent(now, n)...)
	}
	if len(with.Backups) > 0 {
		chosen = append(chosen, with.Backups[0])
	}
	if b, ok := l.LastTried(now); ok {
		chosen = append(chosen, b)
	}
	if b, ok := l.NewestSound(now); ok {
		chosen = append(chosen, b)
	}
	seen := map[string]bool{}
	var out []Backup
	for _, b := range chosen {
		if !seen[b.Name] {
			seen[b.Name] = true
			out = append(out, b)
		}
	}
	return out
}

// BackupNamed lists the files of one backup; ErrNotFound if they are no complete backup.
func (c *Catalog) BackupNamed(ctx context.Context, name string) (Backup, error) {
	if err := ValidBackupName(name); err != nil {
		return Backup{}, err
	}
	d := &backupFiles{Backup: Backup{Name: name, Time: BackupTime(name)}}
	for e, err := range c.store.List(ctx, name+"/", blob.ListOptions{}) {
		if err != nil {
			return Backup{}, fmt.Errorf("list backup %s: %w", name, err)
		}
		if file := e.Key[len(name)+1:]; backupFile(file) {
			d.add(strings.Clone(file), e)
		}
	}
	var found []Backup
	(&BackupScan{complete: func(b Backup) { found = append(found, b) }}).emit(d)
	if len(found) == 0 {
		return Backup{}, fmt.Errorf("backup %s: %w", name, ErrNotFound)
	}
	return found[0], nil
}

// BackupsFrom lists the first n backups whose names tell a time at or after the second of one, and that are wanted.
func (c *Catalog) BackupsFrom(ctx context.Context, from time.Time, n int, want func(Backup) bool) ([]Backup, error) {
	var list BackupList
	s := c.ScanBackups(func(b Backup) {
		if len(list.Backups) < n && !b.Time.IsZero() && want(b) {
			list.addBackup(b)
		}
	}, nil)
	s.after = from.UTC().Truncate(time.Second).Format(time.RFC3339)
	if err := s.run(ctx, func(key string) bool { return len(list.Backups) >= n || key[0] > '9' }); err != nil {
		return nil, err
	}
	list.sort()
	return list.Backups, nil
}

// BackupsUntil lists the last n backups whose names tell a time that is not after one, and that are wanted, oldest first. They are
// looked for ever farther back, so that it takes few requests where they are taken regularly.
func (c *Catalog) BackupsUntil(ctx context.Context, until time.Time, n int, want func(Backup) bool) ([]Backup, error) {
	behind := until.UTC().Truncate(time.Second).Add(time.Second).Format(time.RFC3339)
	for i := 0; ; i++ {
		var list BackupList
		s := c.ScanBackups(func(b Backup) {
			if b.Time.IsZero() || b.Time.After(until) || !want(b) {
				return
			}
			if list.addBackup(b); len(list.Backups) >= lastHeld+n {
				list.sort()
				list.Backups = append(list.Backups[:0], list.Backups[len(list.Backups)-n:]...)
			}
		}, nil)
		all := i >= len(recentSteps)
		if !all {
			s.after = until.Add(-recentSteps[i]).UTC().Format(time.RFC3339)
		}
		if err := s.run(ctx, func(key string) bool { return key > behind }); err != nil {
			return nil, err
		}
		list.sort()
		if len(list.Backups) >= n || all {
			return list.Backups[max(0, len(list.Backups)-n):], nil
		}
	}
}
