// Package wire converts between the nouns of pkg/cluster and the messages of protos/v1, field by field.
//
// It decides nothing; CheckNames is for whoever takes a message from somebody else. Slices are shared, not copied.
package wire

import (
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

// StateToProto converts the content of a state file; nil stays nil.
func StateToProto(s *cluster.EtcdState) *protosv1.EtcdState {
	if s == nil {
		return nil
	}
	return &protosv1.EtcdState{
		NewCluster:  s.NewCluster,
		EtcdVersion: s.EtcdVersion,
		Quarantined: s.Quarantined,
		Cluster: &protosv1.EtcdCluster{
			DesiredClusterSize: int32(s.DesiredSize),
			ClusterToken:       string(s.Token),
			Nodes:              NodesToProto(s.Nodes),
		},
	}
}

// StateFromProto converts the content of a state file; nil stays nil.
func StateFromProto(p *protosv1.EtcdState) *cluster.EtcdState {
	if p == nil {
		return nil
	}
	return &cluster.EtcdState{
		NewCluster:  p.GetNewCluster(),
		EtcdVersion: p.GetEtcdVersion(),
		Quarantined: p.GetQuarantined(),
		DesiredSize: int(p.GetCluster().GetDesiredClusterSize()),
		Token:       cluster.Token(p.GetCluster().GetClusterToken()),
		Nodes:       NodesFromProto(p.GetCluster().GetNodes()),
	}
}

// NodeToProto converts one member.
func NodeToProto(n cluster.EtcdNode) *protosv1.EtcdNode {
	return &protosv1.EtcdNode{Name: n.Name, PeerUrls: n.PeerURLs, ClientUrls: n.ClientURLs,
		QuarantinedClientUrls: n.QuarantinedClientURLs, TlsEnabled: n.TLS}
}

// NodeFromProto converts one member.
func NodeFromProto(p *protosv1.EtcdNode) cluster.EtcdNode {
	return cluster.EtcdNode{Name: p.GetName(), PeerURLs: p.GetPeerUrls(), ClientURLs: p.GetClientUrls(),
		QuarantinedClientURLs: p.GetQuarantinedClientUrls(), TLS: p.GetTlsEnabled()}
}

// NodesToProto converts a list.
func NodesToProto(nodes []cluster.EtcdNode) []*protosv1.EtcdNode {
	var list []*protosv1.EtcdNode
	for _, n := range nodes {
		list = append(list, NodeToProto(n))
	}
	return list
}

// NodesFromProto converts a list.
func NodesFromProto(nodes []*protosv1.EtcdNode) []cluster.EtcdNode {
	var list []cluster.EtcdNode
	for _, n := range nodes {
		list = append(list, NodeFromProto(n))
	}
	return list
}

// SpecToProto converts a spec.
func SpecToProto(s cluster.Spec) *protosv1.ClusterSpec {
	return &protosv1.ClusterSpec{MemberCount: int32(s.MemberCount), EtcdVersion: s.EtcdVersion}
}

// SpecFromProto converts a spec.
func SpecFromProto(p *protosv1.ClusterSpec) cluster.Spec {
	return cluster.Spec{MemberCount: int(p.GetMemberCount()), EtcdVersion: p.GetEtcdVersion()}
}

// StatusToProto converts what a node says of itself.
func StatusToProto(s cluster.NodeStatus) *protosv1.NodeStatus {
	p := &protosv1.NodeStatus{
		NodeId: string(s.ID), Instance: s.Instance, Self: NodeToProto(s.Self), Term: uint64(s.Term),
		State: StateToProto(s.State), StateError: s.StateError, DataPresent: s.DataPresent, Etcd: etcdToProto(s.Etcd),
		Versions: s.Versions, Holding: s.Holding, DiskFreeBytes: s.DiskFree, DiskTotalBytes: s.DiskTotal, Busy: s.Busy,
		Operation: s.Operation, ManagerVersion: s.Manager, ClockUnixNanos: s.Clock.UnixNano(), OperationRecord: s.OperationRecord,
		Settings: s.Settings, NameProblem: s.NameProblem,
	}
	if r := s.Release; r != nil {
		p.Release = &protosv1.VolumeRelease{Volume: r.Volume, Replacement: r.Replacement}
	}
	if s.Stopped != nil {
		p.StoppedUnixNanos = s.Stopped.At.UnixNano()
		if !s.Stopped.Served.IsZero() {
			p.ServedUnixNanos = s.Stopped.Served.UnixNano()
		}
	}
	for _, e := range s.Endings {
		p.Endings = append(p.Endings, &protosv1.Ending{What: e.What, AtUnixNanos: e.At.UnixNano(), Renewed: e.Renewed, Problem: e.Problem})
	}
	for _, d := range s.Staged {
		p.Staged = append(p.Staged, &protosv1.StagedDir{Operation: d.Operation, Token: string(d.Token), Revision: d.Revision, Hash: d.Hash,
			SizeBytes: d.SizeBytes, Switched: d.Switched, Halted: d.Halted, Written: d.Written})
	}
	for _, t := range s.Trash {
		p.Trash = append(p.Trash, &protosv1.TrashEntry{Token: string(t.Token), SizeBytes: t.SizeBytes, SinceUnixNanos: t.Since.UnixNano(),
			RaftTerm: t.RaftTerm, RaftIndex: t.RaftIndex, Members: int32(t.Members)})
	}
	return p
}

// StatusFromProto converts what a node says of itself.
func StatusFromProto(p *protosv1.NodeStatus) cluster.NodeStatus {
	s := cluster.NodeStatus{
		ID: cluster.NodeID(p.GetNodeId()), Instance: p.GetInstance(), Self: NodeFromProto(p.GetSelf()), Term: cluster.Term(p.GetTerm()),
		State: StateFromProto(p.GetState()), StateError: p.GetStateError(), DataPresent: p.GetDataPresent(),
		Etcd:     etcdFromProto(p.GetEtcd()),
		Versions: p.GetVersions(), Holding: p.GetHolding(), DiskFree: p.GetDiskFreeBytes(),
		DiskTotal: p.GetDiskTotalBytes(), Busy: p.GetBusy(),
		Operation: p.GetOperation(), Manager: p.GetManagerVersion(), Clock: time.Unix(0, p.GetClockUnixNanos()),
		OperationRecord: p.GetOperationRecord(),
		Settings:        p.GetSettings(), NameProblem: p.GetNameProblem(),
	}
	if r := p.GetRelease(); r != nil {
		s.Release = &cluster.VolumeRelease{Volume: r.GetVolume(), Replacement: r.GetReplacement()}
	}
	if at := p.GetStoppedUnixNanos(); at != 0 {
		s.Stopped = &cluster.Stop{At: time.Unix(0, at)}
		if served := p.GetServedUnixNanos(); served != 0 {
			s.Stopped.Served = time.Unix(0, served)
		}
	}
	for _, e := range p.GetEndings() {
		s.Endings = append(s.Endings, cluster.Ending{What: e.GetWhat(), At: time.Unix(0, e.GetAtUnixNanos()), Renewed: e.GetRenewed(),
			Problem: e.GetProblem()})
	}
	if err := CheckNames(p.GetState()); err != nil {
		s.State, s.StateError = nil, err.Error()
	}
	if _, err := cluster.ParseOperationID(s.Operation); err != nil {
		s.Operation = ""
	}
	for _, d := range p.GetStaged() {
		if CheckNames(d) != nil {
			continue
		}
		s.Staged = append(s.Staged, cluster.StagedDir{Operation: d.GetOperation(), Token: cluster.Token(d.GetToken()),
			Revision: d.GetRevision(), Hash: d.GetHash(),
			SizeBytes: d.GetSizeBytes(), Switched: d.GetSwitched(), Halted: d.GetHalted(), Written: d.GetWritten()})
	}
	for _, t := range p.GetTrash() {
		if CheckNames(t) != nil {
			continue
		}
		s.Trash = append(s.Trash, cluster.TrashEntry{Token: cluster.Token(t.GetToken()), SizeBytes: t.GetSizeBytes(),
			Since:    time.Unix(0, t.GetSinceUnixNanos()),
			RaftTerm: t.GetRaftTerm(), RaftIndex: t.GetRaftIndex(), Members: int(t.GetMembers())})
	}
	return s
}

func etcdToProto(s cluster.EtcdStatus) *protosv1.EtcdStatus {
	p := &protosv1.EtcdStatus{
		Running: s.Running, Healthy: s.Healthy, UnhealthyNanos: int64(s.UnhealthyFor), Version: s.Version, Quarantined: s.Quarantined,
		MemberId: uint64(s.MemberID), LeaderId: uint64(s.LeaderID), Learner: s.Learner, Revision: s.Revision, RaftTerm: s.RaftTerm,
		RaftIndex: s.RaftIndex, AppliedIndex: s.AppliedIndex, DbSizeBytes: s.DBSize, DbSizeInUseBytes: s.DBSizeInUse,
		Error: s.Error, Restarts: int32(s.Restarts), UpNanos: int64(s.UpFor), AnsweringNanos: int64(s.AnsweringFor),
		Reading: s.Reading, DbQuotaBytes: s.DBQuota, ClusterVersion: s.ClusterVersion, StorageVersion: s.StorageVersion,
		DowngradeTarget: s.DowngradeTarget, Outdated: s.Outdated, Denied: s.Denied,
	}
	for _, a := range s.Alarms {
		p.Alarms = append(p.Alarms, &protosv1.Alarm{Member: uint64(a.Member), Type: string(a.Type)})
	}
	if !s.LogWritten.IsZero() {
		p.LogWrittenUnixNanos = s.LogWritten.UnixNano()
	}
	for _, m := range s.Members {
		p.Members = append(p.Members, &protosv1.Member{Id: uint64(m.ID), Name: m.Name, PeerUrls: m.PeerURLs,
			ClientUrls: m.ClientURLs, Learner: m.Learner})
	}
	return p
}

func etcdFromProto(p *protosv1.EtcdStatus) cluster.EtcdStatus {
	s := cluster.EtcdStatus{
		Running: p.GetRunning(), Healthy: p.GetHealthy(), UnhealthyFor: time.Duration(p.GetUnhealthyNanos()),
		Version: p.GetVersion(), Quarantined: p.GetQuarantined(),
		MemberID: cluster.MemberID(p.GetMemberId()), LeaderID: cluster.MemberID(p.GetLeaderId()),
		Learner: p.GetLearner(), Revision: p.GetRevision(), RaftTerm: p.GetRaftTerm(),
		RaftIndex: p.GetRaftIndex(), AppliedIndex: p.GetAppliedIndex(), DBSize: p.GetDbSizeBytes(), DBSizeInUse: p.GetDbSizeInUseBytes(),
		Error: p.GetError(), Restarts: int(p.GetRestarts()), UpFor: time.Duration(p.GetUpNanos()),
		AnsweringFor: time.Duration(p.GetAnsweringNanos()), Reading: p.GetReading(), DBQuota: p.GetDbQuotaBytes(),
		ClusterVersion: p.GetClusterVersion(), StorageVersion: p.GetStorageVersion(),
		DowngradeTarget: p.GetDowngradeTarget(), Outdated: p.GetOutdated(), Denied: p.GetDenied(),
	}
	for _, a := range p.GetAlarms() {
		s.Alarms = append(s.Alarms, cluster.Alarm{Member: cluster.MemberID(a.GetMember()), Type: cluster.AlarmType(a.GetType())})
	}
	if at := p.GetLogWrittenUnixNanos(); at != 0 {
		s.LogWritten = time.Unix(0, at)
	}
	for _, m := range p.GetMembers() {
		s.Members = append(s.Members, cluster.Member{ID: cluster.MemberID(m.GetId()), Name: m.GetName(),
			PeerURLs: m.GetPeerUrls(), ClientURLs: m.GetClientUrls(), Learner: m.GetLearner()})
	}
	return s
}
