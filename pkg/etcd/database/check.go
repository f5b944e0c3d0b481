package database

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"os"
	"time"

	"github.com/coreos/go-semver/semver"
	bolt "go.etcd.io/bbolt"
	"go.etcd.io/etcd/server/v3/storage/schema"
	"golang.org/x/sync/errgroup"
	"golang.org/x/sys/unix"

	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/child"
)

// CheckSubcommand is the name of [CheckCommand].
const CheckSubcommand = "prove-db"

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
	// Leased is of the leases that keys are attached to.
	Leased  LeaseFacts `json:"leased"`
	Members int        `json:"members"`
	Alarms  int        `json:"alarms"`
	// SizeBytes is the database without a hash at its end; InUseBytes the part that isn't free pages.
	SizeBytes  int64 `json:"sizeBytes"`
	InUseBytes int64 `json:"inUseBytes"`
	// ConsistentIndex is the raft index of the last entry that was applied to it; 0 if it was never written down.
	ConsistentIndex uint64 `json:"consistentIndex,omitempty"`
	// TrailingHash is true if the file ends with its SHA-256, as a snapshot does, and it is right, if CheckOptions didn't leave that alone.
	TrailingHash bool `json:"trailingHash"`
	// Hash is what etcd's HashKV answers at Revision; it is zero where a plan was asked for, which has the hash of what is to be staged.
	Hash etcd.HashKV `json:"hash"`
	// StorageVersion is empty if it was last written before 3.6; ClusterVersion if before 3.5.
	StorageVersion string `json:"storageVersion,omitempty"`
	ClusterVersion string `json:"clusterVersion,omitempty"`
	// Planned is what will be staged, if CheckOptions asked for a plan; MemberID, ClusterID and SizeBytes are 0 in it.
	Planned *StageResult `json:"planned,omitempty"`
}

// CheckOptions say what a proof leaves out and what it makes on the way. The zero value proves everything and makes nothing.
type CheckOptions struct {
	// SkipHash leaves the SHA-256 behind the database alone, for a file that was checked when it was written. The structure is checked all the same.
	SkipHash bool `json:"skipHash,omitempty"`
	// Plan, if set, has the staging of this database planned in the same pass, and the plan written to PlanPath, where
	// Stage finds it (StageConfig.PlanPath). A database that can't be staged so is refused with ErrVersion or ErrConfig.
	Plan     *StagePlan `json:"plan,omitempty"`
	PlanPath string     `json:"planPath,omitempty"`
	// HashCompact has the hash computed as an etcd does that has compacted up to this revision, if that is more than the database has: so two that
	// have the same data, and were compacted differently, can be compared.
	HashCompact int64 `json:"hashCompact,omitempty"`
}

func (o *CheckOptions) validate() error {
	if o.Plan == nil {
		return nil
	}
	if o.PlanPath == "" {
		return fmt.Errorf("%w: a plan needs a path", etcd.ErrConfig)
	}
	return o.Plan.Validate()
}

// WrittenBy is the minor version whose format the database has: "3.4" to "3.7". A cluster in the middle of
// an upgrade writes the older format.
func (f Facts) WrittenBy() string {
	newest := "3.4"
	for _, v := range []string{f.ClusterVersion, f.StorageVersion} {
		if m := etcd.Minor(v); m != "" && etcd.Less(newest+".0", m+".0") {
			newest = m
		}
	}
	return newest
}

// FitsVersion returns nil if Stage can prepare this database for that etcd version, else ErrVersion with the reason.
func (f Facts) FitsVersion(target string) error { return checkTarget(f.WrittenBy(), target) }

// CheckFile checks a database file, or a snapshot with its hash behind it, to the last page: the SHA-256, bbolt's
// structure, and the sense of what etcd keeps in it. It reads the file twice or thrice with plain reads, never
// maps it, and needs memory for about 16 bytes a key. It fails with ErrBadDatabase (or ErrBadSnapshot for the
// hash) in words for the operator, and with ErrDataDirInUse if an etcd has the file open for writing.
func CheckFile(ctx context.Context, path string, o CheckOptions) (Facts, error) {
	facts, planned, err := checkFile(ctx, path, o)
	if err == nil && planned != nil {
		err = planned.Write(o.PlanPath)
	}
	if err != nil {
		return Facts{}, fmt.Errorf("prove %s: %w", path, err)
	}
	return facts, nil
}

