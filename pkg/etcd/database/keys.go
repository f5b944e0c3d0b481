package database

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"time"

	"go.etcd.io/etcd/server/v3/storage/schema"

	"github.com/etcd-manager/etcd-manager/pkg/etcd/child"
)

// KeysSubcommand is the name of [KeysCommand].
const KeysSubcommand = "keys-db"

// LiveKey is a key that exists at a database's newest revision.
type LiveKey struct {
	Key       []byte
	ValueSize int64
	// Lease is 0 for a key without one.
	Lease int64
	// CreateRevision, ModRevision and Version are as a client reads them.
	CreateRevision, ModRevision, Version int64
}

// WalkKeys visits the live keys of a database file, or of a snapshot with its hash behind it, in the order in which they were last
// written. The key is valid during the call only. It reads like CheckFile, twice, and needs as much memory, but it doesn't look at the hash: that
// the file is sound is for CheckFile to say. It fails with ErrBadDatabase, with ErrDataDirInUse, or with what visit returned.
func WalkKeys(ctx context.Context, path string, visit func(LiveKey) error) error {
	f, size, _, err := openDB(path)
	if err != nil {
		return fmt.Errorf("read keys of %s: %w", path, err)
	}
	defer f.Close()
	b, err := openBolt(f, size)
	if err == nil {
		err = walkLive(ctx, b, visit)
	}
	if err != nil {
		return fmt.Errorf("read keys of %s: %w", path, err)
	}
	return nil
}

// walkLive finds the newest record of each key in a first pass, and visits those in a second one.
func walkLive(ctx context.Context, f *boltFile, visit func(LiveKey) error) error {
	buckets, err := f.buckets(ctx)
	if err != nil {
		return err
	}
	table := newKeyTable()
	var records uint32
	err = walkRecords(ctx, f, buckets, func(r revKey, kv keyValue) error {
		if records == ordinalMax {
			return badDB("more than %d records", ordinalMax)
		}
		v := records
		if r.tombstone {
			v |= tombFlag
		}
		table.set(kv.key, v)
		records++
		return nil
	})
	if err != nil {
		return err
	}
	newest := table.newest(records)
	f.again()
	var ordinal uint32
	return walkRecords(ctx, f, buckets, func(_ revKey, kv keyValue) error {
		o := ordinal
		ordinal++
		if o >= records {
			return badDB("the file changed while it was read")
		}
		// A raised revision is a record without a key.
		if newest[o/64]&(1<<(o%64)) == 0 || len(kv.key) == 0 {
			return nil
		}
		return visit(LiveKey{Key: kv.key, ValueSize: int64(kv.valueSize), Lease: kv.lease,
			CreateRevision: kv.create, ModRevision: kv.mod, Version: kv.version})
	})
}

// newest has a bit for each of that many records that is its key's newest, and no deletion.
func (t *keyTable) newest(records uint32) []uint64 {
	newest := make([]uint64, records/64+1)
	for i, h := range t.hash {
		if h != 0 && t.last[i]&tombFlag == 0 {
			o := t.last[i] & ordinalMax
			newest[o/64] |= 1 << (o % 64)
		}
	}
	return newest
}

// walkRecords visits all revisions of all keys, oldest first.
func walkRecords(ctx context.Context, f *boltFile, buckets []bucketRef, visit func(revKey, keyValue) error) error {
	return walkRaw(ctx, f, buckets, func(r revKey, kv keyValue, _ []byte) error { return visit(r, kv) })
}

// walkRaw is walkRecords with the records themselves.
func walkRaw(ctx context.Context, f *boltFile, buckets []bucketRef, visit func(r revKey, kv keyValue, record []byte) error) error {
	for _, b := range buckets {
		if b.name != string(schema.Key.Name()) {
			continue
		}
		return f.walkBucket(ctx, b, func(k, v []byte) error {
			r, err := parseRevKey(k)
			if err != nil {
				return err
			}
			kv, err := parseKeyValue(v)
			if err != nil {
				return badDB("revision %d/%d: %v", r.main, r.sub, err)
			}
			return visit(r, kv, v)
		})
	}
	return badDB("it is a bbolt database, but has no bucket %q: not etcd's", schema.Key.Name())
}

