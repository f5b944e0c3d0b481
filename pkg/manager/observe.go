package manager

import (
	"context"
	"crypto/rand"
	"errors"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// What bounds how long a silent node, and a silent store, hold up the loop.
const (
	observeTimeout = 3 * time.Second
	storeTimeout   = 5 * time.Second
)

// observe asks all nodes at once and reads what has changed in the store.
func (l *leadership) observe(ctx context.Context) (*model.Observation, *cluster.Spec) {
	o := &model.Observation{Self: l.m.cfg.Self, Term: l.term, FreshToken: newToken()}
	l.observer.askNodes(ctx, o)
	l.nodes.changed = false
	l.operations.noteServed(o.Nodes)
	l.readStore(ctx)
	l.operations.recall(o.Nodes)
	o.Now = time.Now()
	o.Postponed = l.tries.postponed(o.Now)
	o.Store = l.known()
	fences, problem := l.m.probed()
	o.Store.Fences = fences
	if problem != "" && o.Store.Error == "" {
		o.Store.Error = problem
	}
	l.witnesses.ask(ctx, o)
	l.backups.observe(o)
	l.demands.observe(o)
	l.putBacks.observe(o)
	l.maintenance.observe(o)
	spec := o.Store.Spec
	if l.m.cfg.Spec != nil {
		spec = l.m.cfg.Spec
		o.Store.Spec, o.Store.SpecError, o.Store.Commands, o.Store.CreateBackups, o.Store.CommandErrors = spec, "", nil, nil, nil
		o.Store.PutBacks = nil
	}
	l.prober.probeURLs(ctx, o, spec)
	return o, spec
}

func newToken() cluster.Token {
	return cluster.Token(rand.Text()[:16])
}

// inTime gives a part of a reading its own time: a store that hangs must not hold up for long what
// keeps etcd alive.
func inTime(ctx context.Context, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	return f(ctx)
}

// objectProblem tells whether an error is of one object alone: it is there and can't be used, or
// this program isn't allowed to read it.
func objectProblem(err error) bool {
	var bad *catalog.ObjectError
	return errors.As(err, &bad) || errors.Is(err, catalog.ErrDenied)
}

// known is what was last read of the store.
func (l *leadership) known() model.Store {
	s := l.store.read()
	s.Marker = l.marker.seen
	l.record.observe(&s)
	l.operations.observe(&s)
	l.ending.observe(&s)
	return s
}

// readStore lists control/ when it is due and reads what has changed. Errors leave the last view in
// place, with Error set.
func (l *leadership) readStore(ctx context.Context) {
	if !l.store.due(l.operations.preparing()) {
		return
	}
	l.force.Store(false)
	err := l.refresh(ctx)
	l.store.ended(err)
	if err == nil {
		l.record.heartbeat(ctx)
	}
}

// refresh reads what has changed of the few objects that decisions need. None of it grows with what
// is stored: the list of backups is read elsewhere. Each object has its own budget, and one that
// can't be used is that object's problem: see objectProblem. It is read again each time, since a
// permission may come back without a change of the object.
func (l *leadership) refresh(ctx context.Context) error {
	var list catalog.ControlListing
	err := inTime(ctx, func(ctx context.Context) (err error) {
		list, err = l.m.cfg.Catalog.ControlListing(ctx)
		return err
	})
	if err != nil {
		return err
	}
	l.m.setFirst(list.Commands)
	old, first := l.store.last()
	was := l.store.read()
	for _, part := range []struct {
		due  bool
		read func(context.Context) error
	}{
		{list.Marker.Stamp != old.Marker.Stamp || !list.Marker.Exists() || first || l.store.unusable("marker"), l.marker.readMarker},
		{list.Spec.Stamp != old.Spec.Stamp || first || was.SpecError != "", l.store.readSpec},
		{true, func(ctx context.Context) error { return l.ending.read(ctx, list) }},
		{list.Settings.Stamp != old.Settings.Stamp || first || was.SettingsError != "",
			func(ctx context.Context) error { return l.store.readSettings(ctx, list.Settings) }},
		{(list.Leader.Stamp != old.Leader.Stamp || first || l.record.holderError != "") && !l.record.wroteRecord(),
			func(ctx context.Context) error { return l.record.readHolder(ctx, list.Leader) }},
		{true, func(ctx context.Context) error { return l.operations.read(ctx, list) }},
		{true, func(ctx context.Context) error { return l.store.readCommands(ctx, list, l.operations.allRead()) }},
	} {
		if !part.due {
			continue
		}
		if err := inTime(ctx, part.read); err != nil {
			return err
		}
	}
	l.store.setListing(list)
	return nil
}
