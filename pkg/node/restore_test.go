package node

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

const (
	backupName = "2026-01-30T01:02:03Z-000000"
	record     = `{"id":"op1"}`
)

// withBackup is a node whose cluster OLD has moved on since it was backed up.
func withBackup(t *testing.T) *node {
	t.Helper()
	n := newNode(t, "a")
	found("OLD", n)
	n.put("/data/a", "before")
	n.put("/drop/x", "before")
	if e := n.do(backupAction(backupName, "periodic")); e.GetBackup() != backupName {
		t.Fatalf("backup: %+v", e)
	}
	n.put("/data/a", "after")
	return n
}

// runTo brings the restore op1 of the backup to a phase.
func (n *node) runTo(last phase) {
	n.t.Helper()
	s := n.state("NEW")
	for _, step := range []struct {
		to  phase
		req *protosv1.PerformRequest
	}{
		{phaseProven, proveAction("op1", backupName)},
		{phaseStaged, stageAction("op1", backupName, s)},
		{phaseStopped, stopAction("op1", record)},
		{phaseSwitched, switchAction("op1", s)},
		{phaseHalted, haltAction("op1")},
	} {
		n.do(step.req)
		if step.to == phaseSwitched {
			n.healthy()
		}
		if step.to == last {
			return
		}
	}
}

// TestEveryPhaseSurvivesACrash kills the manager before and after every phase, and has each one carried out twice.
func TestEveryPhaseSurvivesACrash(t *testing.T) {
	n := withBackup(t)
	s := n.state("NEW")
	var staged *protosv1.Facts
	check := func(what string, ok bool) {
		t.Helper()
		if !ok {
			t.Errorf("%s: %+v", what, n.status())
		}
	}
	for _, step := range []struct {
		name string
		req  *protosv1.PerformRequest
		then func(e *protosv1.PerformEvent)
	}{
		{"prove", proveAction("op1", backupName), func(e *protosv1.PerformEvent) {
			f := e.GetFacts()
			check("proven", f.GetRevision() > 1 && f.GetKeys() == 2 && f.GetSizeBytes() > 0 && n.status().Operation == "op1")
			check("the plan lies with the snapshot", exists(n.l.stagePlan("op1")) && exists(n.l.snapshot("op1")))
		}},
		{"stage", stageAction("op1", backupName, s), func(e *protosv1.PerformEvent) {
			staged = e.GetFacts()
			d := n.staged()
			check("staged", staged.GetRevision() > bump && staged.GetKeys() == 1 && staged.GetSizeBytes() > 0)
			check("the status says so", d.Token == "NEW" && d.Revision == staged.GetRevision() && d.Hash == staged.GetHash() && d.SizeBytes == staged.GetSizeBytes() && !d.Switched)
			check("nothing is left in the staging area", !exists(n.l.staging("op1")))
			check("the old cluster serves", n.get("/data/a") == "after")
		}},
		{"stop", stopAction("op1", record), func(*protosv1.PerformEvent) {
			st := n.status()
			check("stopped", st.Holding && !st.Etcd.Running && string(st.OperationRecord) == record && !n.staged().Switched && st.State.Token == "OLD")
		}},
		{"switch", switchAction("op1", s), func(*protosv1.PerformEvent) {
			n.healthy()
			st := n.status()
			check("switched", !st.Holding && st.State.Token == "NEW" && n.staged().Switched && !n.staged().Halted && string(st.OperationRecord) == record)
			check("the restored data", n.get("/data/a") == "before" && n.get("/drop/x") == "")
		}},
		{"verify", verifyAction("op1"), func(e *protosv1.PerformEvent) {
			check("verified", e.GetFacts().GetHash() == staged.GetHash() && e.GetFacts().GetHash() != 0)
		}},
		{"discard", discardAction("op1"), func(*protosv1.PerformEvent) {
			check("discarded", n.status().Operation == "" && n.status().OperationRecord == nil && !exists(n.l.data("OLD")) && exists(n.l.trash("OLD")))
			eventually(t, "the trash can is told of", func() bool {
				tr := n.status().Trash
				return len(tr) == 1 && tr[0].Token == "OLD" && tr[0].SizeBytes > 0 && tr[0].RaftTerm > 0 && tr[0].RaftIndex > 3
			})
		}},
	} {
		e := n.do(step.req)
		step.then(e)
		n.restart()
		if step.name == "discard" {
			break // what is gone can't be looked at twice
		}
		if step.name == "switch" || step.name == "verify" {
			n.healthy()
		}
		step.then(n.do(step.req))
	}
	n.healthy()
	if got := n.get("/data/a"); got != "before" {
		t.Errorf("after everything /data/a is %q", got)
	}
	if n.status().Trash[0].RaftIndex == 0 {
		t.Errorf("the trash can after a restart: %+v", n.status().Trash)
	}
}

