package manager

import (
	"context"
	"errors"
	"maps"
	"slices"
	"sync"
	"time"

	"k8s.io/klog/v2"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	"github.com/etcd-manager/etcd-manager/pkg/plan/model"
)

// withdrawalPoll is how often the queue is looked at while a restore is prepared, since the
// operator may think better of it.
const withdrawalPoll = 5 * time.Second

// storeView is what was last read of the store, and by which stamps one can tell that it is still
// so. The marker, the leader record and the records of operations are parts of their own.
type storeView struct {
	*shared

	mu       sync.Mutex
	seen     model.Store
	listing  catalog.ControlListing
	readAt   time.Time
	failedAt time.Time
	failures int
	commands map[string]catalog.Command
	// problems are what ObjectErrors are made of, by object.
	problems map[string]string
}

// read is what was last read.
func (sv *storeView) read() model.Store {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	return sv.seen
}

// away tells whether the store didn't answer when it was last asked.
func (sv *storeView) away() bool {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	return sv.seen.Error != ""
}

// due tells whether it is time to read again. A store that fails is left alone for longer and
// longer.
func (sv *storeView) due(preparing bool) bool {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	if sv.seen.Error != "" {
		return time.Since(sv.failedAt) >= min(time.Second<<min(sv.failures, 4), 15*time.Second)
	}
	return sv.force.Load() || time.Since(sv.readAt) >= sv.m.cfg.Poll || preparing && time.Since(sv.readAt) >= withdrawalPoll
}

// dueIn is how long it is until the store is to be read again. What wakes the loop in between doesn't put that off.
func (sv *storeView) dueIn() time.Duration {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	return min(max(sv.m.cfg.Poll-time.Since(sv.readAt), 100*time.Millisecond), sv.m.cfg.Poll)
}

// ended notes how a reading has ended.
func (sv *storeView) ended(err error) {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	if err != nil {
		sv.seen.Error, sv.failedAt = err.Error(), time.Now()
		sv.failures++
		return
	}
	sv.failures = 0
	if sv.seen.Error != "" {
		klog.Infof("the store answers again")
	}
	sv.seen.Error, sv.readAt = "", time.Now()
}

// fail remembers that the store doesn't answer, so that nothing else waits for it.
func (sv *storeView) fail(err error) {
	klog.Warningf("the store doesn't answer in the middle of a restore, which goes on without it: %v", err)
	sv.mu.Lock()
	defer sv.mu.Unlock()
	sv.seen.Error, sv.failedAt = err.Error(), time.Now()
	sv.failures = 1
}

// last is the listing that was read last. first is true if none was read to its end yet.
func (sv *storeView) last() (listing catalog.ControlListing, first bool) {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	return sv.listing, sv.readAt.IsZero()
}

func (sv *storeView) setListing(list catalog.ControlListing) {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	sv.listing = list
}

// queued tells whether a command is in the queue, readable or not.
func (sv *storeView) queued(name string) bool {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	return slices.ContainsFunc(sv.listing.Commands, func(o catalog.Object) bool { return o.Name == name })
}

func (sv *storeView) command(name string) (catalog.Command, bool) {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	c, ok := sv.commands[name]
	return c, ok
}

// showsSurvivors tells whether the store shows what data there are without a quorum; survivorsGone,
// that it doesn't any more.
func (sv *storeView) showsSurvivors() bool {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	return sv.listing.Survivors.Exists()
}

func (sv *storeView) survivorsGone() {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	sv.listing.Survivors = catalog.Object{}
}

// note keeps in view what is wrong with an object, until it can be read; nil takes it back.
func (sv *storeView) note(object string, err error) {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	if sv.problems == nil {
		sv.problems = map[string]string{}
	}
	was := sv.problems[object]
	delete(sv.problems, object)
	if err != nil {
		sv.problems[object] = err.Error()
		if was != err.Error() {
			sv.said.Warningf("object "+object, "an object in the store can't be used; what can be done without it goes on: %v", err)
		}
	}
	sv.seen.ObjectErrors = slices.Sorted(maps.Values(sv.problems))
}

// unusable tells whether the object that note was told of couldn't be used when it was last read.
func (sv *storeView) unusable(object string) bool {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	_, bad := sv.problems[object]
	return bad
}

