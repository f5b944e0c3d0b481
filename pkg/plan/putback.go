package plan

import (
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// putBack carries out what operators have asked to be put back, one after the other. It goes on beside everything else but restores:
// a restore that is queued, or under way, replaces the data, so that what is written now would be lost with them.
func (r *rules) putBack() (Decision, bool) {
	s := r.o.Store
	if len(s.PutBacks) == 0 || r.o.PutBackRunning != "" || r.o.Now.Before(r.o.PutBackRetryAt) {
		return none, false
	}
	if !r.v.serving || !r.v.open || s.Error != "" || s.Operation != nil || len(s.Commands) > 0 || r.locked() {
		return none, false
	}
	if s.Marker.Phase != model.MarkerFormed || s.Marker.Token != "" && s.Marker.Token != r.v.token {
		return none, false
	}
	n := r.backupNode()
	if n == nil {
		return none, false
	}
	return do(model.PutBack{Node: n.ID, Command: s.PutBacks[0].Name}, "command %s asks for keys to be put back", s.PutBacks[0].Name)
}