// TestCutBeforeTheJournal leaves what a manager leaves that is killed between the work of a phase and the journal's word of it.
func TestCutBeforeTheJournal(t *testing.T) {
	n := withBackup(t)
	s := n.state("NEW")
	begun := func(j *journal) { j.Operation.Phase = phaseBegun }

	proven := n.do(proveAction("op1", backupName)).GetFacts()
	n.crash()
	n.journalled(begun)
	// A half-written file and what nobody knows of.
	must(t, os.WriteFile(n.l.snapshot("op1")+".tmp", []byte("half"), 0o600))
	must(t, os.MkdirAll(n.l.staging("forgotten"), 0o700))
	must(t, os.MkdirAll(n.l.halfStaged("GONE"), 0o700))
	must(t, os.MkdirAll(filepath.Join(n.l.trashRoot(), doomedPrefix+"X", "member"), 0o700))
	must(t, os.WriteFile(n.l.trashNote("NEVER-CAME"), []byte("{}"), 0o600))
	// What was fetched is used again: with the store away nothing else could be.
	away := n.s.Store + ".away"
	must(t, os.Rename(filepath.Join(n.s.Store, backupName), away))
	n.start()
	e, phases, err := n.try(proveAction("op1", backupName))
	must(t, err)
	if got := e.GetFacts(); got.GetRevision() != proven.GetRevision() || got.GetHash() != proven.GetHash() || slices.Contains(phases, "fetch") {
		t.Errorf("proven again: %+v, phases %v; want %+v", got, phases, proven)
	}
	must(t, os.Rename(away, filepath.Join(n.s.Store, backupName)))
	eventually(t, "what belongs to nothing is gone", func() bool {
		return !exists(n.l.staging("forgotten")) && !exists(n.l.halfStaged("GONE")) && !exists(filepath.Join(n.l.trashRoot(), doomedPrefix+"X")) && !exists(n.l.trashNote("NEVER-CAME"))
	})

	// The snapshot was spoilt on disk: it is fetched again.
	n.crash()
	n.journalled(begun)
	spoil(t, n.l.snapshot("op1"))
	n.start()
	if got := n.do(proveAction("op1", backupName)).GetFacts(); got.GetHash() != proven.GetHash() {
		t.Errorf("proven after damage: %+v, want %+v", got, proven)
	}

	// Killed in the middle of the staging: the snapshot was moved already.
	n.crash()
	n.journalled(func(j *journal) { j.Operation.Token = "NEW" })
	must(t, os.MkdirAll(filepath.Join(n.l.halfStaged("NEW"), "member", "snap"), 0o700))
	must(t, os.Rename(n.l.snapshot("op1"), filepath.Join(n.l.halfStaged("NEW"), "member", "snap", "db")))
	n.start()
	staged := n.do(stageAction("op1", backupName, s)).GetFacts()
	if exists(n.l.halfStaged("NEW")) || staged.GetRevision() != proven.GetRevision()+1+bump {
		t.Errorf("staged %+v from %+v", staged, proven)
	}

	// Killed behind the staging.
	n.crash()
	n.journalled(func(j *journal) {
		j.Operation.Phase, j.Operation.Revision, j.Operation.Hash, j.Operation.SizeBytes = phaseProven, 0, 0, 0
	})
	n.start()
	if got := n.do(stageAction("op1", backupName, s)).GetFacts(); got.GetRevision() != staged.GetRevision() || got.GetHash() != staged.GetHash() || got.GetSizeBytes() != staged.GetSizeBytes() {
		t.Errorf("staged again: %+v, want %+v", got, staged)
	}
	n.do(discardAction("op1"))
	if got := names(n.l.dataRoot()); !slices.Equal(got, []string{"OLD"}) || exists(n.l.staging("op1")) {
		t.Errorf("after discard the data are %v", got)
	}
	if n.get("/data/a") != "after" {
		t.Error("the cluster was touched")
	}
}

// spoil changes a byte in the middle of a file.
func spoil(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	must(t, err)
	defer f.Close()
	fi, err := f.Stat()
	must(t, err)
	b := make([]byte, 1)
	_, err = f.ReadAt(b, fi.Size()/2)
	must(t, err)
	b[0] ^= 0x10
	_, err = f.WriteAt(b, fi.Size()/2)
	must(t, err)
}

