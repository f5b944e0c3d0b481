package catalog

import (
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob/blobtest"
)

// TestEndedIsWrittenOnce: a manager that is superseded ends, and is started again every few seconds. What it says is written once.
func TestEndedIsWrittenOnce(t *testing.T) {
	s := &counting{Store: blobtest.NewMemory()}
	c := New(s)
	of := time.Date(2026, 3, 1, 0, 0, 0, 0, time.UTC)
	stop := func(of time.Time) {
		t.Helper()
		err := c.NoteEnded(t.Context(), of, func(e *Ended) {
			if _, known := e.Stopped["a"]; !known {
				e.Stopped["a"] = StoppedNode{Time: of}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 5 {
		stop(of)
	}
	if s.puts != 1 {
		t.Errorf("it was written %d times", s.puts)
	}
	later := of.Add(time.Hour) // another record supersedes it
	stop(later)
	if e, err := c.Ended(t.Context()); err != nil || !e.Of.Equal(later) || len(e.Stopped) != 1 || s.puts != 2 {
		t.Errorf("%+v, %v after %d writes", e, err, s.puts)
	}
}
