package main

import (
	"fmt"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/operator"
)

// How long it may take to find out what a restore would change: before it is queued, which mustn't wait long, and in a dry run.
const (
	previewBefore = 5 * time.Second
	previewDry    = 30 * time.Second
)

// changesOutput is what a restore would change of what the store has last.
type changesOutput struct {
	WouldRemove    int64                `json:"wouldRemove"`
	WouldBringBack int64                `json:"wouldBringBack"`
	WouldChange    int64                `json:"wouldChange"`
	Groups         []operator.DiffGroup `json:"groups"`
}

// changesGroups bounds the groups that are listed for programs.
const changesGroups = 100

func changesOf(p operator.Preview) *changesOutput {
	d := p.Difference
	if d == nil {
		return nil
	}
	out := &changesOutput{d.Added, d.Removed, d.Changed, d.Groups[:min(len(d.Groups), changesGroups)]}
	if out.Groups == nil {
		out.Groups = []operator.DiffGroup{}
	}
	return out
}

// previewText says in one line what a restore would change.
func previewText(a *app, p operator.Preview) string {
	d := p.Difference
	switch {
	case d == nil && p.Costly && p.Revision > 0:
		return fmt.Sprintf("not compared, because %s; this shows them: %s", p.LeftOut, a.ctl("diff", fmt.Sprint(p.Revision), "now"))
	case d == nil:
		return "not compared: " + p.LeftOut
	case d.Total() == 0:
		return "none: the store has nothing newer"
	}
	var parts []string
	if d.Added > 0 {
		parts = append(parts, fmt.Sprintf("would remove %s made since%s", ui.Count(int(d.Added), "object"),
			among(d, func(g operator.DiffGroup) int64 { return g.Added })))
	}
	if d.Removed > 0 {
		parts = append(parts, fmt.Sprintf("would bring back %d%s", d.Removed, among(d, func(g operator.DiffGroup) int64 { return g.Removed })))
	}
	if d.Changed > 0 {
		parts = append(parts, fmt.Sprintf("would change %d", d.Changed))
	}
	return strings.Join(parts, "; ")
}

// amongShown is how many groups are named.
const amongShown = 3

// among names the groups with most of something. What controllers make again all the time says little.
func among(d *operator.Difference, of func(operator.DiffGroup) int64) string {
	var names []string
	for _, g := range d.Groups {
		if of(g) == 0 || g.Kind == "Event" || g.Kind == "Lease" || len(names) == amongShown {
			continue
		}
		names = append(names, fmt.Sprintf("%d %s", of(g), ui.Readable(g.Name())))
	}
	if len(names) == 0 {
		return ""
	}
	return ", among them " + strings.Join(names, ", ")
}
