package health

import (
	"cmp"
	"slices"
	"sort"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

const (
	// quietFor is how long a leader, or a node without one, may write nothing before it counts as silent. Each writes once a minute.
	quietFor = 3 * time.Minute
	// newerBy is by how much a node's own status has to be newer than the leader's record to say that there is no leader.
	newerBy = 30 * time.Second
)

// Judge makes the report.
func Judge(f Facts) Report {
	b := &builder{f: f, r: Report{Version: SchemaVersion, At: f.Now.UTC().Truncate(time.Second), Store: f.Store,
		Findings: []Finding{}, Commands: []string{}, Nodes: []Node{}}}
	b.sources()
	b.spec()
	b.nodes()
	if b.standbys(); len(b.r.Standbys) > 0 {
		b.standbyFindings()
		b.conclude()
		return b.r
	}
	b.work()
	b.backups()
	b.copies()
	b.window()
	b.endings()
	b.findings()
	b.conclude()
	return b.r
}

// builder makes one report.
type builder struct {
	f Facts
	r Report
	// status is what is shown of the cluster: the leader's if it is current, else the newest that there is; nil if nobody has said
	// anything.
	// spoken is when that was written, and fresh whether that was lately.
	status *catalog.Status
	spoken time.Time
	fresh  bool
	// own are the nodes' own statuses that are fresh.
	own []OwnStatus
	// quiet is for how long nobody has written; negative if nobody ever did.
	quiet time.Duration
}

// age is how long ago something was, never negative: clocks differ a little.
func (b *builder) age(t time.Time) time.Duration { return max(b.f.Now.Sub(t), 0) }

// sources finds out who says what is shown.
func (b *builder) sources() {
	f := b.f
	last := f.LeaderAt
	leaderless := false
	for _, s := range f.Own {
		if s.Written.After(last) {
			last = s.Written
		}
		if b.age(s.Written) >= quietFor {
			continue
		}
		b.own = append(b.own, s)
		if s.Leader == "" && s.Written.Sub(f.LeaderAt) > newerBy {
			leaderless = true
		}
	}
	slices.SortFunc(b.own, func(x, y OwnStatus) int { return cmp.Compare(x.Node, y.Node) })
	b.quiet = -1
	if !last.IsZero() {
		b.quiet = b.age(last)
	}
	current := f.Leader != nil && b.age(f.LeaderAt) < quietFor && !leaderless
	if f.Leader != nil {
		b.r.Leader = &Leader{Node: f.Leader.Node, Term: f.Leader.Term, AgeSeconds: seconds(b.age(f.LeaderAt)), Current: current}
		if f.Status != nil {
			b.r.Leader.Manager = f.Status.Manager
		}
	}
	switch {
	case current && f.Status != nil:
		b.status, b.spoken, b.fresh = f.Status, f.LeaderAt, true
	case len(b.own) > 0:
		newest := slices.MaxFunc(b.own, func(x, y OwnStatus) int { return x.Written.Compare(y.Written) })
		b.status, b.spoken, b.fresh = &newest.Status, newest.Written, true
	case f.Status != nil:
		b.status, b.spoken = f.Status, f.LeaderAt
	}
	b.r.MembersKnown = b.fresh
	if b.status != nil {
		b.r.ClusterName, b.r.Doing, b.r.DoingSince = b.status.ClusterName, b.status.Doing, b.status.Since
	}
}

// leading tells whether the leader's own word is what is shown.
func (b *builder) leading() bool { return b.fresh && b.status.Leading }

func (b *builder) spec() {
	if s := b.f.Spec; s != nil {
		b.r.Spec = &Spec{MemberCount: s.MemberCount, EtcdVersion: s.EtcdVersion, Settings: b.f.Settings}
		b.r.MembersWanted = s.MemberCount
	} else if b.status != nil {
		b.r.MembersWanted = b.status.Wanted // a static configuration
	}
	switch m := b.f.Marker; {
	case m == nil:
		b.r.Formed = "no"
	case m.Phase == catalog.PhaseForming:
		b.r.Formed = "forming"
	default:
		b.r.Formed = "yes"
	}
}

// nodes puts together what is known of each node. What a node says of itself goes before what a silent leader last said of it.
func (b *builder) nodes() {
	known := map[cluster.NodeID]Node{}
	add := func(s *catalog.Status, written time.Time) {
		for _, n := range s.Nodes {
			known[n.Node] = Node{NodeReport: n, SeenBy: s.Node, SeenSeconds: seconds(b.age(written))}
		}
	}
	if b.f.Status != nil {
		add(b.f.Status, b.f.LeaderAt)
	}
	if !b.leading() {
		for _, s := range b.f.Own {
			add(&s.Status, s.Written)
		}
	}
	missing := func(s *catalog.Status, written time.Time) {
		for _, m := range s.Missing {
			n, ok := known[m.Node]
			if ok && n.SeenBy == m.Node && n.SeenSeconds < seconds(quietFor) {
				continue // it speaks for itself
			}
			n.Node, n.Silent, n.Problem, n.SeenBy = m.Node, true, m.Problem, s.Node
			if m.Seconds > 0 {
				n.SilentSeconds = m.Seconds + seconds(b.age(written))
			}
			n.Healthy, n.Running, n.Role = false, false, cmp.Or(n.Role, catalog.RoleMember)
			known[m.Node] = n
		}
	}
	if b.leading() {
		missing(b.status, b.spoken)
	} else {
		for _, s := range b.own {
			missing(&s.Status, s.Written)
		}
	}
	var farthest uint64
	for _, n := range known {
		if n.Healthy {
			farthest = max(farthest, n.RaftIndex)
		}
	}
	versions := map[string]bool{}
	for _, n := range known {
		if n.Healthy && n.RaftIndex > 0 {
			n.Lag = farthest - n.RaftIndex
		}
		if n.Healthy && voter(n) && b.fresh && !n.Silent {
			b.r.MembersHealthy++
		}
		if n.Running && n.Version != "" {
			versions[n.Version] = true
		}
		b.r.Nodes = append(b.r.Nodes, n)
	}
	for v := range versions {
		b.r.Versions = append(b.r.Versions, v)
	}
	slices.Sort(b.r.Versions)
	sort.Slice(b.r.Nodes, func(i, j int) bool { return b.r.Nodes[i].Node < b.r.Nodes[j].Node })
}

// voter tells whether a node's member takes part in votes, as far as it is known.
func voter(n Node) bool { return n.Role == catalog.RoleLeader || n.Role == catalog.RoleFollower }

// work is what is under way and what waits.
func (b *builder) work() {
	if op := b.f.Running; op != nil {
		b.r.Operation = operation(op)
		b.r.Operation.Since = cmp.Or(op.StateSince, op.Created)
	}
	if op := b.f.Ended; op != nil {
		b.r.Ended = operation(op)
		b.r.Ended.Since = cmp.Or(op.Finished, op.Updated)
	}
	b.r.Waiting = b.f.Waiting
}

func operation(op *catalog.Operation) *Operation {
	o := &Operation{ID: op.ID, Kind: op.Kind, State: op.State, Backup: op.Backup, Waiting: op.Waiting, Reason: op.Reason}
	var done, total int64
	for _, p := range op.Progress {
		if p.Total > 0 {
			done, total = done+min(p.Done, p.Total), total+p.Total
		}
	}
	if total > 0 && !op.State.Final() {
		percent := int(100 * done / total)
		o.Percent = &percent
	}
	return o
}

// backups are the newest backup, the last verification, and how the changes are kept.
func (b *builder) backups() {
	if n, ok := b.f.Backups.NewestSound(b.f.Now); ok {
		b.r.Backup = &Backup{Name: n.Name, At: n.TakenBy(b.f.Now), AgeSeconds: seconds(b.age(n.TakenBy(b.f.Now))), SizeBytes: n.Size,
			Verified: n.Proven}
	}
	s := b.status
	if s == nil {
		s = &catalog.Status{}
	}
	if r := s.Backups; r != nil && !b.f.BackupsRead && !r.Newest.IsZero() { // as the leader says
		b.r.Backup = &Backup{At: r.Newest, AgeSeconds: seconds(b.age(r.Newest))}
	}
	if r := s.Backups; r != nil && b.r.Backup != nil {
		b.r.Backup.Stored, b.r.Backup.IntervalSeconds = r.Stored, r.IntervalSeconds
	}
	last, tried := b.f.Backups.LastTried(b.f.Now)
	switch p := s.Proof; {
	case tried && (p == nil || last.Name > p.Backup || last.Name == p.Backup && last.Disproven != (p.Bad != "")):
		b.r.Verification = &Verification{Backup: last.Name, At: last.ProofAt.UTC(),
			AgeSeconds: seconds(b.age(last.ProofAt)), Good: last.Proven}
		if last.Disproven {
			b.r.Verification.Bad = "the verification found it bad; its _etcd_manager_disproven.json says why"
		}
	case p != nil:
		b.r.Verification = &Verification{Backup: p.Backup, At: p.At, Good: p.Backup != "" && p.Bad == "", Bad: p.Bad,
			ChainProblem: p.ChainProblem, Postponed: p.Postponed}
		if !p.At.IsZero() {
			b.r.Verification.AgeSeconds = seconds(b.age(p.At))
		}
	}
	if c := s.Changes; c != nil {
		b.r.Archive = &Archive{Incarnation: c.Incarnation, Until: c.Until,
			Revision: c.Archived, SpilledBytes: c.SpilledBytes, Error: c.Error}
		if !c.Until.IsZero() {
			b.r.Archive.LagSeconds = seconds(max(s.At.Sub(c.Until), 0))
		}
	}
}

// copies are what this store is a copy of, and the copies that it has.
func (b *builder) copies() {
	if x := b.f.Copy; x != nil && x.InUse.IsZero() {
		b.r.CopyOf = x.Of
	}
	if b.status == nil {
		return
	}
	for _, x := range b.status.Copies {
		y := Copy{CopyReport: x}
		if !x.Until.IsZero() {
			lag := seconds(max(b.status.At.Sub(x.Until), 0))
			y.LagSeconds = &lag
		}
		b.r.Copies = append(b.r.Copies, y)
	}
}

func (b *builder) window() {
	c := b.f.Coverage
	if c == nil {
		if b.f.CoverageNote != "" {
			b.r.Window = &Window{Gaps: []Gap{}, Note: b.f.CoverageNote}
		}
		return
	}
	b.r.Window = &Window{From: c.From.UTC(), Until: c.Until.UTC(), KeptSince: c.KeptSince.UTC(), Gaps: []Gap{}, Note: b.f.CoverageNote}
	for _, g := range c.Gaps {
		b.r.Window.Gaps = append(b.r.Window.Gaps, Gap{From: g.From.UTC(), Until: g.Until.UTC()})
	}
}

// endings puts together what ends on all nodes: each CA once, and of the certificates that are renewed only the first.
func (b *builder) endings() {
	type key struct{ what, problem string }
	found := map[key]*Ending{}
	for _, n := range b.r.Nodes {
		for _, e := range n.Endings {
			k := key{e.What, e.Problem}
			if e.Renewed {
				k = key{"certificate", ""}
			}
			x := found[k]
			if x == nil || e.At.Before(x.At) {
				var nodes []cluster.NodeID
				if x != nil && !e.Renewed {
					nodes = x.Nodes
				}
				x = &Ending{What: e.What, Nodes: nodes, At: e.At, Renewed: e.Renewed, Problem: e.Problem, Days: days(e.At.Sub(b.f.Now))}
				found[k] = x
			}
			if !e.Renewed || len(x.Nodes) == 0 {
				x.Nodes = append(x.Nodes, n.Node)
			}
		}
	}
	for _, e := range found {
		b.r.Endings = append(b.r.Endings, *e)
	}
	slices.SortFunc(b.r.Endings, func(x, y Ending) int {
		return cmp.Or(x.At.Compare(y.At), strings.Compare(x.What, y.What), strings.Compare(x.Problem, y.Problem))
	})
}

func days(d time.Duration) int {
	n := int(d / (24 * time.Hour))
	if d < 0 {
		n--
	}
	return n
}

func seconds(d time.Duration) int64 { return int64(d / time.Second) }
