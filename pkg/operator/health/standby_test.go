package health

import (
	"strings"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// TestStandbys: how standbys are judged, and that they are of the past once a cluster is in the store.
func TestStandbys(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	own := func(written time.Duration, change func(*catalog.StandbyReport)) OwnStatus {
		r := catalog.StandbyReport{Of: "s3://other", Base: "B", Revision: 90, Known: 100, Until: now.Add(-4 * time.Second)}
		if change != nil {
			change(&r)
		}
		return OwnStatus{Status: catalog.Status{Node: "a", Standby: &r}, Written: now.Add(-written)}
	}
	for _, c := range []struct {
		name    string
		status  OwnStatus
		marker  bool
		verdict Verdict
		text    string
	}{
		{"well", own(time.Second, nil), false, Healthy, "1 node follows s3://other; the copy that is farthest is 4s behind"},
		{"silent", own(time.Hour, nil), false, NeedsYou, "has written nothing for 1h"},
		{"behind", own(time.Second, func(r *catalog.StandbyReport) { r.Until = now.Add(-6 * time.Minute) }), false, Degraded, "is 6m behind"},
		{"far behind", own(time.Second, func(r *catalog.StandbyReport) { r.Until = now.Add(-2 * time.Hour) }), false, NeedsYou, "is 2h0m behind"},
		{"begins", own(time.Second, func(r *catalog.StandbyReport) { r.Base, r.Until = "", time.Time{} }), false, Degraded, "has no copy yet"},
		{"fails", own(time.Second, func(r *catalog.StandbyReport) { r.Error, r.Since = "denied", now.Add(-time.Minute) }), false,
			Degraded, "gets no changes: denied"},
		{"fails for long", own(time.Second, func(r *catalog.StandbyReport) { r.Error, r.Since = "denied", now.Add(-time.Hour) }), false,
			NeedsYou, "has got no changes for 1h0m: denied"},
		{"differs", own(time.Second, func(r *catalog.StandbyReport) { r.Compared, r.Differs = "B", "HashKV" }), false,
			Degraded, "was not the same as backup B"},
		{"past", own(time.Hour, nil), true, NeedsYou, "No manager has written to the store"},
	} {
		f := Facts{Store: "s3://own", Now: now, Own: []OwnStatus{c.status}}
		if c.marker {
			f.Marker = &catalog.Marker{Phase: catalog.PhaseFormed}
			f.Spec = &cluster.Spec{MemberCount: 3}
		}
		r := Judge(f)
		if r.Verdict != c.verdict || !strings.Contains(r.Summary, c.text) || (len(r.Standbys) == 1) == c.marker {
			t.Errorf("%s: %s %q %+v", c.name, r.Verdict, r.Summary, r.Standbys)
		}
		if !c.marker && (r.Standbys[0].BehindRevisions != 10 || r.Standbys[0].SeenSeconds == 0) {
			t.Errorf("%s: %+v", c.name, r.Standbys[0])
		}
	}
}
