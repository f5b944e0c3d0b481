package salvage

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/prometheus/procfs"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/storage/wal"
	"go.etcd.io/raft/v3/raftpb"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/datadir"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
)

// contents are the keys with everything that a client sees of them.
func contents(t testing.TB, m *testMember) map[string]string {
	t.Helper()
	r, err := m.Client.Raw().Get(ctxOf(t), "\x00", clientv3.WithFromKey())
	must(t, err)
	all := map[string]string{}
	for _, kv := range r.Kvs {
		all[string(kv.Key)] = fmt.Sprint(string(kv.Value), kv.ModRevision, kv.CreateRevision, kv.Version, kv.Lease)
	}
	return all
}

// restored is a one-member cluster out of a salvaged database.
func restored(t testing.TB, s *Database, bin process.Binary) *testMember {
	t.Helper()
	snap, err := s.Snapshot(t.Context())
	must(t, err)
	defer snap.Close()
	ms := makeMembers(t, 1, bin, "again", nil, "127.0.0.1")
	_, err = datadir.Stage(t.Context(), datadir.StageConfig{
		Snapshot: snap, DataDir: ms[0].Cfg.DataDir, Name: ms[0].Cfg.Name, InitialCluster: ms[0].Cfg.InitialCluster, Token: ms[0].Cfg.Token,
	})
	must(t, err)
	if snap.N() != snap.Size {
		t.Errorf("%d bytes came, %d were announced", snap.N(), snap.Size)
	}
	startAll(t, ms)
	return ms[0]
}

func salvageOf(t testing.TB, m *testMember, work string) (*Database, error) {
	t.Helper()
	before := dirState(t, m.Cfg.DataDir)
	s, err := Run(t.Context(), Config{DataDir: m.Cfg.DataDir, WorkDir: work, Binary: m.Bin, SelfExe: self(t)})
	if now := dirState(t, m.Cfg.DataDir); !maps.Equal(before, now) {
		t.Errorf("the data dir was changed: %v, before %v", now, before)
	}
	if s != nil {
		t.Cleanup(func() {
			must(t, s.Close())
			if _, err := os.Stat(work); !errors.Is(err, os.ErrNotExist) {
				t.Errorf("the work dir is still there: %v", err)
			}
		})
	}
	return s, err
}

// TestSalvageOfASurvivor: what was acknowledged is there, out of one member's dir, although that member didn't know that it was committed.
func TestSalvageOfASurvivor(t *testing.T) {
	bins := []process.Binary{builtin(t)}
	if testutil.IsLong() {
		bins = otherBinaries(t)
	}
	for _, bin := range bins {
		t.Run(bin.Version, func(t *testing.T) {
			ms := makeMembers(t, 3, bin, "old", nil, "127.0.0.1")
			startAll(t, ms)
			leaseID := fillStore(t, ms[0], 100)
			// Every client stays with one member, and the last writes are acknowledged just before all are killed.
			c := ms[1].Client.Raw()
			for i := range 200 {
				_, err := c.Put(ctxOf(t), fmt.Sprintf("late/%03d", i), "acknowledged")
				must(t, err)
			}
			want := contents(t, ms[1])
			for _, m := range ms {
				m.Kill(t)
			}
			best := ms[0]
			term, index, err := datadir.LastEntry(best.Cfg.DataDir)
			must(t, err)
			for _, m := range ms[1:] {
				tm, i, err := datadir.LastEntry(m.Cfg.DataDir)
				must(t, err)
				if tm > term || tm == term && i > index {
					best, term, index = m, tm, i
				}
			}
			s, err := salvageOf(t, best, t.TempDir()+"/work")
			must(t, err)
			if s.Term != term || s.Index != index || s.Facts.ConsistentIndex < index || s.Version != bin.Version || s.Facts.Leases != 1 {
				t.Errorf("salvaged %+v out of a log that ends with %d/%d", s, term, index)
			}
			m := restored(t, s, bin)
			if now := contents(t, m); !maps.Equal(now, want) {
				t.Errorf("%d keys are there, %d were", len(now), len(want))
			}
			if st, err := m.Client.Status(ctxOf(t)); err != nil || st.Revision != s.Facts.Revision {
				t.Errorf("revision %d, salvaged %d, %v", st.Revision, s.Facts.Revision, err)
			}
			if ttl, err := m.Client.Raw().TimeToLive(ctxOf(t), leaseID); err != nil || ttl.TTL <= 0 {
				t.Errorf("lease: %+v %v", ttl, err)
			}
		})
	}
}

