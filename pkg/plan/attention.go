package plan

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// ctl is how the operator's tool is called in messages.
const ctl = "etcd-manager-ctl --backup-store=URL "

// Commands that end an attention.
const (
	recoverCommand = ctl + "recover --from-survivor"
	restoreCommand = ctl + "restore-backup NAME --now"
	undoCommand    = ctl + "undo-restore --now"
	unsetCommand   = ctl + "configure-cluster --unset=NAME"
)

// deleteCommand withdraws the command that a line of the observation begins with: "NAME: reason", or only its name.
func deleteCommand(line string) string {
	name, _, _ := strings.Cut(line, ": ")
	return ctl + "delete-command " + name
}

// backupStubborn is how many backups fail in a row before a person is told: a node or a store that is away for a moment costs one or two.
const backupStubborn = 3

// needs is alarm with more to say of what a person is needed for: what a leaves open is taken from the rule and the sentence.
func needs(a cluster.Attention, why string, args ...any) (Decision, bool) {
	return Decision{Why: fmt.Sprintf(why, args...), Key: keyOf(why, args), Alarm: true, Attention: a}, true
}

// attended completes the attention of a decision that is an alarm.
func attended(d Decision, kind cluster.AttentionKind) Decision {
	if !d.Alarm {
		d.Attention = cluster.Attention{}
		return d
	}
	d.Attention.Kind = cmp.Or(d.Attention.Kind, kind)
	d.Attention.Text = cmp.Or(d.Attention.Text, d.Why)
	if d.Attention.Kind == cluster.AttentionVersion && d.Attention.Command == "" && d.Attention.NoCommand == "" {
		d.Attention.Command = ctl + "configure-cluster --etcd-version=VERSION"
	}
	d.Attention = d.Attention.Ended()
	return d
}

// Attentions lists all that a person is needed for: what the decision says, and what holds beside it, whichever rule spoke first.
// A decision that isn't an alarm stands for something that is being done; what it may still mend is not in the list.
func Attentions(o *model.Observation, spec *cluster.Spec, p model.Policy, d Decision) []cluster.Attention {
	r := &rules{o: sorted(o), spec: spec, p: p}
	r.v = look(r.o)
	var list []cluster.Attention
	if d.Alarm {
		list = append(list, attended(d, cluster.AttentionOther).Attention)
	}
	add := func(a cluster.Attention, text string, args ...any) {
		a.Text = fmt.Sprintf(text, args...)
		list = append(list, a.Ended())
	}
	s := r.o.Store
	if s.Error != "" {
		add(cluster.Attention{Kind: cluster.AttentionStore, Node: o.Self},
			"The leader can't use the backup store, so no backups are taken: %s", s.Error)
	}
	if s.Error == "" && r.locked() && len(s.Apart) == 0 {
		add(cluster.Attention{Kind: cluster.AttentionUnfenced},
			"The store ignores conditional puts, so nothing is formed or restored with it.")
	}
	for _, x := range s.Apart {
		if s.Error == "" && r.locked() {
			add(cluster.Attention{Kind: cluster.AttentionUnfenced, Node: x.Node, NoCommand: x.Way},
				"%s, so nothing is formed or restored with this store.", sentence(x.Why))
		}
	}
	if s.Error == "" && o.BackupFailures >= backupStubborn {
		add(cluster.Attention{Kind: cluster.AttentionBackup}, "The last %s failed: %s",
			cluster.Count(o.BackupFailures, "backup"), o.BackupError)
	}
	if len(s.CommandErrors) > 0 {
		add(cluster.Attention{Kind: cluster.AttentionObject, Command: deleteCommand(s.CommandErrors[0])},
			"A queued command can't be read: %s", s.CommandErrors[0])
	}
	if s.HolderError != "" {
		add(cluster.Attention{Kind: cluster.AttentionObject},
			"The store's leader record can't be used, so nothing is formed or restored, and no member is replaced: %s", s.HolderError)
	}
	for _, e := range s.ObjectErrors {
		add(cluster.Attention{Kind: cluster.AttentionObject}, "An object in the store can't be used: %s", e)
	}
	for _, c := range s.Commands {
		if few := r.fewDirs(c); c.Ready && few != "" {
			add(fewAttention(c), "%s", few)
		}
	}
	if s.SettingsError != "" {
		add(settingsAttention(),
			"The settings in the store can't be used, so none are changed: %s", s.SettingsError)
	}
	for _, n := range r.o.Nodes {
		if n.NameProblem != "" {
			add(cluster.Attention{Kind: cluster.AttentionNames, Node: n.ID},
				"On node %s members may not find each other: %s.", n.ID, n.NameProblem)
		}
	}
	for _, n := range r.fullDisks() {
		add(cluster.Attention{Kind: cluster.AttentionDisk, Node: n.ID}, "%s.", sentence(diskWords(n)))
	}
	if r.v.token == "" {
		return cluster.Distinct(list)
	}
	if room, ok := r.noSpace(); ok && room.Alarm && room.Why != d.Why {
		list = append(list, attended(room, cluster.AttentionDatabase).Attention)
	}
	if words := r.roomWords(); words != "" {
		add(r.quotaAttention(), "Etcd's database comes near its quota: %s", words)
	}
	if n := r.denied(); n != nil {
		list = append(list, deniedAttention(n))
	}
	settled := s.Operation == nil && r.v.serving
	if m := s.Marker; settled && s.Error == "" && m.Phase == model.MarkerFormed && m.Token != "" && m.Token != r.v.token {
		add(r.markerAttention(), "This is cluster %s, but the store's marker names cluster %s.", r.v.token, m.Token)
	}
	if n := r.stranger(); n != nil && settled {
		add(cluster.Attention{Kind: cluster.AttentionClusters, Node: n.ID},
			"Node %s has data of another cluster (token %s) than the one that runs (token %s).",
			n.ID, n.State.Token, r.v.token)
	}
	return cluster.Distinct(list)
}

