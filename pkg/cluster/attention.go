package cluster

import (
	"cmp"
	"fmt"
	"slices"
	"strings"
	"time"
)

// AttentionKind says what a person is needed for. The kinds are few and fixed: each is a value of a metric's label.
type AttentionKind string

// The kinds of attention.
const (
	// AttentionQuorum: etcd has no quorum, so nothing can be read or written.
	AttentionQuorum AttentionKind = "quorum-lost"
	// AttentionNoLeader: no manager leads, so nothing is repaired and nothing is backed up.
	AttentionNoLeader AttentionKind = "no-leader"
	// AttentionData: a cluster exists by the store, but no node here has its data.
	AttentionData AttentionKind = "data-missing"
	// AttentionForming: the first cluster of this store can't be formed.
	AttentionForming AttentionKind = "cannot-form"
	// AttentionMember: a member can't start, can't join or can't be replaced.
	AttentionMember AttentionKind = "member-down"
	// AttentionDisk: the disk of a node is full.
	AttentionDisk AttentionKind = "disk-full"
	// AttentionDatabase: etcd's database is near or at its quota.
	AttentionDatabase AttentionKind = "database-full"
	// AttentionNames: members' names resolve to other addresses than theirs.
	AttentionNames AttentionKind = "name-shadowed"
	// AttentionCorrupt: members disagree about the data.
	AttentionCorrupt AttentionKind = "data-corrupt"
	// AttentionClusters: data of two clusters are here, or the marker names another cluster than the one that runs.
	AttentionClusters AttentionKind = "two-clusters"
	// AttentionStore: the backup store can't be used, so no backups are taken.
	AttentionStore AttentionKind = "store-away"
	// AttentionUnfenced: the store ignores conditional puts.
	AttentionUnfenced AttentionKind = "store-unfenced"
	// AttentionObject: an object in the store can't be read or can't be obeyed.
	AttentionObject AttentionKind = "store-object"
	// AttentionBackup: backups fail.
	AttentionBackup AttentionKind = "backup-failing"
	// AttentionRestore: a restore can't go on.
	AttentionRestore AttentionKind = "restore-stuck"
	// AttentionVersion: the wanted version of etcd can't be run.
	AttentionVersion AttentionKind = "version"
	// AttentionSettings: settings of etcd can't be applied.
	AttentionSettings AttentionKind = "settings"
	// AttentionCertificate: a CA, or a certificate that can't be renewed, ends soon.
	AttentionCertificate AttentionKind = "certificate-expiry"
	// AttentionSafety: the safety check has refused what was decided.
	AttentionSafety AttentionKind = "refused"
	// AttentionOther: anything else.
	AttentionOther AttentionKind = "other"
)

// AttentionKinds lists all kinds.
func AttentionKinds() []AttentionKind {
	return []AttentionKind{
		AttentionQuorum, AttentionNoLeader, AttentionData, AttentionForming, AttentionMember, AttentionDisk,
		AttentionDatabase, AttentionNames, AttentionCorrupt,
		AttentionClusters, AttentionStore, AttentionUnfenced, AttentionObject, AttentionBackup, AttentionRestore,
		AttentionVersion, AttentionSettings,
		AttentionCertificate, AttentionSafety, AttentionOther,
	}
}

// Attention says that a person is needed: for what, on which node, and how it ends. Either Command or NoCommand is set.
type Attention struct {
	Kind AttentionKind `json:"kind"`
	// Node is the node that it is about; empty if it is about the cluster.
	Node NodeID `json:"node,omitempty"`
	// Since is when it was first seen by the process that tells it.
	Since time.Time `json:"since,omitzero"`
	// Text says what has happened, in one or two sentences.
	Text string `json:"text"`
	// Command is what ends it; words in capitals are to be filled in.
	Command string `json:"command,omitempty"`
	// NoCommand says why no command ends it, and what does.
	NoCommand string `json:"noCommand,omitempty"`
}

// Ways to end an attention that belong to its kind, for where no better one is known.
var noCommands = map[AttentionKind]string{
	AttentionNoLeader:    "start managers, or repair the network between them, until a majority of them answers",
	AttentionForming:     "remove the cause that the message names; then the cluster is formed automatically",
	AttentionMember:      "repair the node, or start another master in its place",
	AttentionDisk:        "free some disk space on that node, or enlarge its disk; then etcd continues automatically",
	AttentionDatabase:    "delete keys; then their space is freed automatically",
	AttentionNames:       "remove the lines that the message names from the hosts file of that node",
	AttentionClusters:    "find out which data are right, and move the other data dir away or stop the other etcd",
	AttentionStore:       "repair the store, its address or the credentials on the node; then backups continue automatically",
	AttentionUnfenced:    "use a store that honors conditional puts, or start all managers with --allow-unfenced-store",
	AttentionObject:      "repair or delete the object that the message names",
	AttentionBackup:      "remove the cause that the message names; it ends with the next backup, which is tried automatically",
	AttentionRestore:     "bring back what the message names; then the restore continues automatically",
	AttentionVersion:     "remove the cause that the message names",
	AttentionSettings:    "remove the cause that the message names; then the settings are applied automatically",
	AttentionCertificate: "put new CAs into the managers' --pki-dir; then the certificates are renewed automatically",
	AttentionSafety:      "this is a bug of the program: nothing is done; report the message with the log",
}

// Ended returns a with a way to end it: its own, or else the reason of its kind why there is no command.
func (a Attention) Ended() Attention {
	if a.Command == "" && a.NoCommand == "" {
		a.NoCommand = cmp.Or(noCommands[a.Kind], "remove the cause that the message names")
	}
	return a
}

// unknownStore stands for the store in texts of packages that don't know it.
const unknownStore = "--backup-store=URL"

// WithStore puts the store's URL into the commands of a text.
func WithStore(text, url string) string {
	if url == "" {
		return text
	}
	return strings.ReplaceAll(text, unknownStore, "--backup-store="+url)
}

// At is the attention with the store's URL in its commands.
func (a Attention) At(url string) Attention {
	a.Text, a.Command, a.NoCommand = WithStore(a.Text, url), WithStore(a.Command, url), WithStore(a.NoCommand, url)
	return a
}

// String is the attention in one line.
func (a Attention) String() string {
	at := ""
	if a.Node != "" {
		at = fmt.Sprintf(" on node %s", a.Node)
	}
	if a.Command != "" {
		return fmt.Sprintf("%s%s: %s [end it with: %s]", a.Kind, at, a.Text, a.Command)
	}
	return fmt.Sprintf("%s%s: %s [no command: %s]", a.Kind, at, a.Text, a.NoCommand)
}

// Distinct returns the list with one attention of each kind and node, the first, in the order of AttentionKinds and then of nodes.
func Distinct(list []Attention) []Attention {
	type key struct {
		kind AttentionKind
		node NodeID
	}
	seen := map[key]bool{}
	var out []Attention
	for _, a := range list {
		if k := (key{a.Kind, a.Node}); !seen[k] {
			seen[k] = true
			out = append(out, a)
		}
	}
	kinds := AttentionKinds()
	slices.SortStableFunc(out, func(a, b Attention) int {
		return cmp.Or(slices.Index(kinds, a.Kind)-slices.Index(kinds, b.Kind), cmp.Compare(a.Node, b.Node))
	})
	return out
}
