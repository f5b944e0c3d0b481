package etcd

import (
	"errors"
	"os"
	"path/filepath"
	"testing"
)

// TestKilledReader has the process that reads a database killed from outside, as the kernel does when memory runs out: that says nothing of the data.
func TestKilledReader(t *testing.T) {
	path := filepath.Join(t.TempDir(), "db")
	randomStore(t, path, 1)
	killed := filepath.Join(t.TempDir(), "killed")
	must(t, os.WriteFile(killed, []byte("#!/bin/sh\nkill -9 $$\n"), 0o700))
	_, proof := Prove(t.Context(), killed, path, ProveOptions{})
	_, replay := Replay(t.Context(), killed, path, func() (Replayed, error) { return Replayed{}, errors.New("no changes") })
	keys := Keys(t.Context(), killed, path, func(LiveKey) error { return nil })
	for what, err := range map[string]error{"prove": proof, "keys": keys} {
		if !errors.Is(err, errKilled) || errors.Is(err, ErrBadDatabase) {
			t.Errorf("%s: %v", what, err)
		}
	}
	if replay == nil || errors.Is(replay, ErrBadDatabase) {
		t.Errorf("replay: %v", replay)
	}
	if _, err := Prove(t.Context(), self(t), path, ProveOptions{}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}
