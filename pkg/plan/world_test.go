package plan

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
	"github.com/etcd-manager/etcd-manager/pkg/plan/safety"
)

// world is what a script describes. It fills in all that a script doesn't say, so that a healthy cluster is one line.
type world struct {
	nodes   []*worldNode
	members []cluster.Member
	o       model.Observation // all but the nodes
	spec    *cluster.Spec
	p       model.Policy
	leader  string
	keeps   string // the minor version that all keep to, else the lowest that runs
	downTo  string // for which etcd's downgrade is enabled
	alarms  []cluster.Alarm
	silent  map[string]time.Duration
	lostFor time.Duration // how long etcd has been unhealthy where there is no quorum
	mcount  int
}

// worldNode is one node of a script.
type worldNode struct {
	id       string
	away     bool
	unknown  bool
	foreign  bool
	since    time.Duration
	status   cluster.NodeStatus
	sick     bool // etcd runs and isn't healthy
	denies   bool // etcd has users and refuses the manager
	stopped  bool
	memberID cluster.MemberID
	sees     []cluster.Member
	runs     string // the version, if not that of the state
}

const (
	theToken     = cluster.Token("T1")
	restoreToken = cluster.Token("R1")
	stagedRev    = 1_000_005_000
)

var worldNow = time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)

func newWorld() *world {
	return &world{p: model.DefaultPolicy("3.6.16"), lostFor: 2 * time.Minute, o: model.Observation{
		Now: worldNow, Term: 7, FreshToken: "NEW", SettledFor: time.Hour,
		Store: model.Store{Fences: true, NewestBackupKnown: true, Holder: model.Holder{Term: 7, Mine: true}},
	}}
}

func worldNodeOf(id string) *worldNode {
	return &worldNode{id: id, status: cluster.NodeStatus{ID: cluster.NodeID(id), Instance: id + "-1",
		Self: etcdNode(id), Versions: []string{"3.5.29", "3.6.16"}}}
}

func etcdNode(name string) cluster.EtcdNode {
	return cluster.EtcdNode{Name: name, PeerURLs: []string{"https://" + name + ":2380"}, ClientURLs: []string{"https://" + name + ":4001"},
		QuarantinedClientURLs: []string{"https://" + name + ":8001"}, TLS: true}
}

func etcdNodes(names []string) []cluster.EtcdNode {
	var list []cluster.EtcdNode
	for _, n := range names {
		list = append(list, etcdNode(n))
	}
	return list
}

// memberID is the first member id of a node: a has a, b has b and so on.
func memberID(name string) cluster.MemberID {
	if name == "nobody" {
		return 0
	}
	return cluster.MemberID(name[len(name)-1]) - 'a' + 0xa
}

// splitWords splits a line at blanks; "quoted words" stay together.
func splitWords(line string) ([]string, error) {
	var words []string
	var w strings.Builder
	in, any := false, false
	for _, c := range line {
		switch {
		case c == '"':
			in, any = !in, true
		case c == ' ' && !in:
			if any {
				words = append(words, w.String())
			}
			w.Reset()
			any = false
		default:
			w.WriteRune(c)
			any = true
		}
	}
	if in {
		return nil, fmt.Errorf("no closing quote")
	}
	if any {
		words = append(words, w.String())
	}
	return words, nil
}

// args are the words of a line: flags, and values of the form key=value.
type args []string

func (a args) has(word string) bool { return slices.Contains(a, word) }

func (a args) get(key string) (string, bool) {
	for _, w := range a {
		if v, ok := strings.CutPrefix(w, key+"="); ok {
			return v, true
		}
	}
	return "", false
}

func (a args) str(key, def string) string {
	if v, ok := a.get(key); ok {
		return v
	}
	return def
}

func (a args) list(key string) []string {
	v, _ := a.get(key)
	if v == "" {
		return nil
	}
	return strings.Split(v, ",")
}

// source is the value of source=NODE:TOKEN, and of or=BACKUP.
func (a args) source() model.Source {
	node, token, _ := strings.Cut(a.str("source", ""), ":")
	return model.Source{Node: cluster.NodeID(node), Token: cluster.Token(token), OrBackup: a.str("or", ""),
		OrRevision: int64(a.num("orrev", 0))}
}

// settings are the words of the form name=value.
func (a args) settings() cluster.Settings {
	s := cluster.Settings{}
	for _, w := range a {
		if k, v, ok := strings.Cut(w, "="); ok {
			s[k] = v
		}
	}
	return s
}

func (a args) num(key string, def int) int {
	if v, ok := a.get(key); ok {
		n, err := strconv.Atoi(v)
		if err != nil {
			panic(err)
		}
		return n
	}
	return def
}

// dur is the first word that is a duration.
func (a args) dur(def time.Duration) time.Duration {
	for _, w := range a {
		if d, err := time.ParseDuration(w); err == nil {
			return d
		}
	}
	return def
}

