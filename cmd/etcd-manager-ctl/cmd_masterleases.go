package main

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	clientv3 "go.etcd.io/etcd/client/v3"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/kube"
)

// leaseRequest is what the commands about master leases are asked for.
type leaseRequest struct {
	etcd    etcdTarget
	prefix  string
	masters []string
	watch   time.Duration
}

func masterleasesCommand(a *app) *cobra.Command {
	var r leaseRequest
	cmd := &cobra.Command{
		Use: "masterleases", Short: "Show the API servers' master leases in etcd, and remove stale ones",
		Long: `Every API server keeps its address below /registry/masterleases/, with a lease of 15 seconds that it
renews every ten. The endpoints of the "kubernetes" service come from these entries. A restore by another tool can
leave entries without a lease. They stay for ever, and clients are still sent to a master that no longer exists.

These commands connect to etcd, not to the store. Run them on a master: they find certificates and endpoint where kOps
and kubeadm put them. Flags name others.`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 {
				return ui.Usagef("masterleases needs list or prune")
			}
			return ui.Usagef("unknown command %q for masterleases: use list or prune", args[0])
		},
		RunE: func(*cobra.Command, []string) error { return nil },
	}
	f := cmd.PersistentFlags()
	r.etcd.addFlags(f)
	f.StringVar(&r.prefix, "prefix", kube.MasterleasesPrefix, "prefix of the entries; only needed for API servers with --etcd-prefix")
	f.StringSliceVar(&r.masters, "live-master", nil, "`IP` of a live master that runs no member of this etcd; may be repeated")
	f.DurationVar(&r.watch, "watch", kube.RenewalWatch, "how long an API server has time to renew an entry before it counts as stale")
	cmd.AddCommand(leaseListCommand(a, &r), leasePruneCommand(a, &r))
	return cmd
}

func leaseListCommand(a *app, r *leaseRequest) *cobra.Command {
	return &cobra.Command{
		Use: "list", Short: "Show each master lease, and whether a live master has its address", Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.format("json"); err != nil {
				return err
			}
			return a.withEtcd(cmd.Context(), &r.etcd, func(ctx context.Context, c *clientv3.Client) error {
				m, err := readMasterleases(a, c, r)
				if err != nil {
					return err
				}
				leases, err := m.Find(ctx)
				if err != nil {
					return etcdError(err)
				}
				if a.output == "json" {
					return a.printJSON(leases)
				}
				return leaseTable(a, leases)
			})
		},
	}
}

func leasePruneCommand(a *app, r *leaseRequest) *cobra.Command {
	var all, dry, yes bool
	cmd := &cobra.Command{
		Use: "prune", Short: "Remove the master leases that are stale", Args: noArgs,
		Long: `Remove the stale master leases: no live master has the address, and no API server renewed the entry
while it was watched. The command first shows what it would do, and asks. With --all it removes every entry; running
API servers write theirs again within ten seconds.`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := a.format(); err != nil {
				return err
			}
			return a.withEtcd(cmd.Context(), &r.etcd, func(ctx context.Context, c *clientv3.Client) error {
				m, err := readMasterleases(a, c, r)
				if err != nil {
					return err
				}
				leases, err := m.Find(ctx)
				if err != nil {
					return etcdError(err)
				}
				if err := leaseTable(a, leases); err != nil {
					return err
				}
				return pruneLeases(ctx, a, m, chosenLeases(leases, all), dry, yes)
			})
		},
	}
	cmd.Flags().BoolVar(&all, "all", false, "remove every entry, not only the stale ones")
	cmd.Flags().BoolVar(&dry, "dry-run", false, "only show what would be removed")
	cmd.Flags().BoolVar(&yes, "yes", false, "don't ask")
	return cmd
}

// readMasterleases is what looks at the entries, with the notes that come meanwhile.
func readMasterleases(a *app, c *clientv3.Client, r *leaseRequest) (*kube.Masterleases, error) {
	live := map[string]string{}
	for _, address := range r.masters {
		if _, err := netip.ParseAddr(address); err != nil {
			return nil, ui.Usagef("--live-master=%s is not an IP address", address)
		}
		live[address] = "named by --live-master"
	}
	return &kube.Masterleases{
		Client: c, Prefix: r.prefix, Live: live, Watch: r.watch, Timeout: a.timeout,
		Watching: func(unknown, all int) {
			a.note("at %d of %d addresses no live master is known; watching for up to %s whether an API server renews its entry",
				unknown, all, r.watch)
		},
		NotLive: func(member string, why error) {
			var name *kube.UnresolvedError
			if errors.As(why, &name) {
				why = fmt.Errorf("its name can't be resolved here (name its address with --live-master): %w", name.Err)
			}
			a.note("member %s doesn't count as a live master: %v", member, why)
		},
	}, nil
}

// chosenLeases are those that are to be removed.
func chosenLeases(leases []kube.Masterlease, all bool) []kube.Masterlease {
	var out []kube.Masterlease
	for _, l := range leases {
		if all || l.Stale {
			out = append(out, l)
		}
	}
	return out
}

// pruneLeases removes entries unless they have changed since they were looked at.
func pruneLeases(ctx context.Context, a *app, m *kube.Masterleases, chosen []kube.Masterlease, dry, yes bool) error {
	if len(chosen) == 0 {
		return a.printf("there is nothing to remove\n")
	}
	var names []string
	for _, l := range chosen {
		names = append(names, l.Address)
	}
	what := fmt.Sprintf("remove %s (%s)", ui.Count(len(chosen), "master lease"), strings.Join(names, ", "))
	if dry {
		return a.printf("would %s\n", what)
	}
	if err := a.confirm(ctx, yes, "yes", what); err != nil {
		return err
	}
	for _, l := range chosen {
		removed, err := m.Remove(ctx, l)
		if err != nil {
			return etcdError(err)
		}
		outcome := "removed"
		if !removed {
			outcome = "left alone, because it was renewed or has expired in the meantime:"
		}
		if err := a.printf("%s %s\n", outcome, l.Key()); err != nil {
			return err
		}
	}
	return nil
}

func leaseTable(a *app, leases []kube.Masterlease) error {
	if len(leases) == 0 {
		a.note("there are no master leases: no API server keeps its leases in this etcd (the one for events has none, either)")
		return nil
	}
	w := tabwriter.NewWriter(a.out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ADDRESS\tLEASE\tEXPIRES\tLIVE MASTER\tVERDICT")
	for _, l := range leases {
		master := "no"
		if l.Master != "" {
			master = "yes, " + l.Master
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\n", l.Address, orNone(l.Lease), expires(l), master, verdict(l))
	}
	if err := w.Flush(); err != nil {
		return fmt.Errorf("print: %w", err)
	}
	return nil
}

func expires(l kube.Masterlease) string {
	switch {
	case l.Lease == "":
		return "never"
	case l.TTL < 0:
		return "never (etcd doesn't know the lease)"
	}
	return fmt.Sprintf("in %ds", l.TTL)
}

func verdict(l kube.Masterlease) string {
	switch {
	case l.Stale:
		return "stale"
	case l.Renewed:
		return "live, renewed just now"
	}
	return "live"
}

func orNone(s string) string {
	if s == "" {
		return "none"
	}
	return s
}
