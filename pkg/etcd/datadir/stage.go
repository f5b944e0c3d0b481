package datadir

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"github.com/etcd-manager/etcd-manager/pkg/atomicfile"
	"github.com/etcd-manager/etcd-manager/pkg/background"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
)

// ErrNotEmpty means that a data dir to be staged has something in it already.
var ErrNotEmpty = errors.New("data dir is not empty")

// StageSubcommand is the name of [StageCommand].
const StageSubcommand = "stage-db"

const (
	// copyChunk is how much is copied at once.
	copyChunk = 1 << 20
	// stagingSuffix is the sibling directory in which a data dir is built.
	stagingSuffix = ".staging"
)

// StageConfig says what to make of a database.
type StageConfig struct {
	// SnapshotPath is a database file, usually with the SHA-256 behind it; or Snapshot is a stream of the same.
	SnapshotPath string
	Snapshot     io.Reader `json:"-"`
	// Consume allows to move the file at SnapshotPath instead of copying it, if it is on the same file system. It is gone then, also after an error.
	Consume bool
	// SkipHash takes a database without a hash behind it, and doesn't check one that is there. The structure is checked all the same.
	SkipHash bool

	// PlanPath, if set, is the file into which Prove has written the plan of this staging. If it belongs to exactly this file and these
	// options, and the file can be moved (Consume), the database is neither read nor hashed again. Else it is as if there were none.
	PlanPath string

	// DataDir must not exist or be empty. Its parent must exist.
	DataDir string
	// Name is the member's, InitialCluster the whole cluster, the member included.
	Name           string
	InitialCluster []etcd.Peer
	Token          cluster.Token

	// BumpRevision is added to the revision; AtLeastRevision is a revision that the new one must be above. 0 means not.
	BumpRevision    uint64
	AtLeastRevision int64
	// MarkCompacted makes every older revision compacted, so that old watches are told to start over. It must be set if and only if the revision is raised.
	MarkCompacted bool
	// DropPrefixes are of keys that are deleted, by one transaction after the last.
	DropPrefixes [][]byte
	// TargetVersion is the etcd version that will run on it; empty means not older than what wrote it.
	TargetVersion string

	// Throttle, if set, is called before every n bytes are written, and waits as it likes. Its error ends the staging.
	Throttle func(ctx context.Context, n int) error `json:"-"`
	// SelfExe, if set, is the manager's executable: the database is then worked on by "<SelfExe> stage-db", a process
	// of its own, so that the manager's memory doesn't grow with the database.
	SelfExe string
}

// marker is the file in a staged data dir that says that it is complete and unused.
type marker struct {
	// For is the fingerprint of the StageConfig.
	For    string               `json:"for"`
	Result database.StageResult `json:"result"`
}

// Staged returns what Stage made of a data dir in which no etcd was started since.
func Staged(dataDir string) (database.StageResult, bool, error) {
	m, ok, err := readMarker(dataDir)
	return m.Result, ok, err
}

func readMarker(dataDir string) (marker, bool, error) {
	var m marker
	b, err := os.ReadFile(etcd.StagedMarker(dataDir))
	if errors.Is(err, os.ErrNotExist) {
		return m, false, nil
	}
	if err != nil {
		return m, false, fmt.Errorf("read stage marker: %w", err)
	}
	if err := json.Unmarshal(b, &m); err != nil {
		return m, false, fmt.Errorf("read stage marker of %s: %w: %w", dataDir, cluster.ErrCorrupt, err)
	}
	return m, true, nil
}

// fingerprint covers what the result depends on, but for the source, which the token stands for.
func (c *StageConfig) fingerprint() string {
	h := sha256.New()
	fmt.Fprintf(h, "%q %q %q %d %d %t %q %q", c.Name, etcd.InitialClusterFlag(c.InitialCluster), c.Token,
		c.BumpRevision, c.AtLeastRevision, c.MarkCompacted, c.DropPrefixes, c.TargetVersion)
	return hex.EncodeToString(h.Sum(nil)[:16])
}

func (c *StageConfig) validate() error {
	bad := func(format string, a ...any) error {
		return fmt.Errorf("stage %s: %w: %s", c.DataDir, etcd.ErrConfig, fmt.Sprintf(format, a...))
	}
	switch {
	case (c.SnapshotPath == "") == (c.Snapshot == nil):
		return bad("either a snapshot's path or a stream is needed")
	case !filepath.IsAbs(c.DataDir):
		return bad("the data dir must be an absolute path")
	case c.Token == "":
		return bad("no token")
	case !slices.ContainsFunc(c.InitialCluster, func(p etcd.Peer) bool { return p.Name == c.Name && len(p.PeerURLs) > 0 }):
		return bad("member %q with its peer URLs is not part of the initial cluster", c.Name)
	}
	p := c.plan()
	if err := p.Validate(); err != nil {
		return fmt.Errorf("stage %s: %w", c.DataDir, err)
	}
	return nil
}

