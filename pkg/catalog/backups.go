package catalog

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// Backup is one row of the listing. The listing reads no object, so everything here is from names and sizes.
type Backup struct {
	Name string
	// Time is when it was begun, from its name; zero if the name tells none.
	Time time.Time
	// Size is that of the stored snapshot, TotalSize that of all files of the backup, in bytes.
	Size      int64
	TotalSize int64
	// DataFile is the name of the file with the snapshot; empty if there is none.
	DataFile string
	// HasManifest is true for backups that this project has written.
	HasManifest bool
	// Pinned ones are never pruned. Proven is true if the last proof of it was a success, Disproven if it wasn't.
	Pinned, Proven, Disproven bool
	// ProofAt is when the last proof of it was written, by the store's clock; zero if there is none.
	ProofAt time.Time
	// Modified is when the newest of the files was written that were there from the beginning, by the store's clock.
	Modified time.Time
}

// Leftover is what stands of a backup that was begun and not finished, or half deleted.
type Leftover struct {
	Backup
	// Missing names the file without which it is no backup.
	Missing string
}

// BackupList is what is stored, oldest first.
type BackupList struct {
	Backups   []Backup
	Leftovers []Leftover
}

// Names returns the names of all complete backups, oldest first.
func (l BackupList) Names() []string {
	names := make([]string, 0, len(l.Backups))
	for _, b := range l.Backups {
		names = append(names, b.Name)
	}
	return names
}

// LastWritten is when the newest file of any backup was written, by the store's clock; zero if there is none. Right after a
// backup it is the time of now as the store has it, and so a check on a clock of one's own.
func (l BackupList) LastWritten() time.Time {
	var last time.Time
	for _, b := range l.Backups {
		last = later(last, b.Modified)
	}
	for _, b := range l.Leftovers {
		last = later(last, b.Modified)
	}
	return last
}

func later(a, b time.Time) time.Time {
	if b.After(a) {
		return b
	}
	return a
}

// Backups lists the backups by listing the base once: no object is read. A backup exists when its meta file and its data do.
// Of a slow store with very many of them it lists several parts at the same time.
func (c *Catalog) Backups(ctx context.Context) (BackupList, error) {
	l, err := c.listBackups(ctx, partsSlow, nil)
	if err != nil {
		return BackupList{}, err
	}
	l.sort()
	return l, nil
}

func (l *BackupList) addBackup(b Backup)     { l.Backups = append(l.Backups, b) }
func (l *BackupList) addLeftover(b Leftover) { l.Leftovers = append(l.Leftovers, b) }

func (l *BackupList) sort() {
	slices.SortFunc(l.Backups, compareBackups)
	// Not slices.SortFunc: for each type of a large struct that is 20 KB of code.
	sort.Slice(l.Leftovers, func(i, j int) bool { return compareBackups(l.Leftovers[i].Backup, l.Leftovers[j].Backup) < 0 })
}

type backupFiles struct {
	Backup
	meta, data bool
	// added is when something was added to it last.
	added time.Time
}

// add takes a file of the backup into account.
func (d *backupFiles) add(file string, e blob.Entry) {
	switch file {
	case metaFile:
		d.meta = true
	case manifestFile:
		d.HasManifest = true
	case pinFile:
		d.Pinned = true
	case provenFile, disprovenFile:
		d.Proven, d.Disproven = d.Proven || file == provenFile, d.Disproven || file == disprovenFile
		d.ProofAt = later(d.ProofAt, e.Modified)
	default:
		d.data, d.DataFile, d.Size = true, file, e.Size
	}
	d.TotalSize += e.Size
	if file == pinFile || file == provenFile || file == disprovenFile {
		d.added = later(d.added, e.Modified)
		return // they come later, and say nothing of when the backup was written
	}
	d.Modified = later(d.Modified, e.Modified)
}

// reserved tells keys that are not a backup's.
func reserved(key string) bool {
	for _, p := range []string{controlPrefix, discoveryPrefix, volumesPrefix, changesPrefix, putBacksPrefix, eventsPrefix} {
		if strings.HasPrefix(key+"/", p) {
			return true
		}
	}
	return false
}

