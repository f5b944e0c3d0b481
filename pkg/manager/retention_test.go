package manager

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// TestRetentionWaitsForTheProbe: as long as a store may not be used, because it is a copy or another cluster's, retention removes nothing
// in it, however old; afterwards it does.
func TestRetentionWaitsForTheProbe(t *testing.T) {
	l := leads(t, blobtest.NewMemory())
	c := l.m.cfg.Catalog
	now := time.Now().UTC().Truncate(time.Second)
	for _, age := range []time.Duration{3 * 365 * 24 * time.Hour, 2 * 365 * 24 * time.Hour, time.Minute} {
		at := now.Add(-age)
		name := catalog.NewBackupName(at, nil)
		_, err := c.PutBackupData(t.Context(), name, catalog.DataFile, strings.NewReader("x"))
		must(t, err)
		must(t, c.CommitBackup(t.Context(), name, catalog.BackupInfo{EtcdVersion: "3.6.0", Time: at}))
	}
	left := func() int {
		t.Helper()
		_, err := l.retention.thinOut(t.Context())
		must(t, err)
		list, err := c.Backups(t.Context())
		must(t, err)
		return len(list.Backups)
	}
	if n := left(); n != 3 {
		t.Errorf("before the first probe %d of 3 backups are left", n)
	}
	l.m.cfg.Probe = func(context.Context) (bool, error) { return false, errors.New("this store is a copy") }
	if err := l.m.probe(t.Context()); err == nil {
		t.Fatal("the probe is said to have succeeded")
	}
	if n := left(); n != 3 {
		t.Errorf("after a probe that failed %d of 3 backups are left", n)
	}
	l.m.cfg.Probe = func(context.Context) (bool, error) { return true, nil }
	must(t, l.m.probe(t.Context()))
	if n := left(); n != 1 {
		t.Errorf("after the probe %d backups are left; the old ones should be gone", n)
	}
}
