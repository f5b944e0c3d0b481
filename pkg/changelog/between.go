package changelog

import (
	"context"
	"fmt"
	"slices"

	"go.etcd.io/etcd/api/v3/mvccpb"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/etcd/database"
)

// Between is the chain of changes behind one revision of an incarnation up to another; false if they aren't all kept.
func (a *Archive) Between(ctx context.Context, id catalog.Incarnation, from, to int64) (Chain, bool, error) {
	list, _, err := a.segments(ctx, id, from, Target{Revision: to})
	if err != nil {
		return Chain{}, false, err
	}
	c := Link(list, from)
	if c.reach() < to {
		return Chain{Base: from}, false, nil
	}
	c = c.To(to)
	c.Segments = slices.DeleteFunc(c.Segments, func(s catalog.Segment) bool { return !hasChanges(s, to) })
	return c, true, nil
}

// Changes visits the changes of a chain behind one revision up to another, in their order. It holds a few segments. done, which may be nil,
// gets the stored bytes of the segments that were read.
func (a *Archive) Changes(ctx context.Context, c Chain, from, to int64, done func(bytes int64), visit func(Event) error) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	needed := slices.DeleteFunc(slices.Clone(c.Segments), func(s catalog.Segment) bool { return !hasChanges(s, to) || s.Last <= from })
	behind, read := from, int64(0)
	for content, err := range a.contents(ctx, needed) {
		if err != nil {
			return err
		}
		events, err := a.events(ctx, content, Range{To: to}, behind)
		if err != nil {
			return err
		}
		behind = max(behind, content.Segment.Last)
		for _, e := range events {
			if err := visit(e); err != nil {
				return err
			}
		}
		read += content.Segment.Size
		if done != nil {
			done(read)
		}
	}
	if behind < to {
		return unreachable(Target{Revision: to}, "the changes lead to revision %d", behind)
	}
	return nil
}

// State visits what leads to the state at a plan's revision: the keys of the backup in the file at path, and then the changes behind it.
// Of each key what has the highest revision counts. exe is a program that has database.ValuesCommand as a hidden subcommand.
func (a *Archive) State(ctx context.Context, p *Plan, exe, path string, done func(bytes int64), visit func(Event) error) error {
	err := database.Values(ctx, exe, path, database.ValuesOptions{Revision: p.Revision}, func(kv *mvccpb.KeyValue) error {
		return visit(eventOf(kv))
	})
	if err != nil {
		return fmt.Errorf("backup %s: %w", p.Base, err)
	}
	if p.Manifest == nil || p.Revision <= p.Manifest.Revision { // the backup itself
		return nil
	}
	return a.Changes(ctx, p.Chain, p.Manifest.Revision, p.Revision, done, visit)
}

// eventOf is the change that made a key what it is.
func eventOf(kv *mvccpb.KeyValue) Event {
	return Event{Revision: kv.ModRevision, Key: kv.Key, CreateRevision: kv.CreateRevision, Version: kv.Version, Value: kv.Value,
		Lease: kv.Lease}
}