// TestSalvageOfALearner: the only one that is left is a learner, which has everything and no vote.
func TestSalvageOfALearner(t *testing.T) {
	bins := []process.Binary{builtin(t)}
	if testutil.IsLong() {
		bins = otherBinaries(t)
	}
	for _, bin := range bins {
		for name, count := range map[string]uint64{"all of the log": 0, "a snapshot and the rest of the log": 10} {
			t.Run(bin.Version+"/"+name, func(t *testing.T) {
				ms := makeMembers(t, 2, bin, "old", nil, "127.0.0.1")
				voter, learner := ms[0], ms[1]
				all := voter.Cfg.InitialCluster
				voter.Cfg.InitialCluster, voter.Cfg.SnapshotCount, learner.Cfg.SnapshotCount = all[:1], count, count
				startAll(t, ms[:1])
				fillStore(t, voter, 50)
				_, err := voter.Client.AddLearner(ctxOf(t), learner.Cfg.PeerURLs)
				must(t, err)
				learner.Cfg.NewCluster, learner.Cfg.InitialCluster = false, all
				learner.Start(t)
				eventually(t, "the learner has started", func() bool {
					st, err := learner.Client.Status(ctxOf(t))
					return err == nil && st.Learner
				})
				last, err := voter.Client.Raw().Put(ctxOf(t), "late", "acknowledged")
				must(t, err)
				want := contents(t, voter)
				eventually(t, "the learner has caught up", func() bool {
					st, err := learner.Client.Status(ctxOf(t))
					return err == nil && st.Revision >= last.Header.Revision
				})
				voter.Kill(t)
				learner.Kill(t)
				s, err := salvageOf(t, learner, t.TempDir()+"/work")
				must(t, err)
				if now := contents(t, restored(t, s, bin)); !maps.Equal(now, want) {
					t.Errorf("%d keys are there, %d were", len(now), len(want))
				}
			})
		}
	}
}

// uncommitted appends a put to the log of a stopped member as a follower does that hasn't heard yet that the others have it too.
func uncommitted(t testing.TB, dataDir string, req []byte) (index uint64) {
	t.Helper()
	walDir := filepath.Join(dataDir, "member", "wal")
	snaps, err := wal.ValidSnapshotEntries(etcd.QuietLogger(), walDir)
	must(t, err)
	w, err := wal.Open(etcd.QuietLogger(), walDir, snaps[len(snaps)-1])
	must(t, err)
	_, st, ents, err := w.ReadAll()
	must(t, err)
	last := ents[len(ents)-1]
	must(t, w.Save(st, []raftpb.Entry{{Term: last.Term, Index: last.Index + 1, Data: req}}))
	must(t, w.Close())
	return last.Index + 1
}

func TestSalvageKeepsWhatIsNotCommitted(t *testing.T) {
	m := startOne(t, "single")
	fillStore(t, m, 50)
	want := contents(t, m)
	m.Kill(t)
	index := uncommitted(t, m.Cfg.DataDir, putRequest(t, "tail", "kept"))
	work := t.TempDir() + "/work"
	// What a crash left behind is cleared away; what is somebody else's isn't.
	must(t, os.MkdirAll(work+"/data/member/snap", 0o700))
	if _, err := salvageOf(t, m, work); !errors.Is(err, datadir.ErrNotEmpty) {
		t.Errorf("into a strange directory: %v", err)
	}
	must(t, os.WriteFile(work+"/"+salvageMark, nil, 0o600))
	s, err := salvageOf(t, m, work)
	must(t, err)
	if s.Index != index {
		t.Errorf("salvaged up to entry %d, the log has %d", s.Index, index)
	}
	now := contents(t, restored(t, s, m.Bin))
	if now["tail"] == "" {
		t.Error("the entry that wasn't committed is gone")
	}
	delete(now, "tail")
	if !maps.Equal(now, want) {
		t.Errorf("%d keys are there, %d were", len(now), len(want))
	}
}

func TestSalvageOfAFullMember(t *testing.T) {
	ms := makeMembers(t, 1, builtin(t), "full", nil, "127.0.0.1")
	m := ms[0]
	m.Cfg.QuotaBytes = 2 << 20
	startAll(t, ms)
	for i := 0; ; i++ {
		if _, err := m.Client.Raw().Put(ctxOf(t), fmt.Sprintf("k%d", i), strings.Repeat("x", 100<<10)); err != nil {
			break
		}
	}
	want := contents(t, m)
	if alarms, err := m.Client.Alarms(ctxOf(t)); err != nil || len(alarms) != 1 {
		t.Fatalf("alarms %v %v", alarms, err)
	}
	m.Kill(t)
	s, err := salvageOf(t, m, t.TempDir()+"/work")
	must(t, err)
	if now := contents(t, restored(t, s, m.Bin)); !maps.Equal(now, want) || len(now) < 5 {
		t.Errorf("%d keys are there, %d were", len(now), len(want))
	}
}