// fewAttention is about a restore that waits for data dirs.
func fewAttention(c model.Command) cluster.Attention {
	return cluster.Attention{Kind: cluster.AttentionRestore, Command: deleteCommand(c.Name)}
}

// markerAttention is about a marker that names another cluster than the one that runs.
func (r *rules) markerAttention() cluster.Attention {
	return cluster.Attention{Kind: cluster.AttentionClusters, Command: ctl + fmt.Sprintf("confirm-cluster %s", r.v.token)}
}

// settingsAttention is about settings in the store that can't be read. The tool can't change what it can't read either.
func settingsAttention() cluster.Attention {
	return cluster.Attention{Kind: cluster.AttentionSettings,
		NoCommand: "delete the object that the message names, then choose the settings again: " +
			ctl + "configure-cluster --set=NAME=VALUE"}
}

// deniedAttention is about an etcd that has users and refuses the manager, whose user is the common name of its certificate.
func deniedAttention(n *cluster.NodeStatus) cluster.Attention {
	user := cluster.EtcdUser(n.ID)
	return cluster.Attention{Kind: cluster.AttentionOther, Node: n.ID, Text: n.Etcd.Error,
		Command: fmt.Sprintf("etcdctl user add %s --no-password && etcdctl user grant-role %s root", user, user)}
}

// quotaAttention is about a database that comes near its quota.
func (r *rules) quotaAttention() cluster.Attention {
	var quota int64
	for _, n := range r.v.nodes {
		quota = max(quota, n.Etcd.DBQuota)
	}
	return cluster.Attention{Kind: cluster.AttentionDatabase, Command: raiseQuota(quota)}
}

// raiseQuota is the command that doubles a quota; empty if it can't be any higher.
func raiseQuota(quota int64) string {
	const least, gib = 4, 1 << 30
	if quota >= cluster.MaxQuota {
		return ""
	}
	return ctl + fmt.Sprintf("configure-cluster --set=%s=%dGiB", cluster.SettingQuota, min(max(least, quota*2/gib), cluster.MaxQuota/gib))
}

// sizeCommand sets the member count to what runs.
func (r *rules) sizeCommand() string {
	all, _ := r.v.voters()
	return fmt.Sprintf("%sconfigure-cluster --member-count=%d", ctl, cluster.MemberCountFor(all))
}

// specAttention is about a spec that can't be obeyed.
func (r *rules) specAttention(kind cluster.AttentionKind) cluster.Attention {
	a := cluster.Attention{Kind: kind}
	switch {
	case r.o.Store.SpecError != "":
	case r.spec == nil || !cluster.ValidMemberCount(r.spec.MemberCount):
		a.Command = r.sizeCommand()
	default:
		a.Command = ctl + "configure-cluster --etcd-version=VERSION"
	}
	return a
}
