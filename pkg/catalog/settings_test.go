package catalog

import (
	"errors"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// TestSettings writes settings and reads them back; who has an old version, or what etcd wouldn't run with, is refused.
func TestSettings(t *testing.T) {
	onStores(t, testSettings)
}

func testSettings(t *testing.T, s blob.Store) {
	c, ctx := New(s), t.Context()
	if _, _, err := c.Settings(ctx); !errors.Is(err, ErrNotFound) {
		t.Fatalf("without any: %v", err)
	}
	first := cluster.Settings{cluster.SettingQuota: "8589934592"}
	if err := c.PutSettings(ctx, first, ""); err != nil {
		t.Fatal(err)
	}
	got, version, err := c.Settings(ctx)
	if err != nil || !got.Equal(first) {
		t.Fatalf("read back: %v, %v", got, err)
	}
	if err := c.PutSettings(ctx, nil, ""); !errors.Is(err, ErrConflict) {
		t.Errorf("created twice: %v", err)
	}
	if err := c.PutSettings(ctx, cluster.Settings{cluster.SettingElection: "1"}, version); !errors.Is(err, ErrInvalid) {
		t.Errorf("what etcd doesn't start with: %v", err)
	}
	if err := c.PutSettings(ctx, cluster.Settings{}, version); err != nil {
		t.Fatal(err)
	}
	if err := c.PutSettings(ctx, first, version); !errors.Is(err, ErrConflict) {
		t.Errorf("replaced what somebody else has changed: %v", err)
	}
	l, err := c.ControlListing(ctx)
	if err != nil || !l.Settings.Exists() || len(l.Unknown) > 0 {
		t.Errorf("the listing: %+v, %v", l, err)
	}
}