// Stage builds an etcd data dir from a snapshot, as "etcdutl snapshot restore" does: with the members and the
// token of a new cluster, keeping keys, leases and users. It is built beside its place and renamed when it is
// complete and on disk. What was staged before with the same configuration is returned as it is.
//
// Nothing is trusted: a snapshot whose hash or structure is wrong is refused with ErrBadSnapshot or
// ErrBadDatabase, one that the target version can't run with ErrVersion. Alarms, and a downgrade that was going
// on, stay behind.
func Stage(ctx context.Context, cfg StageConfig) (database.StageResult, error) {
	if err := cfg.validate(); err != nil {
		return database.StageResult{}, err
	}
	m, ok, err := readMarker(cfg.DataDir)
	if err != nil {
		return database.StageResult{}, fmt.Errorf("stage %s: %w", cfg.DataDir, err)
	}
	if ok && m.For == cfg.fingerprint() {
		return m.Result, nil
	}
	if entries, err := os.ReadDir(cfg.DataDir); err == nil && len(entries) > 0 {
		return database.StageResult{}, fmt.Errorf("stage %s: %w", cfg.DataDir, ErrNotEmpty)
	} else if err != nil && !errors.Is(err, os.ErrNotExist) {
		return database.StageResult{}, fmt.Errorf("stage %s: %w", cfg.DataDir, err)
	}
	tmp := filepath.Clean(cfg.DataDir) + stagingSuffix
	if err := os.RemoveAll(tmp); err != nil {
		return database.StageResult{}, fmt.Errorf("stage %s: remove an earlier attempt: %w", cfg.DataDir, err)
	}
	res, err := stageInto(ctx, &cfg, tmp)
	if err == nil {
		err = publish(tmp, cfg.DataDir)
	}
	if err != nil {
		return database.StageResult{}, fmt.Errorf("stage %s: %w", cfg.DataDir, errors.Join(err, os.RemoveAll(tmp)))
	}
	return res, nil
}

func publish(tmp, dataDir string) error {
	// Renaming replaces an empty directory.
	if err := os.Rename(tmp, dataDir); err != nil {
		return err
	}
	return atomicfile.SyncDir(filepath.Dir(dataDir))
}

func stageInto(ctx context.Context, cfg *StageConfig, tmp string) (database.StageResult, error) {
	if err := os.MkdirAll(filepath.Dir(etcd.DBPath(tmp)), 0o700); err != nil {
		return database.StageResult{}, err
	}
	o, err := fetchDB(ctx, cfg, etcd.DBPath(tmp))
	if err != nil {
		return database.StageResult{}, err
	}
	if cfg.SelfExe != "" {
		return finishInChild(ctx, o, tmp)
	}
	return finishStage(ctx, o, tmp)
}

// fetchDB brings the database to its place. A copy is checked against its hash, and comes without it; a file that was moved is as it was.
func fetchDB(ctx context.Context, cfg *StageConfig, dst string) (*stageOrder, error) {
	src := cfg.Snapshot
	if src == nil {
		f, err := os.Open(cfg.SnapshotPath)
		if err != nil {
			return nil, fmt.Errorf("open snapshot: %w", err)
		}
		defer f.Close()
		if cfg.Consume {
			id, err := database.Identify(f)
			if err != nil {
				return nil, fmt.Errorf("open snapshot: %w", err)
			}
			err = os.Rename(cfg.SnapshotPath, dst)
			if err == nil {
				return &stageOrder{Config: *cfg, Moved: &id}, nil
			}
			if !errors.Is(err, unix.EXDEV) {
				return nil, err
			}
		}
		src = f
	}
	if !cfg.SkipHash {
		src = etcd.VerifyStream(src, 0)
	}
	out, err := os.OpenFile(dst, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return nil, err
	}
	n, err := copyDB(ctx, out, src, cfg.Throttle)
	if err == nil {
		err = database.TrimHash(out, n)
	}
	return &stageOrder{Config: *cfg}, errors.Join(err, out.Close())
}

// copyDB copies at the throttle's pace, which may be nil.
func copyDB(ctx context.Context, f *os.File, src io.Reader, throttle func(context.Context, int) error) (int64, error) {
	out := background.NewWriter(f, 0)
	buf := make([]byte, copyChunk)
	for {
		if err := ctx.Err(); err != nil {
			return out.Written(), err
		}
		n, rerr := fill(src, buf)
		if n > 0 && throttle != nil {
			if err := throttle(ctx, n); err != nil {
				return out.Written(), err
			}
		}
		if _, err := out.Write(buf[:n]); err != nil {
			return out.Written(), fmt.Errorf("write database: %w", err)
		}
		if rerr == io.EOF {
			return out.Written(), nil
		}
		if rerr != nil {
			return out.Written(), fmt.Errorf("read snapshot: %w", rerr)
		}
	}
}

// fill reads until the buffer is full or the source ends. Unlike io.ReadFull it keeps the source's own
// io.ErrUnexpectedEOF, which a cut compressed stream gives, apart from an orderly end.
func fill(src io.Reader, buf []byte) (n int, err error) {
	for n < len(buf) && err == nil {
		var m int
		m, err = src.Read(buf[n:])
		n += m
	}
	return n, err
}
