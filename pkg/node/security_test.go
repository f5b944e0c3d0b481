package node

import (
	"context"
	"math"
	"slices"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// TestSummariesOfFalseLeaders: only a leadership that can be a true one tells this node what the cluster is like.
func TestSummariesOfFalseLeaders(t *testing.T) {
	a := running(t, nil)
	s := &service{agent: a}
	observe := func(term uint64, leader, summary string) error {
		_, err := s.Observe(context.Background(), &protosv1.ObserveRequest{Term: term, Leader: leader, Summary: []byte(summary)})
		return err
	}
	if err := observe(5, "b", "true"); err != nil {
		t.Fatal(err)
	}
	for _, term := range []uint64{0, 4, math.MaxUint64, 1 << 49} {
		if err := observe(term, "c", "false"); err != nil && status.Code(err) != codes.Aborted {
			t.Errorf("term %d: %v", term, err)
		}
		if got, _ := a.Summary(); string(got) != "true" {
			t.Errorf("term %d: the node believes %q", term, got)
		}
	}
	if err := observe(5, "b", "newer"); err != nil {
		t.Fatal(err)
	}
	if got, _ := a.Summary(); string(got) != "newer" {
		t.Errorf("a false leader has silenced the true one: %q", got)
	}
}

// TestReachIsBounded: a peer can't have this node look for open ports without an end.
func TestReachIsBounded(t *testing.T) {
	s := &service{agent: running(t, nil), reaching: make(chan struct{}, 1)}
	ask := func(urls ...string) (string, codes.Code) {
		r, err := s.Reach(t.Context(), &protosv1.ReachRequest{Urls: urls})
		return r.GetProblem(), status.Code(err)
	}
	if _, code := ask(slices.Repeat([]string{"https://127.0.0.1:1"}, maxReached+1)...); code != codes.InvalidArgument {
		t.Errorf("many URLs: %s", code)
	}
	if problem, code := ask("https://" + strings.Repeat("x", 2*maxURL)); code != codes.OK || problem == "" || len(problem) > 200 {
		t.Errorf("a long URL: %s, %d bytes", code, len(problem))
	}
	if problem, code := ask("https://127.0.0.1:1"); code != codes.OK || problem != "" {
		t.Errorf("a port of this machine that refuses: %s, %q", code, problem)
	}
	s.reaching <- struct{}{}
	if _, code := ask("https://127.0.0.1:1"); code != codes.ResourceExhausted {
		t.Errorf("while another is answered: %s", code)
	}
}
