package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/manager"
)

// TestCopyInUse: managers whose copy was put into use don't start a second cluster, unless they were never gone.
func TestCopyInUse(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	first := blobtest.NewFaulty(blobtest.NewMemory())
	copied := catalog.New(blobtest.NewMemory())
	d := &daemon{o: &options{backupStore: "s3://first/main", clusterName: "main", dataDir: t.TempDir()}, catalog: catalog.New(first),
		copies: []manager.StoreCopy{{Catalog: copied, Name: "s3://copy/main"}, {Catalog: catalog.New(blobtest.NewMemory()), Name: "empty"}}}
	must(checkCopiesInUse(t.Context(), d))
	_, err := copied.PutCopyRecord(t.Context(), catalog.CopyRecord{Of: "s3://first/main", ClusterName: "main", Began: time.Now()}, "")
	must(err)
	must(checkCopiesInUse(t.Context(), d))
	_, _, err = copied.UseCopy(t.Context())
	must(err)
	refused := func(when string) {
		t.Helper()
		err := checkCopiesInUse(t.Context(), d)
		if err == nil || !strings.Contains(err.Error(), "without --backup-store-copy=s3://copy/main") {
			t.Errorf("%s: %v", when, err)
		}
	}
	refused("an empty first store")
	_, err = first.Put(t.Context(), "control/leader", strings.NewReader("{}"), blob.PutOptions{})
	must(err)
	refused("a first store that was last written at that time")
	// The record is as if it had been put into use an hour before: the leader has written to the first store since.
	_, version, err := copied.CopyRecord(t.Context())
	must(err)
	_, err = copied.PutCopyRecord(t.Context(), catalog.CopyRecord{Of: "s3://first/main", ClusterName: "main", Began: time.Now(),
		InUse: time.Now().Add(-time.Hour)}, version)
	must(err)
	must(checkCopiesInUse(t.Context(), d))
	// The first store is away: what this node's etcd wrote last tells whether it has served since.
	first.Add(blobtest.Fault{Op: "list", Err: blobtest.Transient("list", "control/")})
	wal := filepath.Join(d.o.dataDir, "data", "token", "member", "wal", "0.wal")
	must(os.MkdirAll(filepath.Dir(wal), 0o700))
	must(os.WriteFile(wal, nil, 0o600))
	before := time.Now().Add(-2 * time.Hour)
	must(os.Chtimes(wal, before, before))
	refused("a first store that is away, and an etcd that wrote before")
	must(os.Chtimes(wal, time.Now(), time.Now()))
	must(checkCopiesInUse(t.Context(), d))
	must(os.RemoveAll(d.o.dataDir))
	// A copy that hangs doesn't keep the one that is in use from being heard. A date in the future is a wrong clock.
	hung := blobtest.NewFaulty(blobtest.NewMemory())
	hung.Add(blobtest.Fault{Hang: make(chan struct{})})
	d.copies = append([]manager.StoreCopy{{Catalog: catalog.New(hung), Name: "hangs"}}, d.copies...)
	refused("a copy that hangs beside it")
	d.copies = d.copies[1:]
	_, version, err = copied.CopyRecord(t.Context())
	must(err)
	_, err = copied.PutCopyRecord(t.Context(), catalog.CopyRecord{Of: "s3://first/main", ClusterName: "main", Began: time.Now(),
		InUse: time.Now().AddDate(1, 0, 0)}, version)
	must(err)
	must(checkCopiesInUse(t.Context(), d))
	d.o.backupStore = "s3://other/main"
	must(checkCopiesInUse(t.Context(), d))
}

// TestNoRecordOnACopy: a manager that was started on a copy leaves no discovery record there, and use-copy removes those that are there.
func TestNoRecordOnACopy(t *testing.T) {
	store := blobtest.NewMemory()
	c := catalog.New(store)
	_, err := c.PutCopyRecord(t.Context(), catalog.CopyRecord{Of: "s3://first/main", ClusterName: "main", Began: time.Now()}, "")
	if err != nil {
		t.Fatal(err)
	}
	r := &discoveryRecords{catalog: c, store: "s3://copy/main"}
	if err := r.PutEndpoints(t.Context(), "a", []string{"127.0.0.1:1"}); err == nil || !strings.Contains(err.Error(), "use-copy") {
		t.Errorf("error %v", err)
	}
	if _, err := store.Put(t.Context(), "discovery/old", strings.NewReader("{}"), blob.PutOptions{}); err != nil {
		t.Fatal(err)
	}
	if _, changed, err := c.UseCopy(t.Context()); err != nil || !changed {
		t.Fatal(changed, err)
	}
	if _, err := store.Stat(t.Context(), "discovery/old"); err == nil {
		t.Error("the record of an old manager is there still")
	}
	if err := r.PutEndpoints(t.Context(), "a", []string{"127.0.0.1:1"}); err != nil {
		t.Error(err)
	}
}
