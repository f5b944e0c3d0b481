package node

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/protobuf/proto"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/wire"
)

func fuzzState() *cluster.EtcdState {
	return &cluster.EtcdState{Token: "t1", EtcdVersion: "3.6.16",
		Nodes: []cluster.EtcdNode{{Name: "a", PeerURLs: []string{"https://10.0.0.1:2380"}, ClientURLs: []string{"https://10.0.0.1:4001"}}}}
}

// FuzzState: what was read of a state file names nothing outside of the data dir, and is written as what is read as the same.
func FuzzState(f *testing.F) {
	path := filepath.Join(f.TempDir(), "state")
	must(f, writeState(path, fuzzState()))
	good, err := os.ReadFile(path)
	must(f, err)
	f.Add(good)
	bad := fuzzState()
	for _, name := range append(forged(), strings.Repeat("\x1b", 10_000)) {
		bad.Token = cluster.Token(name)
		data, err := proto.Marshal(wire.StateToProto(bad))
		must(f, err)
		f.Add(data)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		must(t, os.WriteFile(path, data, 0o600))
		testutil.Untrusted(t, len(data), testutil.Usual, func() error {
			s, err := readState(path)
			if err != nil {
				return corruptOnly(t, err)
			}
			if filepath.Join("/d", string(s.Token)) != "/d/"+string(s.Token) {
				t.Errorf("token %q", s.Token)
			}
			must(t, writeState(path, s))
			again, err := readState(path)
			if err != nil || !proto.Equal(wire.StateToProto(again), wire.StateToProto(s)) {
				t.Errorf("%+v became %+v: %v", s, again, err)
			}
			return nil
		})
	})
}

func corruptOnly(t *testing.T, err error) error {
	if !errors.Is(err, cluster.ErrCorrupt) && !errors.Is(err, cluster.ErrFuture) && !errors.Is(err, cluster.ErrOtherCluster) {
		t.Errorf("none of the errors that callers know: %v", err)
	}
	return err
}

// FuzzJournal is for the journal and the vote.
func FuzzJournal(f *testing.F) {
	dir := f.TempDir()
	path := filepath.Join(dir, "journal.json")
	must(f, journal{Version: journalVersion, ClusterName: "etcd", Term: 5, Leader: "a"}.write(path))
	good, err := os.ReadFile(path)
	must(f, err)
	f.Add(good)
	f.Add([]byte(`{"version":1,"clusterName":"etcd","operation":{"id":"../../x","old":"AAAA"}}`))
	f.Add([]byte(`{"version":99,"clusterName":"` + strings.Repeat(`\u001b`, 5000) + `"}`))
	f.Add([]byte(`{"version":1,"clusterName":"` + strings.Repeat(`\u001b`, 5000) + `"}`))
	f.Add([]byte(`{"term":18446744073709551615,"for":"a"}`))
	votes := Votes(dir)
	must(f, os.MkdirAll(filepath.Dir(votes.path), 0o700))
	f.Fuzz(func(t *testing.T, data []byte) {
		must(t, os.WriteFile(path, data, 0o600))
		testutil.Untrusted(t, len(data), testutil.Usual, func() error {
			j, err := readJournal(path, "etcd")
			if err != nil {
				return corruptOnly(t, err)
			}
			if j.Term > cluster.MaxTerm {
				t.Errorf("term %d", j.Term)
			}
			if j.Operation != nil {
				if id := string(j.Operation.ID); id != "" && filepath.Join("/d", id) != "/d/"+id {
					t.Errorf("operation %q", id)
				}
				if _, err := j.Operation.oldState(); err != nil {
					return corruptOnly(t, err)
				}
			}
			return nil
		})
		must(t, os.WriteFile(votes.path, data, 0o600))
		testutil.Untrusted(t, len(data), testutil.Usual, func() error {
			v, err := votes.Load()
			if err != nil {
				return corruptOnly(t, err)
			}
			if v.Term > cluster.MaxTerm {
				t.Errorf("term %d", v.Term)
			}
			must(t, votes.Save(v))
			if again, err := votes.Load(); err != nil || again != v {
				t.Errorf("%+v became %+v: %v", v, again, err)
			}
			return nil
		})
	})
}

// FuzzTrash reads the note beside a data dir in the trash can, and the entry's name.
func FuzzTrash(f *testing.F) {
	f.Add([]byte(`{"token":"t1","since":"2026-01-30T01:02:03Z"}`))
	f.Add([]byte(`{"token":"../../x","since":"9999-01-30T01:02:03Z"}`))
	l := layout(f.TempDir())
	must(f, os.MkdirAll(filepath.Join(l.trashRoot(), "t1-20260130T010203Z"), 0o700))
	note := l.trashNote("t1-20260130T010203Z")
	must(f, os.MkdirAll(filepath.Dir(note), 0o700))
	f.Fuzz(func(t *testing.T, data []byte) {
		must(t, os.WriteFile(note, data, 0o600))
		testutil.Untrusted(t, len(data), testutil.Usual, func() error {
			items, err := l.trashItems()
			if err != nil || len(items) != 1 || items[0].note.Since.IsZero() {
				t.Errorf("%+v, %v", items, err)
			}
			if token := string(items[0].note.Token); token != "" && filepath.Join("/d", token) != "/d/"+token {
				t.Errorf("token %q", token)
			}
			return err
		})
	})
}
