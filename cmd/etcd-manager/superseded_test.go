package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
)

// TestSupersededIsHeldBeforeItIsReported: a manager that says in the store that its etcd is stopped has written down before that it isn't
// to be started, for the next start, at which the store may be away. What can't be held isn't reported.
func TestSupersededIsHeldBeforeItIsReported(t *testing.T) {
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		name, journal string
		held          bool
	}{
		{"", "", true},
		{"a restore isn't over", `{"version":1,"clusterName":"main","operation":{"id":"r1","phase":"staged"}}`, false},
	} {
		dir := t.TempDir()
		state, err := proto.Marshal(wire.StateToProto(&cluster.EtcdState{Token: "T1", EtcdVersion: "3.6.16", Nodes: []cluster.EtcdNode{{Name: "a"}}}))
		must(err)
		must(os.WriteFile(filepath.Join(dir, "state"), state, 0o600))
		journal := filepath.Join(dir, "etcd-manager", "journal.json")
		must(os.MkdirAll(filepath.Dir(journal), 0o700))
		if c.journal != "" {
			must(os.WriteFile(journal, []byte(c.journal), 0o600))
		}
		d := &daemon{o: &options{backupStore: "s3://s/main", clusterName: "main", dataDir: dir}, id: "a", catalog: catalog.New(blobtest.NewMemory())}
		s, err := d.catalog.PutSuperseded(t.Context(), "elsewhere")
		must(err)
		if err := d.checkSuperseded(t.Context()); err == nil || !strings.Contains(err.Error(), "undo-supersede") {
			t.Errorf("%s: %v", c.name, err)
		}
		e, err := d.catalog.Ended(t.Context())
		if _, told := e.Stopped["a"]; told != c.held || c.held && (err != nil || !e.Of.Equal(s.Time) || time.Since(e.Stopped["a"].Time) > time.Minute) {
			t.Errorf("%s: told %+v, %v", c.name, e, err)
		}
		data, err := os.ReadFile(journal)
		if held := err == nil && strings.Contains(string(data), `"superseded"`); held != c.held {
			t.Errorf("%s: the journal has %s, %v", c.name, data, err)
		}
	}
}
