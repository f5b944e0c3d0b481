package backup

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	"github.com/klauspost/pgzip"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/pacedfile"
)

// Result is what was found out about a backup that was read to its end.
type Result struct {
	Info catalog.BackupInfo
	// Manifest is nil for backups of other tools.
	Manifest *catalog.Manifest
	// Raw is the snapshot with etcd's trailing checksum, Stored the file in the store.
	Raw    catalog.Digest
	Stored catalog.Digest
}

// Fetch streams the snapshot of a backup, with etcd's checksum at its end, into w. Only when it returns without an error has everything been
// checked; what w got before is not to be trusted. A bad backup is an *Error; a store that doesn't answer is tried again where
// it broke off, and then passed on as what it is. progress may be nil.
func Fetch(ctx context.Context, c *catalog.Catalog, name string, w io.Writer, progress func(Progress)) (Result, error) {
	return fetch(ctx, c, name, w, progress, func(int64) error { return nil })
}

// fetch calls expect with the size of the snapshot, where it is known, before it reads anything of it.
func fetch(ctx context.Context, c *catalog.Catalog, name string, w io.Writer, progress func(Progress), expect func(size int64) error) (Result, error) {
	res, err := describe(ctx, c, name)
	if err != nil {
		return Result{}, err
	}
	if res.Manifest != nil {
		if err := expect(res.Manifest.Raw.Size); err != nil {
			return Result{}, fmt.Errorf("fetch backup %s: %w", name, err)
		}
	}
	src := newResumingReader(ctx, c, name)
	defer src.Close()
	if err := src.open(); err != nil {
		return Result{}, storeError(name, catalog.DataFile, err)
	}
	if m := res.Manifest; m != nil {
		if err := checkStoredSize(name, src.size, m.Stored.Size); err != nil {
			return Result{}, err
		}
	}
	src.meter = &meter{report: progress, total: src.size}
	if err := decompress(name, src, w, &res); err != nil {
		return Result{}, err
	}
	src.meter.finish()
	if err := res.compare(name); err != nil {
		return Result{}, err
	}
	return res, nil
}

// Verify reads a backup to its end and checks everything that can be checked without opening the database.
func Verify(ctx context.Context, c *catalog.Catalog, name string, progress func(Progress)) (Result, error) {
	return Fetch(ctx, c, name, io.Discard, progress)
}

// FileOptions say how FetchFile writes.
type FileOptions struct {
	// Progress may be nil.
	Progress func(Progress)
	// KeepFree is how many bytes must stay free on the file system; 0 means that it may be filled. Where they would not, FetchFile
	// fails with an error that wraps syscall.ENOSPC and cluster.ErrPermanent, as it does on a disk that is full: at once if a
	// manifest says how large the snapshot is, else in the midst of it.
	KeepFree int64
}

