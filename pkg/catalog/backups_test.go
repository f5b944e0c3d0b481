package catalog

import (
	"context"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

const metaContent = `{"etcdVersion":"3.5.21","timestamp":"1516000000","clusterSpec":{"memberCount":3,"etcdVersion":"3.5.21"}}`

func putBackup(t *testing.T, s blob.Store, name string) {
	t.Helper()
	put(t, s, name+"/etcd.backup.gz", "data")
	put(t, s, name+"/_etcd_backup.meta", metaContent)
}

func TestBackups(t *testing.T) {
	onStores(t, func(t *testing.T, s blob.Store) {
		ctx, count := context.Background(), &counting{Store: s}
		c := New(count)
		if l, err := c.Backups(ctx); err != nil || len(l.Backups) != 0 || len(l.Leftovers) != 0 {
			t.Fatal(l, err)
		}
		for _, name := range []string{"2026-01-30T01:02:03Z-000010", "2026-01-30T01:02:03Z-000009",
			"2026-01-30T01:02:03Z-9", "2026-01-29T23:00:00Z-anything.else", "2026-01-31T00:00:00Z"} {
			putBackup(t, s, name)
		}
		put(t, s, "2026-01-30T01:02:03Z-000010/_etcd_manager_manifest.json", "{}")
		put(t, s, "2026-02-01T00:00:00Z-000000/etcd.backup.gz", "data")
		put(t, s, "2026-02-02T00:00:00Z-000000/_etcd_backup.meta", metaContent)
		put(t, s, "2026-02-03T00:00:00Z-000000/something-else", "x")
		put(t, s, "control/etcd-cluster-spec", "{}")
		put(t, s, "control/x/_etcd_backup.meta", "{}")
		put(t, s, "discovery/a", "{}")
		for i := range 20 {
			put(t, s, fmt.Sprintf("changes/1/%d", i), "x")
		}
		putBackup(t, s, "zz-by-hand")
		*count = counting{Store: s}
		l, err := c.Backups(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if want := []string{"zz-by-hand", "2026-01-29T23:00:00Z-anything.else", "2026-01-30T01:02:03Z-000009",
			"2026-01-30T01:02:03Z-9", "2026-01-30T01:02:03Z-000010", "2026-01-31T00:00:00Z"}; !slices.Equal(l.Names(), want) {
			t.Errorf("got %v, want %v", l.Names(), want)
		}
		if count.gets != 0 || count.lists > 2 {
			t.Errorf("%d gets, %d lists", count.gets, count.lists)
		}
		if n, ok := l.NewestAny(); !ok || n.Name != "2026-01-31T00:00:00Z" || n.HasManifest || n.Size != 4 ||
			n.TotalSize != int64(4+len(metaContent)) || n.Modified.IsZero() {
			t.Errorf("newest %+v", n)
		}
		if b := l.Backups[4]; !b.HasManifest || !b.Time.Equal(time.Date(2026, 1, 30, 1, 2, 3, 0, time.UTC)) {
			t.Errorf("got %+v", b)
		}
		if len(l.Leftovers) != 2 || l.Leftovers[0].Missing != metaFile || l.Leftovers[1].Missing != DataFile {
			t.Errorf("leftovers %+v", l.Leftovers)
		}
	})
}

func TestBackupFormats(t *testing.T) {
	onStores(t, func(t *testing.T, s blob.Store) {
		ctx, c := context.Background(), New(s)
		const name = testBackup
		at := time.Date(2026, 1, 30, 1, 2, 3, 0, time.UTC)
		if _, err := c.PutBackupData(ctx, name, DataFile, strings.NewReader("data")); err != nil {
			t.Fatal(err)
		}
		_, err := c.PutBackupData(ctx, name, DataFile, strings.NewReader("data"))
		wantIs(t, err, ErrConflict)
		_, err = c.Manifest(ctx, name)
		wantIs(t, err, ErrNotFound)
		sum := strings.Repeat("0123456789abcdef", 4)
		m := &Manifest{Backup: name, ClusterName: "etcd", ClusterID: 0xcdf818194e3a8c32, MemberID: 0x8e9e05c52164694d,
			Node: "etcd-a", EtcdVersion: "3.5.21", Revision: 42, Keys: 7,
			Raw: Digest{1024, sum}, Stored: Digest{4, sum}, Compression: "gzip", Reason: "periodic", Started: at,
			Finished: at.Add(3 * time.Second), ToolVersion: "1.0.0"}
		if err := c.PutManifest(ctx, m); err != nil {
			t.Fatal(err)
		}
		golden(t, "manifest.json", get(t, s, name+"/_etcd_manager_manifest.json"))
		wantIs(t, c.PutManifest(ctx, m), ErrConflict)
		if got, err := c.Manifest(ctx, name); err != nil || !reflect.DeepEqual(got, m) || got.Duration() != 3*time.Second {
			t.Fatalf("got %+v, %v", got, err)
		}
		info := BackupInfo{EtcdVersion: "3.5.21", Time: time.Unix(1516000000, 0).UTC(), Spec: testSpec}
		_, err = c.BackupInfo(ctx, name)
		wantIs(t, err, ErrNotFound)
		if err := c.CommitBackup(ctx, name, info); err != nil {
			t.Fatal(err)
		}
		if got := get(t, s, name+"/_etcd_backup.meta"); got != metaContent {
			t.Fatalf("meta %s, want %s", got, metaContent)
		}
		wantIs(t, c.CommitBackup(ctx, name, info), ErrConflict)
		if got, err := c.BackupInfo(ctx, name); err != nil || got != info {
			t.Fatalf("got %+v, %v", got, err)
		}
		for content, kind := range map[string]error{"": cluster.ErrCorrupt, "{}": cluster.ErrCorrupt,
			`{"version":1}`: cluster.ErrCorrupt, `{"version":2}`: cluster.ErrCorrupt, `{"version":3}`: cluster.ErrFuture} {
			put(t, s, name+"/_etcd_manager_manifest.json", content)
			_, err := c.Manifest(ctx, name)
			wantObject(t, err, name+"/_etcd_manager_manifest.json", kind)
		}
		moved := *m
		moved.Backup = "elsewhere"
		if err := c.PutManifest(ctx, &moved); err != nil {
			t.Fatal(err)
		}
		put(t, s, name+"/_etcd_manager_manifest.json", get(t, s, "elsewhere/_etcd_manager_manifest.json"))
		_, err = c.Manifest(ctx, name)
		wantObject(t, err, name+"/_etcd_manager_manifest.json", cluster.ErrCorrupt)
		put(t, s, name+"/_etcd_backup.meta", "")
		_, err = c.BackupInfo(ctx, name)
		wantObject(t, err, name+"/_etcd_backup.meta", cluster.ErrCorrupt)
	})
}

func TestDeleteBackups(t *testing.T) {
	onStores(t, func(t *testing.T, s blob.Store) {
		ctx, c := context.Background(), New(s)
		for _, name := range []string{"2026-01-30T01:02:03Z-000001", "2026-01-30T01:02:03Z-0000011",
			"2026-01-30T01:02:03Z-000002", "2026-02-30T01:02:03Z-000002"} {
			putBackup(t, s, name)
		}
		put(t, s, "2026-01-30T01:02:03Z-000001/own/further.file", "x")
		put(t, s, "control/etcd-cluster-spec", "{}")
		n, err := c.DeleteBackups(ctx, "2026-01-30T01:02:03Z-000001", "2026-02-30T01:02:03Z-000002", "2026-01-01T00:00:00Z-gone")
		if err != nil || n != 5 {
			t.Fatal(n, err)
		}
		l, err := c.Backups(ctx)
		if err != nil || !slices.Equal(l.Names(), []string{"2026-01-30T01:02:03Z-000002", "2026-01-30T01:02:03Z-0000011"}) {
			t.Fatal(l.Names(), err)
		}
		for _, bad := range []string{"", "control", "control/x", "changes", "discovery", "x/"} {
			n, err := c.DeleteBackups(ctx, bad)
			wantIs(t, err, ErrInvalid)
			if n != 0 {
				t.Fatalf("%q: deleted %d", bad, n)
			}
		}
		if !slices.Contains(keys(t, s), "control/etcd-cluster-spec") {
			t.Fatal("the spec is gone")
		}
	})
}

func TestThinningIsCheap(t *testing.T) {
	ctx, count := context.Background(), &counting{Store: blobtest.NewMemory()}
	c := New(count)
	put(t, count, "control/etcd-cluster-spec", "{}")
	put(t, count, "control/etcd-cluster-created", "{}")
	put(t, count, "control/leader", "{}")
	for i := range 2000 {
		name := time.Date(2026, 1, 1, 0, 15*i, 0, 0, time.UTC).Format(time.RFC3339) + "-000000"
		putBackup(t, count, name)
		put(t, count, name+"/"+manifestFile, "{}")
	}
	*count = counting{Store: count.Store}
	l, err := c.Backups(ctx)
	if err != nil || len(l.Backups) != 2000 {
		t.Fatal(len(l.Backups), err)
	}
	if _, err := c.DeleteBackups(ctx, l.Names()[:1755]...); err != nil {
		t.Fatal(err)
	}
	requests := count.puts + count.gets + count.lists + count.del
	if requests > 20 {
		t.Errorf("%d requests: %+v", requests, count)
	}
	if l, err = c.Backups(ctx); err != nil || len(l.Backups) != 245 {
		t.Fatal(len(l.Backups), err)
	}
}

func TestBackupNames(t *testing.T) {
	now := time.Date(2026, 1, 30, 2, 2, 3, 999, time.FixedZone("x", 3600))
	if got := NewBackupName(now, nil); got != "2026-01-30T01:02:03Z-000000" {
		t.Error(got)
	}
	existing := []string{"2026-01-30T01:02:03Z-000009", "2026-01-30T01:02:03Z-foo", "2026-01-30T01:02:04Z-000100", "2026-01-30T01:02:03Z-"}
	if got := NewBackupName(now, existing); got != "2026-01-30T01:02:03Z-000010" {
		t.Error(got)
	}
	for name, want := range map[string]bool{"2026-01-30T01:02:03Z-000009": true, "2026-01-30T01:02:03Z": true,
		"2026-01-30T01:02:03Z-x-y": true, "2026-01-30T01:02:03Zx": false, "2026-13-30T01:02:03Z-0": false, "x": false, "": false} {
		if got := !BackupTime(name).IsZero(); got != want {
			t.Errorf("%q tells a time: %v", name, got)
		}
	}
}

func TestPeers(t *testing.T) {
	onStores(t, func(t *testing.T, s blob.Store) {
		ctx, count := context.Background(), &counting{Store: s}
		c := New(count)
		for _, n := range []string{"a", "b"} {
			if err := c.PutPeer(ctx, &protosv1.PeerInfo{NodeId: n, Endpoints: []string{"[::1]:8000"},
				Addresses: []string{"::1"}, Incarnation: 1516000000000000000}); err != nil {
				t.Fatal(err)
			}
		}
		golden(t, "discovery", get(t, s, "discovery/a")+"\n")
		put(t, s, "discovery/bad", "")
		put(t, s, "discovery/liar", get(t, s, "discovery/a"))
		records, problems, err := c.Peers(ctx, nil)
		if err != nil || len(records) != 2 || len(problems) != 2 || problems[0].Name != "bad" || problems[1].Name != "liar" {
			t.Fatal(records, problems, err)
		}
		if err := c.RemovePeer(ctx, "bad"); err != nil {
			t.Fatal(err)
		}
		if err := c.RemovePeer(ctx, "liar"); err != nil {
			t.Fatal(err)
		}
		if err := c.PutPeer(ctx, &protosv1.PeerInfo{NodeId: "b", Endpoints: []string{"127.0.0.2:8000"},
			Incarnation: 1516000000000000001}); err != nil {
			t.Fatal(err)
		}
		*count = counting{Store: s}
		again, problems, err := c.Peers(ctx, records)
		if err != nil || len(again) != 2 || len(problems) != 0 || again[1].Info.GetEndpoints()[0] != "127.0.0.2:8000" ||
			again[0].Info != records[0].Info {
			t.Fatal(again, problems, err)
		}
		if count.gets != 1 || count.lists != 1 {
			t.Errorf("%d gets, %d lists", count.gets, count.lists)
		}
		wantIs(t, c.PutPeer(ctx, &protosv1.PeerInfo{}), ErrInvalid)
		wantIs(t, c.PutPeer(ctx, &protosv1.PeerInfo{NodeId: "x/y"}), ErrInvalid)
	})
}
