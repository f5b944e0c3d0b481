package catalog

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
	protosv1 "github.com/etcd-manager/etcd-manager/protos/v1"
)

const (
	commandFile = "_command.json"
	optionsFile = "_options.json"
	recoverFile = "_recover.json"
)

// Command is one that the operator has queued. The only kind that stands in _command.json is the restore of a backup;
// a recovery from a data dir, a backup on demand, and a put-back stand in files of their own, which other tools pass over.
type Command struct {
	// Name is the directory below control/, and the id of the operation that executes it.
	Name string
	// Time is when it was queued, by the clock of who did.
	Time time.Time
	// Create is what backup to take; nil for everything that restores. All that follows but Stamp is empty then.
	Create *CreateBackup
	// PutBack is what to put back; nil for everything else. All that follows but Stamp is empty then.
	PutBack *PutBack
	// Backup is what to restore; empty if Source says what to make a backup of first.
	Backup string
	// Source is nil for the restore of a backup.
	Source *Source
	// Spec is the cluster to restore it into.
	Spec cluster.Spec
	// Options are what this project's own tool has added; the zero value if another tool has queued the command.
	Options RestoreOptions
	// Stamp changes when the object does. It is only to be compared.
	Stamp string
}

// RestoreOptions are the settings of a restore that _command.json has no room for. They stand in a file of their own beside it.
type RestoreOptions struct {
	// Now starts the restore without waiting for a restart of the managers.
	Now bool `json:"now,omitempty"`
	// ToRevision and ToTime name the point to go to by replaying changes; at most one is set.
	ToRevision int64     `json:"toRevision,omitempty"`
	ToTime     time.Time `json:"toTime,omitzero"`
	// Latest goes as far as the archived changes reach.
	Latest bool `json:"latest,omitempty"`
	// AcceptLoss goes to what the store has, though it isn't known, or known not to be, all that clients were told of.
	AcceptLoss bool `json:"acceptLoss,omitempty"`
	// KeepMasterleases leaves the API servers' master leases in the restored data.
	KeepMasterleases bool `json:"keepMasterleases,omitempty"`
	// DropPrefixes are further keys that the restored data shall not have.
	DropPrefixes []string `json:"dropPrefixes,omitempty"`
	// ForceForeign permits the backup of another cluster.
	ForceForeign bool `json:"forceForeign,omitempty"`
	// SetSpec makes the command's spec the cluster's once it is done, so that a restore into another size isn't changed back.
	SetSpec bool `json:"setSpec,omitempty"`
	// Reason is the operator's own note.
	Reason string `json:"reason,omitempty"`
}

// IsZero tells that nothing was asked for.
func (o RestoreOptions) IsZero() bool {
	return !o.Now && o.ToRevision == 0 && o.ToTime.IsZero() && !o.Latest && !o.AcceptLoss && !o.KeepMasterleases &&
		len(o.DropPrefixes) == 0 && !o.ForceForeign && !o.SetSpec && o.Reason == ""
}

const optionsVersion = 1

// optionsJSON is the stored form. For says which command the options are for: should two writers meet at one
// name, the options of the one never become those of the other.
type optionsJSON struct {
	Version int `json:"version"`
	For     struct {
		Timestamp nanos  `json:"timestamp"`
		Backup    string `json:"backup"`
	} `json:"for"`
	RestoreOptions
}

// QueueRestore queues the restore of a backup into the spec and returns the command under the name it was given. Names are unique
// also among writers in the same second. That the backup exists is for the caller to check.
func (c *Catalog) QueueRestore(ctx context.Context, backup string, spec cluster.Spec, options RestoreOptions) (Command, error) {
	if err := ValidBackupName(backup); err != nil {
		return Command{}, fmt.Errorf("queue restore: %w", err)
	}
	now := c.now().UTC()
	cmd := Command{Time: time.Unix(0, now.UnixNano()).UTC(), Backup: backup, Spec: spec, Options: options}
	data, err := marshalShared(&protosv1.Command{Timestamp: now.UnixNano(),
		RestoreBackup: &protosv1.RestoreBackupCommand{ClusterSpec: specToProto(spec), Backup: backup}})
	if err != nil {
		return Command{}, err
	}
	return c.queue(ctx, cmd, now, func(cmd Command) (string, error) { return c.putCommand(ctx, cmd, data) })
}

// queue finds a free name for a command and has it stored.
func (c *Catalog) queue(ctx context.Context, cmd Command, now time.Time, put func(Command) (stamp string, err error)) (Command, error) {
	second := now.Format(time.RFC3339)
	seq, err := c.nextCommandSequence(ctx, second)
	if err != nil {
		return Command{}, fmt.Errorf("queue command: %w", err)
	}
	for ; seq <= maxSequence; seq++ {
		cmd.Name = fmt.Sprintf("%s-%06d", second, seq)
		cmd.Stamp, err = put(cmd)
		if errors.Is(err, ErrConflict) {
			continue
		}
		if err != nil {
			return Command{}, fmt.Errorf("queue command: %w", err)
		}
		return cmd, nil
	}
	return Command{}, fmt.Errorf("queue command: all names of the second %s are taken: %w", second, ErrConflict)
}

const maxSequence = 999999

// nextCommandSequence finds the first free number of that second, which the conditional put then
// claims. Looking first keeps names apart even in a store that ignores conditions. Commands that
// have ended already count too: their names are those of operations.
func (c *Catalog) nextCommandSequence(ctx context.Context, second string) (int, error) {
	next := 0
	for _, prefix := range []string{controlPrefix, operationsPrefix} {
		for e, err := range c.store.List(ctx, prefix+second, blob.ListOptions{}) {
			if err != nil {
				return 0, fmt.Errorf("list %s: %w", prefix, err)
			}
			name, _, _ := strings.Cut(strings.TrimSuffix(strings.TrimPrefix(e.Key, prefix), ".json"), "/")
			next = max(next, sequence(name)+1)
		}
	}
	return next, nil
}