// FetchFile is Fetch into a file: it appears under path, synced to disk, only after everything was checked. It is written
// steadily, so that it doesn't hold up others who wait for the same disk.
func FetchFile(ctx context.Context, c *catalog.Catalog, name, path string, o FileOptions) (res Result, err error) {
	tmp := path + ".tmp"
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return Result{}, fmt.Errorf("fetch backup %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(tmp)
		}
	}()
	out := pacedfile.New(f, o.KeepFree)
	if res, err = fetch(ctx, c, name, out, o.Progress, out.Expect); err != nil {
		return Result{}, err
	}
	if err = f.Sync(); err == nil {
		err = f.Close()
	}
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err == nil {
		err = syncDir(filepath.Dir(path))
	}
	if err != nil {
		return Result{}, fmt.Errorf("fetch backup %s: %w", name, err)
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

// describe reads the meta file and the manifest.
func describe(ctx context.Context, c *catalog.Catalog, name string) (Result, error) {
	info, err := c.BackupInfo(ctx, name)
	if err != nil {
		return Result{}, storeError(name, "meta file", err)
	}
	m, err := c.Manifest(ctx, name)
	if err != nil && !errors.Is(err, catalog.ErrNotFound) {
		return Result{}, storeError(name, "manifest", err)
	}
	if m != nil && m.Encryption != nil {
		return Result{}, &Error{Backup: name, Kind: cluster.ErrFuture, Where: "manifest", Err: fmt.Errorf("the backup is encrypted (%s), which this version can't read", m.Encryption.Scheme)}
	}
	if m != nil && m.Compression != "gzip" {
		return Result{}, &Error{Backup: name, Kind: cluster.ErrFuture, Where: "manifest", Err: fmt.Errorf("compression %q is not known", m.Compression)}
	}
	return Result{Info: info, Manifest: m}, nil
}

// storeError tells "the backup is bad" from "the store doesn't answer".
func storeError(name, where string, err error) error {
	var bad *Error
	switch {
	case errors.As(err, &bad):
		return err
	case errors.Is(err, catalog.ErrNotFound):
		return &Error{Backup: name, Kind: ErrMissing, Where: where, Err: err}
	case errors.Is(err, cluster.ErrCorrupt):
		return &Error{Backup: name, Kind: cluster.ErrCorrupt, Where: where, Err: err}
	case errors.Is(err, cluster.ErrFuture):
		return &Error{Backup: name, Kind: cluster.ErrFuture, Where: where, Err: err}
	}
	return fmt.Errorf("fetch backup %s: %w", name, err)
}

func checkStoredSize(name string, have, want int64) error {
	switch {
	case have < want:
		return &Error{Backup: name, Kind: ErrTruncated, Where: catalog.DataFile, Err: fmt.Errorf("it has %d bytes, the manifest says %d", have, want)}
	case have > want:
		return &Error{Backup: name, Kind: cluster.ErrCorrupt, Where: catalog.DataFile, Err: fmt.Errorf("it has %d bytes, the manifest says %d", have, want)}
	}
	return nil
}

// Read-ahead of the decompressor: two MiB in all.
const (
	unzipBlock  = 256 << 10
	unzipBlocks = 8
)

// decompress runs the pipeline store → hash → gunzip → check and hash → w.
func decompress(name string, src *resumingReader, w io.Writer, res *Result) error {
	stored := sha256.New()
	in := io.TeeReader(src, stored)
	sum := newSnapshotHash()
	out := &writerOnly{w: w}
	err := gunzip(in, io.MultiWriter(sum, out))
	switch {
	case err == nil:
	case src.err != nil:
		return storeError(name, fmt.Sprintf("%s at byte %d", catalog.DataFile, src.offset), src.err)
	case out.err != nil:
		return fmt.Errorf("fetch backup %s: %w", name, out.err)
	case errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF):
		return &Error{Backup: name, Kind: ErrTruncated, Where: fmt.Sprintf("%s ends at byte %d in the middle of the compressed data", catalog.DataFile, src.offset)}
	default:
		return &Error{Backup: name, Kind: cluster.ErrCorrupt, Where: fmt.Sprintf("%s before byte %d", catalog.DataFile, src.offset), Err: err}
	}
	res.Stored = catalog.Digest{Size: src.offset, SHA256: hex.EncodeToString(stored.Sum(nil))}
	digest, err := sum.check(name)
	if err != nil {
		return err
	}
	res.Raw = catalog.Digest{Size: sum.size, SHA256: digest}
	return nil
}

// gunzip decompresses all of in, concatenated members included, in a goroutine of its own beside the writing.
func gunzip(in io.Reader, out io.Writer) error {
	z, err := pgzip.NewReaderN(in, unzipBlock, unzipBlocks)
	if err != nil {
		return err
	}
	_, err = z.WriteTo(out)
	if cerr := z.Close(); err == nil {
		err = cerr
	}
	return err
}

// compare holds what was read to what the manifest says.
func (r *Result) compare(name string) error {
	m := r.Manifest
	if m == nil {
		return nil
	}
	for _, d := range []struct {
		where      string
		have, want catalog.Digest
	}{{catalog.DataFile, r.Stored, m.Stored}, {"snapshot", r.Raw, m.Raw}} {
		if d.have != d.want {
			return &Error{Backup: name, Kind: cluster.ErrCorrupt, Where: d.where,
				Err: fmt.Errorf("it has %d bytes with SHA-256 %.12s…, the manifest says %d bytes with %.12s…", d.have.Size, d.have.SHA256, d.want.Size, d.want.SHA256)}
		}
	}
	return nil
}

// writerOnly hides what else a writer can do and remembers its error, which says nothing of the backup: the decompressor
// makes a short write of it.
type writerOnly struct {
	w   io.Writer
	err error
}

// Write passes on.
func (w *writerOnly) Write(p []byte) (int, error) {
	n, err := w.w.Write(p)
	if err != nil {
		w.err = err
	}
	return n, err
}