func (w *world) node(id string) *worldNode {
	for _, n := range w.nodes {
		if n.id == id {
			return n
		}
	}
	return nil
}

// do carries out one line of a script; questions return an answer.
func (w *world) do(words []string) (answer string, err error) {
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%v", p)
		}
	}()
	a := args(words[1:])
	switch words[0] {
	case "masters": // masters a b c: empty masters, an empty store
		*w = *newWorld()
		for _, id := range a {
			w.nodes = append(w.nodes, worldNodeOf(id))
		}
		w.spec = &cluster.Spec{MemberCount: len(a)}
		w.o.Store.Spec = w.spec
	case "cluster": // cluster a b c: a healthy cluster that serves
		w.cluster(a)
	case "node": // node ID what...
		n := w.node(a[0])
		if n == nil {
			n = worldNodeOf(a[0])
			w.nodes = append(w.nodes, n)
		}
		w.setNode(n, a[1:])
	case "all": // all what...: for every node that answers
		for _, n := range w.nodes {
			if !n.away {
				w.setNode(n, a)
			}
		}
	case "member": // member ID added|learner|removed|ghost
		w.setMember(a[0], a[1:])
	case "etcd":
		w.leader = a.str("leader", w.leader)
		w.keeps, w.downTo = a.str("keeps", w.keeps), a.str("downgrade", w.downTo)
		if a.has("upgraded") { // the downgrade is over, or was canceled
			w.keeps, w.downTo = "", ""
		}
	case "alarm": // alarm NOSPACE a, alarm CORRUPT c, alarm none
		if a[0] == "none" {
			w.alarms = nil
			break
		}
		if a[0] == "superseded" { // writes are ended
			w.alarms = append(w.alarms, cluster.Alarm{Member: cluster.SupersededMember, Type: cluster.AlarmCorrupt})
			break
		}
		w.alarms = append(w.alarms, cluster.Alarm{Member: memberID(a[1]), Type: cluster.AlarmType(a[0])})
	case "settings": // settings NAME=VALUE..., or none; the operator's
		w.o.Store.Settings = a.settings()
		if a[0] == "bad" {
			w.o.Store.Settings, w.o.Store.SettingsError = nil, "control/etcd-cluster-settings: corrupt"
		}
	case "compacted":
		w.o.CompactedTo, w.o.CompactedAt = int64(a.num("to", 5000)), w.o.Now.Add(-a.dur(0))
	case "rewritten": // rewritten a b
		w.o.Rewritten = nil
		for _, n := range a {
			w.o.Rewritten = append(w.o.Rewritten, cluster.NodeID(n))
		}
	case "versions-failed":
		w.o.VersionsFailed = a
	case "clock": // clock 3h: that long after midnight
		w.o.Now = worldNow.Truncate(24 * time.Hour).Add(a.dur(0))
		w.o.Store.NewestBackup = w.o.Now.Add(-30 * time.Second)
		w.lostFor = a.dur(w.lostFor)
	case "spec":
		w.setSpec(a)
	case "store":
		w.setStore(a)
	case "marker":
		w.setMarker(a)
	case "holder":
		w.setHolder(a)
	case "backup":
		w.setBackup(a)
	case "command": // command NAME backup=B|source=[NODE]:TOKEN [or=B] [ready] [accept-loss] [members=3] [version=V]
		if a[0] == "unreadable" {
			w.o.Store.CommandErrors = append(w.o.Store.CommandErrors, "r9: control/r9/_command.json: corrupt")
			break
		}
		c := model.Command{Name: a[0], Backup: a.str("backup", "B1"), Source: a.source(), Ready: a.has("ready"),
			AcceptLoss: a.has("accept-loss"),
			Spec:       cluster.Spec{MemberCount: a.num("members", 3), EtcdVersion: a.str("version", "")}}
		if c.Source.Token != "" {
			c.Backup = ""
		}
		w.o.Store.Commands = append(w.o.Store.Commands, c)
	case "create-backup": // create-backup NAME
		w.o.Store.CreateBackups = append(w.o.Store.CreateBackups, model.CreateBackup{Name: a[0]})
	case "put-back": // put-back NAME|running|retry [10s]
		switch a[0] {
		case "running":
			w.o.PutBackRunning = "p0"
		case "retry":
			w.o.PutBackRetryAt = worldNow.Add(a.dur(10 * time.Second))
		default:
			w.o.Store.PutBacks = append(w.o.Store.PutBacks, model.QueuedPutBack{Name: a[0]})
		}
	case "superseded": // superseded [reported=a,b], superseded unreadable
		if a.has("unreadable") {
			w.o.Store.SupersededError = "control/superseded.json: corrupt"
			break
		}
		w.o.Store.Superseded = &model.Superseded{By: "s3://other/main"}
		for _, id := range a.list("reported") {
			w.o.Store.Superseded.Reported = append(w.o.Store.Superseded.Reported, cluster.NodeID(id))
		}
	case "failed":
		w.o.Store.FailedRestores = append(w.o.Store.FailedRestores, a[0])
	case "restore":
		w.setRestore(a)
	case "rolled-back": // the last restore was taken back
		var ids []string
		for _, n := range w.nodes {
			ids = append(ids, n.id)
		}
		w.o.Store.RolledBack = []model.Operation{{ID: "r1", Backup: "B1", State: model.OpRolledBack,
			Token: restoreToken, OldToken: theToken, Nodes: etcdNodes(ids)}}
	case "highest": // the highest revision that the store knows of
		v, err := strconv.ParseInt(a[0], 10, 64)
		if err != nil {
			return "", err
		}
		w.o.Store.HighestRevision = v
	case "settled":
		w.o.SettledFor = a.dur(0)
	case "policy":
		w.p.MayCreate = !a.has("no-create")
		w.p.AllowUnfenced = a.has("allow-unfenced")
		if v, ok := a.get("defrag"); ok {
			w.p.DefragThreshold, _ = strconv.ParseFloat(v, 64)
		}
		if v, ok := a.get("hours"); ok {
			from, until, _ := strings.Cut(v, "-")
			w.p.DefragFrom, _ = time.ParseDuration(from)
			w.p.DefragUntil, _ = time.ParseDuration(until)
		}
	case "probe":
		w.o.ProbeErrors = map[cluster.NodeID]string{cluster.NodeID(a[0]): a[1]}
	case "alive":
		w.o.Alive = append(w.o.Alive, memberID(a[0]))
	case "etcd-silent": // etcd-silent NODE 5s: its etcd served longer than its manager
		w.silent = map[string]time.Duration{a[0]: a.dur(0)}
	case "postponed": // postponed 5s times=3 "add-learner d": what has failed isn't tried again for so long
		if w.o.Postponed == nil {
			w.o.Postponed = map[string]model.Postponed{}
		}
		w.o.Postponed[a[len(a)-1]] = model.Postponed{For: a.dur(0), Times: a.num("times", 1), Error: "no"}
	case "join-failed": // join-failed c times=2 30s
		if w.o.JoinFailures == nil {
			w.o.JoinFailures = map[cluster.NodeID]model.JoinFailure{}
		}
		w.o.JoinFailures[cluster.NodeID(a[0])] = model.JoinFailure{Times: a.num("times", 1), For: a.dur(0), Why: "exec format error"}
	case "start-failing":
		w.o.StartFailing = map[cluster.NodeID]time.Duration{cluster.NodeID(a[0]): a.dur(0)}
	case "next":
		return w.next(), nil
	case "check":
		return w.check(a), nil
	default:
		return "", fmt.Errorf("no such word: %s", words[0])
	}
	return "", nil
}