// checkFile is CheckFile without writing the plan.
func checkFile(ctx context.Context, path string, o CheckOptions) (Facts, *PlannedStage, error) {
	if err := o.validate(); err != nil {
		return Facts{}, nil, err
	}
	f, size, hashed, err := openDB(path)
	if err != nil {
		return Facts{}, nil, err
	}
	defer f.Close()
	id, err := Identify(f)
	if err != nil {
		return Facts{}, nil, err
	}
	var plan StagePlan
	if o.Plan != nil {
		plan = *o.Plan
	}
	facts := Facts{SizeBytes: size, TrailingHash: hashed}
	var planned *PlannedStage
	err = checkBoth(ctx, f, size, hashed && !o.SkipHash, func(r io.ReaderAt) error {
		s, err := scanDB(ctx, r, size, plan.DropPrefixes)
		if err != nil {
			return err
		}
		facts.found(s)
		if o.Plan == nil {
			compact := facts.CompactRevision
			if o.HashCompact > 0 { // before the first compaction etcd says -1
				compact = max(compact, o.HashCompact)
			}
			sum, err := s.hashKV(ctx, compact, nil)
			facts.Hash = etcd.HashKV{Revision: facts.Revision, CompactRevision: compact, Hash: sum}
			return err
		}
		res, e, err := s.planStage(ctx, plan)
		facts.Planned = &res
		planned = &PlannedStage{Format: planFormat, File: id, For: plan.fingerprint(), Result: res, Edits: e}
		return err
	})
	if err != nil {
		return Facts{}, nil, err
	}
	if now, err := Identify(f); err != nil || now != id {
		return Facts{}, nil, errors.Join(badDB("the file was changed while it was read"), err)
	}
	return facts, planned, nil
}

// checkBoth runs a check of the database's inside and, beside it, that of the hash behind it. A wrong hash explains every other finding, so it
// is reported first.
func checkBoth(ctx context.Context, f *os.File, size int64, checkHash bool, inside func(r io.ReaderAt) error) error {
	var hashErr error
	g := errgroup.Group{}
	if checkHash {
		g.Go(func() error { hashErr = checkTrailingHash(ctx, f, size); return nil })
	}
	err := inside(f)
	_ = g.Wait() // its function returns nil
	if hashErr != nil {
		return hashErr
	}
	return err
}

// found takes over what a pass has found.
func (f *Facts) found(s *scan) {
	f.Revision, f.CompactRevision = s.revision(), s.compactRevision()
	f.Keys, f.LeasedKeys = s.live()
	f.Records, f.Leases, f.Members, f.Alarms = int64(s.ordinals), len(s.leases.ttls), s.members, s.alarms
	f.Leased = s.leases.facts()
	f.InUseBytes = (s.f.used + 2) * int64(s.f.meta.pageSize)
	if b := s.meta[string(schema.MetaConsistentIndexKeyName)]; len(b) == 8 {
		f.ConsistentIndex = binary.BigEndian.Uint64(b)
	}
	was := s.versions()
	f.StorageVersion, f.ClusterVersion = was.StorageVersion, was.ClusterVersion
}

// versions has nothing but the versions.
func (s *scan) versions() Facts {
	return Facts{
		StorageVersion: versionIn(s.meta[string(schema.MetaStorageVersionName)]),
		ClusterVersion: versionIn(s.cluster[string(schema.ClusterClusterVersionKeyName)]),
	}
}

func versionIn(b []byte) string {
	if len(b) > 64 { // no version is
		return ""
	}
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
		return nil, 0, false, fmt.Errorf("%w: the database is being written by %s", etcd.ErrDataDirInUse, etcd.ProcessName(etcd.LockHolder(path)))
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
	case size%etcd.SectorSize == etcd.HashSize:
		return f, size - etcd.HashSize, true, nil
	case size%etcd.SectorSize != 0:
		return nil, 0, false, badDB("%d bytes is not the size of a database: it is cut short, or something else", size)
	}
	return f, size, false, nil
}

