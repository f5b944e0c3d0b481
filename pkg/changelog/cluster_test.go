package changelog

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/etcd"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/client"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/process"
	"github.com/etcd-manager/etcd-manager/test/servers"
)

// trio is a world whose etcd has three members. Its client talks to all of them.
type trio struct {
	*world
	members []*trioMember
}

type trioMember struct {
	t    testing.TB
	url  string
	dir  string
	cmd  process.CommandLine
	proc *process.Process
	own  *client.Client
}

func newTrio(t testing.TB) *trio {
	t.Helper()
	w := &trio{world: &world{t: t, dir: t.TempDir(), version: "3.6.16", gaps: make(chan string, 100)}}
	w.store = blobtest.NewFaulty(blobtest.NewMemory())
	w.catalog = catalog.New(w.store)
	w.archive = &Archive{Catalog: w.catalog}
	binary := process.Binary{Version: w.version, Path: servers.Binary(t, "etcd-3.6")}
	var initial []etcd.Peer
	for i := range 3 {
		initial = append(initial, etcd.Peer{Name: fmt.Sprintf("m%d", i),
			PeerURLs: []string{fmt.Sprintf("http://127.0.0.1:%d", freePort(t))}})
	}
	var urls []string
	for i, p := range initial {
		m := &trioMember{t: t, url: fmt.Sprintf("http://127.0.0.1:%d", freePort(t)), dir: filepath.Join(w.dir, p.Name)}
		must(t, os.Mkdir(m.dir, 0o700))
		var err error
		m.cmd, err = process.Command(etcd.Config{
			Name: p.Name, Token: "t", NewCluster: true, DataDir: filepath.Join(m.dir, "data"), PeerURLs: p.PeerURLs,
			ListenPeerURLs: p.PeerURLs,
			ClientURLs:     []string{m.url}, ListenClientURLs: []string{m.url}, InitialCluster: initial,
			Heartbeat: 50 * time.Millisecond, ElectionTimeout: 500 * time.Millisecond,
		}, binary)
		must(t, err)
		m.start()
		t.Cleanup(m.kill)
		m.own, err = client.Dial([]string{m.url}, nil)
		must(t, err)
		t.Cleanup(func() { m.own.Close() })
		w.members, urls = append(w.members, m), append(urls, m.url)
		if i == 0 {
			w.own, w.url = m.own, m.url
		}
	}
	for _, m := range w.members {
		m.serves()
	}
	var err error
	w.client, err = clientv3.New(clientv3.Config{Endpoints: urls, Logger: zap.NewNop(), DialTimeout: 10 * time.Second})
	must(t, err)
	t.Cleanup(func() { w.client.Close() })
	return w
}

func (m *trioMember) start() {
	m.t.Helper()
	log, err := os.OpenFile(filepath.Join(m.dir, "log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	must(m.t, err)
	defer log.Close()
	m.proc, err = process.Start(m.cmd, process.StartOptions{PIDFile: filepath.Join(m.dir, "pid"), Stdout: log, Stderr: log})
	must(m.t, err)
}

func (m *trioMember) kill() {
	_ = m.proc.Signal(syscall.SIGKILL) // it may have ended
	<-m.proc.Done()
}

func (m *trioMember) serves() {
	m.t.Helper()
	eventually(m.t, m.url+" serves", func() bool {
		ctx, cancel := context.WithTimeout(m.t.Context(), time.Second)
		defer cancel()
		return m.own.Health(ctx).Healthy
	})
}

// hang stops the member's process without ending it: its connections stay.
func (m *trioMember) hang() { must(m.t, m.proc.Signal(syscall.SIGSTOP)) }

// leader is etcd's, or a follower.
func (w *trio) leader() (leader, follower *trioMember) {
	w.t.Helper()
	eventually(w.t, "etcd has a leader", func() bool {
		leader, follower = nil, nil
		for _, m := range w.members {
			ctx, cancel := context.WithTimeout(w.t.Context(), time.Second)
			st, err := m.own.Status(ctx)
			cancel()
			switch {
			case err != nil:
			case st.Leader != 0 && st.Leader == st.MemberID:
				leader = m
			case st.Leader != cluster.MemberID(0):
				follower = m
			}
		}
		return leader != nil && follower != nil
	})
	return leader, follower
}

// first are all members, with one before the others.
func (w *trio) first(m *trioMember) func() []Dialer {
	dialer := func(m *trioMember) Dialer {
		return func(context.Context) (Source, error) { return new(client.Streams).Dial([]string{m.url}, nil) }
	}
	list := []Dialer{dialer(m)}
	for _, o := range w.members {
		if o != m {
			list = append(list, dialer(o))
		}
	}
	return members(list...)
}