func TestHaltAndBack(t *testing.T) {
	n := withBackup(t)
	n.runTo(phaseHalted)
	n.do(haltAction("op1"))
	for range 2 {
		st, d := n.status(), n.staged()
		if !st.Holding || st.Etcd.Running || !d.Switched || !d.Halted || d.Written || st.State.Token != "NEW" || string(st.OperationRecord) != record {
			t.Fatalf("halted: %+v", st)
		}
		n.restart()
	}
	// It can go forward again, also twice.
	n.do(switchAction("op1", n.state("NEW")))
	n.do(switchAction("op1", n.state("NEW")))
	n.healthy()
	if st, d := n.status(), n.staged(); st.Holding || !d.Switched || d.Halted {
		t.Fatalf("switched again: %+v", st)
	}
	// A rollback halts by itself.
	n.do(rollbackAction("op1"))
	n.do(rollbackAction("op1"))
	n.healthy()
	if st := n.status(); st.Holding || st.State.Token != "OLD" || len(st.Staged) != 0 || n.get("/data/a") != "after" {
		t.Fatalf("rolled back: %+v", st)
	}
	// Neither is taken for more than it says.
	n.do(haltAction("op1"))
	if _, _, err := n.try(stopAction("op1", record)); err == nil {
		t.Error("a restore that was taken back stopped etcd")
	}
	n.do(discardAction("op1"))
	if got := names(n.l.dataRoot()); !slices.Equal(got, []string{"OLD"}) {
		t.Errorf("after discard the data are %v", got)
	}
}

// TestNoWayBackFromWrites: what a client was told is written isn't taken away.
func TestNoWayBackFromWrites(t *testing.T) {
	n := withBackup(t)
	n.runTo(phaseSwitched)
	n.put("/data/new", "acknowledged")
	n.refused(rollbackAction("op1"), "clients have written")
	st, d := n.status(), n.staged()
	if !st.Holding || !d.Halted || !d.Written || st.State.Token != "NEW" {
		t.Fatalf("after the refusal: %+v", st)
	}
	n.restart()
	n.do(haltAction("op1"))
	n.refused(rollbackAction("op1"), "clients have written")
	n.do(switchAction("op1", n.state("NEW")))
	n.healthy()
	if n.get("/data/new") != "acknowledged" || n.get("/data/a") != "before" {
		t.Error("the restored data aren't what they were")
	}
	if e := n.do(verifyAction("op1")); e.GetFacts().GetHash() != n.staged().Hash {
		t.Errorf("verify beside later writes: %+v", e)
	}
}

// TestEtcdThatOutlivedItsStop: the manager was killed between the journal's "stop" and the stop itself.
func TestEtcdThatOutlivedItsStop(t *testing.T) {
	n := withBackup(t)
	n.runTo(phaseStaged)
	n.crash()
	old, err := encodeState(n.state("OLD"))
	must(t, err)
	n.journalled(func(j *journal) { j.Operation.Phase, j.Operation.Old = phaseStopped, old })
	pid := n.etcdPID()
	if pid == 0 {
		t.Fatal("etcd has ended with its manager")
	}
	n.start()
	eventually(t, "the etcd that should be stopped has ended", func() bool { return n.etcdPID() == 0 })
	if st := n.status(); !st.Holding || st.Etcd.Running {
		t.Errorf("status: %+v", st)
	}
	n.do(switchAction("op1", n.state("NEW")))
	n.healthy()
	n.put("/data/new", "acknowledged")
	n.crash()
	n.journalled(func(j *journal) { j.Operation.Phase = phaseHalting })
	n.start()
	eventually(t, "the etcd that should be halted has ended", func() bool { return n.etcdPID() == 0 })
	// That it isn't known yet what clients did isn't told as "they have not written".
	if st := n.status(); !st.Holding || n.staged().Halted {
		t.Errorf("status: %+v", st)
	}
	n.do(haltAction("op1"))
	if d := n.staged(); !d.Halted || !d.Written {
		t.Errorf("halted: %+v", d)
	}
}

