package node

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// withStore is an agent that doesn't run, with a store that can fail.
func withStore(t *testing.T) (*Agent, *blobtest.Faulty) {
	t.Helper()
	store := blobtest.NewFaulty(blobtest.NewMemory())
	cfg := testConfig(t.TempDir())
	cfg.Catalog = catalog.New(store)
	a, err := New(cfg)
	must(t, err)
	t.Cleanup(func() { a.lock.Close() })
	return a, store
}

// setAsideSince puts an entry into the trash can as if it had been done then.
func setAsideSince(t *testing.T, a *Agent, token cluster.Token, since time.Time) {
	t.Helper()
	makeLog(t, a.l, token)
	must(t, os.WriteFile(filepath.Join(a.l.memberDir(token), "some"), make([]byte, 1<<20), 0o600))
	entry := string(token)
	if exists(a.l.trash(token)) {
		entry += ".2"
	}
	must(t, a.l.discardDir(token, trashNote{EtcdVersion: "3.6.16", Members: 3}))
	must(t, a.l.writeNote(entry, trashNote{Token: token, EtcdVersion: "3.6.16", Since: since}))
}

// putBackup makes a backup as the writer does, as far as the catalog tells.
func putBackup(t *testing.T, c *catalog.Catalog, started time.Time, change func(*catalog.Manifest)) {
	t.Helper()
	name := catalog.NewBackupName(started, nil)
	_, err := c.PutBackupData(t.Context(), name, catalog.DataFile, strings.NewReader("data"))
	must(t, err)
	sum := strings.Repeat("0123456789abcdef", 4)
	m := &catalog.Manifest{Backup: name, ClusterName: "test", Raw: catalog.Digest{Size: 512, SHA256: sum},
		Stored: catalog.Digest{Size: 4, SHA256: sum}, Compression: "gzip", Started: started, Finished: started}
	if change != nil {
		change(m)
	}
	if m.Backup != "" {
		must(t, c.PutManifest(t.Context(), m))
	}
	must(t, c.CommitBackup(t.Context(), name, catalog.BackupInfo{EtcdVersion: "3.6.16", Time: started}))
}

func tokens(a *Agent) []string {
	items, _ := a.l.trashItems()
	var list []string
	for _, it := range items {
		list = append(list, string(it.note.Token))
	}
	return list
}

func TestTrashBounds(t *testing.T) {
	a, store := withStore(t)
	now := time.Now()
	day := 24 * time.Hour
	for i, age := range []time.Duration{9 * day, 8 * day, 3 * day, 2 * day, day} {
		setAsideSince(t, a, cluster.Token(fmt.Sprintf("T%d", i)), now.Add(-age))
	}
	all := []string{"T4", "T3", "T2", "T1", "T0"}
	step := func(what string, want ...string) {
		t.Helper()
		a.trash.empty(t.Context())
		if got := tokens(a); !slices.Equal(got, want) {
			t.Fatalf("%s: the trash can has %v, want %v", what, got, want)
		}
	}
	step("no backup at all", all...)
	putBackup(t, a.cfg.Catalog, now.Add(-20*day), nil)
	step("only an older backup", all...)
	putBackup(t, a.cfg.Catalog, now.Add(-5*time.Hour), func(m *catalog.Manifest) { m.Backup = "" })
	putBackup(t, a.cfg.Catalog, now.Add(-4*time.Hour), func(m *catalog.Manifest) { m.ClusterName = "other" })
	putBackup(t, a.cfg.Catalog, now.Add(-3*time.Hour), func(m *catalog.Manifest) { m.Stored.Size = 5 })
	step("newer ones without a manifest, of another cluster, and cut short", all...)
	putBackup(t, a.cfg.Catalog, now.Add(-2*time.Hour), nil)
	for _, op := range []string{"list", "get"} {
		away := store.Add(blobtest.Fault{Op: op, Err: blobtest.Transient(op, "")})
		step("the store is away", all...)
		away()
	}
	a.trash.pinned = a.l.trash("T1")
	step("one is being salvaged", "T4", "T3", "T2", "T1")
	a.trash.pinned = ""
	step("a newer backup", "T4", "T3", "T2")

	a.cfg.TrashAge = 36 * time.Hour
	step("older than the age", "T4")
	setAsideSince(t, a, "T5", now.Add(-time.Hour))
	a.cfg.KeepTrash, a.cfg.TrashAge = 1, time.Minute
	step("older than both, and newer than every backup", "T5")
	calls := len(store.Calls())
	a.cfg.TrashAge = day
	step("within bounds", "T5")
	if n := len(store.Calls()) - calls; n != 0 {
		t.Errorf("the store was asked %d times although nothing is beyond the bounds", n)
	}
	if got := names(a.l.trashRoot()); !slices.Equal(got, []string{".T5.json", "T5"}) {
		t.Errorf("the trash can has the files %v", got)
	}
}

