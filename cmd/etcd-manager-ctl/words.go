package main

import (
	"fmt"
	"strings"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

func clusterOf(spec cluster.Spec) string {
	s := ui.Count(spec.MemberCount, "member")
	if spec.EtcdVersion != "" {
		s += ", etcd " + spec.EtcdVersion
	}
	return s
}

// subject says what a command or an operation brings back.
func subject(backup string, source *catalog.Source) string {
	switch {
	case source == nil:
		return "restore of " + backup
	case source.Node == "":
		return fmt.Sprintf("recovery from the nodes' trash cans (token %s)", source.Token)
	}
	return fmt.Sprintf("recovery from the data of node %s (token %s)", source.Node, source.Token)
}

// point says to where a backup is brought; empty if it is the backup itself that is wanted.
func point(o catalog.RestoreOptions, t *catalog.PointInTime) string {
	switch {
	case t != nil && !t.Time.IsZero():
		return fmt.Sprintf(", brought to revision %d of %s", t.Revision, ui.Exactly(t.Time))
	case t != nil:
		return fmt.Sprintf(", brought to revision %d", t.Revision)
	case o.ToRevision > 0:
		return fmt.Sprintf(", brought to revision %d", o.ToRevision)
	case !o.ToTime.IsZero():
		return ", brought to " + ui.Exactly(o.ToTime)
	case o.Latest:
		return ", brought to the last change that is kept"
	}
	return ""
}

// asked lists the options that a restore was queued with.
func asked(o catalog.RestoreOptions) []string {
	var out []string
	if o.Now {
		out = append(out, "now")
	}
	if o.KeepMasterleases {
		out = append(out, "keep master leases")
	}
	if len(o.DropPrefixes) > 0 {
		out = append(out, "drop "+strings.Join(o.DropPrefixes, " "))
	}
	if o.ForceForeign {
		out = append(out, "another cluster's backup is fine")
	}
	return out
}
