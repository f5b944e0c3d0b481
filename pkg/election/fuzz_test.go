package election

import (
	"encoding/binary"
	"testing"

	"github.com/etcd-manager/etcd-manager/internal/testutil"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// FuzzStep lets a machine have any messages, in any order, with ticks between them: terms never go back nor reach where no history
// leads, a vote is never taken back, and each request has exactly one response.
func FuzzStep(f *testing.F) {
	message := func(kind Kind, from byte, term uint64, flags byte) []byte {
		return binary.BigEndian.AppendUint64([]byte{byte(kind), from, flags}, term)
	}
	f.Add(append(message(MsgVote, 'b', 2, 0), message(MsgHeartbeat, 'b', 2, 0)...))
	f.Add(message(MsgHeartbeat, 'b', 1<<63, 0))
	f.Add(message(MsgVote, 'c', uint64(cluster.MaxTerm), 7))
	f.Add(append(message(MsgTimeoutNow, 'b', 1, 8), message(MsgPreVoteResp, 'b', 2, 0)...))
	f.Fuzz(func(t *testing.T, in []byte) {
		testutil.Untrusted(t, len(in), testutil.Cost{Fixed: 1 << 20, PerByte: 2000}, func() error {
			m, err := New(Config{Self: "a", WantedMembers: 3, Peers: []cluster.NodeID{"b", "c"}, HeartbeatTicks: 1, LeaseTicks: 8, ElectionTicks: 10,
				Rand: func(int) int { return 0 }}, Hard{})
			if err != nil {
				return err
			}
			var last Hard
			for ; len(in) >= 11; in = in[11:] {
				msg := Message{Kind: Kind(in[0] % 10), From: cluster.NodeID(in[1:2]), To: "a", Term: cluster.Term(binary.BigEndian.Uint64(in[3:])),
					Reject: in[2]&1 != 0, Ineligible: in[2]&4 != 0, Sent: uint64(in[2])}
				if in[2]&2 != 0 {
					msg.Leader, msg.Resigned = "b", "c"
				}
				for range in[2] >> 3 {
					m.Tick()
				}
				check(t, m, &last)
				if m.Step(msg) != nil {
					continue
				}
				r := m.Ready()
				response, _ := r.Split(msg)
				if (response != nil) == msg.Kind.IsResponse() {
					t.Errorf("%s got %v", msg, response)
				}
				checkHard(t, r, &last)
			}
			return nil
		})
	})
}

func check(t *testing.T, m *Machine, last *Hard) { checkHard(t, m.Ready(), last) }

func checkHard(t *testing.T, r Ready, last *Hard) {
	if r.Hard == nil {
		return
	}
	if r.Hard.Term < last.Term || r.Hard.Term == last.Term && last.VotedFor != "" && r.Hard.VotedFor != last.VotedFor || r.Hard.Term > cluster.MaxTerm+1 {
		t.Errorf("%+v after %+v", *r.Hard, *last)
	}
	*last = *r.Hard
}
