package datadir

import (
	"bytes"
	"errors"
	"os"
	"strings"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
)

// planned proves a snapshot and returns the configuration that uses the plan, on a copy that can be consumed.
func planned(t testing.TB, snap, dir string, m *testMember, plan database.StagePlan) (StageConfig, database.Facts) {
	t.Helper()
	cfg := StageConfig{
		SnapshotPath: dir + "/copy.db", Consume: true, PlanPath: dir + "/plan.json", SelfExe: self(t),
		DataDir: m.Cfg.DataDir, Name: m.Cfg.Name, InitialCluster: m.Cfg.InitialCluster, Token: m.Cfg.Token,
		BumpRevision: plan.BumpRevision, AtLeastRevision: plan.AtLeastRevision, MarkCompacted: plan.MarkCompacted,
		DropPrefixes: plan.DropPrefixes, TargetVersion: plan.TargetVersion,
	}
	copyFile(t, snap, cfg.SnapshotPath)
	f, err := database.Check(t.Context(), self(t), cfg.SnapshotPath, database.CheckOptions{SkipHash: true, Plan: &plan, PlanPath: cfg.PlanPath})
	must(t, err)
	return cfg, f
}

// TestPlannedStageIsTheSame stages three members, one by a plan in a process of its own, one by a plan in this one and one without, and starts
// them as one cluster.
func TestPlannedStageIsTheSame(t *testing.T) {
	src := startOne(t, "src")
	leaseID := fillStore(t, src, 300)
	snap := t.TempDir() + "/snap.db"
	save(t, src, snap)
	before, err := src.Client.Status(ctxOf(t))
	must(t, err)
	had, err := src.Client.Raw().Get(ctxOf(t), "/registry/", clientv3.WithPrefix())
	must(t, err)
	plan := database.StagePlan{
		BumpRevision: bump, AtLeastRevision: before.Revision + 5, MarkCompacted: true,
		DropPrefixes: [][]byte{[]byte("/registry/masterleases/")}, TargetVersion: etcd.CompiledVersion,
	}
	ms := makeMembers(t, 3, builtin(t), "new", nil, "127.0.0.1")
	var first database.StageResult
	for i, m := range ms {
		dir := t.TempDir()
		cfg, f := planned(t, snap, dir, m, plan)
		switch i {
		case 1:
			cfg.SelfExe = ""
		case 2:
			must(t, os.Remove(cfg.PlanPath))
		}
		res, err := Stage(t.Context(), cfg)
		must(t, err)
		if info, err := Inspect(m.Cfg.DataDir); err != nil || info.MemberID != res.MemberID || info.ClusterID != res.ClusterID || info.DBSize != res.SizeBytes {
			t.Errorf("member %d: %+v %v, staged %+v", i, info, err, res)
		}
		if p := f.Planned; p == nil || p.Hash != res.Hash || p.Revision != res.Revision || p.Keys != res.Keys || p.Dropped != 2 || f.Hash != (etcd.HashKV{}) || f.Revision != before.Revision {
			t.Errorf("member %d: planned %+v in %+v, staged %+v", i, p, f, res)
		}
		if i == 0 {
			first = res
		}
		res.MemberID, res.SizeBytes = first.MemberID, first.SizeBytes // the file may be larger by a page or two
		if res != first {
			t.Errorf("member %d: %+v, member 0: %+v", i, res, first)
		}
		must(t, verifyDir(m.Cfg.DataDir))
		again, err := database.Check(t.Context(), self(t), etcd.DBPath(m.Cfg.DataDir), database.CheckOptions{})
		if err != nil || again.Hash != res.Hash || again.Keys != res.Keys || again.Members != 3 || again.TrailingHash {
			t.Errorf("member %d: proof of what was staged: %+v %v", i, again, err)
		}
	}
	startAll(t, ms)
	for _, m := range ms {
		if h := liveHash(t, m, first.Revision); h != first.Hash {
			t.Errorf("%s: HashKV %+v, staging said %+v", m.Cfg.Name, h, first.Hash)
		}
	}
	list, err := ms[0].Client.Members(ctxOf(t), true)
	if err != nil || len(list) != 3 {
		t.Errorf("members %v %v", list, err)
	}
	checkRestored(t, ms[1], had, leaseID, before.Revision)
}

