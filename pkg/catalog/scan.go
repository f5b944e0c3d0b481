package catalog

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// BackupScan reads the list of backups piece by piece. One that broke off goes on where it was, so that a list which takes
// longer than anybody waits for is read in the end. It is for one goroutine at a time.
type BackupScan struct {
	c        *Catalog
	after    string
	complete func(Backup)
	leftover func(Leftover)
	// open are the backups of which more files may follow, each one a directory below the one before.
	open []*backupFiles
	// files has one copy of each file name, since there may be a hundred thousand backups.
	files map[string]string
}

// ScanBackups makes a scan. complete gets each backup, leftover what is none; leftover may be nil. They come in lexical
// order of their names.
func (c *Catalog) ScanBackups(complete func(Backup), leftover func(Leftover)) *BackupScan {
	return &BackupScan{c: c, complete: complete, leftover: leftover, files: map[string]string{}}
}

// Run reads on to the end. After an error another Run goes on.
func (s *BackupScan) Run(ctx context.Context) error { return s.run(ctx, nil) }

// run ends early, as if there were no more, at the first key for which until is true. until may be nil.
func (s *BackupScan) run(ctx context.Context, until func(key string) bool) error {
	for done := false; !done; {
		done = true
		for e, err := range s.c.store.List(ctx, "", blob.ListOptions{After: s.after}) {
			if err != nil {
				return fmt.Errorf("list backups: %w", err)
			}
			if until != nil && until(e.Key) {
				break
			}
			s.after = e.Key
			if many := manyBelow(e.Key); many != "" {
				// There can be very many of these: go on behind them.
				s.after, done = strings.TrimSuffix(many, "/")+"0", false
				break
			}
			s.add(e)
		}
	}
	s.closeUnless("")
	return nil
}

// manyBelow is the prefix of a key below which there can be very many objects that are no backups; empty if it has none of these.
func manyBelow(key string) string {
	for _, p := range []string{changesPrefix, eventsPrefix} {
		if strings.HasPrefix(key, p) {
			return p
		}
	}
	return ""
}

// closeUnless hands over the backups that can't have the key: all of their files were listed.
func (s *BackupScan) closeUnless(key string) {
	for n := len(s.open); n > 0 && !strings.HasPrefix(key, s.open[n-1].Name+"/"); n-- {
		s.emit(s.open[n-1])
		s.open = s.open[:n-1]
	}
}

func (s *BackupScan) emit(d *backupFiles) {
	d.Proven = d.Proven && !d.Disproven
	if d.Modified.IsZero() {
		d.Modified = d.added // nothing else is left of it
	}
	var missing string
	switch {
	case d.meta && d.data && (d.HasManifest || d.DataFile == DataFile):
		s.complete(d.Backup)
		return
	case d.meta && d.data:
		missing = manifestFile // without a manifest nobody can tell what this is
	case d.data:
		missing = metaFile
	default:
		missing = DataFile
	}
	if s.leftover != nil {
		s.leftover(Leftover{Backup: d.Backup, Missing: missing})
	}
}

func (s *BackupScan) add(e blob.Entry) {
	i := strings.LastIndexByte(e.Key, '/')
	if i <= 0 || reserved(e.Key) || !backupFile(e.Key[i+1:]) {
		return
	}
	name, file := e.Key[:i], e.Key[i+1:]
	s.closeUnless(e.Key)
	if n := len(s.open); n == 0 || s.open[n-1].Name != name {
		name = strings.Clone(name)
		s.open = append(s.open, &backupFiles{Backup: Backup{Name: name, Time: BackupTime(name)}})
	}
	if s.files[file] == "" {
		s.files[file] = strings.Clone(file)
	}
	s.open[len(s.open)-1].add(s.files[file], e)
}

// backupFile tells names that files of backups have.
func backupFile(file string) bool {
	return isDataFile(file) || file == metaFile || file == manifestFile || file == pinFile || file == provenFile || file == disprovenFile
}

// recentSteps are how far back the newest backups are looked for, until there is one.
var recentSteps = [...]time.Duration{2 * time.Hour, 24 * time.Hour, 8 * 24 * time.Hour, 64 * 24 * time.Hour, 512 * 24 * time.Hour}

// RecentBackups lists the newest backups by name, as many as it takes to have the one that NewestSound finds among all; of very many
// only those that LastBackups promises. It takes one or two requests where backups are taken regularly, however many there are. now
// says where to begin; that it is wrong costs time only.
func (c *Catalog) RecentBackups(ctx context.Context, now time.Time) (BackupList, error) {
	for _, step := range recentSteps {
		l, err := c.backupsSince(ctx, now.Add(-step), fewOf(now, recentHeld))
		if err != nil {
			return BackupList{}, err
		}
		if b, ok := l.NewestSound(now); ok && !b.TakenBy(now).Before(now.Add(-step)) {
			return l, nil // what isn't listed is older, also if some that are listed are dated in the future
		}
	}
	l, _, err := c.LastBackups(ctx, now, recentHeld)
	return l, err
}

// recentHeld is how many backups RecentBackups gives of each kind; no caller looks at more.
const recentHeld = 64

// backupsSince lists those, cut down if they are many, whose names begin with a later time. Names that tell no time are left out.
func (c *Catalog) backupsSince(ctx context.Context, from time.Time, cut func(*BackupList)) (BackupList, error) {
	var l BackupList
	s := c.ScanBackups(func(b Backup) { l.addBackup(b); cut(&l) }, func(b Leftover) { l.addLeftover(b); cut(&l) })
	s.after = from.UTC().Format(time.RFC3339)
	if err := s.run(ctx, func(key string) bool { return key[0] > '9' }); err != nil {
		return BackupList{}, err
	}
	l.sort()
	return l, nil
}

// NextBackupName makes a name for a backup begun now, which nothing in the store has. It lists that second only.
func (c *Catalog) NextBackupName(ctx context.Context, now time.Time) (string, error) {
	second := now.UTC().Format(time.RFC3339)
	var names []string
	for e, err := range c.store.List(ctx, second, blob.ListOptions{Delimiter: "/"}) {
		if err != nil {
			return "", fmt.Errorf("list backups: %w", err)
		}
		names = append(names, strings.TrimSuffix(e.Key, "/"))
	}
	return NewBackupName(now, names), nil
}
