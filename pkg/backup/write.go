package backup

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"sync"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/background"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Options tune a Writer. The zero value is right for production.
type Options struct {
	// ToolVersion goes into the manifest.
	ToolVersion string
	// Compression is catalog.CompressionGzip (the default, which other tools read) or catalog.CompressionZstd.
	Compression string
	// BlockSize is how many bytes are read, compressed and handed to the store at once (default 256 KiB). Memory is about five times as much.
	BlockSize int
	// Now is the clock (default time.Now).
	Now func() time.Time
}

// Facts are what is known of a snapshot beside its bytes. They go into the manifest and the meta file.
type Facts struct {
	ClusterName string
	ClusterID   uint64
	MemberID    cluster.MemberID
	Node        cluster.NodeID
	EtcdVersion string
	Spec        cluster.Spec
	// Revision is the member's before the snapshot was asked for, so one that it surely contains.
	Revision int64
	// RevisionAtMost is the member's once the snapshot had begun; 0 if it wasn't asked.
	RevisionAtMost int64
	// RevisionAt is when Revision was asked for.
	RevisionAt time.Time
	// Keys is the number of live keys, 0 if unknown.
	Keys int64
	// Size is how many bytes the snapshot will have, 0 if unknown; it is for progress only.
	Size int64
	// Reason says why the backup is taken.
	Reason string
}

// Writer writes backups, one at a time. It is safe for concurrent use: whoever comes second gets ErrBusy.
type Writer struct {
	catalog *catalog.Catalog
	o       Options
	busy    sync.Mutex
}