// What the child writes begins with one of these: a key, or the end of all with the outcome in JSON.
const (
	keyFrame byte = 'k'
	endFrame byte = 'e'
)

// maxKey bounds what the parent takes for one key; etcd's largest requests are far below.
const maxKey = 64 << 20

// KeysCommand is the hidden subcommand that writes the live keys of one file to its standard output: its argument is the path.
func KeysCommand() child.Command { return child.Command{Name: KeysSubcommand, Main: keysMain} }

// keysMain is a process of its own that writes the live keys of one file to its standard output: args is the file's path. It returns the
// exit code, 0 also if the file is bad: the end of the output says so.
func keysMain(args []string) int {
	if len(args) != 1 {
		fmt.Fprintf(os.Stderr, "usage: %s PATH\n", KeysSubcommand)
		return 2
	}
	child.LimitSelf()
	if err := writeKeys(bufio.NewWriterSize(os.Stdout, 256<<10), args[0]); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// errKeysOutput marks what went wrong with the output rather than with the file.
var errKeysOutput = errors.New("write keys")

func writeKeys(w *bufio.Writer, path string) error {
	var buf []byte
	err := WalkKeys(context.Background(), path, func(k LiveKey) error { // as in checkMain: who wants it to end kills the process
		buf = append(buf[:0], keyFrame)
		buf = binary.AppendUvarint(buf, uint64(len(k.Key)))
		buf = append(buf, k.Key...)
		for _, n := range []int64{k.ValueSize, k.Lease, k.CreateRevision, k.ModRevision, k.Version} {
			buf = binary.AppendUvarint(buf, uint64(n))
		}
		if _, err := w.Write(buf); err != nil {
			return fmt.Errorf("%w: %w", errKeysOutput, err)
		}
		return nil
	})
	return writeEnd(w, err)
}

// writeEnd ends the output with how it went; an error of the output itself it returns.
func writeEnd(w *bufio.Writer, err error) error {
	if errors.Is(err, errKeysOutput) {
		return err
	}
	var a checkAnswer
	if err != nil {
		a.Error, a.Kind = err.Error(), child.KindOf(err)
	}
	if err := w.WriteByte(endFrame); err != nil {
		return fmt.Errorf("%w: %w", errKeysOutput, err)
	}
	if err := json.NewEncoder(w).Encode(a); err != nil {
		return fmt.Errorf("%w: %w", errKeysOutput, err)
	}
	return w.Flush()
}

// Keys is WalkKeys in a process of its own, "<selfExe> keys-db <path>", so that no file whatever can harm the caller. If the process
// crashes or doesn't end, the file is bad: ErrBadDatabase. visit must not keep the key. When ctx ends or visit fails, the process is
// killed and the error is ctx's or visit's.
func Keys(ctx context.Context, selfExe, path string, visit func(LiveKey) error) error {
	return readInChild(ctx, selfExe, path, []string{KeysSubcommand, path}, func(r *bufio.Reader) (a checkAnswer, readErr, visitErr error) {
		a, readErr = readKeys(r, func(k LiveKey) error {
			visitErr = visit(k)
			return visitErr
		})
		return a, readErr, visitErr
	})
}

// readInChild runs this program as a reader of the file at path, and has read take what it writes; visitErr is what the one for whom it is read said.
func readInChild(ctx context.Context, selfExe, path string, args []string, read func(*bufio.Reader) (a checkAnswer, readErr, visitErr error)) error {
	fi, err := os.Stat(path)
	if err != nil {
		return fmt.Errorf("read keys: %w", err)
	}
	limit := time.Minute + time.Duration(fi.Size()/(5<<20))*time.Second // as Check
	tctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	c := exec.CommandContext(tctx, selfExe, args...)
	stderr := child.Complaint()
	c.Stderr, c.Env, c.WaitDelay = stderr, []string{"GOTRACEBACK=single"}, 2*time.Second
	out, err := c.StdoutPipe()
	if err != nil {
		return fmt.Errorf("read keys of %s: %w", path, err)
	}
	if err := c.Start(); err != nil {
		return fmt.Errorf("read keys of %s: %w", path, err)
	}
	a, readErr, visitErr := read(bufio.NewReaderSize(out, 256<<10))
	ours := visitErr != nil || readErr != nil && !errors.Is(readErr, io.ErrUnexpectedEOF)
	if ours {
		_ = c.Process.Kill() // it may wait for a reader for ever; when it has ended already, so much the better
	}
	waitErr := c.Wait()
	ws, exited := child.ExitStatus(waitErr)
	switch {
	case visitErr != nil:
		return visitErr
	case ctx.Err() != nil:
		return fmt.Errorf("read keys of %s: %w", path, ctx.Err())
	case tctx.Err() != nil:
		return fmt.Errorf("read keys of %s: %w", path, badDB("the reader didn't end within %s", limit))
	case exited && !ours && ws.Signaled() && ws.Signal() == syscall.SIGKILL:
		return fmt.Errorf("read keys of %s: %w", path, child.ErrKilled)
	case readErr != nil && len(stderr.Bytes()) > 0, readErr == nil && exited:
		return fmt.Errorf("read keys of %s: %w", path, badDB("the process that read it crashed (%v): %s", waitErr, bytes.TrimSpace(stderr.Bytes())))
	case readErr != nil:
		return fmt.Errorf("read keys of %s: %w", path, badDB("the process that read it broke off: %v", readErr))
	case waitErr != nil:
		return fmt.Errorf("read keys of %s: %w", path, waitErr)
	case a.Error != "":
		return child.Told(a.Error, a.Kind)
	}
	return nil
}

// readKeys reads what writeKeys writes.
func readKeys(r *bufio.Reader, visit func(LiveKey) error) (checkAnswer, error) {
	var key []byte
	for {
		kind, err := r.ReadByte()
		if err != nil {
			return checkAnswer{}, noEOF(err)
		}
		if kind == endFrame {
			var a checkAnswer
			err := json.NewDecoder(r).Decode(&a)
			return a, noEOF(err)
		}
		n, err := binary.ReadUvarint(r)
		if err != nil || kind != keyFrame || n > maxKey {
			return checkAnswer{}, fmt.Errorf("not a list of keys: %w", noEOF(err))
		}
		if key, err = readBytes(r, key, n); err != nil {
			return checkAnswer{}, err
		}
		k := LiveKey{Key: key}
		for _, f := range []*int64{&k.ValueSize, &k.Lease, &k.CreateRevision, &k.ModRevision, &k.Version} {
			v, err := binary.ReadUvarint(r)
			if err != nil {
				return checkAnswer{}, noEOF(err)
			}
			*f = int64(v)
		}
		if err := visit(k); err != nil {
			return checkAnswer{}, err
		}
	}
}

// readBytes reads n bytes into buf, which grows as they come: a length that was forged takes no memory.
func readBytes(r io.Reader, buf []byte, n uint64) ([]byte, error) {
	const atOnce = 64 << 10
	buf = buf[:0]
	for uint64(len(buf)) < n {
		have := uint64(len(buf))
		more := min(n-have, max(have, atOnce))
		buf = slices.Grow(buf, int(more))[:have+more]
		if _, err := io.ReadFull(r, buf[have:]); err != nil {
			return buf, noEOF(err)
		}
	}
	return buf, nil
}

// noEOF makes an end that comes too early an error.
func noEOF(err error) error {
	if errors.Is(err, io.EOF) {
		return io.ErrUnexpectedEOF
	}
	return err
}
