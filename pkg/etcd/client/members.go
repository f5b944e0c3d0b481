package client

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

func toMember(m *etcdserverpb.Member) cluster.Member {
	return cluster.Member{
		ID: cluster.MemberID(m.ID), Name: m.Name, PeerURLs: slices.Clone(m.PeerURLs),
		ClientURLs: slices.Clone(m.ClientURLs), Learner: m.IsLearner,
	}
}

func toMembers(ms []*etcdserverpb.Member) []cluster.Member {
	out := make([]cluster.Member, 0, len(ms))
	for _, m := range ms {
		out = append(out, toMember(m))
	}
	slices.SortFunc(out, func(a, b cluster.Member) int {
		if a.ID < b.ID {
			return -1
		}
		return 1
	})
	return out
}

// Members reads the member list, sorted by id. A linearizable one needs a quorum and is right (from 3.5 on; 3.4
// always answers from what the member knows); the other is what this member knows.
func (c *Client) Members(ctx context.Context, linearizable bool) ([]cluster.Member, error) {
	r, err := c.members.MemberList(ctx, &etcdserverpb.MemberListRequest{Linearizable: linearizable})
	if err != nil {
		return nil, c.wrap("list members", err)
	}
	return toMembers(r.Members), nil
}

// AddLearner adds a member that doesn't vote yet. If there is a member with one of the peer URLs already, it
// is returned, voter or not: the caller looks at Learner.
func (c *Client) AddLearner(ctx context.Context, peerURLs []string) (cluster.Member, error) {
	if len(peerURLs) == 0 {
		return cluster.Member{}, errors.New("add member: no peer URL")
	}
	r, err := c.members.MemberAdd(ctx, &etcdserverpb.MemberAddRequest{PeerURLs: peerURLs, IsLearner: true})
	if err == nil {
		return toMember(r.Member), nil
	}
	if e := rpctypes.Error(err); !errors.Is(e, rpctypes.ErrPeerURLExist) && !errors.Is(e, rpctypes.ErrMemberExist) {
		return cluster.Member{}, c.wrap("add member", err)
	}
	ms, lerr := c.Members(ctx, true)
	if lerr != nil {
		return cluster.Member{}, lerr
	}
	for _, m := range ms {
		if slices.ContainsFunc(m.PeerURLs, func(u string) bool { return slices.Contains(peerURLs, u) }) {
			return m, nil
		}
	}
	return cluster.Member{}, c.wrap("add member", err)
}

// Promote makes a learner a voter. ErrNotCaughtUp means to try again. A member that votes already is success.
func (c *Client) Promote(ctx context.Context, id cluster.MemberID) error {
	_, err := c.members.MemberPromote(ctx, &etcdserverpb.MemberPromoteRequest{ID: uint64(id)})
	if err != nil && errors.Is(rpctypes.Error(err), rpctypes.ErrMemberNotLearner) {
		return nil
	}
	err = c.wrap(fmt.Sprintf("promote member %s", id), err)
	if errors.Is(err, ErrNotCaughtUp) && c.isVoter(ctx, id) {
		return nil // etcd looks at how far a member is before it looks at what it is
	}
	return err
}

// isVoter tells whether the member list has the member as a voter.
func (c *Client) isVoter(ctx context.Context, id cluster.MemberID) bool {
	members, err := c.Members(ctx, true)
	return err == nil && slices.ContainsFunc(members, func(m cluster.Member) bool { return m.ID == id && !m.Learner })
}

// Remove removes a member for good. One that is gone already is success.
func (c *Client) Remove(ctx context.Context, id cluster.MemberID) error {
	_, err := c.members.MemberRemove(ctx, &etcdserverpb.MemberRemoveRequest{ID: uint64(id)})
	err = c.wrap(fmt.Sprintf("remove member %s", id), err)
	if errors.Is(err, ErrNoMember) {
		return nil
	}
	return err
}

// UpdatePeerURLs changes where the others find a member.
func (c *Client) UpdatePeerURLs(ctx context.Context, id cluster.MemberID, peerURLs []string) error {
	_, err := c.members.MemberUpdate(ctx, &etcdserverpb.MemberUpdateRequest{ID: uint64(id), PeerURLs: peerURLs})
	return c.wrap(fmt.Sprintf("update member %s", id), err)
}
