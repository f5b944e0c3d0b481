package operator

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/backup"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/child"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/scratch"
	"github.com/etcd-manager/etcd-manager/pkg/operator/database"
)

// ChildMain is the program as a child of itself, which reads a database that may be damaged, or serves a scratch copy; ok is
// false if it isn't one. The main function of a program that verifies, inspects, imports,
// extracts, opens or builds a point begins with it: args are os.Args[1:], and code is to be given to os.Exit.
func ChildMain(args []string) (code int, ok bool) {
	if code, ok := child.Dispatch(args, scratch.Command()); ok {
		return code, ok
	}
	return database.ChildMain(args)
}

// Facts are what a sound database says of itself.
type Facts = database.Facts

// Transfer is how far something is that moves many bytes.
type Transfer struct {
	// Doing is "fetch", "verify", "replay", "check", "open" or "store", What the name of the backup or file.
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

// Downloaded is a backup, or a point behind one, that was fetched into a file.
type Downloaded struct {
	// Backup is the one that was fetched, from which a point was built.
	Backup    string `json:"backup"`
	File      string `json:"file"`
	SizeBytes int64  `json:"sizeBytes"`
	SHA256    string `json:"sha256"`
	// Revision, HashKV and Segments are of a point: the last revision in the file, what etcd's HashKV answers at it, and how many
	// segments were replayed.
	Revision int64  `json:"revision,omitempty"`
	HashKV   uint32 `json:"hashKV,omitempty"`
	Segments int    `json:"segments,omitempty"`
	// Time is when the state of the point began to hold, and Until up to when it is known to have held; zero if that isn't known.
	Time  time.Time `json:"time,omitzero"`
	Until time.Time `json:"until,omitzero"`
}

// ExistsError says that a file is there already, which is not replaced.
type ExistsError struct{ Path string }

func (e *ExistsError) Error() string { return e.Path + " exists already" }

// Is tells that it is fs.ErrExist.
func (e *ExistsError) Is(target error) bool { return target == fs.ErrExist }

// DownloadRequest says what is fetched, and to where.
type DownloadRequest struct {
	// Point is a backup, or a point behind one.
	Point PointRequest
	// File is the path to write to; a directory gets NAME.db in it, and empty is NAME.db in the current directory. For a point behind a
	// backup it is revision-N.db.
	File string
	// Replace a file that is there.
	Replace   bool
	Transfers Transfers
}

// PlanDownload finds out what Download would fetch, and fetches nothing.
func (c *Client) PlanDownload(ctx context.Context, r DownloadRequest) (p *Point, path string, err error) {
	if p, err = c.PlanPoint(ctx, r.Point); err != nil {
		return p, "", err
	}
	name := p.Base()
	if p.Plan != nil {
		name = fmt.Sprintf("revision-%d", p.Plan.Revision)
	}
	if path, err = downloadPath(r.File, name); err != nil {
		return p, path, err
	}
	if _, err := os.Lstat(path); err == nil && !r.Replace {
		return p, path, &ExistsError{path}
	}
	return p, path, nil
}

// Download fetches a backup, or builds a point behind one, as an ordinary snapshot file, such as "etcdctl snapshot save" writes
// and "etcdutl snapshot restore" takes: it ends with etcd's SHA-256. All checksums are checked on the way, and a point's database is
// read to the last page. The file appears under its name when it is whole, at once or not at all, and never replaces another one unless
// Replace is set. What an earlier download has left in the directory, because it was killed, is removed.
func (c *Client) Download(ctx context.Context, r DownloadRequest) (Downloaded, *Point, error) {
	p, path, err := c.PlanDownload(ctx, r)
	if err != nil {
		return Downloaded{}, p, err
	}
	d, err := c.downloadTo(ctx, p, path, r)
	return d, p, err
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

// partial begins the names of the directories in which files are made.
const partial = ".etcd-manager-ctl-partial-"

// downloadTo makes the file beside the target and then gives it its name. Without Replace it never
// replaces a file, also not one that has come meanwhile.
func (c *Client) downloadTo(ctx context.Context, p *Point, path string, r DownloadRequest) (d Downloaded, err error) {
	dir, remove, err := database.Claim(filepath.Dir(path), partial)
	var temp *database.TempDirError
	if errors.As(err, &temp) {
		err = fmt.Errorf("make temporary directory: %w", temp.Err)
	}
	if err != nil {
		return d, err
	}
	defer remove()
	tmp := filepath.Join(dir, "snapshot.db")
	if d, err = c.snapshotOf(ctx, p, tmp, r.Transfers); err != nil {
		return d, err
	}
	d.File = path
	if r.Replace {
		err = os.Rename(tmp, path)
	} else {
		err = os.Link(tmp, path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return d, fmt.Errorf("give %s its name: %w", path, err)
	}
	return d, nil
}

// snapshotOf makes the snapshot file of a point and says what is in it.
func (c *Client) snapshotOf(ctx context.Context, p *Point, path string, t Transfers) (Downloaded, error) {
	d := Downloaded{Backup: p.Base()}
	b, err := c.build(ctx, p, path, t)
	if err != nil {
		return d, err
	}
	d.SizeBytes, d.SHA256 = b.size, b.sha256
	if p.Plan == nil {
		return d, nil
	}
	_, over := t.begin("check", p.String())
	defer over()
	facts, err := c.checker.Check(ctx, path)
	if err != nil {
		return d, fmt.Errorf("%s, built from backup %s: %w", p, d.Backup, err)
	}
	if d.SizeBytes, d.SHA256, err = fileSum(ctx, path); err != nil {
		return d, err
	}
	d.Revision, d.HashKV, d.Segments = facts.Revision, facts.Hash, len(p.Plan.Chain.Segments)
	d.Time, d.Until = p.Plan.Time, p.Plan.Until
	return d, nil
}

// fileSum is the size and the SHA-256 of a file.
func fileSum(ctx context.Context, path string) (int64, string, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, "", err
	}
	defer f.Close()
	h := sha256.New()
	size := int64(0)
	for {
		n, err := io.CopyN(h, f, 16<<20)
		size += n
		switch {
		case errors.Is(err, io.EOF):
			return size, hex.EncodeToString(h.Sum(nil)), nil
		case err != nil:
			return 0, "", err
		case ctx.Err() != nil:
			return 0, "", ctx.Err()
		}
	}
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
