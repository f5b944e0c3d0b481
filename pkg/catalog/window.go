package catalog

import (
	"context"
	"slices"
	"time"
)

// Window is a bounded part of the list of backups: retention looks at one after the other, however many backups there are.
type Window struct {
	// BackupList has the backups and leftovers of the window, and beside them the few of all that LastBackups promises.
	BackupList
	// Whole is true if these are all that there are.
	Whole bool
	// Count is how many complete backups the store has.
	Count int
	// After and Until bound the names of the window: those behind After, up to and including Until. Until is empty if none is
	// behind the window.
	After, Until string
}

// Has tells whether a name is in the window, and not only among the last backups.
func (w *Window) Has(name string) bool {
	return w.Whole || name > w.After && (w.Until == "" || name <= w.Until)
}

// BackupWindow lists all backups and holds at most about so many: all of them if there are no more; else the first ones in the order of
// their names that come behind a name, and those that LastBackups promises of now and n.
func (c *Catalog) BackupWindow(ctx context.Context, after string, most int, now time.Time, n int) (Window, error) {
	return c.backupWindow(ctx, after, most, now, n, partsSlow)
}

func (c *Catalog) backupWindow(ctx context.Context, after string, most int, now time.Time, n int, slow time.Duration) (Window, error) {
	f := windowFinder{after: after, most: most}
	few := fewOf(now, n)
	var tail BackupList
	_, err := c.listBackups(ctx, slow, func(l *BackupList) {
		f.count += len(l.Backups)
		for _, b := range l.Backups {
			if tail.addBackup(b); f.wants(b.Name) {
				f.addBackup(b)
			}
		}
		for _, b := range l.Leftovers {
			if f.wants(b.Name) {
				f.addLeftover(b)
			}
		}
		few(&tail)
		f.cut(most / 4)
		l.Backups, l.Leftovers = l.Backups[:0], l.Leftovers[:0]
	})
	if err != nil {
		return Window{}, err
	}
	f.cut(0)
	w := Window{BackupList: f.BackupList, Whole: !f.over, Count: f.count, After: after, Until: f.until}
	if f.over {
		tail.sort()
		for _, b := range tail.last(now, n) {
			if !w.Has(b.Name) {
				w.addBackup(b)
			}
		}
	}
	w.sort()
	return w, nil
}

// windowFinder holds the first ones behind a name, in whatever order they come; as long as there are few, all.
type windowFinder struct {
	BackupList
	after string
	most  int
	count int
	// over is true if there are more than are held; until is the last name that is wanted, empty while all behind after are.
	over  bool
	until string
}

func (f *windowFinder) wants(name string) bool {
	return !f.over || name > f.after && (f.until == "" || name <= f.until)
}

// cut leaves out what is too much, once it is more than some.
func (f *windowFinder) cut(some int) {
	if len(f.Backups)+len(f.Leftovers) <= f.most+some {
		return
	}
	f.over = true
	f.drop()
	names := f.AllNames()
	if len(names) > f.most {
		slices.Sort(names)
		f.until = names[f.most-1]
		f.drop()
	}
}

func (f *windowFinder) drop() {
	f.Backups = slices.DeleteFunc(f.Backups, func(b Backup) bool { return !f.wants(b.Name) })
	f.Leftovers = slices.DeleteFunc(f.Leftovers, func(b Leftover) bool { return !f.wants(b.Name) })
}

// BackupsOf lists what is there of some backups. It lists everything and holds only these.
func (c *Catalog) BackupsOf(ctx context.Context, names map[string]bool) (BackupList, error) {
	l, err := c.listBackups(ctx, partsSlow, func(l *BackupList) {
		if n := len(l.Backups); n > 0 && !names[l.Backups[n-1].Name] {
			l.Backups = l.Backups[:n-1]
		}
		if n := len(l.Leftovers); n > 0 && !names[l.Leftovers[n-1].Name] {
			l.Leftovers = l.Leftovers[:n-1]
		}
	})
	if err != nil {
		return BackupList{}, err
	}
	l.sort()
	return l, nil
}

// fewOf cuts a list that becomes long down to the last backups. It is for lists that come in no order.
func fewOf(now time.Time, n int) func(*BackupList) {
	return func(l *BackupList) {
		if len(l.Backups) >= lastHeld {
			l.sort()
			l.Backups = append(l.Backups[:0], l.last(now, n)...)
		}
		if len(l.Leftovers) >= lastHeld {
			l.Leftovers = l.Leftovers[:0]
		}
	}
}
