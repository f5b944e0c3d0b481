package main

import (
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
)

// TestUsers backs up an etcd that gets users (auth enable) and refuses this program, at first and
// while it acts: the status says so, and that backups fail, until it is permitted.
func TestUsers(t *testing.T) {
	url := startEtcd(t, 1)[0]
	root, err := clientv3.New(clientv3.Config{Endpoints: []string{url}})
	must(t, err)
	defer root.Close()
	_, err = root.UserAdd(t.Context(), "root", "secret")
	must(t, err)
	_, err = root.UserGrantRole(t.Context(), "root", "root")
	must(t, err)
	_, err = root.AuthEnable(t.Context())
	must(t, err)
	admin, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, Username: "root", Password: "secret"})
	must(t, err)
	defer admin.Close()

	s := testSidecar(t, url, t.TempDir(), time.Hour)
	refused := func(when string) {
		t.Helper()
		wait := s.step(t.Context())
		v := s.view()
		if !strings.Contains(v.BackupError, "has users (auth enable), and this client is none of them") ||
			!v.Etcd.Denied || !v.Etcd.Healthy || wait <= 0 {
			t.Errorf("%s: backup error %q, etcd %+v, next in %s", when, v.BackupError, v.Etcd, wait)
		}
	}
	refused("at first")
	_, err = admin.AuthDisable(t.Context())
	must(t, err)
	s.step(t.Context())
	if v := s.view(); v.BackupError != "" || v.Backups != 1 || v.Etcd.Denied {
		t.Fatalf("permitted: %+v", v)
	}
	_, err = root.AuthEnable(t.Context())
	must(t, err)
	refused("while it acts")
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}
