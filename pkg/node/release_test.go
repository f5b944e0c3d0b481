package node

import (
	"errors"
	"strings"
	"testing"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

func releaseRequest(term uint64, volume, replacement string) *protosv1.PerformRequest {
	return &protosv1.PerformRequest{Term: term, Leader: "a", Action: &protosv1.PerformRequest_ReleaseVolume{
		ReleaseVolume: &protosv1.ReleaseVolume{Volume: volume, Replacement: replacement}}}
}

// perform has an agent do one request, and returns what went wrong.
func perform(t *testing.T, a *Agent, req *protosv1.PerformRequest) error {
	t.Helper()
	task, err := a.begin(req)
	if err != nil {
		return err
	}
	<-task.done
	return task.err
}

// TestReleaseVolume: a volume is given up by the word of a leader of the highest term, for what the node is ready for, and once. From then on
// the node changes nothing else.
func TestReleaseVolume(t *testing.T) {
	var given []cluster.VolumeRelease
	fails := errors.New("it can't be begun")
	a := running(t, func(c *Config) {
		c.Release = func(r cluster.VolumeRelease) error {
			if fails != nil {
				return fails
			}
			given = append(given, r)
			return nil
		}
	})
	want := cluster.VolumeRelease{Volume: "vol-1", Replacement: "vol-2"}
	refused := func(what string, req *protosv1.PerformRequest, words string) {
		t.Helper()
		if err := perform(t, a, req); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("%s: %v, want %q", what, err, words)
		}
		if s := a.Status(t.Context()); len(given) > 0 || s.Busy != "" {
			t.Errorf("%s: gave %v up, busy with %q", what, given, s.Busy)
		}
	}
	refused("before it is ready", releaseRequest(2, "vol-1", "vol-2"), "isn't ready")
	changed, _ := a.Changed()
	a.SetRelease(&want)
	select {
	case <-changed:
	default:
		t.Error("the leader doesn't hear that the node is ready")
	}
	if s := a.Status(t.Context()); s.Release == nil || *s.Release != want {
		t.Errorf("the status says %v", s.Release)
	}
	refused("another volume", releaseRequest(2, "vol-9", "vol-2"), "not vol-9 for vol-2")
	refused("another one in its place", releaseRequest(2, "vol-1", "vol-9"), "not vol-1 for vol-9")
	refused("a lower term", releaseRequest(1, "vol-1", "vol-2"), cluster.ErrLowerTerm.Error())
	refused("it can't be begun", releaseRequest(2, "vol-1", "vol-2"), fails.Error())
	a.SetRelease(nil)
	refused("it isn't ready any more", releaseRequest(2, "vol-1", "vol-2"), "isn't ready")
	a.SetRelease(&want)
	a.one <- struct{}{} // something else changes the node
	refused("while it is busy, it doesn't wait", releaseRequest(2, "vol-1", "vol-2"), errNotNow.Error())
	<-a.one

	a.SetRelease(&want)
	fails = nil
	for range 2 { // asked again, it is done already
		if err := perform(t, a, releaseRequest(2, "vol-1", "vol-2")); err != nil {
			t.Fatal(err)
		}
	}
	if len(given) != 1 || given[0] != want {
		t.Errorf("gave %v up", given)
	}
	a.SetRelease(nil) // nothing changes it any more
	s := a.Status(t.Context())
	if s.Busy != cluster.BusyReleasing || s.Release == nil {
		t.Errorf("busy with %q, ready for %v", s.Busy, s.Release)
	}
	if err := perform(t, a, discard(2, "a")); !errors.Is(err, errReleased) {
		t.Errorf("another action afterwards: %v", err)
	}
}

// TestNoVolumeToRelease: where somebody else looks after the disk, there is nothing that could be given up.
func TestNoVolumeToRelease(t *testing.T) {
	a := running(t, nil)
	if err := perform(t, a, releaseRequest(1, "vol-1", "vol-2")); !errors.Is(err, cluster.ErrPermanent) {
		t.Errorf("got %v", err)
	}
}