func (w *world) cluster(ids []string) {
	*w = *newWorld()
	for _, id := range ids {
		n := worldNodeOf(id)
		w.nodes = append(w.nodes, n)
		w.run(n, theToken, ids)
		w.members = append(w.members, cluster.Member{ID: memberID(id), Name: id, PeerURLs: n.status.Self.PeerURLs,
			ClientURLs: n.status.Self.ClientURLs})
	}
	w.spec = &cluster.Spec{MemberCount: len(ids)}
	w.o.Store.Spec = w.spec
	w.o.Store.Marker = model.Marker{Phase: model.MarkerFormed, Token: theToken, Founders: etcdNodes(ids), Version: "3.6.16"}
	w.o.Store.NewestBackup = worldNow.Add(-30 * time.Second)
}

// run gives a node a state and data.
func (w *world) run(n *worldNode, token cluster.Token, ids []string) {
	n.memberID = memberID(n.id)
	n.status.State = &cluster.EtcdState{DesiredSize: len(ids), Token: token, Nodes: etcdNodes(ids), EtcdVersion: "3.6.16"}
	n.status.DataPresent = true
}

func (w *world) setNode(n *worldNode, a args) {
	st := n.status.State
	for _, word := range a {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "new": // a master without a state
		case "wiped":
			n.status.State, n.status.DataPresent, n.memberID = nil, false, 0
			n.status.Staged, n.status.Operation = nil, ""
		case "down":
			n.away, n.since = true, a.dur(10*time.Second)
		case "gone":
			n.away, n.unknown = true, true
		case "foreign":
			n.away, n.foreign, n.since = true, true, a.dur(0)
		case "denied":
			n.denies = true
		case "unhealthy":
			n.sick, n.since = true, a.dur(10*time.Second)
		case "stopped":
			n.stopped, n.since = true, a.dur(10*time.Second)
		case "nodata":
			n.status.DataPresent, n.stopped, n.since = false, true, a.dur(10*time.Second)
		case "error":
			n.status.Etcd.Error = value
		case "broken":
			n.status.State, n.status.StateError, n.since = nil, value, a.dur(10*time.Second)
		case "held":
			n.status.Holding, n.stopped, n.status.Operation = true, true, "r1"
		case "for": // for=r0: that is the restore it knows of
			n.status.Operation = value
		case "halted": // "halted" or "halted=written"
			n.status.Holding, n.stopped = true, true
			n.status.Staged[0].Halted, n.status.Staged[0].Written = true, value == "written"
		case "reverted": // has its old data back, and knows of the restore still
			n.status.Staged, n.status.Operation = nil, "r1"
		case "trash": // trash=TOKEN, trash=TOKEN@TERM.INDEX or trash=TOKEN@TERM.INDEX/MEMBERS
			token, at, _ := strings.Cut(value, "@")
			e := cluster.TrashEntry{Token: cluster.Token(token)}
			if at != "" {
				fmt.Sscanf(at, "%d.%d/%d", &e.RaftTerm, &e.RaftIndex, &e.Members)
			}
			n.status.Trash = append(n.status.Trash, e)
		case "quarantined":
			st.Quarantined = true
		case "founder": // as forming leaves it
			w.run(n, w.o.Store.Marker.Token, names2(w.o.Store.Marker.Founders))
			n.status.State.NewCluster, n.status.State.Quarantined = true, true
			w.settle(n)
		case "token":
			if st == nil {
				w.run(n, cluster.Token(value), []string{n.id})
			}
			n.status.State.Token = cluster.Token(value)
		case "of": // of=a,b,c: the members in its state file
			n.status.State.Nodes = etcdNodes(strings.Split(value, ","))
		case "attempt":
			n.status.State.NewCluster, n.status.State.Quarantined = true, true
		case "joined": // started as the member that was added for it
			w.run(n, theToken, w.memberNames())
			i := slices.IndexFunc(w.members, func(m cluster.Member) bool { return slices.Contains(m.PeerURLs, n.status.Self.PeerURLs[0]) })
			n.memberID, w.members[i].Name = w.members[i].ID, n.id
		case "behind":
			v, _ := strconv.Atoi(value)
			n.status.Etcd.AppliedIndex = uint64(100_000 - v)
		case "knows": // the member list that its etcd can tell, though it is not healthy
			for _, name := range strings.Split(value, ",") {
				n.status.Etcd.Members = append(n.status.Etcd.Members, cluster.Member{ID: memberID(name), Name: name})
			}
		case "versions":
			n.status.Versions = strings.Split(value, ",")
		case "runs": // the version of its process, and of its state if that isn't said otherwise
			n.runs = value
			if st != nil {
				st.EtcdVersion = value
			}
		case "told": // told=3.6.16: the version in its state file
			st.EtcdVersion = value
		case "storage":
			n.status.Etcd.StorageVersion = value
		case "outdated":
			n.status.Etcd.Outdated = true
		case "busy":
			n.status.Busy = value
		case "release": // release=vol-2: it is ready to give its volume up for that one
			n.status.Release = &cluster.VolumeRelease{Volume: "vol-" + n.id, Replacement: value}
		case "keeps-volume":
			n.status.Release = nil
		case "has": // has=quota-backend-bytes:1000: the settings that it was given
			k, v, _ := strings.Cut(value, ":")
			n.status.Settings = cluster.Settings{k: v}
		case "db": // db=100/40: MiB, and how much of it is in use
			size, used, _ := strings.Cut(value, "/")
			v, _ := strconv.ParseInt(size, 10, 64)
			u, _ := strconv.ParseInt(used, 10, 64)
			n.status.Etcd.DBSize, n.status.Etcd.DBSizeInUse = v<<20, u<<20
		case "disk": // disk=10/20480: MiB that are free, and how large it is
			free, total, _ := strings.Cut(value, "/")
			f, _ := strconv.ParseInt(free, 10, 64)
			t, _ := strconv.ParseInt(total, 10, 64)
			n.status.DiskFree, n.status.DiskTotal = f<<20, t<<20
		case "up": // up=2m: its process runs for so long and has never answered
			n.status.Etcd.UpFor, _ = time.ParseDuration(value)
			n.memberID = 0
		case "answering": // answering=5s: it answers for so long
			n.status.Etcd.AnsweringFor, _ = time.ParseDuration(value)
		case "reading":
			n.status.Etcd.Reading = true
		case "ended": // ended=3: so often unasked since it was healthy
			n.status.Etcd.Restarts, _ = strconv.Atoi(value)
		case "quota":
			v, _ := strconv.ParseInt(value, 10, 64)
			n.status.Etcd.DBQuota = v << 20
		case "url":
			n.status.Self.PeerURLs = []string{value}
		case "staged":
			n.status.Staged = []cluster.StagedDir{{Operation: "r1", Token: restoreToken, Revision: stagedRev, Hash: 42, SizeBytes: 1 << 30}}
			n.status.Operation = "r1"
		case "hash":
			v, _ := strconv.Atoi(value)
			n.status.Staged[0].Hash = uint32(v)
		case "unstaged":
			n.status.Staged = nil
		case "switched":
			op := w.o.Store.Operation
			w.switched(n, op.Token, names2(op.Nodes))
		case "forgot": // whatever its journal said of the restore
			n.status.Staged, n.status.Operation = nil, ""
		case "sees": // sees=a,-b: its healthy etcd knows other members than the others do; b hasn't published its name
			n.sees = nil
			for _, name := range strings.Split(value, ",") {
				if unnamed, ok := strings.CutPrefix(name, "-"); ok {
					n.sees = append(n.sees, cluster.Member{ID: memberID(unnamed), PeerURLs: etcdNode(unnamed).PeerURLs})
					continue
				}
				n.sees = append(n.sees, cluster.Member{ID: memberID(name), Name: name, PeerURLs: etcdNode(name).PeerURLs})
			}
		case "open":
			st.Quarantined = false
		case "revision":
			v, _ := strconv.ParseInt(value, 10, 64)
			n.status.Etcd.Revision = v
		default:
			if _, err := time.ParseDuration(word); err != nil {
				panic("no such state of a node: " + word)
			}
		}
		st = n.status.State
	}
}

