package operator

import (
	"context"
	"errors"
	"path/filepath"
	"slices"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/operator/database"
)

// VerifyOptions are for what fetches a backup into a temporary file.
type VerifyOptions struct {
	// TempDir needs space for the decompressed backup; empty means the system's directory for temporary files.
	TempDir   string
	Transfers Transfers
}

// Verified is what was found out about one backup.
type Verified struct {
	Name    string `json:"name"`
	Sound   bool   `json:"sound"`
	Problem string `json:"problem,omitempty"`
	// Checked says by what: "manifest", "encryption", the compression, "etcd checksum", "database".
	Checked     []string  `json:"checked,omitempty"`
	Time        time.Time `json:"time,omitzero"`
	ClusterName string    `json:"clusterName,omitempty"`
	EtcdVersion string    `json:"etcdVersion,omitempty"`
	Reason      string    `json:"reason,omitempty"`
	StoredBytes int64     `json:"storedBytes,omitempty"`
	// Facts are nil unless it is sound.
	*Facts
	// Unfit says why it can't be restored into the etcd version of the spec; empty if it can, or if the spec names none.
	Unfit string `json:"unfit,omitempty"`
	// Notes are those of Backup.
	Notes []string `json:"-"`
}

// Verify fetches a backup, which may be Latest, and checks everything about it that a restore
// checks: sizes and SHA-256 against the manifest, the compression's checksum, etcd's own checksum
// at the end of the snapshot, and every page and record of the database. Bad tells from its error
// whether the backup is bad or could not be looked at. The result is filled in as far as it goes,
// also beside an error.
func (c *Client) Verify(ctx context.Context, name string, o VerifyOptions) (Verified, error) {
	spec := c.specIfAny(ctx)
	b, notes, err := c.backup(ctx, name)
	if err != nil { // metadata that can't be read makes a backup as bad as bytes do
		return Verified{Name: name, Problem: err.Error(), Notes: notes}, err
	}
	out := Verified{Name: b.Name, Time: b.Time, StoredBytes: b.Size, EtcdVersion: b.Info.EtcdVersion, Notes: notes}
	if m := b.Manifest; m != nil {
		out.ClusterName, out.Reason = m.ClusterName, m.Reason
	}
	p, err := c.check(ctx, b, o)
	if err != nil {
		out.Problem = err.Error()
		return out, err
	}
	p.remove()
	out.Sound, out.Facts = true, &p.facts
	out.Checked = []string{catalog.DefaultCompression, "etcd checksum", "database"}
	if m := b.Manifest; m != nil {
		out.Checked[0] = m.Compression
		if m.Encryption != nil {
			out.Checked = slices.Insert(out.Checked, 0, "encryption")
		}
		out.Checked = slices.Insert(out.Checked, 0, "manifest")
	}
	if spec.EtcdVersion != "" {
		if err := p.facts.Fits(spec.EtcdVersion); err != nil {
			out.Unfit = err.Error()
		}
	}
	return out, nil
}

// specIfAny reads the spec, if there is one that can be read.
func (c *Client) specIfAny(ctx context.Context) cluster.Spec {
	ctx, cancel := c.limit(ctx)
	defer cancel()
	spec, _, err := c.catalog.Spec(ctx)
	if err != nil {
		return cluster.Spec{}
	}
	return spec
}

// VerifiedChain is what was found out about a backup and the changes that lead to it.
type VerifiedChain = changelog.Verified

// VerifyChain checks a backup, which may be Latest, and reaches it a second time, from the backup
// before it by the changes that were kept between the two: this proves both backups and every
// segment between them. An error with bad says that the backup itself is bad; ChainProblem in the
// result that the chain is.
func (c *Client) VerifyChain(ctx context.Context, name string, o VerifyOptions) (v VerifiedChain, notes []string, bad bool, err error) {
	b, notes, err := c.backup(ctx, name)
	if err != nil {
		return v, notes, false, err
	}
	v, err = c.verifyChain(ctx, b, o)
	bad = err != nil && (Bad(err) || errors.Is(err, cluster.ErrCorrupt) || errors.Is(err, etcd.ErrBadDatabase))
	return v, notes, bad, err
}

func (c *Client) verifyChain(ctx context.Context, b Backup, o VerifyOptions) (VerifiedChain, error) {
	none := VerifiedChain{Backup: b.Name}
	exe, err := executable()
	if err != nil {
		return none, err
	}
	dir, remove, err := database.Scratch(o.TempDir)
	if err != nil {
		return none, err
	}
	defer remove()
	if b.Manifest != nil {
		if err := database.CheckSpace(dir, b.Manifest.Raw.Size); err != nil {
			return none, err
		}
	}
	progress, over := o.Transfers.begin("verify", b.Name)
	defer over()
	v, err := c.archive.Verify(ctx, b.Name, changelog.VerifyOptions{
		Executable: exe, Dir: filepath.Join(dir, "work"), KeepFree: database.SpareSpace,
		Progress: func(_ string, done, total int64) { progress(done, total) },
	})
	var bad *backup.Error
	if err != nil && !errors.As(err, &bad) {
		err = database.Judged(filepath.Join(dir, "work", "backup.db"), err)
	}
	return v, err
}

// BackupNames lists the names of all backups, the newest first. It is a *NoBackupError if there is none.
func (c *Client) BackupNames(ctx context.Context) ([]string, error) {
	l, err := c.Backups(ctx)
	if err != nil {
		return nil, err
	}
	names := l.Names()
	if len(names) == 0 {
		return nil, &NoBackupError{Store: c.Store(), Name: Latest}
	}
	slices.Reverse(names)
	return names, nil
}
