package manager

import (
	"slices"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// TestSecondManagerOfAProcess: a process that gives up its volume gets a new Manager, and that is no start of a manager: a restore that was
// queued after the process has begun waits on, and one that was there before stays ready.
func TestSecondManagerOfAProcess(t *testing.T) {
	s := blobtest.NewMemory()
	c := catalog.New(s)
	queue := func(backup string) string {
		t.Helper()
		name, err := c.QueueRestore(t.Context(), backup, cluster.Spec{MemberCount: 3, EtcdVersion: "3.6.0"}, catalog.RestoreOptions{})
		must(t, err)
		return name.Name
	}
	isReady := func(m *Manager, name string) bool {
		t.Helper()
		l := newLeadership(m, 4)
		l.readStore(t.Context())
		for _, c := range l.known().Commands {
			if c.Name == name {
				return c.Ready
			}
		}
		t.Fatalf("command %s isn't seen in %+v", name, l.known().Commands)
		return false
	}
	before := queue("2026-01-30T01:02:03Z-000000")
	first := leads(t, s).m
	if first.Queued() != nil {
		t.Errorf("before the queue was read: %v", first.Queued())
	}
	if !isReady(first, before) {
		t.Error("a command that was there at the start isn't ready")
	}
	after := queue("2026-01-30T02:02:03Z-000000")
	cfg := first.cfg
	cfg.Queued = first.Queued()
	if !slices.Equal(cfg.Queued, []string{before}) {
		t.Errorf("found at the start: %v, want %s", cfg.Queued, before)
	}
	second, err := New(cfg)
	must(t, err)
	if isReady(second, after) {
		t.Error("a command that came since is ready, though no manager was started again")
	}
	if !isReady(second, before) {
		t.Error("a command that was there at the start isn't ready any more")
	}
	cfg.Queued = nil
	third, err := New(cfg)
	must(t, err)
	if !isReady(third, after) {
		t.Error("at the next start of a manager the command isn't ready")
	}
}
