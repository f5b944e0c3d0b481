package etcd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"os/exec"
	"time"

	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/coreos/go-semver/semver"
)

// ProveSubcommand is the manager's hidden subcommand that is [ProveMain].
const ProveSubcommand = "prove-db"

// Facts are what a sound database says of itself.
type Facts struct {
	// Revision is the newest; CompactRevision is -1 if nothing was ever compacted.
	Revision        int64 `json:"revision"`
	CompactRevision int64 `json:"compactRevision"`
	// Keys are those that exist at Revision, LeasedKeys the ones among them with a lease.
	Keys       int64 `json:"keys"`
	LeasedKeys int64 `json:"leasedKeys"`
	// Records counts all revisions of all keys, deletions included.
	Records int64 `json:"records"`
	Leases  int   `json:"leases"`
	Members int   `json:"members"`
	Alarms  int   `json:"alarms"`
	// SizeBytes is the database without a hash at its end; InUseBytes the part that isn't free pages.
	SizeBytes  int64 `json:"sizeBytes"`
	InUseBytes int64 `json:"inUseBytes"`
	// TrailingHash is true if the file ends with its SHA-256, as a snapshot does, and it is right.
	TrailingHash bool `json:"trailingHash"`
	// Hash is what etcd's HashKV answers at Revision.
	Hash HashKV `json:"hash"`
	// StorageVersion is empty if it was last written before 3.6; ClusterVersion if before 3.5.
	StorageVersion string `json:"storageVersion,omitempty"`
	ClusterVersion string `json:"clusterVersion,omitempty"`
}

// WrittenBy is the minor version whose format the database has: "3.4" to "3.7". A cluster in the middle of
// an upgrade writes the older format.
func (f Facts) WrittenBy() string {
	newest := "3.4"
	for _, v := range []string{f.ClusterVersion, f.StorageVersion} {
		if m := Minor(v); m != "" && Less(newest+".0", m+".0") {
			newest = m
		}
	}
	return newest
}

// FitsVersion returns nil if Stage can prepare this database for that etcd version, else ErrVersion with the reason.
func (f Facts) FitsVersion(target string) error { return checkTarget(f.WrittenBy(), target) }

// ProveDB checks a database file, or a snapshot with its hash behind it, to the last page: the SHA-256, bbolt's
// structure, and the sense of what etcd keeps in it. It reads the file once or twice with plain reads, never
// maps it, and needs memory for about 16 bytes a key. It fails with ErrBadDatabase (or ErrBadSnapshot for the
// hash) in words for the operator, and with ErrDataDirInUse if an etcd has the file open for writing.
func ProveDB(ctx context.Context, path string) (Facts, error) {
	f, size, hashed, err := openDB(path)
	if err != nil {
		return Facts{}, fmt.Errorf("prove %s: %w", path, err)
	}
	defer f.Close()
	facts := Facts{SizeBytes: size, TrailingHash: hashed}
	// A wrong hash explains every other finding, so it is reported first.
	var hashErr, scanErr error
	g := errgroup.Group{}
	if hashed {
		g.Go(func() error { hashErr = checkTrailingHash(ctx, f, size); return nil })
	}
	scanErr = facts.scan(ctx, f, size)
	_ = g.Wait() // its function returns nil
	if err := errors.Join(hashErr, scanErr); err != nil {
		if hashErr != nil {
			err = hashErr
		}
		return Facts{}, fmt.Errorf("prove %s: %w", path, err)
	}
	return facts, nil
}

func (f *Facts) scan(ctx context.Context, r io.ReaderAt, size int64) error {
	s, err := scanDB(ctx, r, size, nil)
	if err != nil {
		return err
	}
	f.Revision, f.CompactRevision = s.revision(), s.compactRevision()
	f.Keys, f.LeasedKeys = s.live()
	f.Records, f.Leases, f.Members, f.Alarms = int64(s.ordinals), s.leases, s.members, s.alarms
	f.InUseBytes = (s.f.used + 2) * int64(s.f.meta.pageSize)
	f.StorageVersion = versionIn(s.meta[string(schema.MetaStorageVersionName)])
	f.ClusterVersion = versionIn(s.cluster[string(schema.ClusterClusterVersionKeyName)])
	sum, err := s.hashKV(ctx, f.CompactRevision, nil)
	f.Hash = HashKV{Revision: f.Revision, CompactRevision: f.CompactRevision, Hash: sum}
	return err
}

