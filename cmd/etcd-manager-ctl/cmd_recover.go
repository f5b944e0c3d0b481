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

func recoverCommand(a *app) *cobra.Command {
	var q queueFlags
	var node string
	var yes bool
	cmd := &cobra.Command{
		Use: "recover --from-survivor[=NODE]", Short: "Create a new cluster from the data of a survivor of a lost quorum",
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return ui.Usagef("recover takes no argument: a node is named with an equals sign, --from-survivor=%s", args[0])
			}
			return nil
		},
		Long: `For a cluster that has lost its quorum for good: queue a recovery that creates a new cluster from one
survivor's data dir, which has writes that no backup has. The command first shows the survivors and the newest backup,
and asks. The managers never recover without this command.

Without a node's name it takes the survivor with the newest data (highest raft term and index). The survivor's data
are first copied to the store as an ordinary backup. This backup is then restored: checked and staged before anything
is touched. The old data stay in the nodes' trash cans.

If possible, bring the lost masters back instead: a cluster that has its quorum again needs no recovery.`,
		Example: "  etcd-manager-ctl --backup-store=s3://bucket/prefix recover --from-survivor --wait",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if !cmd.Flags().Changed("from-survivor") {
				return ui.Usagef("recover needs --from-survivor, or --from-survivor=NODE")
			}
			r := operator.RecoveryRequest{Node: cluster.NodeID(node), Spec: q.change.read(cmd), Options: q.options}
			if node == newestSurvivor {
				r.Node = ""
			}
			return runRecover(cmd.Context(), a, r, yes, q.wait)
		},
	}
	f := cmd.Flags()
	f.StringVar(&node, "from-survivor", "", "the `node` whose data are used; without a name the one with the newest data")
	f.Lookup("from-survivor").NoOptDefVal = newestSurvivor
	q.add(cmd, true)
	f.BoolVar(&yes, "yes", false, "don't ask")
	_ = cmd.RegisterFlagCompletionFunc("from-survivor",
		func(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
			return a.complete(survivorNames)(cmd, nil, word)
		}) // it fails only for a flag that doesn't exist
	return cmd
}

func runRecover(ctx context.Context, a *app, r operator.RecoveryRequest, yes, wait bool) error {
	if err := a.format("json"); err != nil {
		return err
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	p, err := c.PlanRecovery(ctx, r)
	if !p.Survivors.At.IsZero() || len(p.Survivors.Nodes) > 0 {
		if err := showSurvivors(a, p.Survivors); err != nil {
			return err
		}
	}
	if err != nil {
		return err
	}
	compareWithBackup(a, p)
	node := p.Chosen.Node
	a.note(`A new cluster of %s is created from the data of node %s. Data that only other nodes have are not in it.
If you can bring the lost masters back, do that instead: then nothing is lost.`, clusterOf(p.Spec), node)
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
func showSurvivors(a *app, s catalog.Survivors) error {
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
		fmt.Fprintf(w, "  %s\t%s\t%s\t%s\t%d/%d\t%s\t%s\t%s\n", n.Node, n.Token, revision, written, n.RaftTerm,
			n.RaftIndex, size, version, n.Condition)
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	if age > staleSurvivors {
		a.note("This is old. Before you rely on it, check whether a manager leads (status page, or log).")
	}
	return nil
}

// staleSurvivors is the age from which the list is doubted.
const staleSurvivors = 10 * time.Minute

// compareWithBackup says what the survivor has beside the newest backup.
func compareWithBackup(a *app, p *operator.RecoveryPlan) {
	newest, s := p.Newest, p.Chosen
	switch {
	case p.Undecided != nil:
		a.note("Newest backup:  not known. %s", a.undecided(p.Undecided))
		return
	case newest == nil:
		a.note("There is no backup: the survivor's data are the only copy.")
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
		a.note("The revision of node %s isn't known, because its etcd doesn't answer; everything in its log is recovered.", s.Node)
	case d >= 0:
		a.note("Node %s is %d revisions newer than the newest backup: if you restore that backup instead, you lose these.", s.Node, d)
	default:
		a.note("Node %s is %d revisions OLDER than the newest backup: restore that backup instead (%s), unless you are sure that you want the survivor's data.", s.Node, -d, a.ctl("restore-backup", newest.Name))
	}
}