// NewWriter returns a writer into the catalog. What it writes is sealed if the catalog has a Sealer.
func NewWriter(c *catalog.Catalog, o Options) *Writer {
	if o.BlockSize <= 0 {
		o.BlockSize = 256 << 10
	}
	if o.Compression == "" {
		o.Compression = catalog.DefaultCompression
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	return &Writer{catalog: c, o: o}
}

// Write makes the backup of that name out of a snapshot stream, which it closes. The stream is the database followed by etcd's SHA-256
// over it, as etcd sends it. The backup exists if, and only if, Write returns without an error; otherwise what was stored is
// removed as far as the store allows, and as far as it is surely this writer's own. A bad stream is an *Error; what the store says is passed on. progress may be nil.
func (w *Writer) Write(ctx context.Context, name string, f Facts, snapshot io.ReadCloser, progress func(Progress)) (*catalog.Manifest, error) {
	if !w.busy.TryLock() {
		return nil, errors.Join(fmt.Errorf("write backup %s: %w", name, ErrBusy), snapshot.Close())
	}
	defer w.busy.Unlock()
	started := w.o.Now()
	m := &catalog.Manifest{
		Backup: name, ClusterName: f.ClusterName, ClusterID: catalog.HexID(f.ClusterID), MemberID: catalog.HexID(f.MemberID),
		Node: f.Node, EtcdVersion: f.EtcdVersion, Revision: f.Revision, RevisionAtMost: f.RevisionAtMost, RevisionAt: f.RevisionAt.UTC(), Keys: f.Keys,
		Compression: w.o.Compression, Reason: f.Reason, Started: started.UTC(), ToolVersion: w.o.ToolVersion,
	}
	if s := w.catalog.Sealer(); s != nil {
		scheme, ids := s.Info()
		m.Encryption = &catalog.Encryption{Scheme: scheme, KeyIDs: ids}
	}
	var own catalog.Written
	err := w.upload(ctx, m, f.Size, snapshot, progress, &own)
	if err == nil {
		m.Finished = w.o.Now().UTC()
		err = w.commit(ctx, m, catalog.BackupInfo{EtcdVersion: f.EtcdVersion, Time: time.Unix(started.Unix(), 0).UTC(), Spec: f.Spec}, &own)
	}
	if err != nil {
		w.discard(ctx, name, own)
		return nil, fmt.Errorf("write backup %s: %w", name, err)
	}
	return m, nil
}

// commit writes the manifest and, last, the meta file. An answer that was lost makes the store say that the object
// is there already; then what is there decides.
func (w *Writer) commit(ctx context.Context, m *catalog.Manifest, info catalog.BackupInfo, own *catalog.Written) error {
	if err := w.catalog.PutManifest(ctx, m); err != nil {
		have, rerr := w.catalog.Manifest(ctx, m.Backup)
		own.Manifest = rerr == nil && have.Stored == m.Stored && have.Started.Equal(m.Started)
		if !errors.Is(err, catalog.ErrConflict) || !own.Manifest {
			return err
		}
	}
	own.Manifest = true
	if err := w.catalog.CommitBackup(ctx, m.Backup, info); err != nil {
		if !errors.Is(err, catalog.ErrConflict) {
			return err
		}
		if have, rerr := w.catalog.BackupInfo(ctx, m.Backup); rerr != nil || have != info {
			return err
		}
	}
	return nil
}

// discard removes what this writer has stored of a backup that failed, and nothing that may be another writer's, who has taken the same
// name. It can't do more than try: without its data and its meta file it is no backup, and retention removes it later.
func (w *Writer) discard(ctx context.Context, name string, own catalog.Written) {
	_ = w.catalog.DiscardBackup(ctx, name, own)
}

// upload runs the pipeline: snapshot → check and hash → compress → seal → hash → store. size is what the snapshot will have, if known.
func (w *Writer) upload(ctx context.Context, m *catalog.Manifest, size int64, snapshot io.ReadCloser, progress func(Progress), own *catalog.Written) error {
	var raw catalog.Digest
	pr, pw := io.Pipe()
	out := &hashingWriter{w: pw, hash: sha256.New()}
	done := make(chan error, 1)
	go func() {
		var err error
		raw, err = w.encode(ctx, m, snapshot, out, &meter{report: progress, total: size})
		done <- err
		// With nil this is the end of the body; with an error the put is aborted.
		pw.CloseWithError(err)
	}()
	put, err := w.catalog.PutBackupData(ctx, m.Backup, m.DataFile(), pr)
	if err == nil {
		own.Data = m.DataFile()
	}
	// From here on the compressor must not wait for a reader that is gone, nor read a snapshot that nobody needs.
	pr.CloseWithError(errStopped)
	var compressErr error
	compressed := false
	select {
	case compressErr = <-done:
		compressed = true
	default:
	}
	closeErr := snapshot.Close()
	if !compressed {
		compressErr = <-done
	}
	switch {
	case compressed && compressErr != nil && !errors.Is(compressErr, io.ErrClosedPipe) && !errors.Is(compressErr, errStopped):
		// It came first, and the put failed because of it.
		return compressErr
	case err != nil:
		return errors.Join(err, ctxError(ctx))
	case compressErr != nil:
		return fmt.Errorf("the store took %d bytes and not all of the body: %w", put.Size, compressErr)
	case closeErr != nil:
		return fmt.Errorf("close snapshot: %w", closeErr)
	}
	stored := catalog.Digest{Size: out.size, SHA256: hex.EncodeToString(out.hash.Sum(nil))}
	have, err := w.catalog.StatBackupData(ctx, m.Backup, m.DataFile())
	if err != nil {
		return fmt.Errorf("check what was stored: %w", err)
	}
	if have.Size != stored.Size || put.Size != stored.Size {
		return fmt.Errorf("check what was stored: the store has %d bytes, %d were sent", have.Size, stored.Size)
	}
	m.Raw, m.Stored = raw, stored
	return nil
}

// errStopped ends the compressor when the upload has ended.
var errStopped = errors.New("the upload has ended")

func ctxError(ctx context.Context) error {
	if ctx.Err() == nil {
		return nil
	}
	return context.Cause(ctx)
}

// encode writes the snapshot to out, compressed and, if it is to be, sealed.
func (w *Writer) encode(ctx context.Context, m *catalog.Manifest, snapshot io.Reader, out io.Writer, meter *meter) (raw catalog.Digest, err error) {
	if m.Encryption == nil {
		return w.compress(m, snapshot, out, meter)
	}
	sealed, err := w.catalog.Sealer().Seal(ctx, out, m.Binding())
	if err != nil {
		return raw, err
	}
	if raw, err = w.compress(m, snapshot, sealed, meter); err != nil {
		return raw, err
	}
	if err := sealed.Close(); err != nil {
		return raw, fmt.Errorf("seal: %w", err)
	}
	return raw, nil
}

// compress reads the snapshot to its end, checks it and writes it compressed to out.
func (w *Writer) compress(m *catalog.Manifest, snapshot io.Reader, out io.Writer, meter *meter) (raw catalog.Digest, err error) {
	// Compressors write in pieces of some hundred bytes, and each would wake up who stores them.
	packed := bufio.NewWriterSize(out, w.o.BlockSize)
	z, err := newCompressor(w.o.Compression, packed, m.Started)
	if err != nil {
		return raw, fmt.Errorf("compress: %w", err)
	}
	sum := newSnapshotHash()
	if err := w.pump(snapshot, z, sum, meter); err != nil {
		return raw, err
	}
	// The checksum is known before the last block is sent: a bad snapshot never reaches the end of the upload.
	digest, err := sum.check(m.Backup)
	if err != nil {
		return raw, err
	}
	if err := errors.Join(z.Close(), packed.Flush()); err != nil {
		return raw, fmt.Errorf("compress: %w", err)
	}
	meter.finish()
	return catalog.Digest{Size: sum.size, SHA256: digest}, nil
}

// blocks is how many blocks there are of a snapshot: one is being read and hashed, one compressed, and one lies between.
const blocks = 3

// pump reads and hashes the snapshot here, and writes it to z in a goroutine of its own, which has ended when this returns. That is most of a backup's
// work, and clients of the etcd beside it would wait for the CPU: so it has a thread of a low priority.
func (w *Writer) pump(snapshot io.Reader, z io.Writer, sum *snapshotHash, meter *meter) error {
	// All blocks fit into each channel, so sending never waits.
	full, empty := make(chan []byte, blocks), make(chan []byte, blocks)
	for range blocks {
		empty <- make([]byte, w.o.BlockSize)
	}
	var compressErr error
	done := make(chan struct{})
	background.Go(func() {
		defer close(done)
		defer close(empty)
		for b := range full {
			if _, compressErr = z.Write(b); compressErr != nil {
				return
			}
			empty <- b[:cap(b)]
		}
	})
	var readErr error
	for b := range empty {
		n := 0
		for n < len(b) && readErr == nil { // not io.ReadFull, which hides that a stream was cut
			var m int
			m, readErr = snapshot.Read(b[n:])
			n += m
		}
		_, _ = sum.Write(b[:n])
		meter.add(n)
		full <- b[:n]
		if readErr != nil {
			break
		}
	}
	close(full)
	<-done
	switch {
	case compressErr != nil:
		return fmt.Errorf("compress: %w", compressErr)
	case readErr != io.EOF:
		return fmt.Errorf("read snapshot after %d bytes: %w", sum.size, readErr)
	}
	return nil
}

// hashingWriter counts and hashes what it passes on.
type hashingWriter struct {
	w    io.Writer
	hash hash.Hash
	size int64
}

// Write passes on, then hashes what was taken.
func (h *hashingWriter) Write(p []byte) (int, error) {
	n, err := h.w.Write(p)
	h.hash.Write(p[:n])
	h.size += int64(n)
	return n, err
}