func checkTrailingHash(ctx context.Context, f io.ReaderAt, size int64) error {
	h := sha256.New()
	if err := hashInto(ctx, h, f, size); err != nil {
		return err
	}
	want := make([]byte, etcd.HashSize)
	if _, err := f.ReadAt(want, size); err != nil {
		return fmt.Errorf("read hash: %w", err)
	}
	if !bytes.Equal(want, h.Sum(nil)) {
		return fmt.Errorf("%w: the SHA-256 at its end is not that of its content", etcd.ErrBadSnapshot)
	}
	return nil
}

// hashChunk is how much is hashed at once.
const hashChunk = 1 << 20

func hashInto(ctx context.Context, h hash.Hash, f io.ReaderAt, size int64) error {
	buf := make([]byte, hashChunk)
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

// checkAnswer is what the child prints.
type checkAnswer struct {
	Facts *Facts `json:"facts,omitempty"`
	Error string `json:"error,omitempty"`
	// Kind names the sentinel.
	Kind string `json:"kind,omitempty"`
}

// CheckCommand is the hidden subcommand that proves one file: its arguments are the path and, if they aren't zero, the CheckOptions as JSON. It
// prints one line of JSON.
func CheckCommand() child.Command {
	return child.Command{Name: CheckSubcommand, Main: checkMain}
}

// checkMain is a process of its own that proves one file: args is its path and, if they aren't zero, the CheckOptions as JSON. It prints one line of
// JSON and returns the exit code, 0 also if the file is bad: the answer says so.
func checkMain(args []string) int {
	var o CheckOptions
	var err error
	if len(args) == 2 {
		err = json.Unmarshal([]byte(args[1]), &o)
	}
	if len(args) != 1 && len(args) != 2 || err != nil {
		fmt.Fprintf(os.Stderr, "usage: %s PATH [OPTIONS]\n", CheckSubcommand)
		return 2
	}
	child.LimitSelf()
	f, planned, err := checkFile(context.Background(), args[0], o) // the whole of a child process; who wants it to end kills it
	if err == nil {
		err = crossCheck(args[0], f)
	}
	if err == nil && planned != nil {
		err = planned.Write(o.PlanPath)
	}
	a := checkAnswer{Facts: &f}
	if err != nil {
		a = checkAnswer{Error: fmt.Sprintf("prove %s: %v", args[0], err), Kind: child.KindOf(err)}
	}
	if err := json.NewEncoder(os.Stdout).Encode(a); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// Check runs [CheckCommand] in a process of its own, "<selfExe> prove-db <path>", at the lowest priority, so that no file whatever can
// harm the caller. If the process crashes or doesn't end, the file is bad: ErrBadDatabase. When ctx ends the
// process is killed and the error is ctx's.
func Check(ctx context.Context, selfExe, path string, o CheckOptions) (Facts, error) {
	fi, err := os.Stat(path)
	if err != nil {
		return Facts{}, fmt.Errorf("prove: %w", err)
	}
	args := []string{CheckSubcommand, path}
	if o != (CheckOptions{}) {
		if err := o.validate(); err != nil {
			return Facts{}, fmt.Errorf("prove %s: %w", path, err)
		}
		b, err := json.Marshal(o)
		if err != nil {
			return Facts{}, fmt.Errorf("prove: %w", err)
		}
		args = append(args, string(b))
	}
	limit := child.TimeLimit(fi.Size())
	tctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	out, err := child.Run(tctx, nil, selfExe, args...)
	if ctx.Err() != nil {
		return Facts{}, fmt.Errorf("prove %s: %w", path, ctx.Err())
	}
	if tctx.Err() != nil {
		return Facts{}, fmt.Errorf("prove %s: %w", path, badDB("the check didn't end within %s", limit))
	}
	if errors.Is(err, child.ErrCrashed) {
		return Facts{}, fmt.Errorf("prove %s: %w", path, badDB("the process that read it %v", err))
	}
	if err != nil {
		return Facts{}, fmt.Errorf("prove %s: %w", path, err)
	}
	var a checkAnswer
	if err := json.Unmarshal(out, &a); err != nil {
		return Facts{}, fmt.Errorf("prove %s: %s %s gave no answer: %w", path, selfExe, CheckSubcommand, err)
	}
	if a.Error != "" {
		return Facts{}, child.Told(a.Error, a.Kind)
	}
	return *a.Facts, nil
}
