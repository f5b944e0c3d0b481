package main

import (
	"context"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/internal/testutil/systemdtest"
)

// TestSystemd is systemd for a sidecar whose etcd isn't there yet.
func TestSystemd(t *testing.T) {
	systemd := systemdtest.New(t)
	// Children get what stands in the environment of this process.
	t.Setenv("NOTIFY_SOCKET", systemd.Socket)
	t.Setenv("WATCHDOG_USEC", "300000")
	ctx, cancel := context.WithCancel(t.Context())
	code := make(chan int, 1)
	go func() {
		code <- run(ctx, []string{"--cluster-name=c", "--backup-store=" + t.TempDir(), "--data-dir=" + t.TempDir(), "--client-url=http://127.0.0.1:1"},
			os.Getenv, io.Discard)
	}()
	systemd.Wait("READY=1")
	systemd.Wait("WATCHDOG=1")
	systemd.Wait("STATUS=etcd isn't healthy")
	for _, kv := range os.Environ() {
		if strings.HasPrefix(kv, "NOTIFY_SOCKET=") || strings.HasPrefix(kv, "WATCHDOG_") {
			t.Errorf("children get %s", kv)
		}
	}
	cancel()
	systemd.Wait("STOPPING=1")
	if c := <-code; c != exitOK {
		t.Errorf("code %d", c)
	}
}

// TestStalled: a loop that doesn't come round gives no sign of life.
func TestStalled(t *testing.T) {
	s, err := newSidecar(options{clientURLs: []string{"http://127.0.0.1:1"}}, nil, nil, "v")
	must(t, err)
	defer func() { testutil.Must(t, s.close()) }()
	if h := s.health(); h.Stalled != "" {
		t.Errorf("before the start: %+v", h)
	}
	if s.progress(); s.health().Stalled != "" {
		t.Errorf("just now: %+v", s.health())
	}
	s.turned = time.Now().Add(-stalledAfter - time.Second)
	if h := s.health(); h.Stalled == "" {
		t.Errorf("long ago: %+v", h)
	}
}