// TestPlanIsForOneFile: a plan that isn't for exactly this file and these options, or isn't whole, is as good as none.
func TestPlanIsForOneFile(t *testing.T) {
	src := startOne(t, "src")
	fillStore(t, src, 50)
	snap := t.TempDir() + "/snap.db"
	save(t, src, snap)
	plan := database.StagePlan{BumpRevision: bump, MarkCompacted: true, TargetVersion: etcd.CompiledVersion}
	const mark = 123456 // in the result of a plan that is recognizable
	rewrite := func(path string, change func(p *database.PlannedStage)) {
		f, err := os.Open(strings.TrimSuffix(path, "plan.json") + "copy.db")
		must(t, err)
		defer f.Close()
		id, err := database.Identify(f)
		must(t, err)
		p := database.ReadPlan(path, id, plan)
		if p == nil {
			t.Fatal("there is no plan")
		}
		p.Result.Leases = mark
		change(p)
		must(t, p.Write(path))
	}
	bytesOf := func(path string, change func(b []byte) []byte) {
		b, err := os.ReadFile(path)
		must(t, err)
		must(t, os.WriteFile(path, change(b), 0o600))
	}
	for name, c := range map[string]struct {
		used bool
		make func(c *StageConfig)
	}{
		"as it is":       {true, func(*StageConfig) {}},
		"another format": {false, func(c *StageConfig) { rewrite(c.PlanPath, func(p *database.PlannedStage) { p.Format++ }) }},
		"other options":  {false, func(c *StageConfig) { c.BumpRevision++ }},
		"other version":  {false, func(c *StageConfig) { c.TargetVersion = "3.5.26" }},
		"other keys":     {false, func(c *StageConfig) { c.DropPrefixes = [][]byte{[]byte("/x")} }},
		"one byte": {false, func(c *StageConfig) {
			bytesOf(c.PlanPath, func(b []byte) []byte { return bytes.Replace(b, []byte("123456"), []byte("123457"), 1) })
		}},
		"cut":     {false, func(c *StageConfig) { bytesOf(c.PlanPath, func(b []byte) []byte { return b[:len(b)/2] }) }},
		"empty":   {false, func(c *StageConfig) { bytesOf(c.PlanPath, func([]byte) []byte { return nil }) }},
		"absent":  {false, func(c *StageConfig) { c.PlanPath += "x" }},
		"touched": {false, func(c *StageConfig) { must(t, os.Chtimes(c.SnapshotPath, time.Now(), time.Unix(1, 0))) }},
		"changed": {false, func(c *StageConfig) {
			// Although its size and time are those from before.
			fi, err := os.Stat(c.SnapshotPath)
			must(t, err)
			bytesOf(c.SnapshotPath, func(b []byte) []byte { return b })
			must(t, os.Chtimes(c.SnapshotPath, fi.ModTime(), fi.ModTime()))
		}},
		"a copy": {false, func(c *StageConfig) {
			copyFile(t, c.SnapshotPath, c.SnapshotPath+"2")
			c.SnapshotPath += "2"
		}},
		"not moved": {false, func(c *StageConfig) { c.Consume = false }},
	} {
		t.Run(name, func(t *testing.T) {
			m := makeMembers(t, 1, builtin(t), "new", nil, "127.0.0.1")[0]
			cfg, f := planned(t, snap, t.TempDir(), m, plan)
			rewrite(cfg.PlanPath, func(*database.PlannedStage) {})
			c.make(&cfg)
			res, err := Stage(t.Context(), cfg)
			must(t, err)
			if (res.Leases == mark) != c.used {
				t.Errorf("plan used: %t", !c.used)
			}
			if !c.used && res.Leases != 1 || res.Revision != f.Planned.Revision && cfg.BumpRevision == bump {
				t.Errorf("staged %+v, planned %+v", res, f.Planned)
			}
		})
	}
}

