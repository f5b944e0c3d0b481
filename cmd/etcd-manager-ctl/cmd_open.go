package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

func openCommand(a *app) *cobra.Command {
	var to targetFlags
	var r operator.OpenRequest
	var tempDir string
	cmd := &cobra.Command{
		Use: "open [NAME|latest]", Short: "Look at a backup, or at the state of any second, with an etcd of its own", Args: atMostOne,
		Long: `Build the state of a backup, or of a point (--to-time, --to-revision, --latest, --before), in a temporary
directory, and run an etcd over it on loopback, until Ctrl-C. It has the same revisions and the same HashKV as then.
What you write changes only this scratch copy, never the cluster or the store. Leases don't expire in it. The copy is
removed at the end, also if this tool is killed.

The etcd is compiled in: nothing else has to be installed. It has no TLS: every user of this machine can read it.`,
		Example: `  etcd-manager-ctl --backup-store=s3://bucket/prefix open --before=/registry/namespaces/shop
  etcd-manager-ctl --backup-store=s3://bucket/prefix open --to-time=12:03:06 --listen=127.0.0.1:2379`,
		RunE: func(cmd *cobra.Command, args []string) error {
			t, err := to.target(cmd, a.now())
			if err != nil {
				return err
			}
			r.Point = operator.PointRequest{Target: t, Before: to.before}
			if len(args) == 1 {
				r.Point.Backup = args[0]
			} else if t.IsZero() && to.before == "" {
				return ui.Usagef("open needs the name of a backup (see list-backups), or --to-time, --to-revision, --latest or --before")
			}
			r.VerifyOptions = a.verifyOptions(tempDir)
			return look(cmd.Context(), a, r)
		},
		ValidArgsFunction: a.complete(restorableNames),
	}
	to.add(cmd)
	cmd.Flags().StringVar(&r.Listen, "listen", "127.0.0.1:0", "the loopback `address` and port; port 0 takes a free one")
	addTempDir(cmd, &tempDir)
	return cmd
}

// openOutput is what is being served, for programs.
type openOutput struct {
	Endpoint    string    `json:"endpoint"`
	EtcdVersion string    `json:"etcdVersion"`
	Revision    int64     `json:"revision"`
	HashKV      uint32    `json:"hashKV"`
	Keys        int64     `json:"keys"`
	Backup      string    `json:"backup"`
	Segments    int       `json:"segments"`
	Time        time.Time `json:"time,omitzero"`
	Until       time.Time `json:"until,omitzero"`
	Dir         string    `json:"dir"`
}

// look serves a state until the operator ends it.
func look(ctx context.Context, a *app, r operator.OpenRequest) error {
	if err := a.format("json"); err != nil {
		return err
	}
	c, err := a.client(ctx)
	if err != nil {
		return err
	}
	o, p, err := c.OpenPoint(ctx, r)
	if p != nil {
		sayLocated(a, p.Before, r.Point.Before, p.Notes)
	}
	if err != nil {
		return err
	}
	if err := printOpened(a, o); err != nil {
		_ = o.Close() // the first error counts
		return err
	}
	select {
	case <-ctx.Done():
	case <-o.Done():
		err = o.Err()
	}
	if cerr := o.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		a.note("ended; %s is removed", o.Dir)
	}
	return err
}

func printOpened(a *app, o *operator.Opened) error {
	out := openOutput{Endpoint: o.Endpoint, EtcdVersion: o.Version, Revision: o.Hash.Revision, HashKV: o.Hash.Hash, Keys: o.Keys,
		Backup: o.Point.Base(), Dir: o.Dir}
	what := fmt.Sprintf("backup %s, revision %d", out.Backup, out.Revision)
	if p := o.Point.Plan; p != nil {
		out.Segments, out.Time, out.Until = len(p.Chain.Segments), p.Time, p.Until
		what = fmt.Sprintf("%s\n  built from: backup %s and %s of changes", reachedText(out.Revision, p.Time, p.Uncertain, p.Until),
			out.Backup, ui.Count(out.Segments, "segment"))
	}
	if a.output == "json" {
		return a.printJSON(out)
	}
	return a.printf(`open: %s
  content:    %s, HashKV %d
  endpoint:   %s (etcd %s, no TLS: every user of this machine can read it)
  look:       etcdctl --endpoints=%s get --prefix --keys-only /registry/

What you write changes only this scratch copy, in %s. The cluster and the store stay as they are.
Ctrl-C ends it and removes the copy.
`, what, ui.Count(int(o.Keys), "key"), out.HashKV, o.Endpoint, o.Version, o.Endpoint, o.Dir)
}
