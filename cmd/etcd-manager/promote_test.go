package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// TestPromotionFindsItsOwnRestore: of the restores that are queued in a standby's store only the one of its promotion is taken for that,
// and a node that the operator has given up doesn't have its word count.
func TestPromotionFindsItsOwnRestore(t *testing.T) {
	const backup = "2026-01-30T01:02:03Z-000009"
	for _, c := range []struct {
		name, reason string
		revision     int64
		want         string
	}{
		{"its own", promoteReason, 100, ""},
		{"somebody else's", "", 100, "delete-command"},
		{"of an older copy", promoteReason, 99, "delete-command"},
	} {
		cat := catalog.New(blobtest.NewMemory())
		spec := cluster.Spec{MemberCount: 1, EtcdVersion: "3.6.16"}
		digest := catalog.Digest{Size: 1, SHA256: strings.Repeat("0", 64)}
		err := cat.PutManifest(t.Context(), &catalog.Manifest{Backup: backup, ClusterName: "main", EtcdVersion: "3.6.16", Revision: c.revision,
			Reason: promoteReason, Compression: "gzip", Raw: digest, Stored: digest})
		if err != nil {
			t.Fatal(err)
		}
		cmd, err := cat.QueueRestore(t.Context(), backup, spec, catalog.RestoreOptions{Reason: c.reason})
		if err != nil {
			t.Fatal(err)
		}
		p := &promotion{standbyNode: &standbyNode{daemon: &daemon{id: "a", catalog: cat}}}
		rec, err := cat.PutPromotion(t.Context(), catalog.Promotion{Of: "/other", Spec: spec, Revision: 100, Chosen: "b"})
		if err != nil {
			t.Fatal(err)
		}
		found, name, err := p.queued(t.Context(), rec)
		switch {
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || name != ""):
			t.Errorf("%s: %s, %s, %v", c.name, found, name, err)
		case c.want == "" && (err != nil || found != backup || name != cmd.Name):
			t.Errorf("%s: %s, %s, %v", c.name, found, name, err)
		}
		if err := p.make(t.Context(), rec); !errors.Is(err, errNotChosen) {
			t.Errorf("%s: a node that isn't chosen any more makes a cluster: %v", c.name, err)
		}
		if now, err := cat.Promotion(t.Context()); err != nil || now.Backup != "" || now.Problem != "" {
			t.Errorf("%s: %+v, %v", c.name, now, err)
		}
	}
}
