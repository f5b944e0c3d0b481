package plan

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// Decision is the one next action and the sentence that goes to the log.
type Decision struct {
	// Do is nil if there is nothing to do now.
	Do model.Action
	// Why says in the operator's words what is the case and why this follows.
	Why string
	// Key is the same as long as the same is decided for the same reason: Why without times and figures.
	Key string
	// After is how long what is postponed still waits; 0 if nothing is.
	After time.Duration
	// Waits is true if nothing is done because something is expected to happen soon.
	Waits bool
	// Alarm is true if a person is needed, or something wanted can't be done.
	Alarm bool
	// Attention says what a person is needed for. It is set if Alarm is.
	Attention cluster.Attention
}

// Next names the one next action for what was observed. Rules are asked in order; the first that speaks wins.
// A nil spec means that nobody has said what is wanted.
func Next(o *model.Observation, spec *cluster.Spec, p model.Policy) Decision {
	r := &rules{o: sorted(o), spec: spec, p: p}
	r.v = look(r.o)
	if op := o.Store.Operation; op != nil {
		r.tried = op.ID
	}
	var put *Decision // what waits for its next attempt while others may go on
	beside := false   // a restore waits that has touched nothing yet
	for _, rule := range r.ordered() {
		if beside && !rule.heals {
			continue
		}
		d, ok := rule.ask()
		if !ok {
			continue
		}
		wanted := r.fence(d)
		d = Postpone(o, wanted)
		switch {
		case d.Do != nil:
			return attended(d, rule.kind)
		case beside: // what the restore waits for is said
			continue
		case d.Waits && r.untouched() && o.Store.Superseded == nil:
			beside = true
		case wanted.Do == nil || !rule.yields:
			return attended(d, rule.kind)
		}
		if put == nil {
			d = attended(d, rule.kind)
			put = &d
		}
	}
	if put != nil {
		return *put
	}
	return attended(r.steady(), cluster.AttentionOther)
}

// rule is one of the ordered rules.
type rule struct {
	ask func() (Decision, bool)
	// kind is what a person is needed for if it says that one is.
	kind cluster.AttentionKind
	// yields is true if the rules behind it may go on while what it wants waits for its next attempt.
	yields bool
	// heals is true if it may also speak while a restore waits that has touched nothing yet.
	heals bool
}

// ordered are the rules of Next; the first that speaks wins.
func (r *rules) ordered() []rule {
	return []rule{
		{ask: r.otherLeader, kind: cluster.AttentionOther},
		{ask: r.superseded, kind: cluster.AttentionOther},
		{ask: r.operation, kind: cluster.AttentionRestore},
		{ask: r.leftover, kind: cluster.AttentionClusters},
		{ask: r.brokenState, kind: cluster.AttentionMember},
		{ask: r.command, kind: cluster.AttentionRestore},
		{ask: r.form, kind: cluster.AttentionForming},
		{ask: r.forming, kind: cluster.AttentionForming},
		{ask: r.held, kind: cluster.AttentionRestore, yields: true},
		{ask: r.otherSettings, kind: cluster.AttentionSettings},
		{ask: r.lost, kind: cluster.AttentionQuorum},
		{ask: r.lift, kind: cluster.AttentionClusters, heals: true},
		{ask: r.corrupt, kind: cluster.AttentionCorrupt},
		{ask: r.backup, kind: cluster.AttentionBackup, yields: true, heals: true},
		{ask: r.putBack, kind: cluster.AttentionOther, yields: true},
		{ask: r.users, kind: cluster.AttentionOther, yields: true},
		{ask: r.makeRoom, kind: cluster.AttentionDatabase, yields: true, heals: true},
		{ask: r.learner, kind: cluster.AttentionMember},
		{ask: r.strayNode, kind: cluster.AttentionClusters, yields: true},
		{ask: r.moved, kind: cluster.AttentionMember, yields: true},
		{ask: r.fallBack, kind: cluster.AttentionVersion},
		{ask: r.deadMember, kind: cluster.AttentionMember},
		{ask: r.tooMany, kind: cluster.AttentionMember},
		{ask: r.tooFew, kind: cluster.AttentionMember},
		{ask: r.unmarked, kind: cluster.AttentionClusters, yields: true},
		{ask: r.record, kind: cluster.AttentionMember, yields: true},
		{ask: r.present, kind: cluster.AttentionOther, yields: true},
		{ask: r.noSpace, kind: cluster.AttentionDatabase, yields: true},
		{ask: r.release, kind: cluster.AttentionMember, yields: true},
		{ask: r.version, kind: cluster.AttentionVersion, yields: true},
		{ask: r.settings, kind: cluster.AttentionSettings, yields: true},
		{ask: r.defragment, kind: cluster.AttentionDatabase, yields: true},
	}
}