// TestSwitchWhereNothingRan: a node without a cluster needs no stop; a switch that is cut in the middle is a switch.
func TestSwitchWhereNothingRan(t *testing.T) {
	from := withBackup(t)
	n := newNode(t, "b", func(s *setup) { s.Store = from.s.Store })
	n.runTo(phaseStaged)
	n.crash()
	must(t, writeState(n.l.state(), n.state("NEW")))
	n.start()
	n.healthy()
	if st, d := n.status(), n.staged(); st.Holding || !d.Switched {
		t.Errorf("cut switch: %+v", st)
	}
	n.do(switchAction("op1", n.state("NEW")))
	if n.get("/data/a") != "before" {
		t.Error("the restored data aren't there")
	}
	n.do(rollbackAction("op1"))
	if st := n.status(); st.State != nil || st.Etcd.Running || exists(n.l.state()) {
		t.Errorf("rolled back to nothing: %+v", st)
	}
	n.do(discardAction("op1"))
	if got := names(n.l.dataRoot()); len(got) != 0 {
		t.Errorf("after discard the data are %v", got)
	}
}

func TestVerifyFindsADifference(t *testing.T) {
	n := withBackup(t)
	n.runTo(phaseSwitched)
	hash := n.staged().Hash
	n.crash()
	n.journalled(func(j *journal) { j.Operation.Hash++ })
	n.start()
	n.healthy()
	n.refused(verifyAction("op1"), fmt.Sprint(hash), fmt.Sprint(hash+1))
	n.crash()
	n.journalled(func(j *journal) { j.Operation.Revision += 100 })
	n.start()
	n.healthy()
	n.refused(verifyAction("op1"), fmt.Sprint(hash+1), fmt.Sprint(n.staged().Revision))
	// After a later compaction there is nothing to compare, which is no difference.
	n.crash()
	n.journalled(func(j *journal) { j.Operation.Revision -= 100 })
	n.start()
	n.healthy()
	n.put("/data/b", "1")
	must(t, n.client().Compact(n.ctx(), n.staged().Revision+1, true))
	if e := n.do(verifyAction("op1")); e.GetFacts().GetHash() != 0 || e.GetFacts().GetRevision() != n.staged().Revision {
		t.Errorf("verify after a compaction: %+v", e)
	}
	n.do(haltAction("op1"))
	if _, _, err := n.try(verifyAction("op1")); status.Code(err) != codes.Unavailable {
		t.Errorf("verify of what is halted: %v", err)
	}
}

// TestRefusedBeforeTheFetch: what can be known without the data is said before they are fetched, and nothing stays behind.
func TestRefusedBeforeTheFetch(t *testing.T) {
	from := withBackup(t)
	n := newNode(t, "a", func(s *setup) { s.Store, s.Cluster = from.s.Store, "other" })
	n.refused(proveAction("op1", backupName), `"test"`, `"other"`, "--force-foreign")
	if exists(n.l.snapshot("op1")) {
		t.Error("the backup of another cluster was fetched")
	}
	forced := proveAction("op1", backupName)
	forced.GetProve().ForceForeign = true
	n.do(forced)
	n.do(stageAction("op1", backupName, n.state("NEW")))
	n.do(discardAction("op1"))

	n.s.Cluster = "other"
	missing := proveAction("op2", backupName)
	missing.GetProve().ForceForeign, missing.GetProve().EtcdVersion = true, "3.5.21"
	n.refused(missing, "3.5.21", "this node can run "+etcd.CompiledVersion)
	n.refused(proveAction("op2", "2020-01-01T00:00:00Z-000000"), "2020-01-01T00:00:00Z-000000", "exist")
	n.do(discardAction("op2"))
	if exists(n.l.staging("op2")) || n.status().Operation != "" {
		t.Error("something is left")
	}
}

// TestBadBackupLeavesNothing: a backup that was spoilt in the store is refused with the reason, for good, and takes no room.
func TestBadBackupLeavesNothing(t *testing.T) {
	n := withBackup(t)
	spoil(t, filepath.Join(n.s.Store, backupName, "etcd.backup.gz"))
	n.refused(proveAction("op1", backupName), backupName)
	if exists(n.l.staging("op1")) {
		t.Error("the staging area isn't empty")
	}
	if n.get("/data/a") != "after" {
		t.Error("the cluster was touched")
	}
}