// switched is a node that runs on the restored data.
func (w *world) switched(n *worldNode, token cluster.Token, ids []string) {
	w.run(n, token, ids)
	n.status.Holding, n.stopped, n.sick, n.status.Operation = false, false, false, "r1"
	n.status.Staged = []cluster.StagedDir{{Operation: "r1", Token: token, Revision: stagedRev, Hash: 42,
		SizeBytes: 1 << 30, Switched: true}}
	n.status.Etcd.Revision = stagedRev
}

// settle makes a founder a member.
func (w *world) settle(n *worldNode) {
	w.members = nil
	for _, f := range w.o.Store.Marker.Founders {
		w.members = append(w.members, cluster.Member{ID: memberID(f.Name), Name: f.Name, PeerURLs: f.PeerURLs, ClientURLs: f.ClientURLs})
	}
}

func names2(nodes []cluster.EtcdNode) []string { return nodeNames(nodes) }

func (w *world) memberNames() []string {
	var list []string
	for _, m := range w.members {
		if m.Name != "" {
			list = append(list, m.Name)
		}
	}
	return list
}

func (w *world) setMember(id string, a args) {
	for _, word := range a {
		switch word {
		case "added", "added-voter": // in the list, never started
			w.mcount++
			w.members = append(w.members, cluster.Member{ID: 0x100*cluster.MemberID(w.mcount) + memberID(id),
				PeerURLs: etcdNode(id).PeerURLs, Learner: word == "added"})
		case "learner": // it runs, and isn't a voter yet
			for i := range w.members {
				w.members[i].Learner = w.members[i].Learner || w.members[i].Name == id
			}
		case "removed":
			w.members = slices.DeleteFunc(w.members, func(m cluster.Member) bool { return m.Name == id })
		default:
			panic("no such state of a member: " + word)
		}
	}
}

