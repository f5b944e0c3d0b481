package manager

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	"github.com/etcd-manager/etcd-manager/pkg/plan/safety"
)

// badContent is what makes an object unusable.
var badContent = map[string]string{
	"empty": "", "damaged": "{\"version\":1,", "too large": strings.Repeat("x", 2<<20),
	"newer": `{"version":99,"timestamp":1,"state":"x","phase":"x"}`,
}

// TestOneBadObject: an object below control/ that can't be used, for whichever reason, is named. All else is read and obeyed, as far as it
// is safe without that object. What was read of it before still counts, and it is read again until it can be used.
func TestOneBadObject(t *testing.T) {
	for object, x := range map[string]struct {
		key string
		// check says what is wrong; before is true if the object could be read at first.
		check func(l *leadership, before bool) string
	}{
		"marker": {"control/etcd-cluster-created", func(l *leadership, before bool) string {
			m := l.known().Marker
			if m.Phase != model.MarkerFormed || before && m.Token != "tok" {
				return fmt.Sprintf("the marker counts as %+v", m)
			}
			return ready(l, 1, true)
		}},
		"leader": {"control/leader", func(l *leadership, _ bool) string {
			if !l.record.since.IsZero() {
				return "a leader that nobody knows counts as gone"
			}
			return ready(l, 1, true)
		}},
		"operation": {"control/operations/2026-01-29T01:02:03Z-000000.json", func(l *leadership, _ bool) string {
			return ready(l, 1, false) // it may be a restore that is under way
		}},
		"spec": {"control/etcd-cluster-spec", func(l *leadership, before bool) string {
			if v := l.known(); v.SpecError == "" || (v.Spec != nil) != before || before && v.Spec.MemberCount != 3 {
				return fmt.Sprintf("the spec counts as %+v: %s", v.Spec, v.SpecError)
			}
			return ready(l, 1, true)
		}},
		"settings": {"control/etcd-cluster-settings.json", func(l *leadership, before bool) string {
			if v := l.known(); v.SettingsError == "" || (v.Settings["heartbeat-interval"] == "100") != before {
				return fmt.Sprintf("the settings count as %v: %s", v.Settings, v.SettingsError)
			}
			return ready(l, 1, true)
		}},
		"command": {"control/COMMAND/_command.json", func(l *leadership, _ bool) string {
			return ready(l, 0, false)
		}},
	} {
		for _, before := range []bool{false, true} {
			name := fmt.Sprintf("%s read before %t ", object, before)
			for kind, content := range badContent {
				if object == "spec" && kind == "newer" {
					continue // it is written as by others, without a version
				}
				t.Run(name+kind, func(t *testing.T) {
					b := newBadObject(t, x.key)
					b.spoil(before, content, nil)
					b.check(object, func(l *leadership) string { return x.check(l, before) })
				})
			}
			t.Run(name+"denied", func(t *testing.T) {
				b := newBadObject(t, x.key)
				b.spoil(before, b.content, blobtest.Denied("get", b.key, "s3:GetObject"))
				b.check(object, func(l *leadership) string { return x.check(l, before) })
			})
		}
	}
}

// badObject is a store with an object that can't be used.
type badObject struct {
	t       *testing.T
	store   *blobtest.Faulty
	key     string
	content string // the right one
	l       *leadership
}

func newBadObject(t *testing.T, key string) *badObject {
	t.Helper()
	m := blobtest.NewMemory()
	fill(t, m)
	list, err := catalog.New(m).ControlListing(t.Context())
	must(t, err)
	b := &badObject{t: t, store: blobtest.NewFaulty(m), key: strings.ReplaceAll(key, "COMMAND", list.Commands[0].Name)}
	data, _, err := blob.ReadAll(t.Context(), m, b.key, 1<<20)
	must(t, err)
	b.content, b.l = string(data), leads(t, b.store)
	return b
}

func (b *badObject) put(content string) {
	b.t.Helper()
	_, err := b.store.Store.Put(b.t.Context(), b.key, strings.NewReader(content), blob.PutOptions{})
	must(b.t, err)
}