// compareBackups orders by time; among the same second by the number in the suffix, then by name. Names that tell no
// time come first, by the store's time.
func compareBackups(a, b Backup) int {
	c := a.Time.Compare(b.Time)
	if c == 0 && a.Time.IsZero() {
		c = a.Modified.Compare(b.Modified)
	}
	return cmp.Or(c, cmp.Compare(sequence(a.Name), sequence(b.Name)), strings.Compare(a.Name, b.Name))
}

const nameTimeLength = len("2026-01-30T01:02:03Z")

// BackupTime reads the time from the name of a backup or command; zero if there is none.
func BackupTime(name string) time.Time {
	if len(name) < nameTimeLength || (len(name) > nameTimeLength && name[nameTimeLength] != '-') {
		return time.Time{}
	}
	t, err := time.Parse("2006-01-02T15:04:05Z", name[:nameTimeLength])
	if err != nil {
		return time.Time{}
	}
	return t.UTC()
}

// NewBackupName makes a name for a backup begun now, unlike all existing ones and behind all of the same second.
func NewBackupName(now time.Time, existing []string) string {
	second := now.UTC().Format(time.RFC3339)
	next := 0
	for _, name := range existing {
		if strings.HasPrefix(name, second+"-") {
			next = max(next, sequence(name)+1)
		}
	}
	return fmt.Sprintf("%s-%06d", second, next)
}

// ValidBackupName refuses what can't be a backup's name.
func ValidBackupName(name string) error {
	if err := validName("backup", name); err != nil {
		return err
	}
	if reserved(name) {
		return invalidf("backup %q is not a valid name", name)
	}
	return nil
}

// BackupInfo is what the meta file says.
type BackupInfo struct {
	EtcdVersion string
	// Time is to the second.
	Time time.Time
	Spec cluster.Spec
}

// BackupInfo reads the meta file of a backup; ErrNotFound if there is no such backup.
func (c *Catalog) BackupInfo(ctx context.Context, name string) (BackupInfo, error) {
	if err := ValidBackupName(name); err != nil {
		return BackupInfo{}, err
	}
	key, way := name+"/"+metaFile, "restore another backup: etcd-manager-ctl list-backups"
	data, _, err := c.read(ctx, key, way)
	if err != nil {
		return BackupInfo{}, err
	}
	var p protosv1.BackupInfo
	if err := unmarshalShared(data, &p); err != nil {
		return BackupInfo{}, corrupt(key, way, err)
	}
	return BackupInfo{EtcdVersion: p.GetEtcdVersion(), Time: time.Unix(p.GetTimestamp(), 0).UTC(), Spec: specFromProto(p.GetClusterSpec())},
		nil
}

// CommitBackup writes the meta file, and with it the backup exists. It fails with ErrConflict if it existed before.
func (c *Catalog) CommitBackup(ctx context.Context, name string, info BackupInfo) error {
	if err := ValidBackupName(name); err != nil {
		return err
	}
	data, err := marshalShared(&protosv1.BackupInfo{EtcdVersion: info.EtcdVersion, Timestamp: info.Time.Unix(),
		ClusterSpec: specToProto(info.Spec)})
	if err != nil {
		return err
	}
	_, err = c.write(ctx, name+"/"+metaFile, data, blob.PutOptions{IfAbsent: true})
	return err
}

// StoredData is the stored snapshot of a backup.
type StoredData struct {
	// Size is in bytes.
	Size int64
	// Version changes if the object is replaced.
	Version string
}

// validData refuses what can't be the data of a backup.
func validData(name, file string) error {
	if !isDataFile(file) {
		return invalidf("%q is no data of a backup", file)
	}
	return ValidBackupName(name)
}

// PutBackupData streams a snapshot, already compressed and sealed, into the file of that name
// (DataFileOf). Nothing is visible before it is complete, and nothing if body fails. It fails with
// ErrConflict if there is data of that name (as far as the store can tell).
func (c *Catalog) PutBackupData(ctx context.Context, name, file string, body io.Reader) (StoredData, error) {
	if err := validData(name, file); err != nil {
		return StoredData{}, err
	}
	info, err := c.store.Put(ctx, name+"/"+file, body, blob.PutOptions{IfAbsent: true})
	if err != nil {
		return StoredData{}, fmt.Errorf("write %s/%s: %w", name, file, err)
	}
	return StoredData{Size: info.Size, Version: info.Version}, nil
}