func TestPlanningRefuses(t *testing.T) {
	src := startOne(t, "src")
	fillStore(t, src, 50)
	dir := t.TempDir()
	snap := dir + "/snap.db"
	save(t, src, snap)
	plan := database.StagePlan{BumpRevision: bump, MarkCompacted: true}
	prove := func(path string, skip bool, p database.StagePlan) error {
		_, err := database.Check(t.Context(), self(t), path, database.CheckOptions{SkipHash: skip, Plan: &p, PlanPath: dir + "/plan"})
		if _, serr := os.Stat(dir + "/plan"); err != nil && !errors.Is(serr, os.ErrNotExist) {
			t.Errorf("a plan was made: %v", serr)
		}
		return err
	}
	unsafe, half := plan, plan
	unsafe.TargetVersion, half.MarkCompacted = "3.5.1", false
	if err := prove(snap, true, unsafe); !errors.Is(err, etcd.ErrVersion) {
		t.Errorf("an unsafe version: %v", err)
	}
	if err := prove(snap, true, half); !errors.Is(err, etcd.ErrConfig) {
		t.Errorf("raised but not marked: %v", err)
	}
	far := plan
	far.AtLeastRevision = 1<<62 - 1
	if err := prove(snap, true, far); !errors.Is(err, etcd.ErrConfig) {
		t.Errorf("revision too high: %v", err)
	}
	// Written by an etcd that isn't known: found in the child, and told with the reason.
	future := dir + "/future.db"
	copyFile(t, snap, future)
	must(t, os.Truncate(future, fileSize(t, future)-etcd.HashSize))
	db, err := bolt.Open(future, 0o600, nil)
	must(t, err)
	must(t, db.Update(func(tx *bolt.Tx) error {
		return tx.Bucket([]byte("cluster")).Put([]byte("clusterVersion"), []byte("3.9.0"))
	}))
	must(t, db.Close())
	if err := prove(future, true, plan); !errors.Is(err, etcd.ErrVersion) || !strings.Contains(err.Error(), "3.9") {
		t.Errorf("a database from the future: %v", err)
	}
	// The hash is the caller's if it says so, the structure never.
	bad := dir + "/bad.db"
	b, err := os.ReadFile(snap)
	must(t, err)
	b[len(b)-1] ^= 1
	must(t, os.WriteFile(bad, b, 0o600))
	if err := prove(bad, false, plan); !errors.Is(err, etcd.ErrBadSnapshot) {
		t.Errorf("a wrong hash: %v", err)
	}
	if err := prove(bad, true, plan); err != nil {
		t.Errorf("a wrong hash that isn't looked at: %v", err)
	}
	must(t, os.Remove(dir+"/plan"))
	must(t, os.WriteFile(bad, append(b[:len(b)/4096*2048:len(b)/4096*2048], make([]byte, etcd.HashSize)...), 0o600))
	if err := prove(bad, true, plan); !errors.Is(err, etcd.ErrBadDatabase) {
		t.Errorf("half of it: %v", err)
	}
	if _, err := database.Check(t.Context(), self(t), snap, database.CheckOptions{Plan: &plan}); !errors.Is(err, etcd.ErrConfig) {
		t.Errorf("a plan without a place: %v", err)
	}
	if _, err := database.Check(t.Context(), self(t), snap, database.CheckOptions{Plan: &plan, PlanPath: dir + "/no/such/plan"}); !errors.Is(err, os.ErrNotExist) || errors.Is(err, etcd.ErrBadDatabase) {
		t.Errorf("a plan that can't be written: %v", err)
	}
	// A moved file whose hash is wrong and that has no plan.
	m := makeMembers(t, 1, builtin(t), "new", nil, "127.0.0.1")[0]
	copyFile(t, snap, bad)
	f, err := os.OpenFile(bad, os.O_RDWR, 0)
	must(t, err)
	_, err = f.WriteAt([]byte{1, 2, 3}, fileSize(t, bad)-5)
	must(t, errors.Join(err, f.Close()))
	_, err = Stage(t.Context(), StageConfig{SnapshotPath: bad, Consume: true, SelfExe: self(t), DataDir: m.Cfg.DataDir, Name: m.Cfg.Name, InitialCluster: m.Cfg.InitialCluster, Token: "new"})
	if !errors.Is(err, etcd.ErrBadSnapshot) {
		t.Errorf("staging a file with a wrong hash: %v", err)
	}
}

func fileSize(t testing.TB, path string) int64 {
	t.Helper()
	fi, err := os.Stat(path)
	must(t, err)
	return fi.Size()
}