func (w *world) setSpec(a args) {
	switch a[0] {
	case "none":
		w.spec, w.o.Store.Spec = nil, nil
	case "bad":
		w.spec, w.o.Store.Spec, w.o.Store.SpecError = nil, nil, a[1]
	default:
		n, err := strconv.Atoi(a[0])
		if err != nil {
			panic(err)
		}
		w.spec = &cluster.Spec{MemberCount: n, EtcdVersion: a.str("version", "")}
		w.o.Store.Spec = w.spec
	}
}

func (w *world) setStore(a args) {
	switch a[0] {
	case "away":
		w.o.Store.Error = "put: connection refused"
	case "unknown": // away since before this leader looked
		w.o.Store = model.Store{Error: "get: connection refused", Fences: w.o.Store.Fences}
	case "lies":
		w.o.Store.Fences = false
	case "apart": // store apart NODE
		node := cluster.NodeID(a[1])
		w.o.Store.Fences, w.o.Store.Unsure = false, ""
		w.o.Store.Apart = []model.Apart{{Node: node,
			Why: fmt.Sprintf("node %s has another store than the leader", node), Way: "give both the same --backup-store"}}
	case "unsure": // store unsure NODE
		w.o.Store.Unsure = "node " + a[1] + " hasn't seen yet what the leader has written"
	case "object-error":
		w.o.Store.ObjectErrors = append(w.o.Store.ObjectErrors, "control/operations/r8.json: corrupt")
	default:
		panic("no such state of the store: " + a[0])
	}
}

func (w *world) setMarker(a args) {
	m := model.Marker{Phase: model.MarkerPhase(a[0]), Token: cluster.Token(a.str("token", string(theToken))),
		Founders: etcdNodes(a.list("founders")), Version: "3.6.16"}
	switch a[0] {
	case "absent":
		m = model.Marker{}
	case "foreign": // by another tool: no phase, which means formed, and no token
		m = model.Marker{Phase: model.MarkerFormed}
	case "unreadable":
		m = model.Marker{}
		w.o.Store.Error = "control/etcd-cluster-created: corrupt: it is empty"
	}
	w.o.Store.Marker = m
}

