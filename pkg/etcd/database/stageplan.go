package database

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"syscall"

	"github.com/etcd-manager/etcd-manager/pkg/atomicfile"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
)

// StagePlan says what staging changes in a database, as far as it is the same on every member of the new cluster.
// The fields mean what those of the same names in StageConfig mean.
type StagePlan struct {
	BumpRevision    uint64   `json:"bumpRevision,omitempty"`
	AtLeastRevision int64    `json:"atLeastRevision,omitempty"`
	MarkCompacted   bool     `json:"markCompacted,omitempty"`
	DropPrefixes    [][]byte `json:"dropPrefixes,omitempty"`
	TargetVersion   string   `json:"targetVersion,omitempty"`
}

// Validate says what is wrong; the error wraps ErrConfig or ErrVersion.
func (p *StagePlan) Validate() error {
	bad := func(why string) error { return fmt.Errorf("%w: %s", etcd.ErrConfig, why) }
	raise := p.BumpRevision > 0 || p.AtLeastRevision > 0
	switch {
	case raise != p.MarkCompacted:
		return bad("the revision is raised and marked compacted together, or neither")
	case p.BumpRevision > 0 && !revisionFits(int64(p.BumpRevision)), p.AtLeastRevision != 0 && !revisionFits(p.AtLeastRevision):
		return bad("revision out of range")
	case slices.ContainsFunc(p.DropPrefixes, func(p []byte) bool { return len(p) == 0 }):
		return bad("an empty prefix would drop every key")
	}
	if p.TargetVersion != "" {
		return etcd.ValidateVersion(p.TargetVersion)
	}
	return nil
}

func (p *StagePlan) fingerprint() string {
	h := sha256.New()
	fmt.Fprintf(h, "%d %d %t %q %q", p.BumpRevision, p.AtLeastRevision, p.MarkCompacted, p.DropPrefixes, p.TargetVersion)
	return hex.EncodeToString(h.Sum(nil)[:16])
}

// FileID tells one state of a file from every other, also of the same file after a change.
type FileID struct {
	Device   uint64 `json:"device"`
	Inode    uint64 `json:"inode"`
	Size     int64  `json:"size"`
	Modified int64  `json:"modified"`
	// Changed is when anything about the file was changed, its name and mode included.
	Changed int64 `json:"changed"`
}

// Identify tells the state of an open file. It fails where the system doesn't tell inodes.
func Identify(f *os.File) (FileID, error) {
	fi, err := f.Stat()
	if err != nil {
		return FileID{}, err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !ok {
		return FileID{}, errors.New("the file system has no inodes")
	}
	modified, changed := changeTimes(st)
	return FileID{Device: uint64(st.Dev), Inode: st.Ino, Size: st.Size, Modified: modified, Changed: changed}, nil //nolint:unconvert // other systems have other types
}

// Moved tells whether the file is still the same but for its name and mode.
func (id FileID) Moved(now FileID) bool {
	now.Changed = id.Changed
	return id == now
}

// PlannedStage is a plan that was made for one file: everything that is to be changed in it on every member, and what comes out.
type PlannedStage struct {
	// Format is planFormat.
	Format int    `json:"format"`
	File   FileID `json:"file"`
	// For is the fingerprint of the StagePlan.
	For    string      `json:"for"`
	Result StageResult `json:"result"`
	Edits  *Edits      `json:"edits"`
}

// planFormat changes with everything on which the result for the same file and the same StagePlan depends.
const planFormat = 1

// planFile is what stands in the file: a plan and the SHA-256 of its bytes.
type planFile struct {
	SHA256 string          `json:"sha256"`
	Plan   json.RawMessage `json:"plan"`
}

// Write writes the plan to a file.
func (p *PlannedStage) Write(path string) error {
	b, err := json.Marshal(p)
	if err != nil {
		return err
	}
	sum := sha256.Sum256(b)
	out, err := json.Marshal(planFile{SHA256: hex.EncodeToString(sum[:]), Plan: b})
	if err != nil {
		return err
	}
	if err := atomicfile.Write(path, out, 0o600); err != nil {
		return fmt.Errorf("write plan: %w", err)
	}
	return nil
}

// ReadPlan returns nil unless there is a plan that is whole, and for exactly this file and these options: it saves time and never decides anything.
func ReadPlan(path string, source FileID, want StagePlan) *PlannedStage {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil
	}
	var f planFile
	if err := json.Unmarshal(b, &f); err != nil {
		return nil
	}
	if sum := sha256.Sum256(f.Plan); f.SHA256 != hex.EncodeToString(sum[:]) {
		return nil
	}
	var p PlannedStage
	if err := json.Unmarshal(f.Plan, &p); err != nil {
		return nil
	}
	if p.Format != planFormat || p.File != source || p.For != want.fingerprint() || p.Edits == nil {
		return nil
	}
	return &p
}