// StatBackupData describes the stored snapshot.
func (c *Catalog) StatBackupData(ctx context.Context, name, file string) (StoredData, error) {
	if err := validData(name, file); err != nil {
		return StoredData{}, err
	}
	info, err := c.store.Stat(ctx, name+"/"+file)
	if err != nil {
		return StoredData{}, fmt.Errorf("read %s/%s: %w", name, file, err)
	}
	return StoredData{Size: info.Size, Version: info.Version}, nil
}

// HasBackupData tells whether there is data of that name, under whichever of its names, with or without what makes it a backup.
func (c *Catalog) HasBackupData(ctx context.Context, name string) (bool, error) {
	for _, compression := range []string{CompressionGzip, CompressionZstd} {
		for _, sealed := range []bool{false, true} {
			_, err := c.StatBackupData(ctx, name, DataFileOf(compression, sealed))
			if err == nil || !errors.Is(err, ErrNotFound) {
				return err == nil, err
			}
		}
	}
	return false, nil
}

// OpenBackupData reads the stored snapshot from an offset to its end. The caller closes the reader.
func (c *Catalog) OpenBackupData(ctx context.Context, name, file string, offset int64) (io.ReadCloser, StoredData, error) {
	if err := validData(name, file); err != nil {
		return nil, StoredData{}, err
	}
	r, info, err := c.store.Get(ctx, name+"/"+file, blob.Range{Offset: offset})
	if err != nil {
		return nil, StoredData{}, fmt.Errorf("read %s/%s: %w", name, file, err)
	}
	return r, StoredData{Size: info.Size, Version: info.Version}, nil
}

// DeleteBackups removes every file (every version, on a versioned bucket) of all these backups in one pass over what they have
// in common, in batches, and returns how many objects went. Backups that are gone are a success.
func (c *Catalog) DeleteBackups(ctx context.Context, names ...string) (int, error) {
	if len(names) == 0 {
		return 0, nil
	}
	doomed := make(map[string]bool, len(names))
	var errs []error
	prefix := names[0] + "/"
	for _, n := range names {
		if n == "" || strings.HasPrefix(n, "/") || strings.HasSuffix(n, "/") || reserved(n) {
			errs = append(errs, invalidf("delete backup %q: not a valid name", n))
			continue
		}
		doomed[n] = true
		prefix = commonPrefix(prefix, n+"/")
	}
	if len(doomed) == 0 {
		return 0, errors.Join(errs...)
	}
	count, err := c.store.Purge(ctx, prefix, func(key string) bool {
		for i := 0; i < len(key); i++ {
			if key[i] == '/' && doomed[key[:i]] {
				return true
			}
		}
		return false
	})
	if err != nil {
		errs = append(errs, fmt.Errorf("delete backups: %w", err))
	}
	return count, errors.Join(errs...)
}

// Written says what one writer has surely stored of a backup.
type Written struct {
	// Data is the name of the data file; empty if it isn't known to be this writer's.
	Data     string
	Manifest bool
}

// DiscardBackup removes what one writer has stored of a backup that failed. What another one has
// stored under the same name stays. A meta file goes only where no data is left that it could
// belong to. It goes on for a while although ctx has ended, as blob.Cleanup says.
func (c *Catalog) DiscardBackup(ctx context.Context, name string, own Written) error {
	if err := ValidBackupName(name); err != nil {
		return err
	}
	ctx, cancel := blob.Cleanup(ctx)
	defer cancel()
	if own.Data != "" {
		if err := c.removeFile(ctx, name+"/"+own.Data); err != nil {
			return err
		}
	}
	if own.Manifest {
		if err := c.removeFile(ctx, name+"/"+manifestFile); err != nil {
			return err
		}
	}
	if own.Data == "" {
		return nil
	}
	if there, err := c.HasBackupData(ctx, name); err != nil || there {
		return err
	}
	return c.removeFile(ctx, name+"/"+metaFile)
}

func commonPrefix(a, b string) string {
	n := min(len(a), len(b))
	for i := range n {
		if a[i] != b[i] {
			return a[:i]
		}
	}
	return a[:n]
}
