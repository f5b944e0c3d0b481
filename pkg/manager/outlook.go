package manager

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Summary is what a manager knows of the whole cluster. A leader sends it to all nodes, so that each of them can show it.
type Summary struct {
	// Node is who says this, Term its leadership; 0 if it doesn't lead.
	Node cluster.NodeID `json:"node"`
	Term cluster.Term   `json:"term"`
	// Why is the last decision's sentence.
	Why       string              `json:"why"`
	Attention []cluster.Attention `json:"attention,omitempty"`
	// Wanted is 0 if it isn't known.
	Wanted  int `json:"wanted"`
	Healthy int `json:"healthy"`
	// StoreError is empty if the store answers.
	StoreError   string    `json:"storeError,omitempty"`
	NewestBackup time.Time `json:"newestBackup,omitzero"`
	Backups      int       `json:"backups"`
	BackupError  string    `json:"backupError,omitempty"`
	PruneDenied  string    `json:"pruneDenied,omitempty"`
	PruneLocked  int       `json:"pruneLocked,omitempty"`
	// Proof is what the last proof of a backup has found, Changes how changes are kept; nil if they aren't.
	Proof   ProofReport       `json:"proof"`
	Changes *changelog.Status `json:"changes,omitempty"`
	// Copies are how the copies of the store do.
	Copies []catalog.CopyReport `json:"copies,omitempty"`
	// Releases says why nodes that are ready to give their data volumes up keep them still, by node.
	Releases map[cluster.NodeID]string `json:"releases,omitempty"`
	// Waiting are queued restores in words; Restore is the one under way.
	Waiting []string `json:"waiting,omitempty"`
	Restore string   `json:"restore,omitempty"`
	// Shown is true if the leader has what it knows in the store, so that no other node has to say anything there.
	Shown bool `json:"shown,omitempty"`
}

// Outlook is what a node can say at this moment, whoever leads.
type Outlook struct {
	Summary
	// Leading is true if the summary is this node's own as the leader. Age is how old the summary is.
	Leading bool
	Age     time.Duration
	// Doing is what is done or waited for, and since when that is so.
	Doing string
	Since time.Time
	// Recent are the last decisions and events of this process, oldest first.
	Recent []Event
}

const (
	// summaryAge is how old a leader's summary may be before a node shows its own view instead.
	summaryAge = 90 * time.Second
	// summaryBytes bounds what a leader sends; attentions, the longest part, are cut off first.
	summaryBytes = 64 << 10
	// leaderGrace is how long an election may take, and lookEvery how often a node looks at itself.
	leaderGrace = 30 * time.Second
	lookEvery   = 2 * time.Second
	// sayEvery bounds how often a node logs what it does while others lead, or nobody.
	sayEvery = 10 * time.Second
	// quorumGrace is how long etcd may be without a quorum before a node without a leader says so.
	quorumGrace = 30 * time.Second
)

// grace is how long a state must last before a person is called: shorter ones end by themselves.
func grace(k cluster.AttentionKind) time.Duration {
	switch k {
	case cluster.AttentionStore:
		return time.Minute
	case cluster.AttentionNoLeader:
		return leaderGrace
	}
	return 0
}

// summary is what this leader says of the cluster.
func (r *Report) summary(self cluster.NodeID) Summary {
	s := Summary{
		Node: self, Term: r.Term, Why: r.Why, Attention: r.Attention, StoreError: r.StoreError, NewestBackup: r.NewestBackup, Backups: r.Backups,
		BackupError: r.BackupError, PruneDenied: r.PruneDenied, PruneLocked: r.PruneLocked, Proof: r.Proof, Changes: r.Changes,
		Copies:   r.Copies,
		Releases: r.Releases,
	}
	for _, n := range r.Nodes {
		if n.Etcd.Healthy && !n.Etcd.Learner {
			s.Healthy++
		}
	}
	if r.Spec != nil {
		s.Wanted = r.Spec.MemberCount
	}
	for _, c := range r.Commands {
		text := "restore of " + c.Backup
		if !c.Ready {
			text += ", until the managers are restarted"
		}
		s.Waiting = append(s.Waiting, text)
	}
	if op := r.Operation; op != nil {
		s.Restore = fmt.Sprintf("%s: %s", op.Backup, op.State)
	}
	return s
}