// rules are what Next asks, one after another. Many methods, since each rule is one, and each question that several rules ask
// of the same observation is another; they share that observation and change nothing.
type rules struct {
	o    observed
	spec *cluster.Spec
	p    model.Policy
	v    view
	// tried is the command of the restore that is recorded; it is not begun again.
	tried string
	// unwatched is true if the restore goes on without the store.
	unwatched bool
	// pending says which restore waits for the store, while one of its clusters serves and is looked after.
	pending string
}

func do(a model.Action, why string, args ...any) (Decision, bool) {
	return Decision{Do: a, Why: fmt.Sprintf(why, args...), Key: keyOf(why, args)}, true
}

func hold(why string, args ...any) (Decision, bool) {
	return Decision{Why: fmt.Sprintf(why, args...), Key: keyOf(why, args), Waits: true}, true
}

func alarm(why string, args ...any) (Decision, bool) {
	return Decision{Why: fmt.Sprintf(why, args...), Key: keyOf(why, args), Alarm: true}, true
}

var none = Decision{}

// fence puts taking the term before any step that can't be taken back.
func (r *rules) fence(d Decision) Decision {
	if d.Do == nil || d.Do.Fence() == model.FenceNone {
		return d
	}
	s, key := r.o.Store, d.Key
	switch {
	case s.Error != "" && r.unwatched:
		return d
	case s.Error != "":
		d, _ = needs(cluster.Attention{Kind: cluster.AttentionStore},
			"%s; this can't be taken back, so it waits for the store: %s", d.Why, s.Error)
	case r.locked() && !r.goesOn(d.Do):
		why, way := unfenced(&s)
		d, _ = needs(apartAttention(&s), "%s; but %s, so two leaders could do it at once; %s", d.Why, why, way)
	case s.HolderError != "":
		d, _ = needs(cluster.Attention{Kind: cluster.AttentionObject},
			"%s; this can't be taken back, and the store's leader record can't be used: %s", d.Why, s.HolderError)
	case !s.Holder.Mine:
		d, _ = do(model.TakeTerm{}, "%s; the leader's term goes into the store first", d.Why)
	case s.Unsure != "" && !r.p.AllowUnfenced && !r.goesOn(d.Do):
		d, _ = hold("%s; this can't be taken back, so it waits until it is known whether the store fences between the nodes: %s",
			d.Why, figure{s.Unsure})
	default:
		return d
	}
	d.Key = "fenced: " + key // the words of the decision, and of the store, may have times in them
	return d
}

// brokenState stops everything that could destroy what can't be read.
func (r *rules) brokenState() (Decision, bool) {
	if r.v.token != "" {
		return none, false // the cluster goes on; the broken node is dealt with as a dead member
	}
	for _, n := range r.o.Nodes {
		if n.StateError != "" {
			return needs(cluster.Attention{Node: n.ID},
				"node %s has a state file or data dir that can't be used: %s; nothing is formed or restored until it is mended or moved away", n.ID, n.StateError)
		}
	}
	return none, false
}

// otherLeader keeps a leader still that can't see the members while another one acts.
func (r *rules) otherLeader() (Decision, bool) {
	s := r.o.Store
	h := s.Holder
	if s.Error != "" || r.v.serving || h.Mine || h.Node == "" || h.UnchangedFor >= r.p.HolderLease {
		return none, false
	}
	if r.o.Node(h.Node) != nil && len(r.o.Missing) == 0 {
		return none, false // the holder's node is here and not leading any more
	}
	if r.seesMembers() {
		return none, false
	}
	return hold("node %s acts as leader with term %d in the store, last seen %s ago; this side waits until that is %s",
		h.Node, h.Term, round(h.UnchangedFor), round(r.p.HolderLease))
}