func (b *badObject) read() {
	b.l.forceStore()
	b.l.readStore(b.t.Context())
}

// spoil makes the object unusable by its content, or by an error of those who read it; before that it is read if before is true.
func (b *badObject) spoil(before bool, content string, denied error) {
	b.t.Helper()
	if before {
		b.read()
	}
	b.put(content)
	if denied != nil {
		b.store.Add(blobtest.Fault{Op: "get", Match: func(k string) bool { return k == b.key }, Err: denied})
	}
	b.read()
}

func (b *badObject) check(object string, check func(*leadership) string) {
	t, l := b.t, b.l
	t.Helper()
	v := l.known()
	if v.Error != "" || v.Spec == nil && object != "spec" || v.Settings == nil && object != "settings" {
		t.Fatalf("the store counts as away, or isn't read: %q, %+v", v.Error, v)
	}
	if said := named(v); !strings.Contains(said, b.key) {
		t.Errorf("the object isn't named: %q", said)
	}
	if wrong := check(l); wrong != "" {
		t.Error(wrong)
	}
	if why := safety.Check(&model.Observation{Self: "a", Term: 4, Store: v}, model.CreateMarker{}, model.Policy{}); why == nil {
		t.Error("a cluster may be formed")
	}
	// Once the object is right again nothing is left of it. One that may be read again hasn't changed.
	b.store.Heal()
	if data, _, err := blob.ReadAll(t.Context(), b.store.Store, b.key, 4<<20); err != nil || string(data) != b.content {
		b.put(b.content)
	}
	b.read()
	v = l.known()
	if named(v) != "" || v.Error != "" || v.Marker.Token != "tok" || v.Spec == nil || v.Settings["heartbeat-interval"] != "100" ||
		ready(l, 1, true) != "" {
		t.Errorf("after the repair: %+v", v)
	}
}

// named is all that the leader says of objects that can't be used.
func named(s model.Store) string {
	return strings.Join(s.ObjectErrors, "") + s.HolderError + s.SpecError + s.SettingsError + strings.Join(s.CommandErrors, "")
}

// ready says what is wrong if there aren't n commands, each ready or not.
func ready(l *leadership, n int, want bool) string {
	s := l.known()
	if len(s.Commands) != n || n > 0 && s.Commands[0].Ready != want {
		return fmt.Sprintf("the commands are %+v; want %d that are ready: %t", s.Commands, n, want)
	}
	return ""
}

// TestOneBadManifest: a backup whose manifest can't be used isn't the newest good one, and isn't verified next; the one before it is. One
// that may not be read is named, since nobody can tell what it says.
func TestOneBadManifest(t *testing.T) {
	const older, newer = "2026-01-30T01:02:03Z-000000", "2026-01-30T02:02:03Z-000000"
	now := time.Date(2026, 1, 30, 3, 0, 0, 0, time.UTC)
	digest := catalog.Digest{Size: 1, SHA256: strings.Repeat("0", 64)}
	filled := func(t *testing.T) (*blobtest.Faulty, *leadership) {
		f := blobtest.NewFaulty(blobtest.NewMemory())
		l := leads(t, f)
		c := l.m.cfg.Catalog
		for i, name := range []string{older, newer} {
			at := catalog.BackupTime(name)
			_, err := c.PutBackupData(t.Context(), name, catalog.DataFile, strings.NewReader("x"))
			must(t, err)
			must(t, c.PutManifest(t.Context(), &catalog.Manifest{Backup: name, ClusterName: "test", ClusterID: 1, EtcdVersion: "3.6.0",
				Revision: int64(50 + i), Raw: digest, Stored: digest, Compression: catalog.CompressionGzip, Started: at, Finished: at}))
			must(t, c.CommitBackup(t.Context(), name, catalog.BackupInfo{EtcdVersion: "3.6.0", Time: at}))
		}
		return f, l
	}
	next := func(l *leadership) (string, error) {
		a := l.archive()
		list, err := a.ForProof(t.Context(), now)
		must(t, err)
		return a.ToProve(t.Context(), list, now)
	}
	const key = newer + "/_etcd_manager_manifest.json"
	for kind, content := range badContent {
		t.Run(kind, func(t *testing.T) {
			f, l := filled(t)
			if got, err := next(l); got != newer || err != nil {
				t.Fatalf("at first %q: %v", got, err)
			}
			_, err := f.Store.Put(t.Context(), key, strings.NewReader(content), blob.PutOptions{})
			must(t, err)
			if got, err := next(l); got != older || err != nil {
				t.Errorf("%q is verified next, want %q: %v", got, older, err)
			}
		})
	}
	t.Run("denied", func(t *testing.T) {
		f, l := filled(t)
		f.Add(blobtest.Fault{Op: "get", Match: func(k string) bool { return k == key }, Err: blobtest.Denied("get", key, "s3:GetObject")})
		if got, err := next(l); err == nil || !strings.Contains(err.Error(), key) {
			t.Errorf("%q is verified next: %v", got, err)
		}
	})
}

