package manager

import (
	"context"
	"errors"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// TestFailures: what nodes say in the same words is said once, and the kind of an error is told from what they answer.
func TestFailures(t *testing.T) {
	nodes := map[cluster.NodeID]error{
		"c": status.Error(codes.DataLoss, "prove: cut short"),
		"a": status.Error(codes.DataLoss, "prove: cut short"),
		"b": status.Error(codes.Unavailable, "busy"),
		"d": nil,
	}
	err := each([]cluster.NodeID{"a", "b", "c", "d"}, func(id cluster.NodeID) error {
		if nodes[id] == nil {
			return nil
		}
		return nodeError(id, nodes[id])
	})
	if got, want := err.Error(), "node b: busy; nodes a, c: prove: cut short"; got != want {
		t.Errorf("the error says %q; want %q", got, want)
	}
	if !errors.Is(err, cluster.ErrPermanent) || errors.Is(err, cluster.ErrLowerTerm) {
		t.Errorf("%v: the kinds are wrong", err)
	}
	if err := nodeError("a", status.Error(codes.Aborted, "term 3")); !errors.Is(err, cluster.ErrLowerTerm) {
		t.Errorf("%v isn't a lower term", err)
	}
	if err := each([]int{1, 2}, func(int) error { return nil }); err != nil {
		t.Errorf("nothing failed: %v", err)
	}
	if err := each([]int{1}, func(int) error { return context.Canceled }); !errors.Is(err, context.Canceled) || err.Error() != "context canceled" {
		t.Errorf("got %v", err)
	}
}
