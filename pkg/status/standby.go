package status

import (
	"fmt"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
)

// Standby says how far the copy of another cluster's data is.
type Standby struct {
	catalog.StandbyReport
	// BehindSeconds is for how long the copy doesn't know what has happened there, BehindRevisions how many revisions it is known to lack.
	BehindSeconds   float64 `json:"behindSeconds"`
	BehindRevisions int64   `json:"behindRevisions"`
}

// NewStandby measures how far a copy is behind at a moment.
func NewStandby(r catalog.StandbyReport, now time.Time) *Standby {
	s := &Standby{StandbyReport: r, BehindRevisions: max(r.Known-r.Revision, 0)}
	if !r.Until.IsZero() {
		s.BehindSeconds = max(now.Sub(r.Until), 0).Seconds()
	}
	return s
}

func (s *Standby) rows(row func(name, format string, args ...any), now time.Time) {
	row("standby of", "%s", s.Of)
	switch {
	case s.Base == "":
		row("copy", "none yet")
	default:
		row("copy", "revision %d, %s behind (%d revisions), %d MiB, began with backup %s", s.Revision,
			time.Duration(s.BehindSeconds*float64(time.Second)).Round(time.Second), s.BehindRevisions, s.Bytes>>20, s.Base)
	}
	if s.Compared != "" {
		outcome := "the same"
		if s.Differs != "" {
			outcome = "NOT the same: " + s.Differs
		}
		row("compared", "with backup %s, %s ago: %s", s.Compared, now.Sub(s.ComparedAt).Round(time.Second), outcome)
	}
	if s.Doing != "" {
		text := s.Doing
		if s.Total > 0 {
			text += fmt.Sprintf(" (%d of %d MiB)", s.Done>>20, s.Total>>20)
		}
		row("beside", "%s", text)
	}
	if s.Error != "" {
		row("following", "FAILS for %s: %s", now.Sub(s.Since).Round(time.Second), s.Error)
	}
}
