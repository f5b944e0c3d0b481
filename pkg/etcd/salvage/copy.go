package salvage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.etcd.io/etcd/server/v3/storage/wal"
	"golang.org/x/sys/unix"

	"github.com/etcd-manager/etcd-manager/pkg/background"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/child"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/datadir"
)

// salvageDir is the work dir: a mark that says whose it is, and the copied data dir.
type salvageDir string

const (
	salvageMark = "salvage"
	// salvageRoom is what etcd itself writes: a new file of the log, prepared in advance, and a few pages.
	salvageRoom = 160 << 20
	// salvageChunk is how much is copied at once.
	salvageChunk = 1 << 20
	// releaseWait is how long an etcd of a salvage whose manager has died may take to end.
	releaseWait = 10 * time.Second
)

func (d salvageDir) data() string { return filepath.Join(string(d), "data") }
func (d salvageDir) mark() string { return filepath.Join(string(d), salvageMark) }

// create makes the directory, and removes what an earlier salvage has left there.
func (d salvageDir) create(ctx context.Context) error {
	if _, err := os.Stat(d.mark()); err == nil {
		if err := d.released(ctx); err != nil {
			return err
		}
		if err := d.remove(); err != nil {
			return err
		}
	}
	if err := os.Mkdir(string(d), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if entries, err := os.ReadDir(string(d)); err != nil || len(entries) > 0 {
		return errors.Join(fmt.Errorf("%w: %s", datadir.ErrNotEmpty, d), err)
	}
	return os.WriteFile(d.mark(), nil, 0o600)
}

// released waits for an etcd whose manager was killed just now: it is being killed as well.
func (d salvageDir) released(ctx context.Context) error {
	deadline := time.Now().Add(releaseWait)
	for {
		pid, held, err := etcd.DataDirHolder(d.data())
		if err != nil || !held {
			return err
		}
		if time.Now().After(deadline) {
			return fmt.Errorf("%w: %s is held by %s", etcd.ErrDataDirInUse, d.data(), etcd.ProcessName(pid))
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(helperPoll):
		}
	}
}

// remove takes the mark away last, so that what a crash leaves in between is still recognized.
func (d salvageDir) remove() error {
	entries, err := os.ReadDir(string(d))
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	for _, e := range entries {
		if e.Name() != salvageMark {
			err = errors.Join(err, os.RemoveAll(filepath.Join(string(d), e.Name())))
		}
	}
	if err != nil {
		return err
	}
	return os.RemoveAll(string(d))
}

// Subcommand is the name of [Command].
const Subcommand = "salvage-copy"

// Command is the hidden subcommand that makes the copy of a member: its argument is the data dir to make, standard input says of what.
func Command() child.Command {
	return child.Command{Name: Subcommand, Main: func(args []string) int {
		if len(args) != 1 {
			fmt.Fprintf(os.Stderr, "usage: %s DIRECTORY\n", Subcommand)
			return 2
		}
		return child.Answer(func(ctx context.Context, o *salvageOrder) (*salvageCopy, error) { return o.copy(ctx, args[0]) })
	}}
}

// salvageOrder is the making of a copy.
type salvageOrder struct {
	From     string `json:"from"`
	KeepFree int64  `json:"keepFree"`
}

// salvageCopy is what was copied: the term and index of the newest entry in the log.
type salvageCopy struct {
	Term  uint64 `json:"term"`
	Index uint64 `json:"index"`
}

func (d salvageDir) fill(ctx context.Context, cfg Config) (*salvageCopy, error) {
	o := salvageOrder{From: cfg.DataDir, KeepFree: cfg.KeepFree}
	if cfg.SelfExe == "" {
		return o.copy(ctx, d.data())
	}
	return child.Call[*salvageCopy](ctx, cfg.SelfExe, &o, Subcommand, d.data())
}

// copy copies a member, and makes every entry of the copy's log a committed one.
func (o *salvageOrder) copy(ctx context.Context, to string) (*salvageCopy, error) {
	// As long as it is held like this, no etcd can start on it.
	lock, err := os.Open(etcd.DBPath(o.From))
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	if err := unix.Flock(int(lock.Fd()), unix.LOCK_SH|unix.LOCK_NB); errors.Is(err, unix.EWOULDBLOCK) {
		return nil, fmt.Errorf("%w: %s is held by %s", etcd.ErrDataDirInUse, o.From, etcd.ProcessName(etcd.LockHolder(etcd.DBPath(o.From))))
	}
	files, total, err := memberFiles(o.From)
	if err != nil {
		return nil, err
	}
	need := total + salvageRoom
	for _, name := range files {
		n, err := o.copyFile(ctx, name, to, need)
		if err != nil {
			return nil, err
		}
		need -= n
	}
	var c *salvageCopy
	err = etcd.Guard("read log", func() (err error) { c, err = commitAll(filepath.Join(to, "member", "wal")); return err })
	return c, err
}

// memberFiles lists what makes a member, below its data dir. What etcd prepares or leaves behind beside that isn't needed.
func memberFiles(dataDir string) (names []string, total int64, err error) {
	for sub, wanted := range map[string]func(name string) bool{
		"snap": func(n string) bool {
			return n == "db" || strings.HasSuffix(n, ".snap") || strings.HasSuffix(n, ".snap.db") // a database that a leader has sent
		},
		"wal": func(n string) bool { return strings.HasSuffix(n, ".wal") },
	} {
		dir := filepath.Join("member", sub)
		entries, err := os.ReadDir(filepath.Join(dataDir, dir))
		if err != nil {
			return nil, 0, err
		}
		for _, e := range entries {
			fi, err := e.Info()
			if err != nil {
				return nil, 0, err
			}
			if fi.Mode().IsRegular() && wanted(e.Name()) {
				names = append(names, filepath.Join(dir, e.Name()))
				total += fi.Size()
			}
		}
	}
	return names, total, nil
}

// copyFile copies one file; need is how much is to come with it.
func (o *salvageOrder) copyFile(ctx context.Context, name, to string, need int64) (n int64, err error) {
	in, err := os.Open(filepath.Join(o.From, name))
	if err != nil {
		return 0, err
	}
	defer in.Close()
	if err := os.MkdirAll(filepath.Dir(filepath.Join(to, name)), 0o700); err != nil {
		return 0, err
	}
	out, err := os.OpenFile(filepath.Join(to, name), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	w := background.NewWriter(out, o.KeepFree)
	if err := w.Expect(need); err != nil {
		return 0, err
	}
	buf := make([]byte, salvageChunk)
	for {
		if err := ctx.Err(); err != nil {
			return w.Written(), err
		}
		n, rerr := in.Read(buf)
		if _, err := w.Write(buf[:n]); err != nil {
			return w.Written(), err
		}
		if rerr == io.EOF {
			return w.Written(), nil
		}
		if rerr != nil {
			return w.Written(), rerr
		}
	}
}

// commitAll raises the commit index of a log to its newest entry. A learner gets a vote behind that.
func commitAll(dir string) (*salvageCopy, error) {
	lg := etcd.QuietLogger()
	snaps, err := wal.ValidSnapshotEntries(lg, dir)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", etcd.ErrBadLog, err)
	}
	if len(snaps) == 0 {
		return nil, fmt.Errorf("%w: it doesn't say where it begins", etcd.ErrBadLog)
	}
	newest := snaps[len(snaps)-1]
	w, err := wal.Open(lg, dir, newest)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", etcd.ErrBadLog, err)
	}
	metadata, state, ents, err := w.ReadAll()
	if errors.Is(err, io.ErrUnexpectedEOF) {
		// The end was torn by a crash; what is whole before it stays.
		if err := w.Close(); err != nil {
			return nil, err
		}
		if !wal.Repair(lg, dir) {
			return nil, fmt.Errorf("%w: its end is torn and can't be cut off", etcd.ErrBadLog)
		}
		if w, err = wal.Open(lg, dir, newest); err != nil {
			return nil, fmt.Errorf("%w: %w", etcd.ErrBadLog, err)
		}
		metadata, state, ents, err = w.ReadAll()
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("%w: %w", etcd.ErrBadLog, err), w.Close())
	}
	c := &salvageCopy{Term: newest.Term, Index: newest.Index}
	if n := len(ents); n > 0 {
		c.Term, c.Index = ents[n-1].Term, ents[n-1].Index
	}
	if state.Term < c.Term {
		state.Term, state.Vote = c.Term, 0
	}
	state.Commit = max(state.Commit, c.Index)
	more, err := promotion(filepath.Join(filepath.Dir(dir), "snap"), newest, metadata, ents, c)
	if err != nil {
		return nil, errors.Join(err, w.Close())
	}
	state.Commit += uint64(len(more))
	return c, errors.Join(w.Save(state, more), w.Close())
}