// TestSalvageWithUsers: etcd doesn't let the manager in, and the database is had all the same.
func TestSalvageWithUsers(t *testing.T) {
	m := startOne(t, "users")
	ctx, c := ctxOf(t), m.Client.Raw()
	_, err := c.Put(ctx, "secret", "value")
	must(t, err)
	_, err = c.UserAdd(ctx, "root", "pw")
	must(t, err)
	_, err = c.UserGrantRole(ctx, "root", "root")
	must(t, err)
	_, err = c.AuthEnable(ctx)
	must(t, err)
	m.Kill(t)
	s, err := salvageOf(t, m, t.TempDir()+"/work")
	must(t, err)
	if s.Facts.Keys != 1 {
		t.Errorf("salvaged %+v", s.Facts)
	}
	snap, err := s.Snapshot(t.Context())
	must(t, err)
	n, err := io.Copy(io.Discard, snap)
	if err != nil || n != snap.Size || n != s.Facts.SizeBytes+etcd.HashSize {
		t.Errorf("streamed %d of %d bytes: %v", n, snap.Size, err)
	}
	must(t, snap.Close())
}

func TestSalvageRefuses(t *testing.T) {
	m := startOne(t, "refuse")
	fillStore(t, m, 20)
	work := t.TempDir() + "/work"
	refused := func(name string, want error, change func(c *Config)) error {
		t.Helper()
		c := Config{DataDir: m.Cfg.DataDir, WorkDir: work, Binary: m.Bin, SelfExe: self(t)}
		change(&c)
		_, err := Run(t.Context(), c)
		if err == nil || want != nil && !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", name, err, want)
		}
		if _, err := os.Stat(work); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: the work dir was left: %v", name, err)
		}
		return err
	}
	refused("a running member", etcd.ErrDataDirInUse, func(*Config) {})
	m.Kill(t)
	refused("an absent dir", etcd.ErrBadDatabase, func(c *Config) { c.DataDir += "-absent" })
	refused("relative", etcd.ErrConfig, func(c *Config) { c.WorkDir = "work" })
	err := refused("no room", syscall.ENOSPC, func(c *Config) { c.KeepFree = 1 << 60 })
	if !errors.Is(err, cluster.ErrPermanent) || !strings.Contains(err.Error(), "MiB") {
		t.Errorf("no room: %v", err)
	}
	err = refused("an etcd that ends", nil, func(c *Config) {
		c.Binary = process.Binary{Version: "3.6.0", Path: "/bin/sh", Args: []string{"-c", "echo 'no such luck' >&2; exit 3"}}
	})
	if !strings.Contains(err.Error(), "no such luck") || !strings.Contains(err.Error(), "exit status 3") {
		t.Errorf("its words are lost: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Run(ctx, Config{DataDir: m.Cfg.DataDir, WorkDir: work, Binary: m.Bin, SelfExe: self(t)}); !errors.Is(err, context.Canceled) {
		t.Errorf("canceled: %v", err)
	}
	// Its log is damaged in the middle.
	names, err := filepath.Glob(m.Cfg.DataDir + "/member/wal/*.wal")
	must(t, err)
	b, err := os.ReadFile(names[0])
	must(t, err)
	at := strings.Index(string(b), "/registry/pods/p00003")
	b[at] ^= 1
	must(t, os.WriteFile(names[0], b, 0o600))
	refused("a damaged log", etcd.ErrBadLog, func(*Config) {})
}

// TestSalvageDiesWithTheManager kills a manager in the middle of a salvage: its etcd goes with it, and the next attempt succeeds.
func TestSalvageDiesWithTheManager(t *testing.T) {
	m := startOne(t, "orphan")
	fillStore(t, m, 50)
	m.Kill(t)
	work := t.TempDir() + "/work"
	manager := exec.Command(self(t), "salvage-and-hang", m.Cfg.DataDir, work)
	must(t, manager.Start())
	defer manager.Wait()
	pid := 0
	eventually(t, "the helper holds its database", func() bool {
		p, held, err := etcd.DataDirHolder(work + "/data")
		pid = p
		return err == nil && held && p != manager.Process.Pid
	})
	must(t, manager.Process.Kill())
	eventually(t, "the helper is gone", func() bool {
		st, err := statOf(pid)
		return err != nil || st.State == "Z" || st.State == "X"
	})
	_, err := salvageOf(t, m, work)
	must(t, err)
}

func statOf(pid int) (procfs.ProcStat, error) {
	p, err := procfs.NewProc(pid)
	if err != nil {
		return procfs.ProcStat{}, err
	}
	return p.Stat()
}

// salvageAndHang is a manager that is killed in the middle of a salvage: its etcd never gets as far as answering.
func salvageAndHang(args []string) {
	self, err := os.Executable()
	if err != nil {
		os.Exit(1)
	}
	_, err = Run(context.Background(), Config{DataDir: args[0], WorkDir: args[1], SelfExe: self, Binary: process.Binary{Version: etcd.CompiledVersion, Path: self, Args: []string{"etcd-and-hang"}}})
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

// etcdAndHang holds the database as etcd does.
func etcdAndHang(args []string) {
	for _, a := range args {
		if dir, ok := strings.CutPrefix(a, "--data-dir="); ok {
			f, err := os.OpenFile(etcd.DBPath(dir), os.O_RDWR, 0)
			if err == nil {
				err = syscall.Flock(int(f.Fd()), syscall.LOCK_EX)
			}
			if err == nil {
				time.Sleep(time.Hour)
			}
		}
	}
	os.Exit(1)
}
