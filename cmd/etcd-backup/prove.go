package main

import (
	"context"
	"fmt"
	"os"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	etcdchild "github.com/etcd-manager/etcd-manager/pkg/etcd/child"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
	"github.com/etcd-manager/etcd-manager/pkg/status"
)

const (
	// verifySettle is how long one that begins to act waits before it looks whether a proof is due;
	// verifyAgain when there is no backup, or it failed for a reason that may pass.
	verifySettle = time.Minute
	verifyAgain  = 10 * time.Minute
	// keepFree is how much of the disk a proof leaves to etcd.
	keepFree = 1 << 30
)

// children are the program's hidden subcommands, which work on databases at the lowest priority.
func children() []etcdchild.Command {
	return []etcdchild.Command{database.CheckCommand(), changelog.ReplayCommand()}
}

// proveBackups proves a backup every so often, the newest good one of the life that serves, until
// ctx ends. The interval counts from the last proof that the store knows of.
func (s *sidecar) proveBackups(ctx context.Context) {
	for wait := min(verifySettle, s.o.verify); ; {
		select {
		case <-ctx.Done():
			return
		case <-time.After(wait):
		}
		var err error
		if wait, err = s.proveIfDue(ctx); err != nil && ctx.Err() == nil {
			wait = min(verifyAgain, s.o.verify)
			klog.Warningf("no backup is verified now, next attempt in %s: %v", wait, err)
			s.show(func(v *shown) { v.proof.Postponed = err.Error() })
		}
	}
}

// proveIfDue returns when to look again.
func (s *sidecar) proveIfDue(ctx context.Context) (time.Duration, error) {
	archive := &changelog.Archive{Catalog: s.catalog}
	list, err := archive.ForProof(ctx, s.now())
	if err != nil {
		return 0, err
	}
	if last, ok := list.LastTried(s.now()); ok {
		if p, err := s.catalog.Proof(ctx, last.Name); err == nil { // it is only shown
			s.show(func(v *shown) { v.proof = proofShown(last.Name, p) })
		}
		if left := last.ProofDue(s.now(), s.o.verify); left > 0 {
			return left, nil
		}
	}
	name, err := archive.ToProve(ctx, list, s.now())
	if err != nil {
		return 0, err
	}
	if name == "" {
		return min(verifyAgain, s.o.verify), nil
	}
	return s.o.verify, s.prove(ctx, name)
}

// prove tries a backup out and puts what was found beside it. One that is sound though it can't be
// reached from the one before it is proven: it can be restored.
func (s *sidecar) prove(ctx context.Context, name string) error {
	exe, err := os.Executable()
	if err != nil {
		return fmt.Errorf("verify backup %s: %w", name, err)
	}
	archive := changelog.Archive{Catalog: s.catalog}
	v, err := archive.Verify(ctx, name, changelog.VerifyOptions{Executable: exe, Dir: s.dir("verify"), KeepFree: keepFree})
	p := catalog.Proof{At: s.now().UTC(), Outcome: catalog.Proven, Base: v.Base, Segments: v.Segments, Incarnation: v.Incarnation,
		Revision: v.Facts.Revision, Hash: v.Facts.Hash.Hash, Duration: v.Took, Error: v.ChainProblem, ToolVersion: s.toolVersion}
	switch {
	case err != nil && !changelog.Disproves(err):
		return err
	case err != nil:
		p.Outcome, p.Error = catalog.Disproven, err.Error()
		klog.Errorf("backup %s is BAD: %v; another one is taken at once", name, err)
		s.want("the newest backup was found to be bad")
	case v.ChainProblem != "":
		klog.Warningf("backup %s is sound, but it can't be reached from the one before it: %s", name, v.ChainProblem)
	default:
		klog.Infof("backup %s is verified: revision %d, reached from %s with %s", name, v.Facts.Revision, v.Base,
			cluster.Count(v.Segments, "segment"))
	}
	s.show(func(x *shown) { x.proof = proofShown(name, p) })
	return s.catalog.PutProof(ctx, name, p)
}

func proofShown(name string, p catalog.Proof) status.Proof {
	r := status.Proof{Backup: name, At: p.At, Seconds: p.Duration.Seconds()}
	if p.Outcome == catalog.Disproven {
		r.Bad = p.Error
	} else {
		r.ChainProblem = p.Error
	}
	return r
}
