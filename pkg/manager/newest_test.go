package manager

import (
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// TestIntervalAfterBadAndWrongDates: backups go on in their interval, though the newest one in the store is bad, or was dated ahead by a
// clock that was wrong. The leader after that goes on too, and none takes one too many.
func TestIntervalAfterBadAndWrongDates(t *testing.T) {
	const interval = 15 * time.Minute
	ahead := func(d time.Duration) func(w *world) {
		return func(w *world) { w.backUp(-d) }
	}
	for name, x := range map[string]struct {
		newest func(w *world)
		// first is how long after the newest one the next is due, 10 minutes after a good one and 5 before the leader leads.
		first time.Duration
	}{
		"good":           {ahead(0), interval},
		"bad":            {func(w *world) { w.found(w.backUp(0), catalog.Disproven) }, 5 * time.Minute},
		"a minute ahead": {ahead(time.Minute), interval + time.Minute},
		"an hour ahead":  {ahead(time.Hour), interval},
		"a year ahead":   {ahead(365 * 24 * time.Hour), interval},
		"a year ahead and bad": {func(w *world) { w.found(w.backUp(-365*24*time.Hour), catalog.Disproven) },
			5 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.backUp(10 * time.Minute)
				x.newest(w)
				begun := time.Now()
				w.after(4 * time.Minute)
				w.lead(4)
				w.after(time.Until(begun.Add(x.first + interval + 5*time.Minute)))
				w.lead(5)
				w.after(time.Until(begun.Add(x.first + 2*interval + 5*time.Minute)))
				taken := w.requests("take_backup")
				if len(taken) != 3 {
					t.Fatalf("%d backups were taken, want 3; the nodes were asked %v", len(taken), w.whats())
				}
				for i, r := range taken {
					want := begun.Add(x.first + time.Duration(i)*interval)
					if late := r.at.Sub(want); late < -time.Second || late > 10*time.Second {
						t.Errorf("backup %d was taken after %s, want %s", i+1, r.at.Sub(begun), want.Sub(begun))
					}
				}
			})
		})
	}
}

// TestVerificationAfterBadAndWrongDates: a backup that is found to be bad is told, and another one is taken at once and verified next. One
// that is dated ahead, and a verification that is dated ahead, hold no later one up.
func TestVerificationAfterBadAndWrongDates(t *testing.T) {
	const every, rounds = 20 * time.Minute, 3
	for name, prepare := range map[string]func(w *world) (bad string){
		"the newest is bad":                     func(w *world) string { return w.backUp(0) },
		"the newest was found bad before":       func(w *world) string { w.found(w.backUp(0), catalog.Disproven); return "" },
		"the newest is an hour ahead":           func(w *world) string { w.backUp(-time.Hour); return "" },
		"the newest is a year ahead":            func(w *world) string { w.backUp(-365 * 24 * time.Hour); return "" },
		"the newest is a year ahead and proven": func(w *world) string { w.found(w.backUp(-365*24*time.Hour), catalog.Proven); return "" },
		"the newest is a year ahead and bad":    func(w *world) string { return w.backUp(-365 * 24 * time.Hour) },
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(w *world) {
				w.verifyEvery, w.wakeEvery = every, time.Minute
				w.backUp(10 * time.Minute)
				bad := prepare(w)
				var verified []string
				w.verify = func(name string) *protosv1.VerifiedBackup {
					verified = append(verified, name)
					if name == bad {
						return &protosv1.VerifiedBackup{Bad: "the checksum is wrong"}
					}
					return &protosv1.VerifiedBackup{Revision: 50}
				}
				w.lead(4)
				w.after(2 * time.Minute)
				if p := w.manager.Report().Proof; bad != "" && (p.Backup != bad || p.Bad != "the checksum is wrong") {
					t.Errorf("the report says of the bad one: %+v", p)
				}
				if n := len(w.requests("take_backup")); bad != "" && n != 1 {
					t.Errorf("%d backups were taken after it, want one at once", n)
				}
				w.after(rounds*every + time.Minute)
				if n := len(verified); n < rounds || n > rounds+1 {
					t.Errorf("in %s %d backups were verified: %v", rounds*every, n, verified)
				}
				seen := map[string]bool{}
				for _, name := range verified {
					if seen[name] {
						t.Errorf("%s was verified again although there were newer ones: %v", name, verified)
					}
					seen[name] = true
				}
				if p := w.manager.Report().Proof; p.Bad != "" || time.Since(p.At) > every+time.Minute {
					t.Errorf("the report says in the end: %+v", p)
				}
			})
		})
	}
}

// found writes what a verification has found of a backup.
func (w *world) found(name string, o catalog.ProofOutcome) {
	w.t.Helper()
	must(w.t, w.catalog.PutProof(w.t.Context(), name, catalog.Proof{At: time.Now().UTC(), Outcome: o}))
}