// encode is the summary as it is sent, within its bound; nil if there is none yet.
func (m *Manager) encode() []byte {
	r := m.Report()
	if !r.Leading {
		return nil
	}
	s := r.summary(m.cfg.Self)
	s.Shown = m.shows()
	b, err := json.Marshal(s)
	for n := len(s.Attention); err == nil && len(b) > summaryBytes && n > 0; {
		n--
		s.Attention = s.Attention[:n]
		b, err = json.Marshal(s)
	}
	if err != nil || len(b) > summaryBytes {
		return nil
	}
	return b
}

// told is the newest summary that a leader has sent to this node, and how old it is; nil if there is none.
func (m *Manager) told() (*Summary, time.Duration) {
	if m.cfg.Told == nil {
		return nil, 0
	}
	b, at := m.cfg.Told()
	if len(b) == 0 || len(b) > 2*summaryBytes {
		return nil, 0
	}
	var s Summary
	if err := json.Unmarshal(b, &s); err != nil {
		return nil, 0
	}
	return &s, time.Since(at)
}

// Outlook says what this node knows, from memory alone.
func (m *Manager) Outlook() Outlook {
	r := m.Report()
	o := Outlook{Recent: r.Recent}
	leader, term := m.cfg.Peers.Leader()
	told, age := m.told()
	switch {
	case r.Leading && !r.At.IsZero():
		o.Summary, o.Leading, o.Age, o.Doing = r.summary(m.cfg.Self), true, time.Since(r.At), r.Why
	case leader != "" && told != nil && told.Node == leader && told.Term == term && age < summaryAge:
		o.Summary, o.Age, o.Doing = *told, age, fmt.Sprintf("node %s leads: %s", leader, told.Why)
	default:
		o.Summary = m.alone(told)
		o.Doing = m.waitsFor(leader)
		o.Attention = m.noted(scopeAlone, m.aloneAttentions(leader))
	}
	hangs := ""
	if m.cfg.StoreHangs != nil {
		hangs = m.cfg.StoreHangs()
	}
	o.StoreError = cmp.Or(o.StoreError, hangs)
	own := m.ownAttentions(&o, hangs)
	o.Attention = cluster.Distinct(append(slices.Clone(o.Attention), m.noted(scopeNode, own)...))
	o.Since = m.since(o.Doing)
	return o
}

