package database

import (
	"bufio"
	"bytes"
	"errors"
	"maps"
	"path/filepath"
	"slices"
	"testing"

	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestValuesAgreeWithEtcd compares the records of a prefix with what etcd answers, at its newest revision and at an older one.
func TestValuesAgreeWithEtcd(t *testing.T) {
	m := startOne(t, "values")
	fillStore(t, m, 300)
	path := filepath.Join(t.TempDir(), "snap.db")
	save(t, m, path)
	now, err := m.Client.Raw().Get(ctxOf(t), "x")
	must(t, err)
	for _, prefix := range []string{"/registry/", "/registry/pods/p0000", "/registry/big", "/absent"} {
		for _, revision := range []int64{0, now.Header.Revision - 20, now.Header.Revision} {
			want, err := m.Client.Raw().Get(ctxOf(t), prefix, clientv3.WithPrefix(), clientv3.WithRev(revision))
			must(t, err)
			have := map[string]*mvccpb.KeyValue{}
			must(t, Values(t.Context(), self(t), path, ValuesOptions{Prefix: []byte(prefix), Revision: revision}, func(kv *mvccpb.KeyValue) error {
				if _, twice := have[string(kv.Key)]; twice {
					t.Errorf("%s comes twice", kv.Key)
				}
				have[string(kv.Key)] = kv
				return nil
			}))
			keys := slices.Sorted(maps.Keys(have))
			if len(keys) != len(want.Kvs) {
				t.Errorf("%s at %d: %d keys, etcd has %d", prefix, revision, len(keys), len(want.Kvs))
			}
			for _, kv := range want.Kvs {
				if h := have[string(kv.Key)]; h == nil || h.String() != kv.String() {
					t.Errorf("%s at %d: %v, etcd says %v", prefix, revision, h, kv)
				}
			}
		}
	}
	enough := errors.New("enough")
	if err := Values(t.Context(), self(t), path, ValuesOptions{}, func(*mvccpb.KeyValue) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("the visitor's error is lost: %v", err)
	}
	// Cut at any byte, the answer is an error.
	var whole bytes.Buffer
	must(t, writeValues(bufio.NewWriter(&whole), path, ValuesOptions{}))
	for n := 0; n < whole.Len()-2; n += 1 + whole.Len()/200 {
		if _, err := readValues(bufio.NewReader(bytes.NewReader(whole.Bytes()[:n])), func(*mvccpb.KeyValue) error { return nil }); err == nil {
			t.Errorf("a list cut to %d of %d bytes was taken", n, whole.Len())
		}
	}
}
