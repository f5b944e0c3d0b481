package main

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil/logtest"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/blob/file"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/prune"
	"github.com/etcd-manager/etcd-manager/pkg/retention"
)

// TestFailingSidecar: beside a real etcd, with a store of which something fails, a sidecar logs at most ten lines a minute, and tries no
// more often. The time between two tries is counted and not waited for.
func TestFailingSidecar(t *testing.T) {
	url := startEtcd(t, 1)[0]
	for what, fault := range map[string]blobtest.Fault{
		"everything": {Err: blobtest.Transient("", "")},
		"reading":    {Op: "get", Err: blobtest.Denied("get", "", "s3:GetObject")},
		"listing":    {Op: "list", Err: blobtest.Transient("list", "")},
		"writing":    {Op: "put", Err: blobtest.Denied("put", "", "s3:PutObject")},
		"deleting":   {Op: "purge", Err: blobtest.Denied("purge", "", "s3:DeleteObject")},
		"backups": {Op: "put", Match: func(k string) bool { return !strings.Contains(k, "control/") && strings.HasPrefix(k, "2") },
			Err: blobtest.Transient("put", "")},
	} {
		for _, interval := range []time.Duration{10 * time.Second, 15 * time.Minute} {
			t.Run(what+" every "+interval.String(), func(t *testing.T) {
				dir := t.TempDir()
				under, err := file.New(dir)
				must(t, err)
				var store blob.Store = failing(under, fault)
				s, err := newSidecar(options{clusterName: "test", store: dir, clientURLs: []string{url}, interval: interval,
					retention: prune.Policy{Backups: retention.Default()}}, store, catalog.New(store), "test")
				must(t, err)
				defer func() { must(t, s.close()) }()
				now, tries := time.Now(), 0
				begun := now
				s.now = func() time.Time { return now }
				lines := logtest.Lines(t, func() {
					for now.Sub(begun) < time.Minute && tries < 1000 {
						now = now.Add(s.step(context.Background()))
						tries++
					}
				})
				if len(lines) > 10 || tries > 10 {
					t.Errorf("%d lines and %d tries in a minute:\n%s", len(lines), tries, strings.Join(lines[max(0, len(lines)-20):], "\n"))
				}
			})
		}
	}
}

func failing(s blob.Store, fault blobtest.Fault) *blobtest.Faulty {
	f := blobtest.NewFaulty(s)
	f.Add(fault)
	return f
}
