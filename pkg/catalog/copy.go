package catalog

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"hash"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// What is copied from one store to another is copied byte by byte, so a copy is encrypted as the original is. Each method below takes
// what it copies from another catalog into c. Each can be interrupted at any moment and called again.

// Via is put around what is read of the first store while it is copied, to limit or count it. nil means nothing.
type Via func(io.Reader) io.Reader

func (v Via) around(r io.Reader) io.Reader {
	if v == nil {
		return r
	}
	return v(r)
}

// CopyBackup copies a complete backup, in the order in which a backup is written: the data, the manifest, and the meta file last, which
// makes it a backup. Data that don't match the manifest's checksum are not stored: that is an error with cluster.ErrCorrupt, as it is if
// c has another manifest under the name. Data in c are replaced only if they were read whole and aren't what the manifest of both says.
// ErrNotFound says that the backup is gone from the first store.
func (c *Catalog) CopyBackup(ctx context.Context, from *Catalog, b Backup, via Via) error {
	want, manifest, err := from.copied(ctx, b)
	if err != nil {
		return err
	}
	meta, _, err := from.read(ctx, b.Name+"/"+metaFile, manifestWay)
	if err != nil {
		return err
	}
	if manifest != nil {
		if err := c.sameAs(ctx, b.Name+"/"+manifestFile, manifest); err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	if err := c.copyData(ctx, from, b.Name+"/"+b.DataFile, want, via); err != nil {
		return err
	}
	if manifest != nil {
		if err := c.putOnce(ctx, b.Name+"/"+manifestFile, manifest); err != nil {
			return err
		}
	}
	return c.putOnce(ctx, b.Name+"/"+metaFile, meta)
}

// copied is the digest that the data of a backup must have, and its manifest as it is stored; both are nil for a backup of another tool.
func (c *Catalog) copied(ctx context.Context, b Backup) (*Digest, []byte, error) {
	if !b.HasManifest {
		return nil, nil, nil
	}
	m, err := c.Manifest(ctx, b.Name)
	if err != nil {
		return nil, nil, err
	}
	if m.DataFile() != b.DataFile {
		return nil, nil, corrupt(b.Name+"/"+manifestFile, manifestWay,
			fmt.Errorf("it speaks of %s, the store has %s", m.DataFile(), b.DataFile))
	}
	raw, _, err := c.read(ctx, b.Name+"/"+manifestFile, manifestWay)
	return &m.Stored, raw, err
}

// copyData streams one object. What an earlier attempt has stored whole is read and compared; if it isn't the same, it is replaced by one
// put: until that is done it stays, and it stays if the other store can't be read.
func (c *Catalog) copyData(ctx context.Context, from *Catalog, key string, want *Digest, via Via) error {
	opts := blob.PutOptions{IfAbsent: want != nil} // without a digest, what stands there may be of another length: it is replaced
	info, err := c.store.Stat(ctx, key)
	switch {
	case err == nil && want != nil:
		same, err := c.matches(ctx, key, *want)
		if err != nil || same {
			return err
		}
		opts = blob.PutOptions{IfVersion: info.Version}
	case err != nil && !errors.Is(err, ErrNotFound):
		return fmt.Errorf("read %s: %w", key, err)
	}
	r, _, err := from.store.Get(ctx, key, blob.Range{})
	if err != nil {
		return fmt.Errorf("read %s: %w", key, err)
	}
	defer r.Close()
	body := via.around(r)
	if want != nil {
		body = &digestReader{r: body, key: key, want: *want, sum: sha256.New()}
	}
	if _, err := c.store.Put(ctx, key, body, opts); err != nil {
		return fmt.Errorf("copy %s: %w", key, err)
	}
	return nil
}

// matches reads an object and compares it with a digest. An object that can't be read to its end is an error, and not another one.
func (c *Catalog) matches(ctx context.Context, key string, want Digest) (bool, error) {
	r, _, err := c.store.Get(ctx, key, blob.Range{})
	if err != nil {
		return false, fmt.Errorf("read %s: %w", key, err)
	}
	defer r.Close()
	_, err = io.Copy(io.Discard, &digestReader{r: r, key: key, want: want, sum: sha256.New()})
	if errors.Is(err, cluster.ErrCorrupt) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("read %s: %w", key, err)
	}
	return true, nil
}

