package main

import (
	"os"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/notify"
	"github.com/etcd-manager/etcd-manager/pkg/status"
)

// stalledAfter is how long the loop may take to come round before systemd is to restart the sidecar. A backup makes progress with each part
// that is stored; removing old backups from a slow store takes longest.
const stalledAfter = 30 * time.Minute

// fromSystemd takes what systemd gave to this process out of the environment: its children must not speak for it.
func fromSystemd(env func(string) string) *notify.Service {
	service, err := notify.New(env, os.Getpid())
	if err != nil {
		klog.Warning(err)
	}
	for _, name := range notify.Variables() {
		if err := os.Unsetenv(name); err != nil {
			klog.Warningf("%s stays in the environment: %v", name, err)
		}
	}
	return service
}

// progress notes that the loop, or a backup that is under way, makes progress.
func (s *sidecar) progress() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turned = time.Now()
}

// health looks how this sidecar does.
func (s *sidecar) health() notify.Health {
	h := notify.Health{Status: status.Line(s.view())}
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.turned.IsZero() && time.Since(s.turned) > stalledAfter {
		h.Stalled = "the loop of backups stands still"
	}
	return h
}
