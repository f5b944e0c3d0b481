package ui

import (
	"io"
	"sync"
	"time"

	"github.com/vbauerster/mpb/v8"
)

// Transfer is a bar with bytes and speed on a terminal, and nothing anywhere else.
type Transfer struct {
	mu sync.Mutex
	p  *mpb.Progress
	m  *meter
}

// NewTransfer begins a transfer.
func NewTransfer(out io.Writer, terminal bool, name string) *Transfer {
	t := &Transfer{}
	if terminal {
		t.p = mpb.New(mpb.WithOutput(out), mpb.WithRefreshRate(refreshRate), mpb.WithAutoRefresh())
		t.m = newMeter(t.p, name, "", 0, time.Now)
	}
	return t
}

// Set says how far it is. It may be called from any goroutine, and also after Close.
func (t *Transfer) Set(done, total int64) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m != nil {
		t.m.set(done, total)
	}
}

// Close takes the bar away.
func (t *Transfer) Close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.m != nil {
		t.m.bar.Abort(true)
		t.p.Wait()
		t.m = nil
	}
}
