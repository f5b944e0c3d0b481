package manager

import (
	"context"
	"fmt"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// The list of backups grows with what is stored, so no decision waits for it. What decisions need of it is found beside the loop:
//
//   - when the newest backup was begun. Until that is known no periodic backup is taken, and nothing else waits: the cluster is healed,
//     commands are obeyed, restores begin, and terms are taken;
//   - how many backups there are, which is only shown. It is counted once in the life of the process, by whoever leads, and goes on
//     where it broke off when a leadership ends; after that retention, which lists them anyway, keeps it right.

// backupCount is what is known over all leaderships of the process of how many backups there are.
type backupCount struct {
	scan *catalog.BackupScan
	n    int
	done bool
}

// learnBackups finds the newest backup, then counts them all.
func (l *leadership) learnBackups(ctx context.Context) {
	const what = "the newest backup isn't known yet, so no periodic backup is taken"
	retry(ctx, what, once, func(ctx context.Context) error {
		err := l.learnNewest(ctx)
		l.mu.Lock()
		defer l.mu.Unlock()
		switch {
		case err != nil && ctx.Err() == nil:
			l.listError = fmt.Sprintf("%s: %v", what, err)
		case err == nil:
			l.listError = ""
		}
		return err
	})
	l.poke()
	retry(ctx, "the backups can't be counted", once, l.countBackups)
	l.poke()
}

func (l *leadership) learnNewest(ctx context.Context) error {
	list, err := l.m.cfg.Catalog.RecentBackups(ctx, time.Now())
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.newestKnown {
		return nil // a backup was taken meanwhile
	}
	l.newestKnown, l.newest = true, time.Time{}
	if b, ok := list.NewestSound(time.Now()); ok {
		l.newest = b.TakenBy(time.Now())
	}
	return nil
}

// countBackups counts to the end of the list. Only one leadership of a process exists at a time, and only its one goroutine calls it.
func (l *leadership) countBackups(ctx context.Context) error {
	c := &l.m.counted
	if c.scan == nil {
		c.scan = l.m.cfg.Catalog.ScanBackups(func(catalog.Backup) { c.n++ }, nil)
	}
	if !c.done {
		begun := time.Now()
		if err := c.scan.Run(ctx); err != nil {
			return err
		}
		c.done = true
		klog.V(2).Infof("there are %d backups; it took %s to list them", c.n, time.Since(begun).Round(time.Millisecond))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.backups == 0 {
		l.backups = c.n
	}
	return nil
}
