package attention

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/test/harness"
)

// TestCorrupt has the disks of two of three members change a value, each into another one: no two members agree any more.
func TestCorrupt(t *testing.T) {
	testutil.Long(t)
	t.Parallel() // it mostly waits
	const key = "/precious"
	s := &scene{t: t, c: harness.New(t, harness.Options{Args: quick(), Env: []string{"ETCD_COMPACT_HASH_CHECK_TIME=1s"}})}
	s.c.StartAll()
	s.c.WaitHealthy(3)
	s.c.Put(key, precious)
	s.ctl("create-backup", "--wait")
	// A backup that is taken while data differ may have the wrong ones, until etcd has found out.
	list := s.c.Backups()
	s.play(corruptRows(list[len(list)-1].Name))
	s.c.WaitHealthy(3)
	got, err := s.c.Client().Get(t.Context(), key)
	must(t, err)
	if len(got.Kvs) != 1 || string(got.Kvs[0].Value) != precious {
		t.Errorf("after the restore: %v", got.Kvs)
	}
}

// precious is a value that stands in a database once.
const precious = "this-is-the-right-value-0123456789"

// corruptRows are played in a cluster of three that has a backup with the right data.
func corruptRows(good string) []row {
	return []row{{
		kind: cluster.AttentionCorrupt, what: "no two of three members have the same data", text: []string{"alarm CORRUPT of no member"},
		cause: func(s *scene) {
			for i, n := range s.c.Nodes[1:] {
				spoil(s, n, []string{"wrong", "false"}[i])
			}
			// etcd compares what has been compacted.
			var newest int64
			for range 5 {
				newest = s.c.Put("/more", "x")
			}
			_, err := s.c.Client().Compact(s.t.Context(), newest)
			must(s.t, err)
		},
		command: "restore-backup NAME --now", with: []string{"NAME --now", good + " --now --wait"},
	}}
}

// spoil has a word of the value change on a node's disk while its etcd is down.
func spoil(s *scene, n *harness.Node, word string) {
	s.t.Helper()
	state, err := n.State()
	must(s.t, err)
	db := filepath.Join(n.DataDir, "data", state.GetCluster().GetClusterToken(), "member", "snap", "db")
	s.c.WaitFor("the value in the database of node "+n.Name, time.Minute, func() string {
		if data, err := os.ReadFile(db); err != nil || !bytes.Contains(data, []byte(precious)) {
			return "it isn't there"
		}
		return ""
	})
	n.KillWhole()
	data, err := os.ReadFile(db)
	must(s.t, err)
	bad := bytes.ReplaceAll(data, []byte(precious), []byte(strings.Replace(precious, "right", word, 1)))
	f, err := os.OpenFile(db, os.O_WRONLY, 0)
	must(s.t, err)
	_, err = f.WriteAt(bad, 0)
	must(s.t, err)
	must(s.t, f.Close())
	n.Start()
	s.c.WaitHealthy(3)
}
