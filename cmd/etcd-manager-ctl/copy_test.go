package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// newCopy makes a copy of the world's store, with a backup of its own.
func newCopy(t *testing.T, w *world, name string) (url string, c *catalog.Catalog) {
	t.Helper()
	const at = "copy:bucket"
	s := blobtest.NewMemory()
	w.stores = map[string]blob.Store{at: s}
	c = catalog.New(s, catalog.WithClock(func() time.Time { return w.now }))
	ctx := context.Background()
	_, err := c.PutCopyRecord(ctx, catalog.CopyRecord{Of: "mem://bucket/main", ClusterName: "etcd", Node: "a", Term: 3}, "")
	must(t, err)
	_, err = c.PutBackupData(ctx, name, catalog.DataFile, strings.NewReader("snapshot"))
	must(t, err)
	d := catalog.Digest{Size: 8, SHA256: fmt.Sprintf("%x", sha256.Sum256([]byte("snapshot")))}
	must(t, c.PutManifest(ctx, &catalog.Manifest{Backup: name, ClusterName: "etcd", EtcdVersion: "3.5.21", Revision: 5,
		Compression: "gzip", Raw: d, Stored: d}))
	must(t, c.CommitBackup(ctx, name, catalog.BackupInfo{EtcdVersion: "3.5.21", Time: w.now, Spec: cluster.Spec{MemberCount: 3}}))
	_, err = c.CreateSpec(ctx, cluster.Spec{MemberCount: 3})
	must(t, err)
	return at, c
}

// TestCopy: a copy is read like any store; nothing is queued there before it is put into use, and that happens once.
func TestCopy(t *testing.T) {
	w := newWorld(t)
	const name = "2026-01-30T01:02:03Z-000000"
	url, c := newCopy(t, w, name)
	const old = "2020-01-30T01:02:03Z-000000" // retention would remove it
	_, err := c.PutBackupData(t.Context(), old, catalog.DataFile, strings.NewReader("snapshot"))
	must(t, err)
	must(t, c.CommitBackup(t.Context(), old, catalog.BackupInfo{EtcdVersion: "3.5.21", Time: w.now, Spec: cluster.Spec{MemberCount: 3}}))
	for _, x := range []struct {
		code int
		want string
		args string
	}{
		{exitOK, name, "list-backups"},
		{3, "This store is a copy of mem://bucket/main", "status"},
		{exitFailure, "no manager runs on a copy", "restore-backup latest"},
		{exitFailure, "no manager runs on a copy", "create-backup"},
		{exitFailure, "no manager runs on a copy", "configure-cluster --member-count=1"},
		{exitFailure, "no manager runs on a copy", "supersede --by=mem://elsewhere --yes"},
		{exitFailure, "no manager runs on a copy", "promote --yes"},
		{exitFailure, "no manager runs on a copy", "prune --yes"},
		{exitUsage, "--yes", "use-copy"},
		{exitOK, "is a store of its own now", "use-copy --yes"},
		{exitOK, "was put into use at", "use-copy --yes"},
		{exitOK, "queued", "restore-backup latest"},
	} {
		code, out, errOut := w.exec(append([]string{"--backup-store=" + url}, strings.Fields(x.args)...)...)
		if code != x.code || !strings.Contains(out+errOut, x.want) {
			t.Errorf("%s: exit code %d, want %d and %q:\n%s%s", x.args, code, x.code, x.want, out, errOut)
		}
	}
	w.spec(3, "3.5.21")
	if out, errOut, code := w.tell("use-copy", "--yes"); code != exitUsage || !strings.Contains(errOut, "isn't a copy") {
		t.Errorf("a store that is no copy: exit code %d:\n%s%s", code, out, errOut)
	}
}