// alone is the summary of a node that no leader tells anything: what it sees of the present, and what it last heard of the store.
func (m *Manager) alone(told *Summary) Summary {
	s := Summary{}
	if told != nil {
		s = Summary{Wanted: told.Wanted, NewestBackup: told.NewestBackup, Backups: told.Backups, Proof: told.Proof, PruneDenied: told.PruneDenied,
			Copies: told.Copies, Changes: told.Changes}
	}
	if m.cfg.Etcd != nil && m.cfg.Etcd().Healthy {
		s.Healthy = 1
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	s.Node, s.StoreError = m.cfg.Self, cmp.Or(m.probeErr, m.storeErr)
	s.Wanted = cmp.Or(m.wanted, s.Wanted)
	return s
}

// waitsFor says what a node waits for that no leader tells anything.
func (m *Manager) waitsFor(leader cluster.NodeID) string {
	var words []string
	switch other := m.Waits(); {
	case leader == m.cfg.Self:
		words = append(words, "this node has begun to lead and looks at all nodes")
	case leader != "":
		words = append(words, fmt.Sprintf("node %s leads; it has not yet told this node what it sees", leader))
	case other != "":
		words = append(words, other)
	default:
		words = append(words, m.noLeader())
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.specErr != "" {
		words = append(words, m.specErr)
	}
	if e := cmp.Or(m.probeErr, m.storeErr); e != "" {
		words = append(words, "the backup store can't be used from here: "+e)
	}
	return strings.Join(words, "; ")
}

// noLeader says who is lacking for a leader.
func (m *Manager) noLeader() string {
	peers := m.cfg.Peers.Peers()
	answer := 1
	var silent []string
	for _, p := range peers {
		if p.Connected {
			answer++
			continue
		}
		silent = append(silent, fmt.Sprintf("%s (%s)", p.ID, cmp.Or(p.Problem, "no answer yet")))
	}
	m.mu.Lock()
	wanted := m.wanted
	m.mu.Unlock()
	text := fmt.Sprintf("no manager leads: %d of %d known managers answer", answer, len(peers)+1)
	if wanted > 0 {
		text += fmt.Sprintf(", %d are needed", cluster.Quorum(wanted))
	}
	if len(silent) > 0 {
		text += "; silent: " + strings.Join(silent, ", ")
	}
	if back := m.wayBack(); back != "" {
		more := cluster.Quorum(wanted) - answer
		text += fmt.Sprintf("; %d members are wanted, and etcd has %s and serves; start %s, or go back to the size that etcd has: %s", wanted,
			cluster.Count(m.voters(), "member"), cluster.Count(more, "more manager"), back)
	}
	return text
}

// wayBack is the command that lets the managers that answer elect a leader again, if more members are wanted than there are masters to
// elect for them: a majority of what is wanted elects. Empty if it is something else that is lacking.
func (m *Manager) wayBack() string {
	answer := 1
	for _, p := range m.cfg.Peers.Peers() {
		if p.Connected {
			answer++
		}
	}
	m.mu.Lock()
	wanted := m.wanted
	m.mu.Unlock()
	have := m.voters()
	if m.cfg.Spec != nil || have >= wanted || !cluster.ValidMemberCount(have) || answer < cluster.Quorum(have) ||
		answer >= cluster.Quorum(wanted) {
		return ""
	}
	return m.sizeCommand()
}

// sizeCommand sets the member count to what runs, as far as this node can tell.
func (m *Manager) sizeCommand() string {
	return cluster.WithStore(fmt.Sprintf("etcd-manager-ctl --backup-store=URL configure-cluster --member-count=%d",
		cluster.MemberCountFor(m.voters())), m.cfg.StoreName)
}

// voters is how many voting members this node's etcd has, as long as it serves.
func (m *Manager) voters() (n int) {
	if m.cfg.Etcd == nil {
		return 0
	}
	e := m.cfg.Etcd()
	if !e.Healthy {
		return 0
	}
	for _, x := range e.Members {
		if !x.Learner {
			n++
		}
	}
	return n
}

// aloneAttentions are those that a node raises by itself while no leader tells it anything.
func (m *Manager) aloneAttentions(leader cluster.NodeID) []cluster.Attention {
	var list []cluster.Attention
	m.mu.Lock()
	spec := m.specErr
	m.mu.Unlock()
	if spec != "" {
		list = append(list, cluster.Attention{Kind: cluster.AttentionForming, Text: spec,
			Command: m.sizeCommand()})
	}
	if leader == "" && spec == "" && m.Waits() == "" {
		list = append(list, cluster.Attention{Kind: cluster.AttentionNoLeader, Node: m.cfg.Self, Text: m.noLeader(), Command: m.wayBack()})
	}
	if m.cfg.Etcd == nil {
		return list
	}
	switch e := m.cfg.Etcd(); {
	case e.Healthy || e.UnhealthyFor < quorumGrace:
	case e.Running && leader == "":
		list = append(list, cluster.Attention{Kind: cluster.AttentionQuorum, Node: m.cfg.Self,
			Text: "The etcd of this node runs, but has no quorum, and no manager leads. " + e.Error,
			NoCommand: "bring the other masters back, then nothing is lost; if they are lost for good, start managers on new masters: once " +
				"a majority of managers answers, recover --from-survivor goes on with this node's data"})
	}
	return list
}

// ownAttentions are those that are about this node alone, whoever leads.
func (m *Manager) ownAttentions(o *Outlook, storeHangs string) []cluster.Attention {
	var list []cluster.Attention
	m.mu.Lock()
	e := cmp.Or(m.probeErr, m.storeErr)
	m.mu.Unlock()
	if o.Leading { // what a leader can't read stands in its summary
		e = ""
	}
	if e = cmp.Or(e, storeHangs); e != "" {
		list = append(list, cluster.Attention{Kind: cluster.AttentionStore, Node: m.cfg.Self, Text: "This node can't use the backup store: " + e})
	}
	if m.cfg.Etcd != nil {
		if s := m.cfg.Etcd(); !s.Running && s.Error != "" && s.Restarts > 0 && s.UnhealthyFor >= quorumGrace {
			list = append(list, cluster.Attention{Kind: cluster.AttentionMember, Node: m.cfg.Self,
				Text: fmt.Sprintf("Etcd can't start here; it was tried %s: %s", cluster.Times(s.Restarts), s.Error)})
		}
	}
	if m.cfg.Local != nil {
		list = append(list, m.cfg.Local()...)
	}
	return list
}

// Scopes of attentions: each is told anew as a whole.
const (
	scopeLeader = "leader"
	scopeNode   = "node"
	scopeAlone  = "alone"
)

// attentionKey is what makes two attentions the same one.
type attentionKey struct {
	scope string
	kind  cluster.AttentionKind
	node  cluster.NodeID
}

// noted remembers since when each attention of a scope has held, and leaves out those that may still end by themselves.
func (m *Manager) noted(scope string, list []cluster.Attention) []cluster.Attention {
	m.mu.Lock()
	defer m.mu.Unlock()
	now := time.Now()
	held := map[attentionKey]bool{}
	var out []cluster.Attention
	for _, a := range list {
		k := attentionKey{scope, a.Kind, a.Node}
		held[k] = true
		if m.attention[k].IsZero() {
			m.attention[k] = now
		}
		a.Since = m.attention[k]
		a = a.At(m.cfg.StoreName)
		if now.Sub(a.Since) >= grace(a.Kind) {
			out = append(out, a.Ended())
		}
	}
	for k := range m.attention {
		if k.scope == scope && !held[k] {
			delete(m.attention, k)
		}
	}
	return out
}

// durations are the parts of a sentence that change while nothing does.
var durations = regexp.MustCompile(`\b(in )?(\d+h)?(\d+m)?\d+s\b|\bnow\b`)

func timeless(text string) string { return durations.ReplaceAllString(text, "") }

// since is since when the node has been doing this.
func (m *Manager) since(doing string) time.Time {
	m.mu.Lock()
	defer m.mu.Unlock()
	if t := timeless(doing); t != m.doing {
		m.doing, m.doingSince = t, time.Now()
	}
	return m.doingSince
}

// saying is what was logged of an attention, and when.
type saying struct {
	text string
	at   time.Time
}

// keepOutlook looks at what can be said now and then, so that times are right without anybody asking, and logs what is news.
func (m *Manager) keepOutlook(ctx context.Context) {
	said := map[string]saying{}
	last, at := "", time.Time{}
	for {
		changed := m.cfg.Peers.Changed()
		o := m.Outlook()
		m.mu.Lock()
		m.looked = time.Now()
		m.mu.Unlock()
		text := o.Doing
		switch {
		case o.Leading:
			text = "this node leads"
		case o.Term > 0:
			text = fmt.Sprintf("node %s leads, term %d", o.Node, o.Term)
		}
		if t := timeless(text); t != last && time.Since(at) >= sayEvery {
			if last, at = t, time.Now(); !o.Leading {
				m.remember(text)
				klog.Infof("%s", text)
			}
		}
		for _, a := range o.Attention {
			key := string(a.Kind) + " " + string(a.Node)
			due := time.Since(said[key].at) >= repeatAlarm
			if a.Kind == cluster.AttentionCertificate { // its text counts days, and on the last one hours
				due = said[key].text != a.Text
			}
			if a.Text != o.Why && due {
				said[key] = saying{a.Text, time.Now()}
				klog.Warningf("a person is needed: %s", a)
			}
		}
		select {
		case <-ctx.Done():
			return
		case <-changed:
		case <-time.After(lookEvery):
		}
		// Peers may change often; what is said is bounded all the same.
		select {
		case <-ctx.Done():
			return
		case <-time.After(lookEvery / 4):
		}
	}
}

// noteStore remembers what this node has seen of the store and the spec.
func (m *Manager) noteStore(err error) {
	var spec *specError
	m.mu.Lock()
	defer m.mu.Unlock()
	m.storeErr, m.specErr = "", ""
	switch {
	case errors.As(err, &spec):
		m.specErr = err.Error()
	case err != nil:
		m.storeErr = err.Error()
	}
}

// specError says that the store answers, but that its spec can't be used.
type specError struct{ text string }

func (e *specError) Error() string { return e.text }
