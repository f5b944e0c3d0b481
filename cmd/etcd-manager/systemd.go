package main

import (
	"cmp"
	"context"
	"os"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/notify"
	"github.com/etcd-manager/etcd-manager/pkg/status"
)

// stalledAfter is how long a loop may take to come round before systemd is to restart the manager. The slowest one comes round every half
// minute; a disk that hangs for a while is no reason.
const stalledAfter = 5 * time.Minute

// systemd is what is told to systemd of this process. A nil one tells nobody.
type systemd struct {
	service *notify.Service

	mu    sync.Mutex
	waits string               // what this process does while nothing runs that can be looked at
	look  func() notify.Health // of what runs; nil before that, and while it stops
}

// newSystemd takes what systemd gave to this process out of the environment: its children must not speak for it.
func newSystemd() *systemd {
	service, err := notify.New(os.Getenv, os.Getpid())
	if err != nil {
		klog.Warning(err)
	}
	for _, name := range notify.Variables() {
		if err := os.Unsetenv(name); err != nil {
			klog.Warningf("%s stays in the environment: %v", name, err)
		}
	}
	return &systemd{service: service, waits: "starting"}
}

// keep tells how this process does until ctx ends. What is asked to stop ends by stopping, and is alive until then.
func (s *systemd) keep(ctx, asked context.Context) {
	stop := context.AfterFunc(asked, func() {
		s.service.Stopping()
		s.rests("stopping: leadership is moved away, then etcd is stopped")
	})
	defer stop()
	s.service.Keep(ctx, func() notify.Health {
		s.mu.Lock()
		look, waits := s.look, s.waits
		s.mu.Unlock()
		if look == nil {
			return notify.Health{Status: waits}
		}
		return look()
	})
}

// runs says that the process does its duty from now on, and how one sees that it makes progress.
func (s *systemd) runs(look func() notify.Health) {
	if s == nil {
		return
	}
	s.mu.Lock()
	s.look = look
	s.mu.Unlock()
	s.service.Ready()
}

// rests says that nothing runs for a while, and why.
func (s *systemd) rests(why string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.look, s.waits = nil, why
}

// healthOf looks how a manager does. It waits for the locks of everything that it looks at: while it doesn't return, there is no sign of
// life.
func healthOf(d *daemon) notify.Health {
	return notify.Health{
		Status:  status.Line(d.view()),
		Stalled: cmp.Or(d.peers.Stalled(stalledAfter), d.manager.Stalled(stalledAfter), d.agent.Stalled(stalledAfter)),
	}
}
