package main

import (
	"cmp"
	"context"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

// newestSurvivor is what --from-survivor means without a node's name. No node is called so: names have no blank.
const newestSurvivor = "the newest"

func (a *app) recoverCommand() *cobra.Command {
	var q queueFlags
	var node string
	var yes bool
	cmd := &cobra.Command{
		Use: "recover --from-survivor[=NODE]", Short: "Make a new cluster from what a survivor of a lost quorum has",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return ui.Usagef("recover takes no argument: a node is named with an equals sign, --from-survivor=%s", args[0])
			}
			return nil
		},
		Long: `For a cluster that has lost its quorum for good: queue a recovery that makes a new cluster out of one survivor's own data dir, which has writes
that no backup has. It shows the survivors beside the newest backup first, and asks. Nothing of it ever happens by itself.

Without a node's name the survivor with the newest data is taken (highest raft term and index). The survivor's data are first copied into the
store as an ordinary backup, which is then restored: proven and staged before anything is touched, and what was is kept in the nodes' trash cans.

If it can be, bring the lost masters back instead: a cluster that has its quorum again needs no recovery.`,
		Example: "  etcd-manager-ctl --backup-store=s3://bucket/prefix recover --from-survivor --wait",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("from-survivor") {
				return ui.Usagef("recover needs --from-survivor, or --from-survivor=NODE")
			}
			r := operator.RecoveryRequest{Node: cluster.NodeID(node), Spec: q.change.read(cmd), Options: q.options}
			if node == newestSurvivor {
				r.Node = ""
			}
			return a.recover(cmd.Context(), r, yes, q.wait)
		},
	}
	f := cmd.Flags()
	f.StringVar(&node, "from-survivor", "", "the `node` whose data are taken; without a name the one with the newest data")
	f.Lookup("from-survivor").NoOptDefVal = newestSurvivor
	q.add(cmd, true)
	f.BoolVar(&yes, "yes", false, "don't ask")
	_ = cmd.RegisterFlagCompletionFunc("from-survivor", func(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
		return a.complete(survivorNames)(cmd, nil, word)
	}) // it fails only for a flag that doesn't exist
	return cmd
}

func (a *app) recover(ctx context.Context, r operator.RecoveryRequest, yes, wait bool) error {
	if err := a.format("json"); err != nil {
		return err
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	p, err := c.PlanRecovery(ctx, r)
	if !p.Survivors.At.IsZero() || len(p.Survivors.Nodes) > 0 {
		if err := a.showSurvivors(p.Survivors); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	a.compareWithBackup(p)
	node := p.Chosen.Node
	a.note(`A new cluster of %s is made from the data of node %s. What only other nodes have is not in it:
if the lost masters can be brought back, do that instead, and nothing is lost.`, clusterOf(p.Spec), node)
	if err := a.confirm(ctx, yes, string(node), "recover from the data of node "+string(node)); err != nil {
		return err
	}
	queued, err := c.Recover(ctx, p)
	if err != nil {
		return err
	}
	return a.sayAndFollow(ctx, c, queued, wait)
}

// showSurvivors prints the table.
func (a *app) showSurvivors(s catalog.Survivors) error {
	age := a.now().Sub(s.At)
	a.note("Survivors, as the leader saw them at %s, %s:", ui.Clock(s.At), ui.Ago(age))
	w := tabwriter.NewWriter(a.errOut, 2, 0, 2, ' ', 0)
	fmt.Fprintln(w, "  NODE\tTOKEN\tREVISION\tLAST WRITE\tRAFT TERM/INDEX\tSIZE\tETCD\tCONDITION")
	for _, n := range s.Nodes {
		revision, written, size, version := "not known", "not known", "not known", cmp.Or(n.EtcdVersion, "-")
		if !n.LastWrite.IsZero() {
			written = ui.Ago(a.now().Sub(n.LastWrite))
		}
		if n.Revision > 0 {
			revision = fmt.Sprint(n.Revision)
		}
		if n.SizeBytes > 0 {
			size = ui.Size(n.SizeBytes)
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%d/%d\t%s\t%s\t%s\n", n.Node, n.Token, revision, written, n.RaftTerm, n.RaftIndex, size, version, n.Condition)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	if age > staleSurvivors {
		a.note("That is old news: look whether a manager leads at all (the status page, or the log) before you rely on it.")
	}
	return nil
}

// staleSurvivors is the age from which the list is doubted.
const staleSurvivors = 10 * time.Minute

// compareWithBackup says what the survivor has beside the newest backup.
func (a *app) compareWithBackup(p *operator.RecoveryPlan) {
	newest, s := p.Newest, p.Chosen
	switch {
	case p.Undecided != nil:
		a.note("Newest backup:  not known. %s", a.undecided(p.Undecided))
		return
	case newest == nil:
		a.note("There is no backup at all: the survivor's data are all there is.")
		return
	}
	age := "at a time that isn't known"
	if !newest.Time.IsZero() {
		age = ui.Ago(a.now().Sub(newest.Time))
	}
	m := newest.Manifest
	if m == nil || m.Revision == 0 {
		a.note("Newest backup:  %s, %s; its revision isn't known.", newest.Name, age)
		return
	}
	a.note("Newest backup:  %s, %s, revision %d.", newest.Name, age, m.Revision)
	switch d := s.Revision - m.Revision; {
	case s.Revision == 0:
		a.note("The revision of node %s isn't known, as its etcd doesn't answer; all that its log holds is recovered.", s.Node)
	case d >= 0:
		a.note("Node %s is %d revisions newer than the newest backup: restoring that backup instead would lose these.", s.Node, d)
	default:
		a.note("Node %s is %d revisions OLDER than the newest backup: restore that instead (%s) unless you know better.", s.Node, -d, a.ctl("restore-backup", newest.Name))
	}
}