// DeniedToRead tells whether an error says that one object may not be read: its key of a key service is gone, or it was archived. The store
// itself may be well.
func DeniedToRead(err error) bool {
	var e *blob.Error
	return errors.Is(err, ErrDenied) && errors.As(err, &e) && (e.Op == "get" || e.Op == "stat")
}

// digestReader fails, instead of ending, if what went through isn't what it must be.
type digestReader struct {
	r    io.Reader
	key  string
	want Digest
	sum  hash.Hash
	n    int64
}

func (d *digestReader) Read(p []byte) (int, error) {
	n, err := d.r.Read(p)
	d.sum.Write(p[:n])
	if d.n += int64(n); d.n > d.want.Size {
		return n, corrupt(d.key, manifestWay, fmt.Errorf("it has more than the %d bytes of its manifest", d.want.Size))
	}
	if err == io.EOF { //nolint:errorlint // a connection that broke off says so with an error around io.EOF, and is no end
		// The beginning of the sum is enough where only that is known, as of a segment.
		if have := hex.EncodeToString(d.sum.Sum(nil)); d.n != d.want.Size ||
			!strings.HasPrefix(have, d.want.SHA256) || d.want.SHA256 == "" {
			return n, corrupt(d.key, manifestWay, fmt.Errorf("its %d bytes have the SHA-256 %.16s…, not %.16s… (%d bytes)", d.n, have,
				d.want.SHA256, d.want.Size))
		}
	}
	return n, err
}

// putOnce stores a small object that never changes. One that is there already must be the same.
func (c *Catalog) putOnce(ctx context.Context, key string, data []byte) error {
	_, err := c.write(ctx, key, data, blob.PutOptions{IfAbsent: true})
	if !errors.Is(err, ErrConflict) {
		return err
	}
	return c.sameAs(ctx, key, data)
}

// sameAs is an error if something else than these bytes stands under a key, or nothing.
func (c *Catalog) sameAs(ctx context.Context, key string, data []byte) error {
	have, _, err := c.read(ctx, key, copyWay)
	if err == nil && !bytes.Equal(have, data) {
		return fmt.Errorf("copy %s: another object stands there, which isn't a copy of it: %w", key, cluster.ErrCorrupt)
	}
	return err
}

// CopyNotes brings the verification and the pin of a backup to the copy, if have, the copy's row of the listing, lacks them. A pin that
// was taken away stays in the copy: somebody may have pinned it there. So one that a command holds while it runs isn't copied.
func (c *Catalog) CopyNotes(ctx context.Context, from *Catalog, b, have Backup) error {
	bad := func(b Backup) bool { return b.Disproven }
	if (b.Proven || b.Disproven) && (b.Proven != have.Proven || bad(b) != bad(have) || b.ProofAt.After(have.ProofAt)) {
		p, err := from.Proof(ctx, b.Name)
		if err == nil {
			err = c.PutProof(ctx, b.Name, p)
		}
		if err != nil && !errors.Is(err, ErrNotFound) {
			return err
		}
	}
	if !b.Pinned || have.Pinned {
		return nil
	}
	key := b.Name + "/" + pinFile
	data, _, err := from.read(ctx, key, pinWay)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	var p pinJSON
	if decodeOwn(key, pinWay, data, pinVersion, &p) == nil && p.Owner != "" {
		return nil
	}
	_, err = c.write(ctx, key, data, blob.PutOptions{})
	return err
}

// CopySegment copies a segment. Bytes that don't match the checksum in its name are not stored: that is an error with cluster.ErrCorrupt.
// ErrNotFound says that it is gone from the first store.
func (c *Catalog) CopySegment(ctx context.Context, from *Catalog, s Segment, via Via) error {
	r, size, err := from.OpenSegment(ctx, s)
	if err != nil {
		return err
	}
	defer r.Close()
	body := &digestReader{r: via.around(r), key: s.Key(), want: Digest{Size: size, SHA256: string(s.Sum)}, sum: sha256.New()}
	_, err = c.store.Put(ctx, s.Key(), body, blob.PutOptions{IfAbsent: true})
	if errors.Is(err, ErrConflict) {
		return nil // nothing is visible before it is complete, and its name has its checksum
	}
	if err != nil {
		return fmt.Errorf("copy %s: %w", s.Key(), err)
	}
	return nil
}