// TestTrashNeverServed: data of attempts to form that were given up fill no disk where there is no backup yet, and what may have served stays.
func TestTrashNeverServed(t *testing.T) {
	a, _ := withStore(t)
	a.cfg.KeepTrash = 2
	now := time.Now()
	for i, age := range []time.Duration{5, 4, 3, 2, 1} {
		token := cluster.Token(fmt.Sprintf("T%d", i))
		setAsideSince(t, a, token, now.Add(-age*time.Hour))
		must(t, a.l.writeNote(string(token), trashNote{Token: token, Since: now.Add(-age * time.Hour), NeverServed: i != 1}))
	}
	if !a.trash.empty(t.Context()) {
		t.Error("nothing was removed")
	}
	if got := tokens(a); !slices.Equal(got, []string{"T4", "T3", "T1"}) {
		t.Errorf("the trash can has %v; want the two newest, and the one that may have served", got)
	}
}

// TestSetAsideNeverServed: only what the node itself knows as a quarantined founder's data is noted as such.
func TestSetAsideNeverServed(t *testing.T) {
	for _, founder := range []bool{true, false} {
		a, _ := withStore(t)
		must(t, a.records.accept(&cluster.EtcdState{Token: "T1", EtcdVersion: "3.6.16", NewCluster: true, Quarantined: founder},
			&protosv1.StartEtcd{MayBeEmpty: true}))
		makeLog(t, a.l, "T1")
		must(t, a.setAside(t.Context(), &protosv1.SetAside{Token: "T1", Reason: "test", NeverServed: true}))
		items, err := a.l.trashItems()
		must(t, err)
		if len(items) != 1 || items[0].note.NeverServed != founder || items[0].note.EtcdVersion != "3.6.16" {
			t.Errorf("quarantined %t: %+v", founder, items)
		}
	}
}

// TestTrashBytes: on a disk of 16 MiB the trash can takes a quarter at most, and less if etcd needs the room, however many entries may
// be kept by number and age. The newest one stays while etcd can go on beside it, and nothing goes before there is a newer backup.
func TestTrashBytes(t *testing.T) {
	const mib = 1 << 20
	dir := t.TempDir()
	if err := syscall.Mount("tmpfs", dir, "tmpfs", 0, fmt.Sprintf("size=%d", 16*mib)); err != nil {
		t.Skipf("no small disk can be mounted here: %v", err)
	}
	t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
	cfg := testConfig(dir)
	cfg.Catalog, cfg.KeepTrash, cfg.TrashAge = catalog.New(blobtest.NewMemory()), 100, 365*24*time.Hour
	a, err := New(cfg)
	must(t, err)
	t.Cleanup(func() { a.lock.Close() })
	now := time.Now()
	hour := 9
	add := func(token cluster.Token) {
		setAsideSince(t, a, token, now.Add(-time.Duration(hour)*time.Hour))
		hour--
	}
	filler := filepath.Join(dir, "filler")
	others := func(size int) {
		must(t, os.WriteFile(filler, make([]byte, size), 0o600))
		a.disk.look("", 0)
	}
	step := func(what string, want ...string) {
		t.Helper()
		a.trash.empty(t.Context())
		if got := tokens(a); !slices.Equal(got, want) {
			t.Fatalf("%s: the trash can has %v, want %v", what, got, want)
		}
	}
	others(0)
	for _, token := range []cluster.Token{"T0", "T1", "T2", "T3", "T4", "T5"} {
		add(token)
	}
	step("no backup", "T5", "T4", "T3", "T2", "T1", "T0")
	putBackup(t, a.cfg.Catalog, now.Add(-time.Minute), nil)
	step("a quarter of the disk is 4 MiB", "T5", "T4", "T3", "T2")
	add("T2")
	step("a second one of a token", "T2", "T5", "T4", "T3")
	others(9*mib - mib/2)
	step("etcd needs 4 MiB free", "T2", "T5", "T4")
	others(12*mib + mib/2)
	step("etcd can go on beside the newest", "T2")
	others(15*mib - mib/2)
	step("the disk is about to be full")
}