func (w *world) setHolder(a args) {
	switch a[0] {
	case "mine":
		w.o.Store.Holder = model.Holder{Term: 7, Node: w.o.Self, Mine: true}
	case "none":
		w.o.Store.Holder = model.Holder{}
	case "corrupt":
		w.o.Store.Holder, w.o.Store.HolderError = model.Holder{}, "control/leader: corrupt; stop the managers, delete it, start them"
	default:
		w.o.Store.Holder = model.Holder{Term: 6, Node: cluster.NodeID(a[0]), UnchangedFor: a.dur(0)}
	}
}

func (w *world) setBackup(a args) {
	switch a[0] {
	case "never":
		w.o.Store.NewestBackup = time.Time{}
	case "unknown":
		w.o.Store.NewestBackup, w.o.Store.NewestBackupKnown = time.Time{}, false
	case "future":
		w.o.Store.NewestBackup = worldNow.Add(a.dur(0))
	case "running":
		w.o.BackupRunning = "periodic"
	case "done":
		w.o.BackupDoneAt, w.o.BackupBegunAt = worldNow.Add(-a.dur(0)), worldNow.Add(-a.dur(0))
	case "retry":
		w.o.BackupRetryAt = worldNow.Add(a.dur(0))
	default:
		w.o.Store.NewestBackup = worldNow.Add(-a.dur(0))
	}
}

func (w *world) setRestore(a args) {
	op := &model.Operation{ID: "r1", Backup: "B1", State: model.OperationState(a[0]), Token: restoreToken,
		OldToken: cluster.Token(a.str("old", string(theToken))),
		Version:  "3.6.16", StateFor: a.dur(5 * time.Second), Reason: a.str("reason", ""), SafetyTried: a.has("saved"), Source: a.source(),
		Withdrawn: a.has("withdrawn"), Written: a.has("written"), Unwritten: a.has("unwritten")}
	if op.OldToken == "none" {
		op.OldToken = ""
	}
	if list := a.list("nodes"); list != nil {
		op.Nodes = etcdNodes(list)
	} else {
		for _, n := range w.nodes {
			op.Nodes = append(op.Nodes, etcdNode(n.id))
		}
	}
	op.Size = len(op.Nodes)
	for _, id := range a.list("proven") {
		op.Proven = append(op.Proven, cluster.NodeID(id))
	}
	for _, id := range a.list("verified") {
		op.Verified = append(op.Verified, cluster.NodeID(id))
	}
	if op.Source.Token != "" {
		op.Backup = a.str("backup", "")
	}
	if !slices.Contains([]model.OperationState{model.OpSalvaging, model.OpProving, model.OpStaging}, op.State) {
		op.Revision, op.Hash, op.Bytes = stagedRev, 42, 1<<30
	}
	if d, ok := a.get("retry"); ok {
		v, _ := time.ParseDuration(d)
		op.RetryAt = worldNow.Add(v)
	}
	if op.Waiting = a.str("waiting", ""); op.Waiting != "" && op.RetryAt.IsZero() {
		op.RetryAt = worldNow.Add(5 * time.Second)
	}
	w.o.Store.Operation = op
	c := model.Command{Name: "r1", Backup: "B1", Ready: true, Spec: cluster.Spec{MemberCount: op.Size}}
	if op.Source.Token != "" {
		c.Backup, c.Source = "", op.Source
	}
	w.o.Store.Commands = append(w.o.Store.Commands, c)
}

// observe gives what the leader sees of the world.
func (w *world) observe() (*model.Observation, *cluster.Spec) {
	o := w.o
	o.Nodes, o.Missing = nil, nil
	slices.SortFunc(w.nodes, func(a, b *worldNode) int { return strings.Compare(a.id, b.id) })
	for _, n := range w.nodes {
		switch {
		case n.unknown:
		case n.away:
			o.Missing = append(o.Missing, model.MissingNode{ID: cluster.NodeID(n.id), For: n.since, Foreign: n.foreign,
				EtcdFor: w.silent[n.id]})
		default:
			o.Nodes = append(o.Nodes, w.status(n))
		}
	}
	if len(o.Nodes) > 0 && o.Self == "" {
		o.Self = o.Nodes[0].ID
	}
	return &o, w.spec
}

// list is the member list of the cluster with that token.
func (w *world) list(token cluster.Token) []cluster.Member {
	if len(w.members) > 0 && token == w.mainToken() {
		return w.members
	}
	var members []cluster.Member
	for _, n := range w.nodes {
		if n.status.State == nil || n.status.State.Token != token {
			continue
		}
		for _, f := range n.status.State.Nodes {
			members = append(members, cluster.Member{ID: memberID(f.Name), Name: f.Name, PeerURLs: f.PeerURLs, ClientURLs: f.ClientURLs})
		}
		break
	}
	return members
}

func (w *world) mainToken() cluster.Token {
	if t := w.o.Store.Marker.Token; t != "" {
		return t
	}
	return theToken
}