// TestBadObjectsBesideControl: objects that no decision of the leader needs can't be used, each in each way. Backups, their verification and
// a restore go on.
func TestBadObjectsBesideControl(t *testing.T) {
	kinds := map[string]string{"denied": "{}"}
	for k, content := range badContent {
		kinds[k] = content
	}
	for _, key := range []string{
		"control/serving.json", "control/copy.json", "control/copies.json", "control/survivors.json", "control/superseded.json",
		"control/status/b.json", "control/2026-01-01T00:00:00Z-000000/_progress.json", "control/2026-01-01T00:00:00Z-000000/_options.json",
		"discovery/b", "volumes/b", "volumes/turn/holder.json", "events/x.json",
		"changes/0000000000000001/_incarnation.json", "changes/0000000000000001-2/_incarnation.json",
		"put-back/set/plan-000001", "put-back/set/before-000001", "put-back/set/result-000001",
	} {
		for kind, content := range kinds {
			t.Run(key+" "+kind, func(t *testing.T) {
				inWorld(t, func(w *world) {
					_, err := w.store.Store.Put(t.Context(), key, strings.NewReader(content), blob.PutOptions{})
					must(t, err)
					if kind == "denied" {
						w.store.set(func(op, k string) (error, bool) {
							if op == "get" && k == key {
								return blobtest.Denied(op, k, "s3:GetObject"), false
							}
							return nil, false
						})
					}
					w.backUp(14 * time.Minute)
					w.verifyEvery = time.Hour
					w.lead(4)
					w.until("a backup", func() bool { return len(w.requests("take_backup")) > 0 })
					w.until("a verification", func() bool { return len(w.requests("verify_backup")) > 0 })
					if r := w.manager.Report(); r.StoreError != "" {
						t.Errorf("the store counts as away: %s", r.StoreError)
					}
					w.restored(w.queue(w.backUp(time.Minute)))
				})
			})
		}
	}
}

// TestBadCommandFiles: a command of each kind can't be used, in each way. It is named and stays in the queue; backups, and a restore that was
// queued after it, go on.
func TestBadCommandFiles(t *testing.T) {
	for _, file := range []string{"_command.json", "_recover.json", "_create-backup.json", "_put-back.json"} {
		key := "control/1999-01-01T00:00:00Z-000000/" + file
		for kind, content := range badContent {
			t.Run(file+" "+kind, func(t *testing.T) {
				inWorld(t, func(w *world) {
					_, err := w.store.Store.Put(t.Context(), key, strings.NewReader(content), blob.PutOptions{})
					must(t, err)
					w.backUp(14 * time.Minute)
					w.lead(4)
					w.until("a backup", func() bool { return len(w.requests("take_backup")) > 0 })
					if why := fmt.Sprint(w.manager.Report().Attention); !strings.Contains(why, key) {
						t.Errorf("the command isn't named: %q", why)
					}
					w.queue(w.backUp(time.Minute))
					w.until("the restore is done", func() bool {
						op := w.operation()
						return op != nil && op.State == catalog.StateDone
					})
					if n := w.commands(); n != 1 {
						t.Errorf("%d commands are left", n)
					}
				})
			})
		}
	}
}
