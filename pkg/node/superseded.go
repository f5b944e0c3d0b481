package node

import (
	"fmt"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// HoldSuperseded keeps the etcd of a data dir stopped, because another cluster has taken the place of its own: as after a Stop, it stays
// stopped over restarts, also while the store is away, until a leader has it started. It is for a manager that doesn't start; nothing may run
// on the data dir. It may be called again. An error means that nothing was held.
func HoldSuperseded(dataDir, clusterName string) error {
	lock, err := Lock(dataDir)
	if err != nil {
		return err
	}
	defer lock.Close()
	l := layout(dataDir)
	j, err := readJournal(l.journal(), clusterName)
	if err != nil {
		return err
	}
	s, err := readState(l.state())
	switch {
	case err != nil:
		return err
	case j.Operation != nil && j.Operation.ID == cluster.SupersededOperation && j.Operation.Phase.held():
		return nil
	case s == nil && j.Operation == nil: // nothing is here that could start without a leader who knows the store
		return nil
	case s == nil, j.Operation != nil && j.Operation.ID != cluster.SupersededOperation:
		return fmt.Errorf("restore %s isn't over on this node: etcd isn't held for another reason", j.Operation.ID)
	}
	old, err := encodeState(s)
	if err != nil {
		return err
	}
	j.Operation = &journalOperation{ID: cluster.SupersededOperation, Phase: phaseStopped, Old: old}
	if err := j.write(l.journal()); err != nil {
		return fmt.Errorf("hold etcd: %w", err)
	}
	return nil
}
