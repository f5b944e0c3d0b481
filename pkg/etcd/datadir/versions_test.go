package datadir

import (
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
)

// TestEveryVersionFromEveryVersion starts each version with everything set, and stages its snapshot for each version.
func TestEveryVersionFromEveryVersion(t *testing.T) {
	testutil.Long(t) // starts about twenty etcds
	bins := otherBinaries(t)
	pki := newPKI(t)
	for _, from := range bins {
		src := makeMembers(t, 1, from, "from", &pki, "127.0.0.1")
		src[0].Cfg.AutoCompactionMode, src[0].Cfg.AutoCompactionRetention = "periodic", "1h"
		src[0].Cfg.InitialCorruptCheck = true
		src[0].Cfg.QuotaBytes, src[0].Cfg.SnapshotCount, src[0].Cfg.LogLevel = 1<<30, 50, "info"
		src[0].Cfg.ListenMetricsURLs = makeMembers(t, 1, from, "metrics", nil, "127.0.0.1")[0].Cfg.ClientURLs
		startAll(t, src)
		leaseID := fillStore(t, src[0], 100)
		path := t.TempDir() + "/snap.db"
		if want := etcd.Minor(from.Version); etcd.MinorNumber(from.Version) >= 5 {
			eventually(t, "the versions are written down", func() bool {
				save(t, src[0], path)
				f, err := database.Check(t.Context(), self(t), path, database.CheckOptions{})
				must(t, err)
				return f.WrittenBy() == want
			})
		} else {
			save(t, src[0], path)
		}
		f, err := database.Check(t.Context(), self(t), path, database.CheckOptions{})
		must(t, err)
		if h := liveHash(t, src[0], f.Revision); h.Hash != f.Hash.Hash {
			t.Errorf("%s: HashKV %+v, proof says %+v", from.Version, h, f.Hash)
		}
		had, err := src[0].Client.Raw().Get(ctxOf(t), "/registry/", clientv3.WithPrefix())
		must(t, err)
		src[0].Stop(t)
		for _, to := range bins {
			t.Run(from.Version+" to "+to.Version, func(t *testing.T) {
				must(t, f.FitsVersion(to.Version))
				dst := makeMembers(t, 1, to, "to", &pki, "127.0.0.1")
				res := stage(t, dst, StageConfig{
					SnapshotPath: path, BumpRevision: bump, MarkCompacted: true, TargetVersion: to.Version,
					DropPrefixes: [][]byte{[]byte("/registry/masterleases/")},
				})
				startAll(t, dst)
				if h := liveHash(t, dst[0], res.Revision); h.Hash != res.Hash.Hash {
					t.Errorf("HashKV %+v, staging said %+v", h, res.Hash)
				}
				st, err := dst[0].Client.Status(ctxOf(t))
				if err != nil || st.Version != to.Version || st.Revision != res.Revision {
					t.Errorf("%+v %v", st, err)
				}
				checkRestored(t, dst[0], had, leaseID, f.Revision)
				dst[0].Stop(t)
			})
		}
	}
}