// TestRestoreFrom: a backup of another store is brought and queued, once; a damaged one isn't.
func TestRestoreFrom(t *testing.T) {
	w := newWorld(t)
	const name = "2026-01-30T01:02:03Z-000000"
	url, c := newCopy(t, w, name)
	if _, errOut, code := w.tell("restore-backup", "--from="+url, "latest", "--allow-empty-store"); code != exitOK {
		t.Fatalf("exit code %d: %s", code, errOut)
	}
	if w.content(name+"/"+catalog.DataFile) != "snapshot" || w.lastCommand().Backup != name {
		t.Errorf("the store has %q, and %+v is queued", w.content(name+"/"+catalog.DataFile), w.lastCommand())
	}
	if err := w.catalog().RefuseCopy(context.Background(), ""); err != nil {
		t.Errorf("the record of the copy was brought too: %v", err)
	}
	if _, err := w.catalog().Pin(context.Background(), name); !errors.Is(err, catalog.ErrNotFound) {
		t.Errorf("it stays pinned: %v", err)
	}
	// One that is damaged here is brought again.
	_, err := w.store.Put(context.Background(), name+"/"+catalog.DataFile, strings.NewReader("SNAPSHOT"), blob.PutOptions{})
	must(t, err)
	if _, errOut, code := w.tell("restore-backup", "--from="+url, name); code != exitOK ||
		w.content(name+"/"+catalog.DataFile) != "snapshot" {
		t.Errorf("damaged here: exit code %d: %s; it is %q", code, errOut, w.content(name+"/"+catalog.DataFile))
	}
	for want, args := range map[string][]string{
		"needs the name of a backup":  {"restore-backup", "--from=" + url},
		"both stores are":             {"restore-backup", "--from=mem://bucket/main", name},
		"--from: there is no cluster": {"restore-backup", "--from=copy:none", name},
		"there is no backup":          {"restore-backup", "--from=" + url, "2026-01-30T01:02:03Z-000007"},
		"target:   backup " + name:    {"restore-backup", "--from=" + url, "latest", "--dry-run"},
	} {
		if out, errOut, _ := w.tell(args...); !strings.Contains(out+errOut, want) {
			t.Errorf("%v doesn't say %q:\n%s%s", args, want, out, errOut)
		}
	}
	ctx := context.Background()
	const bad = "2026-01-30T02:02:03Z-000000"
	_, err = c.PutBackupData(ctx, bad, catalog.DataFile, strings.NewReader("SNAPSHOT"))
	must(t, err)
	d := catalog.Digest{Size: 8, SHA256: fmt.Sprintf("%x", sha256.Sum256([]byte("snapshot")))}
	must(t, c.PutManifest(ctx, &catalog.Manifest{Backup: bad, ClusterName: "etcd", EtcdVersion: "3.5.21", Revision: 5,
		Compression: "gzip", Raw: d, Stored: d}))
	must(t, c.CommitBackup(ctx, bad, catalog.BackupInfo{EtcdVersion: "3.5.21", Time: w.now, Spec: cluster.Spec{MemberCount: 3}}))
	before := w.lastCommand()
	if _, errOut, code := w.tell("restore-backup", "--from="+url, bad); code != exitFailure || !strings.Contains(errOut, "SHA-256") {
		t.Errorf("a damaged backup: exit code %d: %s", code, errOut)
	}
	if l, err := w.catalog().Backups(ctx); err != nil || len(l.Backups) != 1 || w.lastCommand().Name != before.Name {
		t.Errorf("a damaged backup was brought: %v, %v", l.Names(), err)
	}
}

// onPut does something before a put.
type onPut struct {
	blob.Store
	before func(key string)
}

func (s *onPut) Put(ctx context.Context, key string, body io.Reader, o blob.PutOptions) (blob.Info, error) {
	s.before(key)
	return s.Store.Put(ctx, key, body, o)
}

// TestRestoreFromHolds: the backup is kept here while it is brought, though another command keeps it there, and one here that ends
// meanwhile.
func TestRestoreFromHolds(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t)
	const name = "2026-01-30T01:02:03Z-000000"
	url, c := newCopy(t, w, name)
	_, err := c.HoldBackup(ctx, name, "another command, there")
	must(t, err)
	release, err := w.catalog().HoldBackup(ctx, name, "another command, here")
	must(t, err)
	mem, brought := w.store, 0
	w.store = &onPut{mem, func(key string) {
		if key != name+"/"+catalog.DataFile {
			return
		}
		brought++
		must(t, release(ctx))
		if _, err := catalog.New(mem).Pin(ctx, name); err != nil {
			t.Errorf("nothing keeps the backup while it is brought: %v", err)
		}
	}}
	if _, errOut, code := w.tell("restore-backup", "--from="+url, "latest", "--allow-empty-store"); code != exitOK || brought == 0 {
		t.Fatalf("exit code %d, brought %d times: %s", code, brought, errOut)
	}
	if p, err := w.catalog().Pin(ctx, name); !errors.Is(err, catalog.ErrNotFound) {
		t.Errorf("it stays pinned: %+v, %v", p, err)
	}
	// An operator's pin there comes with it.
	must(t, c.PinBackup(ctx, name, "keep"))
	if _, errOut, code := w.tell("restore-backup", "--from="+url, name); code != exitOK {
		t.Fatalf("exit code %d: %s", code, errOut)
	}
	if p, err := w.catalog().Pin(ctx, name); err != nil || p.Reason != "keep" || p.Owner != "" {
		t.Errorf("the operator's pin: %+v, %v", p, err)
	}
}
