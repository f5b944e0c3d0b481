package prune

import (
	"context"
	"errors"
	"fmt"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// maxDamaged is how many damaged proofs are passed over in one run.
const maxDamaged = 10

// findProven finds the chain of the newest proven backup. One whose proof is damaged doesn't prove anything: the next one counts.
func (s *survey) findProven(ctx context.Context) error {
	var have knownProof
	damaged := 0
	for i := len(s.list.Backups) - 1; ; i-- {
		if i < 0 {
			return nil
		}
		b := s.list.Backups[i]
		if !b.Proven {
			continue
		}
		var ok bool
		if have, ok = s.p.proofs[b.Name]; ok && have.at.Equal(b.ProofAt) {
			break
		}
		proof, err := s.p.catalog.Proof(ctx, b.Name)
		if errors.Is(err, catalog.ErrNotFound) {
			return nil
		}
		if errors.Is(err, cluster.ErrCorrupt) && damaged < maxDamaged {
			damaged++
			continue
		}
		if err != nil {
			return fmt.Errorf("no changes are removed while it isn't known which ones the newest verification needs: %w", err)
		}
		have = knownProof{b.ProofAt, proof}
		s.p.proofs[b.Name] = have
		break
	}
	if have.proof.Base == "" {
		return nil
	}
	k, ok, err := s.base(ctx, have.proof.Base)
	if err != nil || !ok || !k.usable {
		return err
	}
	s.markBase(have.proof.Base)
	for _, l := range s.logs {
		if l.id == have.proof.Incarnation {
			l.changes.ProvenFrom, l.changes.ProvenTo = k.revision, have.proof.Revision
		}
	}
	return nil
}
