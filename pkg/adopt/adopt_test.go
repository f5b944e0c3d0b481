package adopt

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/adopt/source"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// TestRefused: what can't be continued is said before anything is asked or written.
func TestRefused(t *testing.T) {
	dir := t.TempDir()
	data := filepath.Join(dir, "old")
	if err := os.Mkdir(data, 0o700); err != nil {
		t.Fatal(err)
	}
	for _, tc := range []struct {
		flags []string
		to    string
		say   string
	}{
		{[]string{"--data-dir=" + data, "--config-file=/etc/etcd.yaml"}, dir + "/new", "--config-file"},
		{[]string{"--data-dir=" + data, "--wal-dir=/wal"}, dir + "/new", "--wal-dir"},
		{[]string{"--data-dir=" + data, "--auto-tls"}, dir + "/new", "--auto-tls"},
		{[]string{"--name=a"}, dir + "/new", "absolute path"},
		{[]string{"--data-dir=" + data}, data + "/new", "inside"},
		{[]string{"--data-dir=" + data}, "/dev/shm/new", "different file systems"},
		{[]string{"--data-dir=/proc"}, dir + "/new", "root of a file system"},
		{[]string{"--data-dir=" + data, "--cert-file=x"}, dir + "/new", "for both or for neither"},
		{[]string{"--data-dir=" + data, "--cert-file=x", "--peer-cert-file=y"}, dir + "/new", "--peer-trusted-ca-file"},
		{[]string{"--data-dir=" + data}, dir + "/new", "neither --advertise-client-urls"},
	} {
		s, err := source.FromFlags(tc.flags)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := Make(t.Context(), s, Options{DataDir: tc.to, PKIDir: dir + "/pki"}); !errors.Is(err, ErrRefused) ||
			!strings.Contains(err.Error(), tc.say) {
			t.Errorf("%v: %v; want %q", tc.flags, err, tc.say)
		}
	}
	if left, err := os.ReadDir(dir); err != nil || len(left) != 1 {
		t.Errorf("something was written: %v, %v", left, err)
	}
}

// TestNodes: members that the manager can't keep are refused.
func TestNodes(t *testing.T) {
	member := func(name, url string) cluster.Member {
		return cluster.Member{ID: 1, Name: name, PeerURLs: []string{url + ":2380"}, ClientURLs: []string{url + ":2379"}}
	}
	learner := member("a", "https://10.0.0.1")
	learner.Learner = true
	for _, tc := range []struct {
		members []cluster.Member
		say     string
	}{
		{[]cluster.Member{member("a", "https://10.0.0.1")}, ""},
		{[]cluster.Member{member("a", "https://10.0.0.1"), member("b", "https://10.0.0.2")}, "2 members"},
		{[]cluster.Member{member("a b", "https://10.0.0.1")}, "one word"},
		{[]cluster.Member{learner}, "learner"},
		{[]cluster.Member{member("a", "http://10.0.0.1")}, "TLS"},
	} {
		p := &Plan{ClusterID: "abc"}
		err := p.nodes(tc.members, tc.members[0], true, Options{QuarantinePort: 8001})
		if tc.say == "" && err == nil {
			if got := p.State.Nodes[0].QuarantinedClientURLs; !slices.Equal(got, []string{"https://10.0.0.1:8001"}) {
				t.Errorf("quarantined client URLs %v", got)
			}
			continue
		}
		if err == nil || !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), tc.say) {
			t.Errorf("%v: %v; want %q", tc.members, err, tc.say)
		}
	}
}

func TestListenAddress(t *testing.T) {
	for clients, want := range map[string]string{
		"https://10.0.0.1:2379":                        "10.0.0.1",
		"https://127.0.0.1:2379,https://10.0.0.1:2379": "0.0.0.0",
		"https://[::1]:2379,https://[fd00::1]:2379":    "::",
		"https://localhost:2379":                       "0.0.0.0",
	} {
		if got := listenAddress(map[string]string{"listen-client-urls": clients}); got != want {
			t.Errorf("%s: %s; want %s", clients, got, want)
		}
	}
}

// TestMoveWaitsForTheUnit: between a crash of etcd and its restart by systemd nothing runs, and the data must not be taken away.
func TestMoveWaitsForTheUnit(t *testing.T) {
	dir := t.TempDir()
	say := func(state string) {
		if err := os.WriteFile(filepath.Join(dir, "systemctl"),
			[]byte("#!/bin/sh\n[ \"$1 $2\" = 'is-active etcd' ] || exit 9\necho "+state+"\nexit 3\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
	old := filepath.Join(dir, "etcd-data")
	if err := os.MkdirAll(filepath.Join(old, "member"), 0o700); err != nil {
		t.Fatal(err)
	}
	p := &Plan{OldDataDir: old, DataDir: filepath.Join(dir, "new"), Unit: "etcd"}
	say("activating")
	if err := p.Move(); !errors.Is(err, ErrRuns) || !strings.Contains(err.Error(), "unit etcd is activating") {
		t.Errorf("while systemd waits to start it: %v", err)
	}
	say("inactive")
	if err := p.Move(); errors.Is(err, ErrRuns) {
		t.Errorf("once it is disabled: %v", err)
	}
}
