package database

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/etcd-manager/etcd-manager/pkg/etcd/child"
)

// ValuesSubcommand is the name of [ValuesCommand].
const ValuesSubcommand = "values-db"

// ValuesOptions say what is wanted of a database. The zero value is every key at the newest revision.
type ValuesOptions struct {
	// Prefix is what the keys begin with.
	Prefix []byte
	// Revision, if not 0, is the one at which they are read: what came later is passed over. What was compacted before isn't there any more.
	Revision int64
}

func (o ValuesOptions) wants(r revKey, key []byte) bool {
	// A raised revision is a record without a key.
	return len(key) > 0 && (o.Revision == 0 || r.main <= o.Revision) && bytes.HasPrefix(key, o.Prefix)
}

// WalkValues visits the keys of a database file, or of a snapshot with its hash behind it, with their values, in the order in which they were last
// written. A record is etcd's KeyValue in its binary form, and valid during the call only. It reads as WalkKeys does.
func WalkValues(ctx context.Context, path string, o ValuesOptions, visit func(record []byte) error) error {
	f, size, _, err := openDB(path)
	if err != nil {
		return fmt.Errorf("read values of %s: %w", path, err)
	}
	defer f.Close()
	b, err := openBolt(f, size)
	if err == nil {
		err = walkValues(ctx, b, o, visit)
	}
	if err != nil {
		return fmt.Errorf("read values of %s: %w", path, err)
	}
	return nil
}

// walkValues finds the newest record of each wanted key in a first pass, and visits those in a second one.
func walkValues(ctx context.Context, f *boltFile, o ValuesOptions, visit func(record []byte) error) error {
	buckets, err := f.buckets(ctx)
	if err != nil {
		return err
	}
	table := newKeyTable()
	var wanted uint32
	err = walkRaw(ctx, f, buckets, func(r revKey, kv keyValue, _ []byte) error {
		if !o.wants(r, kv.key) {
			return nil
		}
		if wanted == ordinalMax {
			return badDB("more than %d records", ordinalMax)
		}
		v := wanted
		if r.tombstone {
			v |= tombFlag
		}
		table.set(kv.key, v)
		wanted++
		return nil
	})
	if err != nil {
		return err
	}
	newest := table.newest(wanted)
	f.again()
	var ordinal uint32
	return walkRaw(ctx, f, buckets, func(r revKey, kv keyValue, record []byte) error {
		if !o.wants(r, kv.key) {
			return nil
		}
		n := ordinal
		ordinal++
		switch {
		case n >= wanted:
			return badDB("the file changed while it was read")
		case newest[n/64]&(1<<(n%64)) == 0:
			return nil
		}
		return visit(record)
	})
}

// valueFrame begins a record in what the child writes, which ends as that of keysMain does.
const valueFrame byte = 'v'

// maxValueFrame bounds what the parent takes for one record; etcd's largest requests are far below.
const maxValueFrame = maxPageRun

// ValuesCommand is the hidden subcommand that writes the records of one file to its standard output: its arguments are the path, the prefix in
// hexadecimal and the revision.
func ValuesCommand() child.Command {
	return child.Command{Name: ValuesSubcommand, Main: valuesMain}
}

// valuesMain is a process of its own that writes the records of one file to its standard output: args are the file's path, the prefix in hexadecimal and the
// revision. It returns the exit code, 0 also if the file is bad: the end of the output says so.
func valuesMain(args []string) int {
	var o ValuesOptions
	var err error
	if len(args) == 3 {
		o.Prefix, err = hex.DecodeString(args[1])
		if err == nil {
			o.Revision, err = strconv.ParseInt(args[2], 10, 64)
		}
	}
	if len(args) != 3 || err != nil {
		fmt.Fprintf(os.Stderr, "usage: %s PATH HEX-PREFIX REVISION\n", ValuesSubcommand)
		return 2
	}
	child.LimitSelf()
	if err := writeValues(bufio.NewWriterSize(os.Stdout, 256<<10), args[0], o); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func writeValues(w *bufio.Writer, path string, o ValuesOptions) error {
	var head []byte
	err := WalkValues(context.Background(), path, o, func(record []byte) error { // as in checkMain: who wants it to end kills the process
		head = binary.AppendUvarint(append(head[:0], valueFrame), uint64(len(record)))
		for _, b := range [][]byte{head, record} {
			if _, err := w.Write(b); err != nil {
				return fmt.Errorf("%w: %w", errKeysOutput, err)
			}
		}
		return nil
	})
	return writeEnd(w, err)
}

// Values is WalkValues in a process of its own, "<selfExe> values-db <path> <prefix> <revision>", with errors as those of Keys. visit may keep what it gets.
func Values(ctx context.Context, selfExe, path string, o ValuesOptions, visit func(*mvccpb.KeyValue) error) error {
	args := []string{ValuesSubcommand, path, hex.EncodeToString(o.Prefix), strconv.FormatInt(o.Revision, 10)}
	return readInChild(ctx, selfExe, path, args, func(r *bufio.Reader) (a checkAnswer, readErr, visitErr error) {
		a, readErr = readValues(r, func(kv *mvccpb.KeyValue) error {
			visitErr = visit(kv)
			return visitErr
		})
		return a, readErr, visitErr
	})
}

// readValues reads what writeValues writes.
func readValues(r *bufio.Reader, visit func(*mvccpb.KeyValue) error) (checkAnswer, error) {
	var b []byte
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
		if err != nil || kind != valueFrame || n > maxValueFrame {
			return checkAnswer{}, fmt.Errorf("not a list of records: %w", noEOF(err))
		}
		if b, err = readBytes(r, b, n); err != nil {
			return checkAnswer{}, err
		}
		kv := &mvccpb.KeyValue{}
		if err := kv.Unmarshal(b); err != nil {
			return checkAnswer{}, errors.New("a record can't be read")
		}
		if err := visit(kv); err != nil {
			return checkAnswer{}, err
		}
	}
}