// planStage decides, from what was found in a database, what is changed in it on every member.
func (s *scan) planStage(ctx context.Context, p StagePlan) (StageResult, *Edits, error) {
	was := s.versions()
	if err := checkTarget(was.WrittenBy(), p.TargetVersion); err != nil {
		return StageResult{}, nil, err
	}
	e := &Edits{}
	res := StageResult{
		SnapshotRevision: s.revision(), Dropped: int64(len(s.watched)), Leases: len(s.leases.ttls), WrittenBy: was.WrittenBy(), Version: p.TargetVersion,
	}
	keys, _ := s.live()
	res.Keys = keys - res.Dropped
	compact, extra, err := planRevisions(p, s, &res, e)
	if err != nil {
		return StageResult{}, nil, err
	}
	planVersions(p.TargetVersion, was, e)
	sum, err := s.hashKV(ctx, compact, s.watched, extra...)
	res.Hash = etcd.HashKV{Revision: res.Revision, CompactRevision: compact, Hash: sum}
	return res, e, err
}

// PlanDB plans without a proof before it. The hash behind the database is checked as well, if hashed says that there is one.
func PlanDB(ctx context.Context, path string, p StagePlan, checkHash bool) (StageResult, *Edits, error) {
	f, size, hashed, err := openDB(path)
	if err != nil {
		return StageResult{}, nil, err
	}
	defer f.Close()
	if checkHash && !hashed {
		return StageResult{}, nil, fmt.Errorf("%w: %d bytes is not the size of a database with a hash behind it", etcd.ErrBadSnapshot, size)
	}
	var s *scan
	err = checkBoth(ctx, f, size, checkHash, func(r io.ReaderAt) (err error) {
		s, err = scanDB(ctx, r, size, p.DropPrefixes)
		return err
	})
	if err != nil {
		return StageResult{}, nil, err
	}
	return s.planStage(ctx, p)
}

// CutHash makes what was moved what a copy is.
func CutHash(path string) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer f.Close()
	fi, err := f.Stat()
	if err != nil {
		return err
	}
	return errors.Join(f.Chmod(0o600), TrimHash(f, fi.Size()))
}

// TrimHash cuts the hash off and writes the file to disk.
func TrimHash(f *os.File, size int64) error {
	switch size % etcd.SectorSize {
	case 0:
		if size == 0 {
			return badDB("the file is empty")
		}
	case etcd.HashSize:
		if err := f.Truncate(size - etcd.HashSize); err != nil {
			return err
		}
	default:
		return badDB("%d bytes is not the size of a database: it is cut short, or something else", size)
	}
	return f.Sync()
}

// StageResult describes a staged data dir. It is the same on every member but for MemberID.
type StageResult struct {
	// Revision is the one that etcd will start with, SnapshotRevision the one it was made from.
	Revision         int64 `json:"revision"`
	SnapshotRevision int64 `json:"snapshotRevision"`
	// Hash is what HashKV will answer at Revision, on every member.
	Hash etcd.HashKV `json:"hash"`
	// Keys are those that exist; Dropped were deleted because of DropPrefixes.
	Keys    int64 `json:"keys"`
	Dropped int64 `json:"dropped"`
	Leases  int   `json:"leases"`
	// SizeBytes is the size of the database.
	SizeBytes int64            `json:"sizeBytes"`
	MemberID  cluster.MemberID `json:"memberID"`
	ClusterID uint64           `json:"clusterID"`
	// WrittenBy is the minor version that the snapshot was of; Version is the TargetVersion.
	WrittenBy string `json:"writtenBy"`
	Version   string `json:"version"`
}
