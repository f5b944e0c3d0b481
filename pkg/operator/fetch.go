package operator

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/operator/database"
)

// ChildMain is the program as a child of itself, which reads a database that may be damaged; ok is
// false if it isn't one. The main function of a program that verifies, inspects, imports or
// extracts begins with it: args are os.Args[1:], and code is to be given to os.Exit.
func ChildMain(args []string) (code int, ok bool) { return database.ChildMain(args) }

// Facts are what a sound database says of itself.
type Facts = database.Facts

// Transfer is how far something is that moves many bytes.
type Transfer struct {
	// Doing is "fetch", "verify" or "store", What the name of the backup or file.
	Doing, What string
	// Done and Total are in bytes; Total is 0 if it isn't known.
	Done, Total int64
	// Over is true for the last report of a transfer, whether it has succeeded or not.
	Over bool
}

// Transfers gets reports of transfers, from any goroutine. Nil gets none.
type Transfers func(Transfer)

// begin reports the begin of a transfer, and returns what reports its progress and its end.
func (f Transfers) begin(doing, what string) (progress func(done, total int64), over func()) {
	if f == nil {
		return func(int64, int64) {}, func() {}
	}
	f(Transfer{Doing: doing, What: what})
	return func(done, total int64) { f(Transfer{Doing: doing, What: what, Done: done, Total: total}) },
		func() { f(Transfer{Doing: doing, What: what, Over: true}) }
}

// Downloaded is a backup that was fetched into a file.
type Downloaded struct {
	Backup    string `json:"backup"`
	File      string `json:"file"`
	SizeBytes int64  `json:"sizeBytes"`
	SHA256    string `json:"sha256"`
}

// ExistsError says that a file is there already, which is not replaced.
type ExistsError struct{ Path string }

func (e *ExistsError) Error() string { return e.Path + " exists already" }

// Is tells that it is fs.ErrExist.
func (e *ExistsError) Is(target error) bool { return target == fs.ErrExist }

// DownloadRequest says what is fetched, and to where.
type DownloadRequest struct {
	// Backup is a name, or Latest.
	Backup string
	// File is the path to write to; a directory gets NAME.db in it, and empty is NAME.db in the current directory.
	File string
	// Replace a file that is there.
	Replace   bool
	Transfers Transfers
}

// Download fetches a backup as an ordinary snapshot file, such as "etcdctl snapshot save" writes
// and "etcdutl snapshot restore" takes. All checksums are checked on the way. The file appears
// under its name when it is whole, at once or not at all, and never replaces another one unless
// Replace is set. The notes are those of Backup.
func (c *Client) Download(ctx context.Context, r DownloadRequest) (d Downloaded, notes []string, err error) {
	b, notes, err := c.backup(ctx, r.Backup)
	if err != nil {
		return d, notes, err
	}
	path, err := downloadPath(r.File, b.Name)
	if err != nil {
		return d, notes, err
	}
	if _, err := os.Lstat(path); err == nil && !r.Replace {
		return d, notes, &ExistsError{path}
	}
	res, err := c.fetchTo(ctx, b, path, r)
	if err != nil {
		return d, notes, err
	}
	return Downloaded{b.Name, path, res.Raw.Size, res.Raw.SHA256}, notes, nil
}

// downloadPath is the path to write to: a directory gets the backup's name.
func downloadPath(file, name string) (string, error) {
	if file == "" {
		return name + ".db", nil
	}
	fi, err := os.Stat(file)
	if err == nil && fi.IsDir() {
		return filepath.Join(file, name+".db"), nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("look at %s: %w", file, err)
	}
	return file, nil
}

// fetchTo fetches beside the target and then gives the file its name. Without Replace it never
// replaces a file, also not one that has come meanwhile.
func (c *Client) fetchTo(ctx context.Context, b Backup, path string, r DownloadRequest) (backup.Result, error) {
	dir, err := os.MkdirTemp(filepath.Dir(path), ".etcd-manager-ctl-")
	if err != nil {
		return backup.Result{}, fmt.Errorf("make temporary directory: %w", err)
	}
	defer os.RemoveAll(dir)
	tmp := filepath.Join(dir, "snapshot.db")
	res, err := c.fetchFile(ctx, b, tmp, r.Transfers)
	if err != nil {
		return res, err
	}
	if r.Replace {
		err = os.Rename(tmp, path)
	} else {
		err = os.Link(tmp, path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return res, fmt.Errorf("give %s its name: %w", path, err)
	}
	return res, nil
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// fetchFile downloads a backup, decompressed and with all checksums checked, to a path at which nothing stands yet.
func (c *Client) fetchFile(ctx context.Context, b Backup, path string, t Transfers) (backup.Result, error) {
	need := int64(0)
	if b.Manifest != nil {
		need = b.Manifest.Raw.Size
	}
	if err := database.CheckSpace(filepath.Dir(path), need); err != nil {
		return backup.Result{}, err
	}
	progress, over := t.begin("fetch", b.Name)
	defer over()
	return backup.FetchFile(ctx, c.catalog, b.Name, path, backup.FileOptions{
		KeepFree: database.SpareSpace, Progress: func(p backup.Progress) { progress(p.Done, p.Total) },
	})
}

// checked is a backup that was fetched into a temporary file and found to be sound.
type checked struct {
	path   string
	result backup.Result
	facts  Facts
	remove func()
}

// check fetches a backup into a temporary file and checks all that can be checked. The caller removes it.
func (c *Client) check(ctx context.Context, b Backup, o VerifyOptions) (_ *checked, err error) {
	dir, remove, err := database.Scratch(o.TempDir)
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			remove()
		}
	}()
	p := &checked{path: filepath.Join(dir, "snapshot.db"), remove: remove}
	if p.result, err = c.fetchFile(ctx, b, p.path, o.Transfers); err != nil {
		return nil, err
	}
	if p.facts, err = c.checker.Check(ctx, p.path); err != nil {
		return nil, fmt.Errorf("backup %s: %w", b.Name, err)
	}
	if m := p.result.Manifest; m != nil && p.facts.Revision < m.Revision {
		return nil, &database.BadError{Err: fmt.Errorf("backup %s: its database ends at revision %d, the manifest says that it has %d",
			b.Name, p.facts.Revision, m.Revision)}
	}
	return p, nil
}

// Bad tells a backup that is bad from one that could not be looked at.
func Bad(err error) bool {
	var bad *backup.Error
	return errors.As(err, &bad) || errors.Is(err, database.ErrBad) || Unreadable(err)
}
