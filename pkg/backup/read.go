package backup

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sync"

	"github.com/etcd-manager/etcd-manager/pkg/background"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/envelope"
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

// file is the name of the data.
func (r *Result) file() string {
	if r.Manifest == nil {
		return catalog.DataFile
	}
	return r.Manifest.DataFile()
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
	src := newResumingReader(ctx, c, name, res.file())
	defer src.Close()
	if err := src.open(); err != nil {
		return Result{}, storeError(name, res.file(), err)
	}
	if m := res.Manifest; m != nil {
		if err := checkStoredSize(name, src.file, src.size, m.Stored.Size); err != nil {
			return Result{}, err
		}
	}
	src.meter = &meter{report: progress, total: src.size}
	if err := decode(ctx, c, name, src, w, &res); err != nil {
		return Result{}, err
	}
	src.meter.finish()
	if err := res.compare(name); err != nil {
		return Result{}, err
	}
	return res, nil
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
	// What an earlier attempt has left, or a symlink that somebody has put there, is never written to.
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Result{}, fmt.Errorf("fetch backup %s: %w", name, err)
	}
	f, err := os.OpenFile(tmp, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return Result{}, fmt.Errorf("fetch backup %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			_ = f.Close()
			_ = os.Remove(tmp)
		}
	}()
	out := background.NewWriter(f, o.KeepFree)
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
	if m == nil {
		return Result{Info: info}, nil
	}
	if errors.Is(m.Locked, cluster.ErrFuture) {
		return Result{}, storeError(name, "manifest", m.Locked)
	}
	if m.Locked != nil {
		return Result{}, &KeyError{Backup: name, Err: m.Locked}
	}
	if m.Compression != catalog.CompressionGzip && m.Compression != catalog.CompressionZstd {
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

func checkStoredSize(name, file string, have, want int64) error {
	switch {
	case have < want:
		return &Error{Backup: name, Kind: ErrTruncated, Where: file, Err: fmt.Errorf("it has %d bytes, the manifest says %d", have, want)}
	case have > want:
		return &Error{Backup: name, Kind: cluster.ErrCorrupt, Where: file, Err: fmt.Errorf("it has %d bytes, the manifest says %d", have, want)}
	}
	return nil
}

// decode runs the pipeline store → hash → open → decompress → check and hash → w.
func decode(ctx context.Context, c *catalog.Catalog, name string, src *resumingReader, w io.Writer, res *Result) error {
	stored := sha256.New()
	in := io.TeeReader(src, stored)
	sum := newSnapshotHash()
	out := &writerOnly{w: w}
	to := io.MultiWriter(sum, out)
	if m := res.Manifest; m != nil { // a little can be decompressed to more than any disk holds
		to = &atMost{w: to, left: m.Raw.Size}
	}
	err := unpack(ctx, c, res.Manifest, in, to)
	var sealed *envelope.Error
	switch {
	case err == nil:
	case src.err != nil:
		return storeError(name, fmt.Sprintf("%s at byte %d", src.file, src.offset), src.err)
	case out.err != nil:
		return fmt.Errorf("fetch backup %s: %w", name, out.err)
	case ctx.Err() != nil:
		return fmt.Errorf("fetch backup %s: %w", name, err)
	case errors.As(err, &sealed) && !errors.Is(err, envelope.ErrTampered):
		return &KeyError{Backup: name, Err: err}
	case sealed == nil && (errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF)):
		return &Error{Backup: name, Kind: ErrTruncated, Where: fmt.Sprintf("%s ends at byte %d in the middle of the compressed data", src.file, src.offset)}
	default:
		return &Error{Backup: name, Kind: cluster.ErrCorrupt, Where: fmt.Sprintf("%s before byte %d", src.file, src.offset), Err: err}
	}
	res.Stored = catalog.Digest{Size: src.offset, SHA256: hex.EncodeToString(stored.Sum(nil))}
	digest, err := sum.check(name)
	if err != nil {
		return err
	}
	res.Raw = catalog.Digest{Size: sum.size, SHA256: digest}
	return nil
}

// unpack opens and decompresses what is stored, to its very end: only there everything was authenticated.
func unpack(ctx context.Context, c *catalog.Catalog, m *catalog.Manifest, in io.Reader, out io.Writer) error {
	compression := catalog.DefaultCompression
	if m != nil {
		compression = m.Compression
	}
	if m != nil && m.Encryption != nil {
		var err error
		if in, err = c.Opener().Open(ctx, in, m.Binding()); err != nil {
			return err
		}
	}
	in = bufio.NewReaderSize(in, unzipRead)
	if err := decompress(compression, in, out); err != nil {
		return err
	}
	n, err := io.Copy(io.Discard, in)
	if err == nil && n > 0 {
		err = fmt.Errorf("%d bytes follow behind the compressed data", n)
	}
	return err
}

// The decompressor is this far ahead of the writer: two MiB.
const (
	unzipBlock  = 256 << 10
	unzipBlocks = 8
	// unzipRead is how much is read of the store at once.
	unzipRead = 64 << 10
)

// decompress decompresses all of in, concatenated members included, in the background: this is most of a restore's work, and etcd serves
// beside it. Two threads share it, one decompresses and one writes.
func decompress(compression string, in io.Reader, out io.Writer) error {
	// There are no more blocks than fit into each channel, so sending never waits.
	full, empty := make(chan []byte, unzipBlocks), make(chan []byte, unzipBlocks)
	for range unzipBlocks {
		empty <- make([]byte, unzipBlock)
	}
	var readErr, writeErr error
	var both sync.WaitGroup
	both.Add(2)
	background.Go(func() {
		defer both.Done()
		defer close(full)
		readErr = inflate(compression, in, full, empty)
	})
	background.Go(func() {
		defer both.Done()
		defer close(empty)
		for b := range full {
			if _, writeErr = out.Write(b); writeErr != nil {
				return
			}
			empty <- b[:unzipBlock]
		}
	})
	both.Wait()
	if writeErr != nil {
		return writeErr
	}
	return readErr
}

// inflate fills blocks until the end of what is compressed, or until nobody gives it empty ones any more.
func inflate(compression string, in io.Reader, full chan<- []byte, empty <-chan []byte) error {
	z, err := newDecompressor(compression, in)
	if err != nil {
		return err
	}
	for b := range empty {
		n := 0
		for n < len(b) && err == nil {
			var m int
			m, err = z.Read(b[n:])
			n += m
		}
		if n > 0 {
			full <- b[:n]
		}
		if err == io.EOF { // a stream that is cut ends otherwise
			return z.Close()
		}
		if err != nil {
			return err
		}
	}
	return nil
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
	}{{m.DataFile(), r.Stored, m.Stored}, {"snapshot", r.Raw, m.Raw}} {
		if d.have != d.want {
			return &Error{Backup: name, Kind: cluster.ErrCorrupt, Where: d.where,
				Err: fmt.Errorf("it has %d bytes with SHA-256 %.12s…, the manifest says %d bytes with %.12s…", d.have.Size, d.have.SHA256, d.want.Size, d.want.SHA256)}
		}
	}
	return nil
}

// atMost ends what would write more than a manifest says.
type atMost struct {
	w    io.Writer
	left int64
}

var errMore = errors.New("it is decompressed to more bytes than the manifest says")

func (a *atMost) Write(p []byte) (int, error) {
	if a.left -= int64(len(p)); a.left < 0 {
		return 0, errMore
	}
	return a.w.Write(p)
}

// writerOnly hides what else a writer can do and remembers its error, which says nothing of the backup.
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