// well tells whether a member's etcd runs and would be healthy with a quorum.
func (w *world) well(token cluster.Token, id cluster.MemberID) *worldNode {
	for _, n := range w.nodes {
		away := n.away && !n.foreign
		if n.status.State != nil && n.status.State.Token == token && n.memberID == id && !away && !n.sick && !n.stopped {
			return n
		}
	}
	return nil
}

func (w *world) status(n *worldNode) cluster.NodeStatus {
	st := n.status
	if st.State == nil {
		st.Etcd.UnhealthyFor = n.since
		return st
	}
	e := &st.Etcd
	e.Running = !n.stopped
	e.Version = n.version()
	e.ClusterVersion, e.DowngradeTarget, e.Alarms = w.clusterVersion(st.State.Token), w.downTo, w.alarms
	e.Quarantined = e.Running && st.State.Quarantined
	e.MemberID = n.memberID
	list := w.list(st.State.Token)
	voters, well, leader := 0, 0, cluster.MemberID(0)
	for _, m := range list {
		e.Learner = e.Learner || m.ID == n.memberID && m.Learner
		if m.Learner {
			continue
		}
		voters++
		if x := w.well(st.State.Token, m.ID); x != nil {
			well++
			if leader == 0 || x.id == w.leader {
				leader = m.ID
			}
		}
	}
	listed := slices.ContainsFunc(list, func(m cluster.Member) bool { return m.ID == n.memberID })
	quorum := voters > 0 && well >= cluster.Quorum(voters)
	switch {
	case n.sick || n.stopped:
		e.UnhealthyFor = n.since
	case !listed:
		e.Running, e.UnhealthyFor, e.Error = false, w.lostFor, "the member has been removed"
	case !quorum && e.Learner: // it keeps the last leader that it has heard of, and can't list the members
		e.Healthy, e.LeaderID, e.RaftTerm, e.RaftIndex = true, memberID("a"), 3, 100_000
	case !quorum:
		e.UnhealthyFor = w.lostFor
	default:
		e.Healthy, e.LeaderID, e.RaftTerm, e.RaftIndex, e.Members = true, leader, 3, 100_000, list
		if e.AppliedIndex == 0 {
			e.AppliedIndex = 100_000
		}
		if n.sees != nil {
			e.Members = n.sees
		}
		if n.denies { // it tells nothing but that it lives, and its revision is read from the disk
			*e = cluster.EtcdStatus{Running: true, Denied: true, Healthy: !e.Learner, Learner: e.Learner,
				Quarantined: e.Quarantined, Revision: e.Revision, Error: "etcd has users"}
		}
	}
	if e.Running && e.Revision == 0 {
		e.Revision = 5000
	}
	return st
}

// version is what the node's etcd runs.
func (n *worldNode) version() string {
	if n.runs != "" {
		return n.runs
	}
	return n.status.State.EtcdVersion
}

// clusterVersion is what the members keep to: the lowest minor version that runs.
func (w *world) clusterVersion(token cluster.Token) string {
	if w.keeps != "" {
		return w.keeps
	}
	lowest := -1
	for _, n := range w.nodes {
		if n.status.State == nil || n.status.State.Token != token || n.away || n.sick || n.stopped {
			continue
		}
		if m := minorOf(n.version()); lowest < 0 || m < lowest {
			lowest = m
		}
	}
	return fmt.Sprintf("3.%d.0", lowest)
}

// next asks for the decision and for its check.
func (w *world) next() string {
	o, spec := w.observe()
	d := Next(o, spec, w.p)
	var b strings.Builder
	if d.Do == nil {
		b.WriteString("do nothing\n")
	} else {
		fmt.Fprintf(&b, "do %s\n", d.Do)
	}
	if d.Alarm {
		b.WriteString("alarm\n")
		b.WriteString(incomplete(d.Attention))
	} else if d.Attention != (cluster.Attention{}) {
		b.WriteString("ATTENTION without an alarm\n")
	}
	fmt.Fprintf(&b, "because %s\n", d.Why)
	if begin, ok := d.Do.(model.BeginRestore); ok && begin.Op.RevisionBefore > 0 {
		fmt.Fprintf(&b, "revision before %d\n", begin.Op.RevisionBefore)
	}
	if adv, ok := d.Do.(model.Advance); ok && (adv.Op.Written || adv.Op.Unwritten) {
		fmt.Fprintf(&b, "written %v, unwritten %v\n", adv.Op.Written, adv.Op.Unwritten)
	}
	if f, ok := d.Do.(model.FinishRestore); ok && f.Reason != "" {
		fmt.Fprintf(&b, "reason %s\n", f.Reason)
	}
	if f, ok := d.Do.(model.FailCommand); ok {
		fmt.Fprintf(&b, "reason %s\n", f.Reason)
	}
	if err := safety.Check(o, d.Do, w.p); err != nil {
		fmt.Fprintf(&b, "REFUSED %v\n", err)
	}
	return b.String()
}

