package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

// TestDownloadPoint builds snapshot files of points between backups: etcd's own tool takes them, and the HashKV is what the live etcd had.
func TestDownloadPoint(t *testing.T) {
	l := newLive(t)
	for i := range 20 {
		l.write(fmt.Sprintf("/registry/configmaps/shop/c%d", i), strings.Repeat("v", i))
	}
	l.back()
	l.write("/registry/configmaps/shop/c1", "changed")
	then := l.kept()
	l.write("/registry/namespaces/shop", "{}")
	gone := l.kept()
	l.remove("/registry/namespaces/shop")
	last := l.kept()
	later := l.back()
	dir := t.TempDir()
	t.Chdir(dir)
	for _, c := range []struct {
		args     []string
		file     string
		revision int64
		hash     uint32
	}{
		{[]string{fmt.Sprintf("--to-revision=%d", then.Revision)}, fmt.Sprintf("revision-%d.db", then.Revision), then.Revision, then.Hash},
		{[]string{"--before=/registry/namespaces/shop", "before.db"}, "before.db", gone.Revision, gone.Hash},
		{[]string{"--latest", "latest.db"}, "latest.db", last.Revision, last.Hash},
	} {
		code, out, errOut := l.exec(append([]string{"--backup-store=mem://x", "download-backup", "-o", "json"}, c.args...)...)
		var d operator.Downloaded
		if err := json.Unmarshal([]byte(out), &d); err != nil || code != exitOK {
			t.Fatalf("%v: %d %s %s", c.args, code, out, errOut)
		}
		if d.File != c.file || d.Revision != c.revision || d.HashKV != c.hash {
			t.Errorf("%v: %+v, want %s with revision %d and HashKV %d", c.args, d, c.file, c.revision, c.hash)
		}
		checkByEtcdutl(t, c.file, real{revision: c.revision})
	}
	// What can't be reached is refused with what can, and nothing is left.
	for _, c := range []struct{ args, want []string }{
		{[]string{"--to-revision=2", "x.db"}, []string{"can't be reached", "the first point after it is backup"}},
		{[]string{fmt.Sprintf("--to-revision=%d", last.Revision+5), "x.db"},
			[]string{fmt.Sprintf("the nearest point is --to-revision=%d", last.Revision)}},
		{[]string{"--to-time=2001-01-01T00:00:00Z", "x.db"}, []string{"can't be reached", "the first point after it is backup"}},
		{[]string{"--latest", later}, []string{"looks like the name of a backup"}},
		{[]string{"--latest", "latest.db"}, []string{"latest.db exists already"}},
	} {
		code, _, errOut := l.exec(append([]string{"--backup-store=mem://x", "download-backup"}, c.args...)...)
		for _, want := range c.want {
			if code == exitOK || !strings.Contains(errOut, want) {
				t.Errorf("%v: %d %s, want %q", c.args, code, errOut, want)
			}
		}
	}
	left, err := filepath.Glob(".etcd-manager-ctl-*")
	if err != nil || len(left) > 0 {
		t.Errorf("left behind: %v %v", left, err)
	}
}

// TestDownloadAfterKill: what a download has left that was killed is removed by the next one; what another one works on stays.
func TestDownloadAfterKill(t *testing.T) {
	r := realSnapshot(t)
	w := newWorld(t)
	w.takeBackup("2026-02-01T10:00:00Z-000000", r.data, r.revision)
	t.Chdir(t.TempDir())
	const old, fresh = ".etcd-manager-ctl-partial-old", ".etcd-manager-ctl-partial-fresh"
	for _, dir := range []string{old, fresh} {
		must(t, os.Mkdir(dir, 0o700))
		must(t, os.WriteFile(filepath.Join(dir, "snapshot.db.tmp"), []byte("part"), 0o600))
	}
	past := time.Now().Add(-time.Hour)
	must(t, os.Chtimes(old, past, past))
	if code, _, errOut := w.exec("--backup-store=mem://x", "download-backup", "latest", "x.db"); code != exitOK {
		t.Fatalf("%d %s", code, errOut)
	}
	left, err := filepath.Glob(".etcd-manager-ctl-*")
	if err != nil || len(left) != 1 || left[0] != fresh {
		t.Errorf("left are %v, %v", left, err)
	}
}
