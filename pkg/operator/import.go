package operator

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/operator/database"
)

// ImportRequest says of which file a backup is made.
type ImportRequest struct {
	// File is a snapshot file: one of "etcdctl snapshot save", of Download, or another store's etcd.backup.gz.
	File string
	// Reason is what the manifest names; empty means "import".
	Reason string
	// EtcdVersion is what it was taken with; empty means as far as the file tells.
	EtcdVersion string
	// SkipHashCheck takes a database that was copied from a data dir, which has no checksum at its end.
	SkipHashCheck bool
	// Compression is gzip (or empty), which other tools read too, or zstd.
	Compression string
	VerifyOptions
}

func (r *ImportRequest) check() error {
	r.EtcdVersion = strings.TrimPrefix(r.EtcdVersion, "v")
	if r.EtcdVersion != "" {
		if err := catalog.ValidateSpec(cluster.Spec{MemberCount: 1, EtcdVersion: r.EtcdVersion}); err != nil {
			return &InvalidError{err}
		}
	}
	if r.Reason == "" {
		r.Reason = "import"
	}
	if r.Compression == "" {
		r.Compression = catalog.DefaultCompression
	}
	if err := backup.CheckCompression(r.Compression); err != nil {
		return &InvalidError{err}
	}
	return nil
}

// Imported is a backup that was made of a file.
type Imported struct {
	Backup string `json:"backup"`
	File   string `json:"file"`
	Facts
	StoredBytes int64 `json:"storedBytes"`
}

// NoChecksumError says that a file has no checksum at its end, as one has that was copied from a data dir. Its structure is sound.
type NoChecksumError struct{ File string }

func (e *NoChecksumError) Error() string {
	return fmt.Sprintf("nothing was imported: %s has no checksum at its end, like a file that was copied from a data dir; its structure is sound", e.File)
}

// Import makes a backup in the store out of a snapshot file. It is checked like a backup that is
// restored, and then stored under a name with the time of now, encrypted for Config.Encryption. It
// names no cluster, so it isn't taken for another one's.
func (c *Client) Import(ctx context.Context, r ImportRequest) (Imported, error) {
	if err := r.check(); err != nil {
		return Imported{}, err
	}
	path, remove, err := database.Plain(ctx, r.File, r.TempDir)
	var file *database.FileError
	switch {
	case errors.As(err, &file):
		return Imported{}, &InvalidError{err}
	case err != nil:
		return Imported{}, err
	}
	defer remove()
	f, err := c.checker.Check(ctx, path)
	if err != nil {
		return Imported{}, fmt.Errorf("nothing was imported: %s: %w", r.File, err)
	}
	if !f.TrailingHash && !r.SkipHashCheck {
		return Imported{}, &NoChecksumError{r.File}
	}
	m, err := c.storeFile(ctx, path, f, r)
	if err != nil {
		return Imported{}, err
	}
	return Imported{m.Backup, r.File, f, m.Stored.Size}, nil
}

// nameAttempts bounds how often a name is looked for that nobody else has taken meanwhile.
const nameAttempts = 5

// storeFile writes the backup under a name of its own.
func (c *Client) storeFile(ctx context.Context, path string, f Facts, r ImportRequest) (*catalog.Manifest, error) {
	version := r.EtcdVersion
	if version == "" {
		version = f.Format + ".0"
	}
	w := backup.NewWriter(c.catalog, backup.Options{ToolVersion: c.config.Program, Now: c.Now, Compression: r.Compression})
	for range nameAttempts {
		l, err := c.Backups(ctx)
		if err != nil {
			return nil, err
		}
		in, err := database.OpenSnapshot(path, f)
		if err != nil {
			return nil, err
		}
		progress, over := r.Transfers.begin("store", filepath.Base(path))
		m, err := w.Write(ctx, catalog.NewBackupName(c.Now(), l.Names()), backup.Facts{
			EtcdVersion: version, Spec: c.specIfAny(ctx), Revision: f.Revision, Keys: f.Keys, Size: f.SizeBytes, Reason: r.Reason,
		}, in, func(p backup.Progress) { progress(p.Done, p.Total) })
		over()
		if errors.Is(err, catalog.ErrConflict) {
			continue
		}
		return m, err
	}
	return nil, errors.New("other backups took every name that was tried: try again")
}
