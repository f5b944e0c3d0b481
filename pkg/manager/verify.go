package manager

import (
	"context"
	"fmt"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

const (
	// verifySettle is how long a new leader waits before it looks whether a proof is due; verifyAgain when it was postponed, or failed for
	// a reason that may pass.
	verifySettle = time.Minute
	verifyAgain  = 10 * time.Minute
)

// ProofReport is what is known of the last proof of a backup.
type ProofReport struct {
	// Backup is what was proven, At when; both are zero if none ever was.
	Backup string
	At     time.Time
	// Bad says why the backup is bad, ChainProblem why it could not be reached from the one before it; empty if all is well.
	Bad, ChainProblem string
	Took              time.Duration
	// Postponed says why the proof that is due was not done.
	Postponed string
}

// proofs has backups proven that are in the store.
type proofs struct {
	*shared
	nodes   *nodes
	backups *backups

	mu sync.Mutex
	// restful is the node on which a backup may be proven now, able the one on which it may be although the cluster isn't at rest.
	restful, able cluster.NodeID
}

// restful is the node on which a backup may be proven now, or "": nothing else is going on, all is well, and it doesn't lead etcd if
// another one can.
func restful(o *model.Observation, spec *cluster.Spec) cluster.NodeID {
	if !steady(o, spec) {
		return ""
	}
	return able(o)
}

// able is the node on which a backup may be proven once that has been put off for long enough, or "": a cluster with a member missing may
// stay as it is for weeks, and still must know whether its backups are good. A restore or a backup that runs is waited for.
func able(o *model.Observation) cluster.NodeID {
	if o.Store.Error != "" || o.Store.Operation != nil || o.BackupRunning != "" {
		return ""
	}
	first, second := speakers(o, func(*cluster.NodeStatus) bool { return true })
	switch {
	case second != nil:
		return second.ID
	case first != nil:
		return first.ID
	}
	return ""
}

// noteRestful remembers the node on which a backup may be proven now.
func (pr *proofs) noteRestful(o *model.Observation, spec *cluster.Spec) {
	id, second := restful(o, spec), able(o)
	pr.mu.Lock()
	defer pr.mu.Unlock()
	pr.restful, pr.able = id, second
}

// node is where a backup may be proven, or "".
func (pr *proofs) node(althoughBusy bool) cluster.NodeID {
	pr.mu.Lock()
	defer pr.mu.Unlock()
	if althoughBusy && pr.restful == "" {
		return pr.able
	}
	return pr.restful
}

// run proves a backup every so often, the newest good one of the life that serves, as long as this leadership lasts. The interval counts
// from the last proof that the store knows of. A machine that is busy, or a cluster that isn't whole, puts a proof off, but one that always
// is must have its backups proven, too: after a whole interval it is done anyway.
func (pr *proofs) run(ctx context.Context) {
	interval := pr.m.cfg.VerifyInterval
	if interval <= 0 {
		return
	}
	var putOff time.Time
	for wait := min(verifySettle, interval); ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		var err error
		if wait, err = pr.verifyIfDue(ctx, interval, overdue(putOff, interval)); err == nil {
			putOff = time.Time{}
		} else if ctx.Err() == nil {
			if putOff.IsZero() {
				putOff = time.Now()
			}
			wait = min(verifyAgain, interval)
			pr.said.Warningf("proof", "no backup is proven now, next attempt in %s: %v", wait, err)
			pr.m.setProof(func(p *ProofReport) { p.Postponed = err.Error() })
		}
	}
}

// overdue tells whether a proof that was put off since then has waited for long enough.
func overdue(putOff time.Time, interval time.Duration) bool {
	return !putOff.IsZero() && time.Since(putOff) >= interval
}

// verifyIfDue returns when to look again.
func (pr *proofs) verifyIfDue(ctx context.Context, interval time.Duration, althoughBusy bool) (time.Duration, error) {
	list, err := pr.archive().ForProof(ctx, time.Now())
	if err != nil {
		return 0, err
	}
	if last, ok := list.LastTried(time.Now()); ok {
		pr.tell(ctx, last)
		if left := last.ProofDue(time.Now(), interval); left > 0 {
			return left, nil
		}
	}
	name, err := pr.archive().ToProve(ctx, list, time.Now())
	if err != nil {
		return 0, err
	}
	if name == "" {
		return min(verifyAgain, interval), nil
	}
	node := pr.node(althoughBusy)
	if node == "" {
		return 0, fmt.Errorf("postponed: the cluster is not at rest")
	}
	action := &protosv1.PerformRequest{Action: &protosv1.PerformRequest_VerifyBackup{
		VerifyBackup: &protosv1.VerifyBackup{Name: name, AlthoughBusy: althoughBusy}}}
	e, err := pr.nodes.perform(ctx, node, action, pr.nodes.slowAction(), nil)
	if err != nil {
		return 0, err
	}
	return interval, pr.record(ctx, name, e.GetVerified())
}

// tell reports what an earlier leader has found out.
func (pr *proofs) tell(ctx context.Context, b catalog.Backup) {
	p, err := pr.m.cfg.Catalog.Proof(ctx, b.Name)
	if err != nil {
		return // it is only shown
	}
	pr.m.setProof(func(r *ProofReport) { *r = proofReport(b.Name, p) })
}

func proofReport(name string, p catalog.Proof) ProofReport {
	r := ProofReport{Backup: name, At: p.At, Took: p.Duration}
	if p.Outcome == catalog.Disproven {
		r.Bad = p.Error
	} else {
		r.ChainProblem = p.Error
	}
	return r
}

// record puts what was found beside the backup. A backup that is sound though it can't be reached from the one before it is proven: it can
// be restored.
func (pr *proofs) record(ctx context.Context, name string, v *protosv1.VerifiedBackup) error {
	p := catalog.Proof{At: time.Now().UTC(), Outcome: catalog.Proven, Base: v.GetBase(), Segments: int(v.GetSegments()),
		Incarnation: catalog.Incarnation(v.GetIncarnation()), Revision: v.GetRevision(), Hash: v.GetHash(),
		Duration: time.Duration(v.GetDurationNanos()), Error: v.GetChainProblem(), ToolVersion: pr.m.cfg.Changes.ToolVersion}
	if v.GetBad() != "" {
		p.Outcome, p.Error = catalog.Disproven, v.GetBad()
		klog.Errorf("backup %s is BAD: %s; another one is taken at once", name, v.GetBad())
		pr.backups.want("the newest backup was found to be bad")
	} else if p.Error != "" {
		klog.Warningf("backup %s is sound, but it can't be reached from the one before it: %s", name, p.Error)
	}
	pr.m.setProof(func(r *ProofReport) { *r = proofReport(name, p) })
	err := pr.m.cfg.Catalog.PutProof(ctx, name, p)
	pr.m.copiers.poke()
	return err
}

func (m *Manager) setProof(change func(*ProofReport)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	change(&m.proof)
}