// check asks whether an action of the script's choice is safe.
func (w *world) check(a args) string {
	o, _ := w.observe()
	op := model.Operation{}
	if o.Store.Operation != nil {
		op = *o.Store.Operation
	}
	var nodes []cluster.NodeID
	var starts []model.StartEtcd
	for _, id := range a[1:] {
		nodes = append(nodes, cluster.NodeID(id))
		starts = append(starts, model.StartEtcd{Node: cluster.NodeID(id), State: restoredState(&op)})
	}
	var act model.Action
	switch a[0] {
	case "create-marker":
		act = model.CreateMarker{Token: "NEW", Founders: etcdNodes(a[1:]), Version: "3.6.16"}
	case "replace-marker":
		act = model.ReplaceMarker{Token: "NEW", Founders: etcdNodes(a[1:]), Version: "3.6.16"}
	case "mark-formed":
		act = model.MarkFormed{Token: theToken}
	case "remove-member":
		act = model.RemoveMember{Member: memberID(a[1]), Name: a[1]}
	case "add-learner":
		act = model.AddLearner{Node: cluster.NodeID(a[1]), PeerURLs: etcdNode(a[1]).PeerURLs}
	case "set-aside":
		act = model.SetAside{Node: cluster.NodeID(a[1]), Token: w.node(a[1]).status.State.Token}
	case "found":
		m := o.Store.Marker
		starts[0].State = cluster.EtcdState{NewCluster: true, Quarantined: true, Token: m.Token, Nodes: m.Founders}
		act = model.StartAll{Starts: starts}
	case "open":
		st := *w.node(a[1]).status.State
		st.Quarantined, st.NewCluster = false, false
		act = model.StartEtcd{Node: cluster.NodeID(a[1]), State: st, Restart: true}
	case "restart":
		act = model.StartEtcd{Node: cluster.NodeID(a[1]), State: *w.node(a[1]).status.State, Restart: true}
	case "restart-member": // restart-member NODE VERSION
		st := *w.node(a[1]).status.State
		st.EtcdVersion = a[2]
		act = model.RestartMember{Node: cluster.NodeID(a[1]), State: st, Why: "asked for"}
	case "release-volume": // release-volume NODE [VOLUME REPLACEMENT]
		rel := model.ReleaseVolume{Node: cluster.NodeID(a[1])}
		if n := o.Node(rel.Node); n != nil && n.Release != nil {
			rel.Volume, rel.Replacement = n.Release.Volume, n.Release.Replacement
		}
		if len(a) > 3 {
			rel.Volume, rel.Replacement = a[2], a[3]
		}
		act = rel
	case "enable-downgrade":
		act = model.EnableDowngrade{Version: a[1]}
	case "compact":
		act = model.Compact{Revision: int64(a.num("to", 1))}
	case "defragment":
		act = model.Defragment{Node: cluster.NodeID(a[1])}
	case "disarm":
		act = model.Disarm{Alarm: cluster.Alarm{Type: cluster.AlarmType(a[1]), Member: memberID(a[2])}}
	case "stop-all":
		act = model.StopAll{Op: op, Nodes: nodes}
	case "switch-all":
		act = model.SwitchAll{Op: op, Starts: starts}
	case "halt-all":
		act = model.HaltAll{Op: op, Nodes: nodes}
	case "rollback-all":
		act = model.RollbackAll{Op: op, Nodes: nodes}
	case "begin": // as the command asks
		b := model.BeginRestore{Command: a[1], Op: model.Operation{ID: a[1], Backup: "B1", State: model.OpProving,
			Token: "NEW", OldToken: theToken, Nodes: etcdNodes([]string{"a"})}}
		for _, c := range o.Store.Commands {
			if b.Op.Source = c.Source; c.Backup == "" {
				b.Op.Backup, b.Op.State = "", model.OpSalvaging
			}
			if a.has("or") { // the backup in the stead of the data
				b.Op.Backup, b.Op.State, b.Op.Source = c.Source.OrBackup, model.OpProving, model.Source{}
			}
		}
		act = b
	case "salvage":
		act = model.SalvageData{Op: op, Node: nodes[0]}
	case "advance": // advance STATE [written|unwritten] [backup=B]
		op.Backup = a.str("backup", op.Backup)
		op.Written, op.Unwritten = op.Written || a.has("written"), op.Unwritten || a.has("unwritten")
		act = model.Advance{Op: op, To: model.OperationState(a[1])}
	case "finish":
		act = model.FinishRestore{Op: op, To: model.OperationState(a[1]), Reason: "asked for"}
	default:
		panic("no such action: " + a[0])
	}
	if err := safety.Check(o, act, w.p); err != nil {
		return fmt.Sprintf("refused: %v\n", err)
	}
	return "safe\n"
}

// minorOf is the minor version of "3.6.16" or "3.6.0", or -1.
func minorOf(s string) int {
	v, err := cluster.ParseVersion(s)
	if err != nil {
		return -1
	}
	return v.Minor
}