// seesMembers tells whether the nodes out of reach can't be a quorum of anything that is known: the cluster, the founders, the
// cluster that is being restored. If nothing is known because nothing was ever made, they may still be about to make it, if they are
// enough to have elected the holder by themselves.
func (r *rules) seesMembers() bool {
	op, m := r.o.Store.Operation, r.o.Store.Marker
	if op != nil && (r.o.quorumAway(nodeNames(op.Nodes), 0) || r.o.away(op.OldToken, 0)) {
		return false
	}
	if r.v.token != "" && (m.Token == "" || m.Token == r.v.token) {
		return !r.o.away(r.v.token, 0)
	}
	switch m.Phase {
	case model.MarkerForming:
		return !r.o.quorumAway(nodeNames(m.Founders), 0)
	case model.MarkerFormed:
		return op != nil // all of its nodes are here, so nobody else can go on with it
	}
	return !r.holderElectedApart()
}

// holderElectedApart tells whether the holder of the leader record and the other nodes out of reach are a majority of the wanted members.
// With one wanted member each node is: two that can't reach each other would take the term from each other for ever.
func (r *rules) holderElectedApart() bool {
	if r.spec == nil {
		return false
	}
	apart := len(r.o.Missing)
	holder := r.o.Store.Holder.Node
	if r.o.Node(holder) == nil && !slices.ContainsFunc(r.o.Missing, func(m model.MissingNode) bool { return m.ID == holder }) {
		apart++
	}
	return apart >= cluster.Quorum(r.spec.MemberCount)
}

func nodeNames(nodes []cluster.EtcdNode) []string {
	list := make([]string, len(nodes))
	for i, n := range nodes {
		list[i] = n.Name
	}
	return list
}

// noneHas says that no master has something.
func noneHas(masters int) string {
	if masters == 1 {
		return "the one master here doesn't have"
	}
	return fmt.Sprintf("none of the %d masters here has", masters)
}

// lost explains what a person has to do when a cluster exists but can't serve from here.
func (r *rules) lost() (Decision, bool) {
	if r.v.token == "" {
		if r.o.Store.Error != "" {
			return needs(cluster.Attention{Kind: cluster.AttentionStore},
				"the store can't be read and no node has an etcd cluster; nothing is done: %s", figure{r.o.Store.Error})
		}
		return needs(cluster.Attention{Kind: cluster.AttentionData, Command: restoreCommand},
			"a cluster was created for this store before, but %s its data; bring the masters with the data back, or restore: "+
				restoreCommand, noneHas(len(r.o.Nodes)))
	}
	if r.v.serving {
		return none, false
	}
	var state, kinds []string
	starting := false
	for _, n := range r.v.nodes {
		word := "running, not healthy"
		switch {
		case heldSuperseded(*n):
			word = "stopped, since the cluster is superseded"
		case n.Holding:
			word = "held for a restore"
		case n.Etcd.Running && n.Etcd.Learner:
			word = "a learner, which has no vote"
		case n.Etcd.Healthy:
			word = "healthy"
		case !n.Etcd.Running:
			word = "not running"
		}
		kinds = append(kinds, string(n.ID)+word)
		if n.Etcd.Error != "" {
			word += " (" + n.Etcd.Error + ")"
		}
		starting = starting || r.mayComeUp(n)
		state = append(state, fmt.Sprintf("%s: %s", n.ID, word))
	}
	for _, m := range r.v.nodes[0].State.Nodes {
		switch n := r.o.Node(cluster.NodeID(m.Name)); {
		case n == nil:
			state, kinds = append(state, m.Name+": no answer"), append(kinds, m.Name+" away")
		case n.StateError != "":
			state = append(state, m.Name+": "+n.StateError)
		case n.State == nil:
			state = append(state, m.Name+": its disk is empty")
		case n.State.Token != r.v.token:
			state = append(state, fmt.Sprintf("%s: has another cluster (token %s)", m.Name, n.State.Token))
		}
	}
	words := strings.Join(state, ", ")
	if m := r.o.Store.Marker; m.Phase == model.MarkerFormed && m.Token != "" && m.Token != r.v.token {
		words += fmt.Sprintf(" (these have cluster %s; the store's marker names cluster %s, of which no node is here)", r.v.token, m.Token)
	}
	unset := false
	for _, n := range r.v.nodes {
		if len(n.Settings) > 0 && !n.Etcd.Running {
			unset = true
			words += fmt.Sprintf("; if it is the settings that keep etcd on node %s from starting (%s), take them back: etcd-manager-ctl --backup-store=URL configure-cluster --unset=NAME", n.ID, n.Settings)
			break
		}
	}
	if starting {
		d, ok := hold("etcd is starting: %s", words)
		d.Key = "starting: " + strings.Join(kinds, ", ")
		return d, ok
	}
	if d, ok := r.relocated(words); ok {
		return d, true
	}
	way, command := "restore a backup: "+restoreCommand, restoreCommand
	if slices.ContainsFunc(r.v.nodes, func(n *cluster.NodeStatus) bool { return n.DataPresent }) {
		command = recoverCommand
		way = "go on with the data of a member that is left, which have writes that no backup has: " + recoverCommand +
			"; only if that fails, " + way
	}
	if unset {
		command = unsetCommand
	}
	d, ok := needs(cluster.Attention{Command: command},
		"etcd has no quorum: %s; bring the members back, then nothing is lost; only if they are lost for good, %s", words, way)
	d.Key = "no quorum: " + strings.Join(kinds, ", ")
	return d, ok
}

