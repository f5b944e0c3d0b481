package database

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/pkg/etcd"
)

// TestKeysAgreeWithEtcd compares every live key with what etcd answers, in this process and from one of its own.
func TestKeysAgreeWithEtcd(t *testing.T) {
	m := startOne(t, "keys")
	fillStore(t, m, 300)
	path := filepath.Join(t.TempDir(), "snap.db")
	save(t, m, path)
	all, err := m.Client.Raw().Get(ctxOf(t), "\x00", clientv3.WithFromKey())
	must(t, err)
	if err := Keys(t.Context(), self(t), etcd.DBPath(m.Cfg.DataDir), func(LiveKey) error { return nil }); !errors.Is(err, etcd.ErrDataDirInUse) {
		t.Errorf("the keys of a live database: %v", err)
	}
	for name, walk := range map[string]func(func(LiveKey) error) error{
		"here":       func(v func(LiveKey) error) error { return WalkKeys(t.Context(), path, v) },
		"in a child": func(v func(LiveKey) error) error { return Keys(t.Context(), self(t), path, v) },
	} {
		have := map[string]LiveKey{}
		must(t, walk(func(k LiveKey) error {
			if _, twice := have[string(k.Key)]; twice {
				t.Errorf("%s: %s comes twice", name, k.Key)
			}
			have[string(k.Key)] = k
			return nil
		}))
		if len(have) != len(all.Kvs) {
			t.Errorf("%s: %d keys, etcd has %d", name, len(have), len(all.Kvs))
		}
		leased := 0
		for _, kv := range all.Kvs {
			k := have[string(kv.Key)]
			if k.ValueSize != int64(len(kv.Value)) || k.Lease != kv.Lease || k.CreateRevision != kv.CreateRevision || k.ModRevision != kv.ModRevision || k.Version != kv.Version {
				t.Errorf("%s: %s is %+v, etcd says %v", name, kv.Key, k, kv)
			}
			if k.Lease != 0 {
				leased++
			}
		}
		if leased != 2 {
			t.Errorf("%s: %d keys have a lease", name, leased)
		}
	}
}

func TestKeysErrors(t *testing.T) {
	dir := t.TempDir()
	garbage := filepath.Join(dir, "garbage")
	must(t, os.WriteFile(garbage, bytes.Repeat([]byte("garbage!"), 4096), 0o600))
	none := func(LiveKey) error { return nil }
	if err := Keys(t.Context(), self(t), garbage, none); !errors.Is(err, etcd.ErrBadDatabase) {
		t.Errorf("garbage: %v", err)
	}
	if err := Keys(t.Context(), self(t), filepath.Join(dir, "absent"), none); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("an absent file: %v", err)
	}
	// A program that answers something else is no proof of anything.
	if err := Keys(t.Context(), "/bin/echo", garbage, none); err == nil {
		t.Error("the output of another program was taken")
	}
	if err := Keys(t.Context(), "/bin/true", garbage, none); !errors.Is(err, etcd.ErrBadDatabase) {
		t.Errorf("a reader that says nothing: %v", err)
	}
	m := startOne(t, "keys-errors")
	fillStore(t, m, 50)
	path := filepath.Join(dir, "snap.db")
	save(t, m, path)
	enough := errors.New("enough")
	if err := Keys(t.Context(), self(t), path, func(LiveKey) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("the visitor's error is lost: %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	if err := Keys(ctx, self(t), path, func(LiveKey) error { cancel(); return nil }); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end of the context: %v", err)
	}
	// Cut at any byte, the answer is an error.
	var whole bytes.Buffer
	must(t, writeKeys(bufio.NewWriter(&whole), path))
	for n := 0; n < whole.Len()-2; n += 1 + whole.Len()/200 {
		if _, err := readKeys(bufio.NewReader(bytes.NewReader(whole.Bytes()[:n])), none); err == nil {
			t.Errorf("a list cut to %d of %d bytes was taken", n, whole.Len())
		}
	}
}
