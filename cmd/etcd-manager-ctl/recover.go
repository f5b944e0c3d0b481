package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// newestSurvivor is what --from-survivor means without a node's name. No node is called so: names have no blank.
const newestSurvivor = "the newest"

func (a *app) recoverCommand() *cobra.Command {
	var r request
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
			r.change.read(cmd)
			return a.recover(cmd.Context(), node, r, yes)
		},
	}
	f := cmd.Flags()
	f.StringVar(&node, "from-survivor", "", "the `node` whose data are taken; without a name the one with the newest data")
	f.Lookup("from-survivor").NoOptDefVal = newestSurvivor
	r.addFlags(cmd, true)
	f.BoolVar(&yes, "yes", false, "don't ask")
	_ = cmd.RegisterFlagCompletionFunc("from-survivor", func(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
		return a.complete(survivorNames)(cmd, nil, word)
	}) // it fails only for a flag that doesn't exist
	return cmd
}

func survivorNames(ctx context.Context, c *catalog.Catalog) ([]string, error) {
	s, err := c.Survivors(ctx)
	var names []string
	for _, n := range s.Nodes {
		names = append(names, string(n.Node))
	}
	return names, err
}

func (a *app) recover(ctx context.Context, node string, r request, yes bool) error {
	if err := a.format("json"); err != nil {
		return err
	}
	c, err := a.openCatalog(ctx)
	if err != nil {
		return err
	}
	chosen, err := a.prepareRecovery(ctx, c, node, r)
	if err != nil {
		return err
	}
	if err := a.confirm(ctx, yes, string(chosen.Node), "recover from the data of node "+string(chosen.Node)); err != nil {
		return err
	}
	r.source = &catalog.Source{Node: chosen.Node, Token: chosen.Token}
	return a.enqueue(ctx, c, r)
}

// prepareRecovery chooses a survivor and shows what there is.
func (a *app) prepareRecovery(ctx context.Context, c *catalog.Catalog, node string, r request) (catalog.Survivor, error) {
	ctx, cancel := a.limit(ctx)
	defer cancel()
	s, err := c.Survivors(ctx)
	if errors.Is(err, catalog.ErrNotFound) {
		return catalog.Survivor{}, a.noSurvivors(ctx, c)
	}
	if err != nil {
		return catalog.Survivor{}, err
	}
	spec, _, err := a.readSpec(ctx, c, r.change)
	if err != nil {
		return catalog.Survivor{}, err
	}
	marker, _, err := c.Marker(ctx)
	if err != nil && !errors.Is(err, catalog.ErrNotFound) && !unusable(err) {
		return catalog.Survivor{}, err
	}
	if err := a.showSurvivors(s); err != nil {
		return catalog.Survivor{}, err
	}
	chosen, err := pickSurvivor(s.Nodes, node, marker.Token)
	if err != nil {
		return catalog.Survivor{}, err
	}
	if err := a.compareWithBackup(ctx, c, chosen); err != nil {
		return catalog.Survivor{}, err
	}
	a.note(`A new cluster of %s is made from the data of node %s. What only other nodes have is not in it:
if the lost masters can be brought back, do that instead, and nothing is lost.`, clusterOf(spec), chosen.Node)
	return chosen, nil
}

// noSurvivors explains why there is nothing to choose from.
func (a *app) noSurvivors(ctx context.Context, c *catalog.Catalog) error {
	text := "the managers have not reported a lost quorum: as far as they know the cluster has one, and then there is nothing to recover"
	l, _, err := c.Leader(ctx)
	if err != nil && !errors.Is(err, catalog.ErrNotFound) && !unusable(err) {
		return err
	}
	switch age := a.now().Sub(l.Time); {
	case err != nil:
		text += "\nNo manager has ever led here."
	case age < leaderQuiet:
		text += fmt.Sprintf("\nA manager on node %s leads (it said so %s). If the quorum was lost this minute, try again in a minute.", l.Node, ui.Ago(age))
		return &notFoundError{text}
	default:
		text += fmt.Sprintf("\nBut no manager seems to lead: the last one, on node %s, was heard of %s.", l.Node, ui.Ago(age))
	}
	need := "a majority of the spec's masters"
	if spec, _, err := c.Spec(ctx); err == nil && spec.MemberCount > 0 {
		need = fmt.Sprintf("at least %d of the %d masters of the spec", spec.MemberCount/2+1, spec.MemberCount)
	}
	text += fmt.Sprintf(`
Survivors are reported by a leading manager, and one leads only while %s run etcd-manager. So
  start replacements for the lost masters (empty ones will do), or
  if there are none, make do with fewer: %s
    and restart the survivor's manager, which reads that when it starts,
and then try again.`, need, a.ctl("configure-cluster", "--member-count=1"))
	return &notFoundError{text}
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

// pickSurvivor takes the named one, or the one with the newest data among those of the cluster that the marker names. Terms and indexes of two
// clusters can't be compared, so if several are there and the marker helps no further, the operator has to choose.
func pickSurvivor(nodes []catalog.Survivor, name string, current cluster.Token) (catalog.Survivor, error) {
	if name != newestSurvivor {
		i := slices.IndexFunc(nodes, func(n catalog.Survivor) bool { return string(n.Node) == name })
		if i < 0 {
			return catalog.Survivor{}, &notFoundError{fmt.Sprintf("no survivor is called %q; a node has to be named exactly as the table does", name)}
		}
		return nodes[i], nil
	}
	if len(nodes) == 0 {
		return catalog.Survivor{}, &notFoundError{"no node has data of the cluster: restore a backup (restore-backup latest)"}
	}
	candidates := nodes
	if slices.ContainsFunc(nodes, func(n catalog.Survivor) bool { return n.Token != nodes[0].Token }) {
		candidates = slices.DeleteFunc(slices.Clone(nodes), func(n catalog.Survivor) bool { return n.Token != current })
	}
	if len(candidates) == 0 {
		return catalog.Survivor{}, ui.Usagef("the survivors are of different clusters (different tokens), which can't be compared: choose one with --from-survivor=NODE")
	}
	return slices.MaxFunc(candidates, func(x, y catalog.Survivor) int {
		return cmp.Or(cmp.Compare(x.RaftTerm, y.RaftTerm), cmp.Compare(x.RaftIndex, y.RaftIndex), -cmp.Compare(x.Node, y.Node))
	}), nil
}

// compareWithBackup says what the survivor has beside the newest backup.
func (a *app) compareWithBackup(ctx context.Context, c *catalog.Catalog, s catalog.Survivor) error {
	l, err := c.Backups(ctx)
	if err != nil {
		return err
	}
	newest, err := a.archive(c).NewestGood(ctx, l, a.now())
	var open *changelog.UndecidedError
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		a.note("There is no backup at all: the survivor's data are all there is.")
		return nil
	case errors.As(err, &open):
		a.note("Newest backup:  not known. %s", a.undecided(open))
		return nil
	case err != nil:
		return err
	}
	age := "at a time that isn't known"
	if !newest.Time.IsZero() {
		age = ui.Ago(a.now().Sub(newest.Time))
	}
	m := newest.Manifest
	if m == nil || m.Revision == 0 {
		a.note("Newest backup:  %s, %s; its revision isn't known.", newest.Name, age)
		return nil
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
	return nil
}
