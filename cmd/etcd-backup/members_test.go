package main

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/blob/file"
	"github.com/etcd-manager/etcd-manager/pkg/prune"
	"github.com/etcd-manager/etcd-manager/pkg/retention"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// sidecarWith is a sidecar with options of its own.
func sidecarWith(t *testing.T, dir string, change func(*options)) *sidecar {
	t.Helper()
	store, err := file.New(dir)
	must(t, err)
	o := options{clusterName: "test", store: dir, dataDir: t.TempDir(), interval: time.Hour, retention: prune.Policy{Backups: retention.Default()}}
	change(&o)
	s, err := newSidecar(o, store, openStore(t, dir), "test")
	must(t, err)
	t.Cleanup(func() { must(t, s.close()) })
	return s
}

// TestPassword backs up, and keeps the changes of, an etcd with users by a user's password, which is changed and taken away meanwhile.
func TestPassword(t *testing.T) {
	url := startEtcd(t, 1)[0]
	root, err := clientv3.New(clientv3.Config{Endpoints: []string{url}})
	must(t, err)
	defer root.Close()
	for _, name := range []string{"root", "backup"} {
		_, err = root.UserAdd(t.Context(), name, "secret")
		must(t, err)
	}
	_, err = root.UserGrantRole(t.Context(), "root", "root")
	must(t, err)

	password := filepath.Join(t.TempDir(), "password")
	must(t, os.WriteFile(password, []byte("secret\n"), 0o600))
	dir := t.TempDir()
	s := sidecarWith(t, dir, func(o *options) {
		o.clientURLs, o.user, o.password, o.changes = []string{url}, "backup", password, 100*time.Millisecond
	})
	says := func(want string) {
		t.Helper()
		s.step(t.Context())
		if v := s.view(); !strings.Contains(v.BackupError, want) || want == "" && v.BackupError != "" {
			t.Fatalf("the backup's error is %q; want %q", v.BackupError, want)
		}
	}
	says("") // an etcd without users wants no password
	_, err = root.AuthEnable(t.Context())
	must(t, err)
	admin, err := clientv3.New(clientv3.Config{Endpoints: []string{url}, Username: "root", Password: "secret"})
	must(t, err)
	defer admin.Close()
	s.want("a test") // a backup is due at once
	says("the user of this client, backup, needs the role root: etcdctl user grant-role backup root")
	_, err = admin.UserGrantRole(t.Context(), "backup", "root")
	must(t, err)
	s.want("a test")
	says("")
	_, err = admin.Put(t.Context(), "/changed", "1")
	must(t, err)
	testutil.Eventually(t, "the change is in the store", func() bool {
		c := s.view().Changes
		return c != nil && c.Segments > 0
	})

	_, err = admin.UserChangePassword(t.Context(), "backup", "other")
	must(t, err)
	s.want("a test")
	says("the user backup can't log in")
	must(t, os.WriteFile(password, []byte("other"), 0o600))
	s.want("a test")
	says("")
	must(t, os.WriteFile(password, []byte("other\nother\n"), 0o600))
	s.want("a test")
	says("must hold one line")
}

// TestSeveralMembers gives one sidecar all client URLs: it works with the etcd leader, whoever that is, and without those that are away.
func TestSeveralMembers(t *testing.T) {
	urls := startEtcd(t, 3)
	dead := "http://127.0.0.1:1"
	dir := t.TempDir()
	s := sidecarWith(t, dir, func(o *options) { o.clientURLs = append([]string{dead}, urls...) })
	for range 3 {
		st, err := s.choose(t.Context())
		must(t, err)
		if st.MemberID != st.Leader {
			t.Fatalf("%s, a follower, was chosen; the leader is %s", st.MemberID, st.Leader)
		}
		for i, c := range s.clients[1:] {
			other, err := statusOf(t.Context(), c)
			must(t, err)
			if other.MemberID == st.Leader {
				continue
			}
			must(t, s.client.MoveLeader(t.Context(), other.MemberID))
			testutil.Eventually(t, "the members know the new leader", func() bool {
				for _, c := range s.clients[1:] {
					if st, err := statusOf(t.Context(), c); err != nil || st.Leader != other.MemberID {
						return false
					}
				}
				return true
			})
			if _, err := s.choose(t.Context()); err != nil || s.client != s.clients[i+1] {
				t.Fatalf("the new leader at %s isn't used: %v", urls[i], err)
			}
			break
		}
	}
	s.step(t.Context())
	if v := s.view(); v.Backups != 1 || v.BackupError != "" {
		t.Errorf("the view is %+v", v)
	}

	two := sidecarWith(t, t.TempDir(), func(o *options) { o.clientURLs = []string{urls[0], startEtcd(t, 1)[0]} })
	two.step(t.Context())
	if v := two.view(); !strings.Contains(v.Etcd.Error, "names two etcd clusters") {
		t.Errorf("two clusters: %q", v.Etcd.Error)
	}
	none := sidecarWith(t, t.TempDir(), func(o *options) { o.clientURLs = []string{dead, "http://127.0.0.1:2"} })
	none.step(t.Context())
	if v := none.view(); !strings.Contains(v.Etcd.Error, dead) || !strings.Contains(v.Etcd.Error, "127.0.0.1:2:") {
		t.Errorf("no member: %q", v.Etcd.Error)
	}
}

// TestSocket backs up and records over a Unix socket.
func TestSocket(t *testing.T) {
	dir := t.TempDir()
	socket, url := "unix://"+filepath.Join(dir, "etcd.sock"), fmt.Sprintf("http://127.0.0.1:%d", freePort(t))
	peer := fmt.Sprintf("http://127.0.0.1:%d", freePort(t))
	etcd := exec.Command(servers.Binary(t, "etcd-3.6"), "--name=a", "--data-dir="+filepath.Join(dir, "data"), "--log-level=error",
		"--listen-client-urls="+url+","+socket, "--advertise-client-urls="+url, "--listen-peer-urls="+peer,
		"--initial-advertise-peer-urls="+peer, "--initial-cluster=a="+peer)
	must(t, etcd.Start())
	t.Cleanup(func() {
		_ = etcd.Process.Kill()
		_ = etcd.Wait() // it was killed
	})
	s := sidecarWith(t, t.TempDir(), func(o *options) { o.clientURLs, o.changes = []string{socket}, 100*time.Millisecond })
	testutil.Eventually(t, "etcd answers at the socket", func() bool { _, err := s.status(t.Context()); return err == nil })
	s.step(t.Context())
	putKeys(t, url, 1)
	testutil.Eventually(t, "a backup and the change are in the store", func() bool {
		v := s.view()
		return v.Backups == 1 && v.Changes != nil && v.Changes.Segments > 0
	})
}
