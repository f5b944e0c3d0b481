package cluster

import (
	"bytes"
	"compress/gzip"
	"os"
	"path/filepath"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

func gzipped(t *testing.T, data []byte) []byte {
	t.Helper()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(data)
	must(t, err)
	must(t, w.Close())
	return b.Bytes()
}

func specOf(t *testing.T, c *harness.Cluster) cluster.Spec {
	t.Helper()
	spec, _, err := c.Catalog.Spec(t.Context())
	must(t, err)
	return spec
}

func leased(id clientv3.LeaseID) clientv3.OpOption { return clientv3.WithLease(id) }

// removeTrash empties a node's trash can, as an operator short of space does.
func removeTrash(t *testing.T, n *harness.Node) {
	t.Helper()
	must(t, os.RemoveAll(filepath.Join(n.DataDir, "data-trashcan")))
}