// TestTrashOfOtherTools: entries without a note have the age of their directory, and etcd's directory gets no foreign files.
func TestTrashOfOtherTools(t *testing.T) {
	a, _ := withStore(t)
	since := time.Now().Add(-time.Hour).Truncate(time.Second)
	for _, name := range []string{"OTHER", "OTHER.2"} {
		dir := filepath.Join(a.l.trashRoot(), name)
		must(t, os.MkdirAll(filepath.Join(dir, "member"), 0o700))
		must(t, os.Chtimes(dir, since, since))
	}
	a.trash.look()
	s := a.Status(t.Context()).Trash
	if len(s) != 2 || s[0].Token != "OTHER" || s[1].Token != "OTHER" || !s[0].Since.Equal(since) {
		t.Errorf("status: %+v", s)
	}
	if got := names(a.l.trashRoot()); !slices.Equal(got, []string{"OTHER", "OTHER.2"}) {
		t.Errorf("the trash can has the files %v", got)
	}
}

// TestNewestOfAToken: of several data dirs of one cluster the one with the longest log is taken, whenever it was set aside.
func TestNewestOfAToken(t *testing.T) {
	a, _ := withStore(t)
	for i, n := range []trashNote{{RaftTerm: 2, RaftIndex: 10}, {RaftTerm: 3, RaftIndex: 7}, {RaftTerm: 3, RaftIndex: 6}} {
		makeLog(t, a.l, "T")
		must(t, a.l.discardDir("T", trashNote{EtcdVersion: "3.6.16", Members: 3}))
		name := []string{"T", "T.2", "T.3"}[i]
		n.Token, n.Since = "T", time.Now().Add(time.Duration(i)*time.Hour)
		must(t, a.l.writeNote(name, n))
	}
	if it, err := a.trash.newestOf("T"); err != nil || it.name != "T.2" {
		t.Errorf("got %+v, %v", it, err)
	}
}

// TestTrashAndWrongDates: neither a bad backup nor one that is dated ahead frees anything, and an entry that is dated ahead is as old as
// its first look.
func TestTrashAndWrongDates(t *testing.T) {
	a, _ := withStore(t)
	now := time.Now()
	day := 24 * time.Hour
	setAsideSince(t, a, "old", now.Add(-8*day))
	bad := catalog.NewBackupName(now.Add(-day), nil)
	putBackup(t, a.cfg.Catalog, now.Add(-day), nil)
	must(t, a.cfg.Catalog.PutProof(t.Context(), bad, catalog.Proof{Outcome: catalog.Disproven}))
	if a.trash.empty(t.Context()); !slices.Equal(tokens(a), []string{"old"}) {
		t.Errorf("a bad backup has freed the trash can: %v", tokens(a))
	}
	setAsideSince(t, a, "ahead", now.Add(365*day))
	if got := tokens(a); !slices.Equal(got, []string{"ahead", "old"}) {
		t.Errorf("entries %v", got)
	}
	setAsideSince(t, a, "new", time.Now())
	if got := tokens(a); !slices.Equal(got, []string{"new", "ahead", "old"}) {
		t.Errorf("one that was dated ahead comes before one that was set aside later: %v", got)
	}
	a.cfg.KeepTrash = 2
	putBackup(t, a.cfg.Catalog, now.Add(364*day), nil) // the store had it now
	if a.trash.empty(t.Context()); !slices.Equal(tokens(a), []string{"new", "ahead"}) {
		t.Errorf("a good backup, dated ahead, that is newer than the entry: %v", tokens(a))
	}
	a.cfg.KeepTrash = 0
	setAsideSince(t, a, "newest", time.Now().Add(time.Minute))
	if a.trash.empty(t.Context()); !slices.Contains(tokens(a), "newest") {
		t.Errorf("a backup that is dated ahead has freed what was set aside after it: %v", tokens(a))
	}
}
