package main

import (
	"cmp"
	"fmt"
	"io"
	"text/tabwriter"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/operator/health"
)

// drawStandbys shows how far each node's copy of another cluster is.
func drawStandbys(out io.Writer, r health.Report) {
	fmt.Fprintf(out, "standby of %s; no cluster is in this store\n\n", r.Standbys[0].Of)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NODE\tREVISION\tBEHIND\tREVISIONS BEHIND\tSIZE\tCOMPARED\tSEEN")
	for _, s := range r.Standbys {
		revision, behind, size, compared := "-", "-", "-", "-"
		if s.Base != "" {
			revision, behind, size = fmt.Sprint(s.Revision), ageOf(s.BehindSeconds), ui.Size(s.Bytes)
		}
		if s.Compared != "" {
			compared = "same, " + ui.Ago(r.At.Sub(s.ComparedAt))
			if s.Differs != "" {
				compared = "NOT the same, " + ui.Ago(r.At.Sub(s.ComparedAt))
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%d\t%s\t%s\t%s ago\n", s.Node, revision, behind, s.BehindRevisions, size, compared, ageOf(s.SeenSeconds))
	}
	_ = w.Flush()
	for _, s := range r.Standbys {
		if s.Base == "" {
			continue
		}
		text := fmt.Sprintf("\nnode %s: %s, from backup %s", s.Node, s.File, s.Base)
		if s.Compared != "" && s.Differs == "" {
			text += fmt.Sprintf("; at revision %d it had HashKV %d, as backup %s with its changes", s.ComparedRevision, s.HashKV, s.Compared)
		}
		fmt.Fprintln(out, text+cmp.Or(doing(s), "."))
	}
}

func doing(s health.Standby) string {
	if s.Doing == "" {
		return ""
	}
	return "; " + s.Doing
}
