package manager

import (
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// TestOrigin: the record of an incarnation says exactly what it began with. A manifest only has the revision that its snapshot surely
// reached, so what was counted when the backup was checked goes before it, and the point that was restored before both.
func TestOrigin(t *testing.T) {
	digest := catalog.Digest{Size: 1, SHA256: strings.Repeat("0", 64)}
	const backup = "2026-01-29T01:02:03Z-000000"
	for name, x := range map[string]struct {
		op   catalog.Operation
		want int64
		life catalog.Incarnation
	}{
		"an older record": {catalog.Operation{}, 100, catalog.IncarnationOf(7)},
		"a whole backup":  {catalog.Operation{Reached: 103}, 103, catalog.IncarnationOf(7)},
		"a point": {catalog.Operation{Reached: 103, Target: &catalog.PointInTime{Incarnation: "life", Revision: 150}}, 150,
			"life"},
	} {
		t.Run(name, func(t *testing.T) {
			l := leads(t, blobtest.NewMemory())
			c := l.m.cfg.Catalog
			must(t, c.PutManifest(t.Context(), &catalog.Manifest{Backup: backup, ClusterName: "test", ClusterID: 7, EtcdVersion: "3.6.0", Revision: 100,
				RevisionAtMost: 110, Raw: digest, Stored: digest, Compression: catalog.CompressionGzip}))
			x.op.ID, x.op.Kind, x.op.State, x.op.Backup, x.op.NewToken, x.op.Term = "2026-01-29T02:02:03Z-000000", catalog.KindRestore,
				catalog.StateDone, backup, "new", 3
			_, err := c.PutOperation(t.Context(), x.op, "")
			must(t, err)
			got := l.changes.origin(t.Context(), "new")
			if got == nil || got.Reached != x.want || got.Incarnation != x.life || got.Backup != backup {
				t.Errorf("it came from %+v; want revision %d of %s", got, x.want, x.life)
			}
			if other := l.changes.origin(t.Context(), cluster.Token("other")); other != nil {
				t.Errorf("a cluster that no restore made came from %+v", other)
			}
		})
	}
}
