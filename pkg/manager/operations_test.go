package manager

import (
	"fmt"
	"testing"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// TestRecallTakesTheLaterJournal: of several journals the one of the later restore counts, whatever their clocks say.
func TestRecallTakesTheLaterJournal(t *testing.T) {
	op := func(id string, term, revision int, state catalog.OperationState, updated int64) *catalog.Operation {
		return &catalog.Operation{ID: id, Term: cluster.Term(term), RevisionBefore: int64(revision), State: state, Updated: time.Unix(updated, 0)}
	}
	for _, x := range []struct{ later, earlier *catalog.Operation }{
		{op("new", 7, 2e9, catalog.StateStopping, 0), op("old", 3, 1e9, catalog.StateVerifying, 100)},  // a clock was ahead
		{op("new", 7, 2e9, catalog.StateStopping, 0), op("old", 7, 1e9, catalog.StateVerifying, 100)},  // two restores of one leader
		{op("one", 7, 1e9, catalog.StateSwitching, 0), op("one", 7, 1e9, catalog.StateStopping, 100)},  // two states of one restore
		{op("one", 8, 1e9, catalog.StateStopping, 0), op("one", 7, 1e9, catalog.StateVerifying, 100)},  // another leader took it over
		{op("one", 7, 1e9, catalog.StateReverting, 0), op("one", 7, 1e9, catalog.StateSwitching, 100)}, // on the way back
	} {
		if !laterOperation(x.later, x.earlier) || laterOperation(x.earlier, x.later) {
			t.Errorf("%s is not taken for later than %s", fmt.Sprint(x.later.ID, x.later.State), fmt.Sprint(x.earlier.ID, x.earlier.State))
		}
	}
	if o := op("one", 7, 1e9, catalog.StateStopping, 0); laterOperation(o, o) {
		t.Error("a journal is later than itself")
	}
}