// locked tells whether the store can't fence and the operator hasn't allowed to go without.
func (r *rules) locked() bool { return !r.o.Store.Fences && !r.p.AllowUnfenced }

// goesOn tells whether an action belongs to a commit that goes on although the store turned out not to fence: etcd is stopped, and all who
// know of it answer, so that nobody else can be acting.
func (r *rules) goesOn(a model.Action) bool {
	op := r.o.Store.Operation
	if op == nil || !committing(op.State) || r.unheard(op) != "" {
		return false
	}
	switch a.(type) {
	case model.StopAll, model.SwitchAll, model.HaltAll, model.RollbackAll, model.Advance, model.FinishRestore:
		return true
	}
	return false
}

// unfenced says why the store fences nothing, and how that ends.
func unfenced(s *model.Store) (why, way string) {
	if len(s.Apart) > 0 {
		return s.Apart[0].Why, s.Apart[0].Way
	}
	return "the store ignores conditional puts", "use another store or start with --allow-unfenced-store"
}

// apartAttention is about a store that fences nothing.
func apartAttention(s *model.Store) cluster.Attention {
	a := cluster.Attention{Kind: cluster.AttentionUnfenced}
	if len(s.Apart) > 0 {
		a.Node, a.NoCommand = s.Apart[0].Node, s.Apart[0].Way
	}
	return a
}

