package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/buildinfo"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	etcdclient "github.com/etcd-manager/etcd-manager/pkg/etcd/client"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

// openToolCommand makes the test binary the tool itself, as a process that can be killed.
const openToolCommand = "the-tool-itself"

// openTool is the tool's main.
func openTool(args []string) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	return run(ctx, deps{args: args, in: strings.NewReader(""), out: os.Stdout, errOut: os.Stderr, build: buildinfo.Info{Version: "1.2.3"},
		now: time.Now, env: os.Getenv, open: openStore, pause: operator.Pause, kopsVolumes: openKopsVolumes})
}

// opened waits until what is opened serves, and connects to it.
func opened(t *testing.T, c *operator.Client, r operator.OpenRequest) (*operator.Opened, *etcdclient.Client) {
	t.Helper()
	r.Listen = "127.0.0.1:0"
	r.TempDir = t.TempDir()
	o, _, err := c.OpenPoint(t.Context(), r)
	must(t, err)
	t.Cleanup(func() { must(t, o.Close()) })
	e, err := etcdclient.Dial([]string{o.Endpoint}, nil)
	must(t, err)
	t.Cleanup(func() { must(t, e.Close()) })
	return o, e
}

// TestOpen opens three points of a history: each has the revision, the HashKV and the keys that the live etcd had then, and stays so.
func TestOpen(t *testing.T) {
	l := newLive(t)
	ctx := t.Context()
	lease, err := l.etcd.Client.Raw().Grant(ctx, 2) // it would end while somebody looks
	must(t, err)
	l.write("/registry/namespaces/shop", "{}")
	name := l.back()
	atBackup := l.kept()
	l.write("/registry/configmaps/shop/a", "1")
	l.write("/registry/events/shop/e", "1", clientv3.WithLease(lease.ID))
	before := l.kept()
	l.remove("/registry/namespaces/shop")
	l.remove("/registry/", clientv3.WithPrefix())
	l.write("/last", "1")
	last := l.kept()
	c, err := operator.Open(ctx, operator.Config{Store: "mem://x", Now: func() time.Time { return l.now },
		Open: func(context.Context, string) (blob.Store, error) { return l.store, nil }})
	must(t, err)
	var dirs []string
	for _, p := range []struct {
		point operator.PointRequest
		hash  uint32
		keys  int64
	}{
		{operator.PointRequest{Backup: name}, atBackup.Hash, 1},
		{operator.PointRequest{Before: "/registry/namespaces/shop"}, before.Hash, 3},
		{operator.PointRequest{Target: operator.Target{Latest: true}}, last.Hash, 1},
	} {
		o, e := opened(t, c, operator.OpenRequest{Point: p.point})
		dirs = append(dirs, o.Dir)
		h, err := e.HashKV(ctx, o.Hash.Revision)
		must(t, err)
		if h.Hash != p.hash || o.Hash.Hash != p.hash || o.Keys != p.keys {
			t.Errorf("%+v: HashKV %d, planned %d with %d keys, want %d with %d", p.point, h.Hash, o.Hash.Hash, o.Keys, p.hash, p.keys)
		}
		// A lease of the state would have ended long since.
		if ttl, err := e.Raw().TimeToLive(ctx, lease.ID); err != nil || p.keys == 3 && ttl.TTL < 1e8 {
			t.Errorf("%+v, %v", ttl, err)
		}
		_, err = e.Raw().Put(ctx, "/scratch", "1")
		must(t, err)
	}
	if h := l.kept(); h.Revision != last.Revision {
		t.Errorf("the live etcd has revision %d, want %d", h.Revision, last.Revision)
	}
	for _, dir := range dirs {
		if _, err := os.Stat(dir); err != nil {
			t.Errorf("%s is used: %v", dir, err)
		}
	}
	for _, listen := range []string{"0.0.0.0:0", "127.0.0.1", "10.0.0.1:2379"} {
		_, _, err := c.OpenPoint(ctx, operator.OpenRequest{Point: operator.PointRequest{Backup: name}, Listen: listen})
		if invalid := new(operator.InvalidError); !errors.As(err, &invalid) {
			t.Errorf("listen on %s: %v", listen, err)
		}
	}
}

// TestOpenEnds: at an interrupt and when the tool is killed, etcd ends and nothing is left.
func TestOpenEnds(t *testing.T) {
	r := realSnapshot(t)
	w := newWorld(t)
	dir := t.TempDir()
	w.store = openFile(t, dir)
	w.takeBackup("2026-02-01T10:00:00Z-000000", r.data, r.revision)
	w.spec(1, "")
	_, err := catalog.New(w.store).BackupInfo(t.Context(), "2026-02-01T10:00:00Z-000000")
	must(t, err)
	for _, signal := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGKILL} {
		tmp := t.TempDir()
		cmd := exec.Command(testutil.Self(t), openToolCommand, "--backup-store="+dir, "open", "latest", "--temp-dir="+tmp, "-o", "json")
		var errOut strings.Builder
		cmd.Stderr = &errOut
		out, err := cmd.StdoutPipe()
		must(t, err)
		must(t, cmd.Start())
		var o openOutput
		if err := json.NewDecoder(bufio.NewReader(out)).Decode(&o); err != nil {
			_ = cmd.Wait()
			t.Fatalf("%v: %s", err, errOut.String())
		}
		e, err := etcdclient.Dial([]string{o.Endpoint}, nil)
		must(t, err)
		if !e.Health(t.Context()).Healthy || o.Revision != r.revision || o.Keys != r.keys {
			t.Errorf("%+v doesn't serve", o)
		}
		must(t, cmd.Process.Signal(signal))
		_, _ = io.Copy(io.Discard, out)
		err = cmd.Wait()
		if signal != syscall.SIGKILL && err != nil {
			t.Errorf("%v: %v %s", signal, err, errOut.String())
		}
		testutil.Eventually(t, "nothing is left", func() bool {
			left, err := filepath.Glob(filepath.Join(tmp, "*"))
			return err == nil && len(left) == 0 && !e.Health(t.Context()).Healthy
		})
		must(t, e.Close())
	}
}
