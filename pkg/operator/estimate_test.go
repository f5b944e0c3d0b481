package operator

import (
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
)

// TestEstimate: what a restore of a few keys took says little of one that is a thousand times as large; what a large one took does.
func TestEstimate(t *testing.T) {
	const mib = 1 << 20
	at := time.Date(2026, 2, 1, 12, 0, 0, 0, time.UTC)
	done := func(bytes int64, took, outage time.Duration) []catalog.Operation {
		return []catalog.Operation{{Kind: catalog.KindRestore, State: catalog.StateDone, Created: at, Finished: at.Add(took),
			Outage: outage, StagedBytes: bytes}}
	}
	for _, c := range []struct {
		name                string
		ops                 []catalog.Operation
		size                int64
		least, most         time.Duration
		leastGone, mostGone time.Duration
	}{
		{"none was done", nil, 36 * mib, 2 * time.Second, 4 * time.Second, time.Second, 2 * time.Second},
		{"a tiny one was done", done(50<<10, 4*time.Second, 2*time.Second), 36 * mib, 4 * time.Second, 6 * time.Second, 2 * time.Second, 3 * time.Second},
		{"a tiny one was done slowly", done(50<<10, time.Minute, 2*time.Second), 1024 * mib, time.Minute, 2 * time.Minute, 2 * time.Second, 10 * time.Second},
		{"a large one was done", done(1024*mib, 220*time.Second, 70*time.Second), 512 * mib, 90 * time.Second, 150 * time.Second, 30 * time.Second, 50 * time.Second},
		{"a large one, and now a tiny one", done(1024*mib, 220*time.Second, 70*time.Second), mib, 10 * time.Second, 30 * time.Second, 5 * time.Second, 15 * time.Second},
	} {
		p := &Path{Plan: &changelog.Plan{Manifest: &catalog.Manifest{}}}
		p.Manifest.Raw.Size = c.size
		e := p.estimate(c.ops)
		if e.Total < c.least || e.Total > c.most || e.Outage < c.leastGone || e.Outage > c.mostGone {
			t.Errorf("%s: %s, of that %s without etcd; want %s to %s, and %s to %s", c.name, e.Total, e.Outage, c.least, c.most, c.leastGone, c.mostGone)
		}
	}
}
