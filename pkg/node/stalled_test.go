package node

import (
	"testing"
	"time"
)

// TestStalled: looking after etcd is judged once it has begun.
func TestStalled(t *testing.T) {
	a := &Agent{etcd: &supervisor{}}
	if s := a.Stalled(time.Minute); s != "" {
		t.Errorf("before the start: %s", s)
	}
	a.etcd.looked = time.Now()
	if s := a.Stalled(time.Minute); s != "" {
		t.Errorf("just now: %s", s)
	}
	a.etcd.looked = time.Now().Add(-2 * time.Minute)
	if a.Stalled(time.Minute) == "" {
		t.Error("nothing says that it stands still")
	}
}