// steady is what is said when there is nothing to do.
func (r *rules) steady() (d Decision) {
	all, healthy := r.v.voters()
	d, _ = alarm("%d of %s healthy%s", healthy, are(all, "member"), r.standIn())
	d.Alarm = false
	s := r.o.Store
	still := "" // of what is said in ever other words
	defer func() { d.Key = cmp.Or(still, d.Why) }()
	switch {
	case s.Error != "":
		still = d.Why + "; the store can't be reached"
		d.Why += r.pending + "; the store can't be reached, so no backups are taken: " + s.Error
		d.Alarm, d.Attention = true, cluster.Attention{Kind: cluster.AttentionStore, Node: r.o.Self}
	case r.v.rival != "":
		d.Why += fmt.Sprintf("; a node here serves another etcd cluster (token %s) than this one (token %s), so no members are changed; a person has to decide which is right and stop the other", r.v.rival, r.v.token)
		d.Alarm, d.Attention = true, cluster.Attention{Kind: cluster.AttentionClusters}
	case r.badSpec() != "":
		d.Why += "; " + r.badSpec()
		d.Alarm, d.Attention = true, r.specAttention(cluster.AttentionObject)
	case s.Marker.Token != "" && s.Marker.Token != r.v.token:
		d.Why += fmt.Sprintf("; this is cluster %s, but the store's marker names cluster %s; if what runs is right: %sconfirm-cluster %s",
			r.v.token, s.Marker.Token, ctl, r.v.token)
		d.Alarm, d.Attention = true, r.markerAttention()
	case r.stranger() != nil:
		n := r.stranger()
		d.Why += fmt.Sprintf("; node %s has data of another cluster (token %s), and the store's marker doesn't say which is right, so it is not touched; move its data dir away if it isn't wanted", n.ID, n.State.Token)
		d.Alarm, d.Attention = true, cluster.Attention{Kind: cluster.AttentionClusters, Node: n.ID}
	case len(s.ObjectErrors) > 0:
		d.Why += "; an object in the store can't be used: " + s.ObjectErrors[0]
		d.Alarm, d.Attention.Kind = true, cluster.AttentionObject
	case len(s.CommandErrors) > 0:
		d.Why += "; a queued command can't be read: " + s.CommandErrors[0]
		d.Alarm, d.Attention = true, cluster.Attention{Kind: cluster.AttentionObject, Command: deleteCommand(s.CommandErrors[0])}
	case len(s.Commands) > 0 && s.Commands[0].Ready && r.fewDirs(s.Commands[0]) != "":
		d.Why += "; " + r.fewDirs(s.Commands[0])
		d.Alarm, d.Attention = true, fewAttention(s.Commands[0])
	case len(s.Commands) > 0 && s.Commands[0].Ready && !r.locked():
		d.Why += fmt.Sprintf("; the restore of %s waits until enough masters are in reach", s.Commands[0].What())
		d.Alarm, d.Attention = true, cluster.Attention{Kind: cluster.AttentionRestore, Command: deleteCommand(s.Commands[0].Name)}
	case s.SettingsError != "":
		d.Why += "; the settings in the store can't be used, so none are changed: " + s.SettingsError
		d.Alarm, d.Attention = true, settingsAttention()
	case r.roomWords() != "":
		still = d.Why + "; near the quota"
		d.Why += "; " + r.roomWords() + "; delete keys or raise the quota before etcd refuses writes"
		d.Alarm, d.Attention = true, r.quotaAttention()
	case healthy < all:
	case all < r.spec.MemberCount:
		d.Why += fmt.Sprintf("; %d wanted, but no further master is here", r.spec.MemberCount)
		d.Alarm, d.Attention = true, cluster.Attention{Kind: cluster.AttentionMember}
		if cluster.ValidMemberCount(all) {
			d.Attention.Command = r.sizeCommand()
		}
	case r.locked():
		why, way := unfenced(&s)
		d.Why += fmt.Sprintf("; %s, so nothing is formed or restored with it; %s", why, way)
		d.Alarm, d.Attention = true, apartAttention(&s)
	case len(s.Commands) > 0:
		d.Why += fmt.Sprintf("; the restore of %s waits until the managers are restarted", s.Commands[0].What())
	}
	return d
}

// users holds every change while an etcd has users and refuses its manager: what isn't told of a member that serves is no sign of a loss.
// What only the store has to hear goes first.
func (r *rules) users() (Decision, bool) {
	n := r.denied()
	if n == nil || !r.v.serving {
		return none, false
	}
	for _, ask := range []func() (Decision, bool){r.unmarked, r.present} {
		if d, ok := ask(); ok {
			return d, ok
		}
	}
	return needs(deniedAttention(n), "etcd serves and refuses the manager of node %s, so no member is changed and its backups fail: %s",
		n.ID, figure{n.Etcd.Error})
}

// denied is a node whose etcd refuses the manager, or nil: etcd has users, and the manager isn't one that may.
func (r *rules) denied() *cluster.NodeStatus {
	for _, n := range r.v.nodes {
		if n.Etcd.Denied {
			return n
		}
	}
	return nil
}

// stranger is a node that has data of another cluster, or nil.
func (r *rules) stranger() *cluster.NodeStatus {
	for i, n := range r.o.Nodes {
		if n.State != nil && n.State.Token != r.v.token {
			return &r.o.Nodes[i]
		}
	}
	return nil
}

func round(d time.Duration) time.Duration { return d.Round(time.Second) }

// are counts things, with the verb.
func are(n int, thing string) string {
	if n == 1 {
		return "1 " + thing + " is"
	}
	return cluster.Count(n, thing) + " are"
}