// CopyIncarnation copies the record of an incarnation. One without a record is a success.
func (c *Catalog) CopyIncarnation(ctx context.Context, from *Catalog, id Incarnation) error {
	key := segmentsPrefix(id) + incarnationFile
	data, _, err := from.read(ctx, key, incarnationWay)
	if errors.Is(err, ErrNotFound) {
		return nil
	}
	if err != nil {
		return err
	}
	return c.replaceWith(ctx, key, data, func(context.Context) error { return nil })
}

// replaceWith makes a small object what another store has, by compare-and-swap. It writes nothing if it is the same. mine is asked between
// the reading and the write: whoever has put the copy into use before, and changed the object since, keeps what was written.
func (c *Catalog) replaceWith(ctx context.Context, key string, data []byte, mine func(context.Context) error) error {
	have, info, err := c.read(ctx, key, copyWay)
	opts := blob.PutOptions{IfAbsent: true}
	switch {
	case errors.Is(err, ErrNotFound):
	case err != nil && !errors.Is(err, cluster.ErrCorrupt):
		return err
	case err == nil && bytes.Equal(have, data):
		return nil
	default:
		if opts, err = ifVersion(key, info.Version); err != nil {
			return err
		}
	}
	if err := mine(ctx); err != nil {
		return err
	}
	_, err = c.write(ctx, key, data, opts)
	return err
}

// CopyControl copies what a restore needs beside backups and changes: the spec, the settings, the marker of a formed cluster, which
// incarnation serves, and the records of operations that have ended. It never copies a leader record, commands, or anything that is
// under way. What the first store doesn't have stays as it is in the copy. have are the operations that the copy is known to have.
// Before each write it asks mine whether the copy may still be written.
func (c *Catalog) CopyControl(ctx context.Context, from *Catalog, have map[string]bool, mine func(context.Context) error) error {
	for _, key := range []string{specKey, settingsKey, markerKey, servingKey} {
		data, _, err := from.read(ctx, key, copyWay)
		if err == nil {
			data, err = copiedControl(key, data)
		}
		if errors.Is(err, ErrNotFound) || unreadable(err) || DeniedToRead(err) {
			continue // an unusable one is reported by who needs it; the copy keeps what it had
		}
		if err != nil {
			return err
		}
		if err := c.replaceWith(ctx, key, data, mine); err != nil {
			return err
		}
	}
	return c.copyOperations(ctx, from, have, mine)
}

// copiedControl is what a copy has of a small object; ErrNotFound if it has nothing of it.
func copiedControl(key string, data []byte) ([]byte, error) {
	switch key {
	case markerKey:
		if m, err := parseMarker(data); err != nil || m.Phase != PhaseFormed {
			return nil, ErrNotFound
		}
	case servingKey:
		// Terms begin again where a copy is put into use: the record must not fence who writes it then.
		var j servingJSON
		if err := decodeOwn(servingKey, servingWay, data, servingVersion, &j); err != nil {
			return nil, err
		}
		j.Term = 0
		return encodeOwn(j)
	}
	return data, nil
}

func (c *Catalog) copyOperations(ctx context.Context, from *Catalog, have map[string]bool, mine func(context.Context) error) error {
	l, err := from.ControlListing(ctx)
	if err != nil {
		return err
	}
	there := map[string]bool{}
	for _, o := range l.Operations {
		there[o.Name] = true
		if have[o.Name] {
			continue
		}
		data, _, err := from.read(ctx, operationKey(o.Name), copyWay)
		if errors.Is(err, ErrNotFound) || unreadable(err) || DeniedToRead(err) {
			continue
		}
		if err != nil {
			return err
		}
		if op, err := DecodeOperation(o.Name, data); err != nil || !op.State.Final() {
			continue
		}
		if err := c.replaceWith(ctx, operationKey(o.Name), data, mine); err != nil {
			return err
		}
		have[o.Name] = true
	}
	maps.DeleteFunc(have, func(id string, _ bool) bool { return !there[id] })
	return nil
}

// BackupsSince lists the backups whose names begin with that time or a later one, oldest first, with what is incomplete. Names that tell
// no time are left out.
func (c *Catalog) BackupsSince(ctx context.Context, from time.Time) (BackupList, error) {
	return c.backupsSince(ctx, from, func(*BackupList) {})
}

// Find returns the row of a backup in a list.
func (l BackupList) Find(name string) (Backup, bool) {
	i := slices.IndexFunc(l.Backups, func(b Backup) bool { return b.Name == name })
	if i < 0 {
		return Backup{}, false
	}
	return l.Backups[i], true
}