// putCommand stores one command under its name, the options first: whoever sees the command sees them too.
func (c *Catalog) putCommand(ctx context.Context, cmd Command, data []byte) (string, error) {
	dir := controlPrefix + cmd.Name + "/"
	if !cmd.Options.IsZero() {
		j := optionsJSON{Version: optionsVersion, RestoreOptions: cmd.Options}
		j.For.Timestamp, j.For.Backup = nanos(cmd.Time.UnixNano()), cmd.Backup
		options, err := encodeOwn(j)
		if err != nil {
			return "", err
		}
		if _, err := c.writeOwn(ctx, dir+optionsFile, options, blob.PutOptions{IfAbsent: true}, nil); err != nil {
			return "", err
		}
	}
	version, err := c.writeOwn(ctx, dir+commandFile, data, blob.PutOptions{IfAbsent: true}, nil)
	if err != nil && !cmd.Options.IsZero() {
		// The options stand alone now, or beside another's command: harmless, but not ours to leave.
		_, _ = c.remove(context.WithoutCancel(ctx), dir+optionsFile, func(key string) bool { return key == dir+optionsFile })
	}
	return version, err
}

// Command reads one queued command; ErrNotFound if there is none of that name. A command whose options can't be read is an error:
// executed without them it would do something else.
func (c *Catalog) Command(ctx context.Context, name string) (Command, error) {
	if err := validName("command", name); err != nil {
		return Command{}, err
	}
	dir := controlPrefix + name + "/"
	way := "withdraw it: etcd-manager-ctl delete-command " + name
	data, info, err := c.read(ctx, dir+commandFile, way)
	if errors.Is(err, ErrNotFound) {
		cmd, err := c.recovery(ctx, name, way)
		if errors.Is(err, ErrNotFound) {
			if cmd, err = c.creation(ctx, name, way); errors.Is(err, ErrNotFound) {
				return c.putBack(ctx, name, way)
			}
		}
		return cmd, err
	}
	if err != nil {
		return Command{}, err
	}
	var p protosv1.Command
	if err := unmarshalShared(data, &p); err != nil {
		return Command{}, corrupt(dir+commandFile, way, err)
	}
	if p.GetRestoreBackup().GetBackup() == "" {
		return Command{}, corrupt(dir+commandFile, way, errors.New("it names no backup to restore"))
	}
	cmd := Command{Name: name, Time: time.Unix(0, p.GetTimestamp()).UTC(), Backup: p.GetRestoreBackup().GetBackup(),
		Spec: specFromProto(p.GetRestoreBackup().GetClusterSpec()), Stamp: stamp(info)}
	data, _, err = c.read(ctx, dir+optionsFile, way)
	if errors.Is(err, ErrNotFound) {
		return cmd, nil
	}
	if err != nil {
		return Command{}, err
	}
	var j optionsJSON
	if err := decodeOwn(dir+optionsFile, way, data, optionsVersion, &j); err != nil {
		return Command{}, err
	}
	if int64(j.For.Timestamp) == p.GetTimestamp() && j.For.Backup == cmd.Backup {
		cmd.Options = j.RestoreOptions
	}
	return cmd, nil
}

// Commands returns what is queued, oldest first, and by name what can't be read.
func (c *Catalog) Commands(ctx context.Context) ([]Command, []Problem, error) {
	l, err := c.ControlListing(ctx)
	if err != nil {
		return nil, nil, err
	}
	var cmds []Command
	var problems []Problem
	for _, o := range l.Commands {
		cmd, err := c.Command(ctx, o.Name)
		switch {
		case errors.Is(err, ErrNotFound): // withdrawn since the listing
		case unreadable(err):
			problems = append(problems, Problem{Name: o.Name, Object: controlPrefix + o.Name, Err: err})
		case err != nil:
			return nil, nil, err
		default:
			cmds = append(cmds, cmd)
		}
	}
	SortCommands(cmds)
	return cmds, problems, nil
}

// SortCommands puts the oldest first. Commands of the same moment are ordered by name.
func SortCommands(cmds []Command) {
	slices.SortFunc(cmds, func(a, b Command) int {
		return cmp.Or(a.Time.Compare(b.Time), strings.Compare(a.Name, b.Name))
	})
}

// RemoveCommand withdraws a command with everything beside it. Removing one that is gone is a success.
func (c *Catalog) RemoveCommand(ctx context.Context, name string) error {
	if err := validName("command", name); err != nil {
		return err
	}
	dir := controlPrefix + name + "/"
	if dir == operationsPrefix {
		return invalidf("command %q is not a valid name", name)
	}
	if _, err := c.remove(ctx, dir, func(string) bool { return true }); err != nil {
		return fmt.Errorf("remove command %s: %w", name, err)
	}
	return nil
}

// unreadable tells an object that exists but can't be used from a store that doesn't answer.
func unreadable(err error) bool {
	return errors.Is(err, cluster.ErrCorrupt) || errors.Is(err, cluster.ErrFuture) || errors.Is(err, ErrInvalid)
}

// sequence reads the number behind the time of a name, or -1.
func sequence(name string) int {
	i := strings.LastIndexByte(name, '-')
	if i < 0 || i+1 == len(name) || len(name)-i > 10 {
		return -1
	}
	n := 0
	for _, d := range bytes.TrimLeft([]byte(name[i+1:]), "0") {
		if d < '0' || d > '9' {
			return -1
		}
		n = n*10 + int(d-'0')
	}
	return n
}