func versionIn(b []byte) string {
	v, err := semver.NewVersion(string(b))
	if err != nil {
		return ""
	}
	return v.String()
}

// openDB opens a database for reading, tells its size without the hash behind it, and keeps etcd from
// opening it for writing meanwhile.
func openDB(path string) (f *os.File, size int64, hashed bool, err error) {
	f, err = os.Open(path)
	if err != nil {
		return nil, 0, false, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	fi, err := f.Stat()
	if err != nil {
		return nil, 0, false, err
	}
	if !fi.Mode().IsRegular() {
		return nil, 0, false, badDB("not a regular file")
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_SH|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil, 0, false, fmt.Errorf("%w: the database is being written by %s", ErrDataDirInUse, pidWords(lockHolder(path)))
	}
	size = fi.Size()
	head := make([]byte, 4)
	n, _ := f.ReadAt(head, 0) // a short file is reported by its size
	switch {
	case size == 0:
		return nil, 0, false, badDB("the file is empty")
	case n >= 2 && head[0] == 0x1f && head[1] == 0x8b:
		return nil, 0, false, badDB("it is compressed with gzip; decompress it first")
	case bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		return nil, 0, false, badDB("it is compressed with zstd; decompress it first")
	case size%sectorSize == hashSize:
		return f, size - hashSize, true, nil
	case size%sectorSize != 0:
		return nil, 0, false, badDB("%d bytes is not the size of a database: it is cut short, or something else", size)
	}
	return f, size, false, nil
}

func checkTrailingHash(ctx context.Context, f io.ReaderAt, size int64) error {
	h := sha256.New()
	if err := hashInto(ctx, h, f, size); err != nil {
		return err
	}
	want := make([]byte, hashSize)
	if _, err := f.ReadAt(want, size); err != nil {
		return fmt.Errorf("read hash: %w", err)
	}
	if !bytes.Equal(want, h.Sum(nil)) {
		return fmt.Errorf("%w: the SHA-256 at its end is not that of its content", ErrBadSnapshot)
	}
	return nil
}

func hashInto(ctx context.Context, h hash.Hash, f io.ReaderAt, size int64) error {
	buf := make([]byte, copyChunk)
	for off := int64(0); off < size; {
		if err := ctx.Err(); err != nil {
			return err
		}
		n, err := f.ReadAt(buf[:min(int64(len(buf)), size-off)], off)
		h.Write(buf[:n])
		off += int64(n)
		if err != nil {
			return fmt.Errorf("read at %d: %w", off, err)
		}
	}
	return nil
}

// crossCheck asks bbolt itself, after our own reader found the file sound, whether it sees the same.
func crossCheck(path string, f Facts) error {
	db, err := bolt.Open(path, 0o400, &bolt.Options{ReadOnly: true, Timeout: 5 * time.Second})
	if err != nil {
		return badDB("bbolt can't open it: %v", err)
	}
	defer db.Close()
	return db.View(func(tx *bolt.Tx) error {
		b := tx.Bucket(schema.Key.Name())
		if b == nil || tx.Bucket(schema.Meta.Name()) == nil {
			return badDB("bbolt finds no bucket %q or %q", schema.Key.Name(), schema.Meta.Name())
		}
		k, _ := b.Cursor().Last()
		if k == nil {
			return nil
		}
		r, err := parseRevKey(k)
		if err != nil || r.main > f.Revision {
			return badDB("bbolt finds revision %d where %d was expected", r.main, f.Revision)
		}
		return nil
	})
}

// proveAnswer is what the child prints.
type proveAnswer struct {
	Facts *Facts `json:"facts,omitempty"`
	Error string `json:"error,omitempty"`
	// Kind names the sentinel.
	Kind string `json:"kind,omitempty"`
}

var proveKinds = map[string]error{"database": ErrBadDatabase, "snapshot": ErrBadSnapshot, "in-use": ErrDataDirInUse, "absent": os.ErrNotExist}

// ProveMain is a process of its own that proves one file: args is its path. It prints one line of JSON and
// returns the exit code, 0 also if the file is bad: the answer says so.
func ProveMain(args []string) int {
	if len(args) != 1 {
		fmt.Fprintf(os.Stderr, "usage: %s PATH\n", ProveSubcommand)
		return 2
	}
	limitSelf()
	f, err := ProveDB(context.Background(), args[0]) // the whole of a child process; who wants it to end kills it
	if err == nil {
		err = crossCheck(args[0], f)
	}
	a := proveAnswer{Facts: &f}
	if err != nil {
		a = proveAnswer{Error: err.Error()}
		for kind, sentinel := range proveKinds {
			if errors.Is(err, sentinel) {
				a.Kind = kind
			}
		}
	}
	if err := json.NewEncoder(os.Stdout).Encode(a); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// limitSelf makes sure that a bad file can't make the process leave a core file. Failing to lower the limit is harmless.
func limitSelf() {
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
}

// Prove runs ProveMain in a process of its own, "<selfExe> prove-db <path>", so that no file whatever can
// harm the caller. If the process crashes or doesn't end, the file is bad: ErrBadDatabase. When ctx ends the
// process is killed and the error is ctx's.
func Prove(ctx context.Context, selfExe, path string) (Facts, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return Facts{}, fmt.Errorf("prove: %w", err)
	}
	// A generous bound: a slow disk reads 5 MB/s.
	limit := time.Minute + time.Duration(fi.Size()/(5<<20))*time.Second
	tctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out, err := runSelf(tctx, nil, selfExe, ProveSubcommand, path)
	if ctx.Err() != nil {
		return Facts{}, fmt.Errorf("prove %s: %w", path, ctx.Err())
	}
	if tctx.Err() != nil {
		return Facts{}, fmt.Errorf("prove %s: %w", path, badDB("the check didn't end within %s", limit))
	}
	if errors.Is(err, errCrashed) {
		return Facts{}, fmt.Errorf("prove %s: %w", path, badDB("the process that read it %v", err))
	}
	if err != nil {
		return Facts{}, fmt.Errorf("prove %s: %w", path, err)
	}
	var a proveAnswer
	if err := json.Unmarshal(out, &a); err != nil {
		return Facts{}, fmt.Errorf("prove %s: %s %s gave no answer: %w", path, selfExe, ProveSubcommand, err)
	}
	if a.Error != "" {
		return Facts{}, &childError{msg: a.Error, kind: proveKinds[a.Kind]}
	}
	return *a.Facts, nil
}

// childError is an error that was told by a child process.
type childError struct {
	msg  string
	kind error
}

func (e *childError) Error() string { return e.msg }
func (e *childError) Unwrap() error { return e.kind }

// errCrashed means that a child ended by a signal or a panic.
var errCrashed = errors.New("crashed")

// runSelf runs a subcommand of the manager and returns what it printed.
func runSelf(ctx context.Context, stdin []byte, exe string, args ...string) ([]byte, error) {
	c := exec.CommandContext(ctx, exe, args...)
	var stdout bytes.Buffer
	stderr := &headBuffer{}
	c.Stdin, c.Stdout, c.Stderr = bytes.NewReader(stdin), &stdout, stderr
	// Nothing of the environment is needed.
	c.Env = []string{"GOTRACEBACK=single"}
	c.WaitDelay = 2 * time.Second
	err := c.Run()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		return nil, fmt.Errorf("%w (%v): %s", errCrashed, exit, bytes.TrimSpace(stderr.b))
	}
	if err != nil {
		return nil, fmt.Errorf("run %s %s: %w", exe, args[0], err)
	}
	return stdout.Bytes(), nil
}

// headBuffer keeps the beginning of what a child complains, enough to see a panic's message.
type headBuffer struct{ b []byte }

func (t *headBuffer) Write(p []byte) (int, error) {
	const most = 500
	if room := most - len(t.b); room > 0 {
		t.b = append(t.b, p[:min(room, len(p))]...)
	}
	return len(p), nil
}