// TestTooBigForTheDisk needs a small file system.
func TestTooBigForTheDisk(t *testing.T) {
	from := withBackup(t)
	dir := t.TempDir()
	if err := unix.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", headroom)); err != nil {
		t.Skipf("a small file system is needed, and can't be mounted here: %v", err)
	}
	t.Cleanup(func() { must(t, unix.Unmount(dir, unix.MNT_DETACH)) })
	n := newNode(t, "b", func(s *setup) { s.Store, s.Dir = from.s.Store, dir })
	n.refused(proveAction("op1", backupName), "MiB", dir, "make room")
	// Without a manifest it is only found out on the way.
	manifest := filepath.Join(n.s.Store, backupName, "_etcd_manager_manifest.json")
	must(t, os.Rename(manifest, manifest+".away"))
	n.refused(proveAction("op1", backupName), "MiB", dir)
	if exists(n.l.staging("op1")) {
		t.Error("the staging area isn't empty")
	}
	// With enough room for the proof, and then too little for the staging or the start.
	must(t, unix.Mount("tmpfs", dir, "tmpfs", unix.MS_REMOUNT, fmt.Sprintf("size=%d", headroom+16<<20)))
	n.do(proveAction("op1", backupName))
	fill := filepath.Join(dir, "fill")
	must(t, os.WriteFile(fill, make([]byte, 20<<20), 0o600))
	n.refused(stageAction("op1", backupName, n.state("NEW")), "MiB", dir)
	must(t, os.Remove(fill))
	n.do(proveAction("op1", backupName))
	n.do(stageAction("op1", backupName, n.state("NEW")))
	must(t, os.WriteFile(fill, make([]byte, diskFree(dir)-startRoom+4096), 0o600))
	n.refused(stopAction("op1", record), "MiB", dir, "isn't stopped")
	if n.status().Holding {
		t.Error("etcd is held although the restored one couldn't start")
	}
	must(t, os.Remove(fill))
	n.do(stopAction("op1", record))
	n.do(switchAction("op1", n.state("NEW")))
	n.healthy()
}

// TestOldJournal: a journal from before the newer fields is read as it was meant.
func TestOldJournal(t *testing.T) {
	path := filepath.Join(t.TempDir(), "journal.json")
	must(t, os.WriteFile(path, []byte(`{"version":1,"clusterName":"test","term":4,"leader":"b",
		"operation":{"id":"op1","phase":"stopped","token":"NEW","old":"AA==","revision":7,"hash":9,"keys":1,"backup":"x"}}`), 0o600))
	j, err := readJournal(path, "test")
	must(t, err)
	op := j.Operation
	if j.Term != 4 || op == nil || !op.Phase.held() || op.Token != "NEW" || op.SizeBytes != 0 || op.Written || op.Record != nil {
		t.Errorf("read %+v %+v", j, op)
	}
}

// TestVerifyOtherVersions compares with etcds of every minor version, beside later writes.
func TestVerifyOtherVersions(t *testing.T) {
	testutil.Long(t) // starts etcds of other versions
	from := withBackup(t)
	for _, name := range []string{"etcd-3.4", "etcd-3.5", "etcd-3.7"} {
		t.Run(name, func(t *testing.T) {
			root, version := installed(t, name)
			n := newNode(t, "b", func(s *setup) { s.Store, s.Roots = from.s.Store, []string{root} })
			s := n.state("NEW")
			s.EtcdVersion = version
			p := proveAction("op1", backupName)
			p.GetProve().EtcdVersion = version
			n.do(p)
			staged := n.do(stageAction("op1", backupName, s)).GetFacts()
			n.do(switchAction("op1", s))
			n.healthy()
			if got := n.status().Etcd.Version; got != version {
				t.Fatalf("etcd is %s, want %s", got, version)
			}
			if got := n.do(verifyAction("op1")).GetFacts(); got.GetHash() != staged.GetHash() {
				t.Errorf("verify: %+v, want %+v", got, staged)
			}
			n.put("/data/b", "1")
			want := staged.GetHash()
			if strings.HasPrefix(version, "3.4.") {
				want = 0 // it can't be asked any more
			}
			if got := n.do(verifyAction("op1")).GetFacts(); got.GetHash() != want {
				t.Errorf("verify beside a later write: %+v, want hash %d", got, want)
			}
			n.do(haltAction("op1"))
			if !n.staged().Written {
				t.Error("the write isn't seen in the log")
			}
		})
	}
}

// installed makes a directory with an etcd in it as images have it.
func installed(t *testing.T, name string) (root, version string) {
	t.Helper()
	path := servers.Binary(t, name)
	out, err := exec.Command(path, "--version").Output()
	must(t, err)
	m := regexp.MustCompile(`etcd Version: (\S+)`).FindStringSubmatch(string(out))
	if m == nil {
		t.Fatalf("%s --version says %s", path, out)
	}
	root = t.TempDir()
	dir := filepath.Join(root, "etcd-v"+m[1])
	must(t, os.MkdirAll(dir, 0o755))
	must(t, os.Symlink(path, filepath.Join(dir, "etcd")))
	return root, m[1]
}