func (sv *storeView) setSpec(spec *cluster.Spec) {
	sv.mu.Lock()
	defer sv.mu.Unlock()
	sv.seen.Spec, sv.seen.SpecError = spec, ""
}

func (sv *storeView) readSpec(ctx context.Context) error {
	spec, _, err := sv.m.cfg.Catalog.Spec(ctx)
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		sv.setSpec(nil)
	case err != nil && objectProblem(err):
		sv.mu.Lock()
		defer sv.mu.Unlock()
		sv.seen.SpecError = err.Error()
	case err != nil:
		return err
	default:
		sv.setSpec(&spec)
		if cluster.ValidMemberCount(spec.MemberCount) {
			sv.m.setWanted(spec.MemberCount)
		}
	}
	return nil
}

// readSettings reads what the operator has chosen of etcd's settings. If that can't be used, what was read before still counts.
func (sv *storeView) readSettings(ctx context.Context, obj catalog.Object) error {
	var got cluster.Settings
	var err error
	if obj.Exists() {
		got, _, err = sv.m.cfg.Catalog.Settings(ctx)
	}
	sv.mu.Lock()
	defer sv.mu.Unlock()
	switch {
	case errors.Is(err, catalog.ErrNotFound):
		sv.seen.Settings, sv.seen.SettingsError = nil, ""
	case err != nil && objectProblem(err):
		sv.seen.SettingsError = err.Error()
	case err != nil:
		return err
	default:
		sv.seen.Settings, sv.seen.SettingsError = got, ""
	}
	return nil
}

// reads is how many small objects are read at once where there may be many.
const reads = 8

// readCommands reads those that are new. What was read is kept if the time is over, so that the
// next attempt goes on. A restore is ready only if mayBegin: the records of all operations are
// known.
func (sv *storeView) readCommands(ctx context.Context, list catalog.ControlListing, mayBegin bool) error {
	if sv.m.cfg.Spec != nil {
		return nil
	}
	seen := map[string]catalog.Command{}
	var fresh []catalog.Object
	for _, obj := range list.Commands {
		if c, ok := sv.command(obj.Name); ok && c.Stamp == obj.Stamp {
			seen[obj.Name] = c
			continue
		}
		fresh = append(fresh, obj)
	}
	var mu sync.Mutex
	var errs []string
	err := inParallel(reads, fresh, func(obj catalog.Object) error {
		c, err := sv.m.cfg.Catalog.Command(ctx, obj.Name)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case errors.Is(err, catalog.ErrNotFound):
		case err != nil && objectProblem(err):
			errs = append(errs, obj.Name+": "+err.Error())
		case err != nil:
			return err
		default:
			c.Stamp = obj.Stamp
			seen[obj.Name] = c
		}
		return nil
	})
	sv.mu.Lock()
	defer sv.mu.Unlock()
	sv.commands = seen
	if err != nil {
		return err
	}
	slices.Sort(errs)
	sv.seen.CommandErrors = errs
	sv.showCommands(mayBegin)
	return nil
}

// showCommands makes of the commands what the planner is told. mu is held.
func (sv *storeView) showCommands(mayBegin bool) {
	var cmds []catalog.Command
	for _, c := range sv.commands {
		cmds = append(cmds, c)
	}
	catalog.SortCommands(cmds)
	sv.seen.Commands, sv.seen.CreateBackups, sv.seen.PutBacks = nil, nil, nil
	for _, c := range cmds {
		if c.Create != nil {
			sv.seen.CreateBackups = append(sv.seen.CreateBackups, model.CreateBackup{Name: c.Name})
			continue
		}
		if c.PutBack != nil {
			sv.seen.PutBacks = append(sv.seen.PutBacks, model.QueuedPutBack{Name: c.Name})
			continue
		}
		p := model.Command{Name: c.Name, Backup: c.Backup, Spec: c.Spec, AcceptLoss: c.Options.AcceptLoss,
			Ready: (c.Options.Now || sv.m.wasQueued(c.Name)) && mayBegin}
		if c.Source != nil {
			p.Source = model.Source{Node: c.Source.Node, Token: c.Source.Token, OrBackup: c.Source.OrBackup, OrRevision: c.Source.OrRevision}
		}
		sv.seen.Commands = append(sv.seen.Commands, p)
	}
}
