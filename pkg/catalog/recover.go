package catalog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// Source is a data dir on a node, of a cluster that has no quorum any more.
type Source struct {
	// Node is where it lies. Empty with a token means the trash can of whichever node has the newest data.
	Node cluster.NodeID `json:"node,omitempty"`
	// Token names the data dir.
	Token cluster.Token `json:"token"`
	// OrBackup is restored if the data dir is gone or can't be used; empty means that the command fails then.
	OrBackup string `json:"orBackup,omitempty"`
	// OrRevision is to what the changes bring OrBackup; 0 means OrBackup itself.
	OrRevision int64 `json:"orRevision,omitempty"`
}

// A recovery that needs changes has a version of its own: a manager that doesn't know them would restore less.
const (
	recoverVersion        = 2
	recoverVersionWithout = 1
)

type recoverJSON struct {
	Version   int      `json:"version"`
	Timestamp nanos    `json:"timestamp"`
	Source    Source   `json:"source"`
	Spec      specJSON `json:"spec"`
	RestoreOptions
}

// QueueRecover queues a recovery: a backup is made of the source's data dir, and restored into the spec.
func (c *Catalog) QueueRecover(ctx context.Context, source Source, spec cluster.Spec, options RestoreOptions) (Command, error) {
	if source.Token == "" {
		return Command{}, fmt.Errorf("queue recovery: %w", invalidf("no data dir is named"))
	}
	now := c.now().UTC()
	cmd := Command{Time: time.Unix(0, now.UnixNano()).UTC(), Source: &source, Spec: spec, Options: options}
	version := recoverVersionWithout
	if source.OrRevision > 0 {
		version = recoverVersion
	}
	data, err := encodeOwn(recoverJSON{Version: version, Timestamp: nanos(now.UnixNano()), Source: source,
		Spec: specJSON{spec.MemberCount, spec.EtcdVersion}, RestoreOptions: options})
	if err != nil {
		return Command{}, err
	}
	return c.queue(ctx, cmd, now, func(cmd Command) (string, error) {
		return c.writeOwn(ctx, controlPrefix+cmd.Name+"/"+recoverFile, data, blob.PutOptions{IfAbsent: true}, nil)
	})
}

// recovery reads a queued recovery.
func (c *Catalog) recovery(ctx context.Context, name, way string) (Command, error) {
	key := controlPrefix + name + "/" + recoverFile
	data, info, err := c.read(ctx, key, way)
	if err != nil {
		return Command{}, err
	}
	var j recoverJSON
	if err := decodeOwn(key, way, data, recoverVersion, &j); err != nil {
		return Command{}, err
	}
	if j.Source.Token == "" {
		return Command{}, corrupt(key, way, errors.New("it names no data dir"))
	}
	return Command{Name: name, Time: time.Unix(0, int64(j.Timestamp)).UTC(), Source: &j.Source, Options: j.RestoreOptions,
		Spec: cluster.Spec{MemberCount: j.Spec.MemberCount, EtcdVersion: j.Spec.EtcdVersion}, Stamp: stamp(info)}, nil
}

// Survivors is what the leader found on the nodes of a cluster without a quorum: what an operator has to see before a recovery.
type Survivors struct {
	// At is when it was found, by the leader's clock.
	At    time.Time  `json:"at"`
	Nodes []Survivor `json:"nodes"`
}

// Survivor is a data dir on a node.
type Survivor struct {
	Node  cluster.NodeID `json:"node"`
	Token cluster.Token  `json:"token"`
	// Revision is the newest in its database, 0 if not known; its log may have more.
	Revision int64 `json:"revision,omitempty"`
	// RaftTerm and RaftIndex order survivors: the higher one has everything that the other has.
	RaftTerm  uint64 `json:"raftTerm,omitempty"`
	RaftIndex uint64 `json:"raftIndex,omitempty"`
	// LastWrite is when its log was last written to; zero if not known.
	LastWrite time.Time `json:"lastWrite,omitzero"`
	// SizeBytes is the size of the database, 0 if not known.
	SizeBytes int64 `json:"sizeBytes,omitempty"`
	// EtcdVersion is empty if its etcd doesn't run.
	EtcdVersion string `json:"etcdVersion,omitempty"`
	// Condition says how its etcd does, in words for the operator.
	Condition string `json:"condition,omitempty"`
}

const (
	survivorsKey     = controlPrefix + "survivors.json"
	survivorsVersion = 1
	survivorsWay     = "delete the object; the leader writes it again while there is no quorum"
)

type survivorsJSON struct {
	Version int `json:"version"`
	Survivors
}

// PutSurvivors replaces what is known of the survivors.
func (c *Catalog) PutSurvivors(ctx context.Context, s Survivors) error {
	data, err := encodeOwn(survivorsJSON{Version: survivorsVersion, Survivors: s})
	if err != nil {
		return err
	}
	_, err = c.write(ctx, survivorsKey, data, blob.PutOptions{})
	return err
}

// Survivors reads what the leader wrote; ErrNotFound if the cluster has a quorum, as far as anyone knows.
func (c *Catalog) Survivors(ctx context.Context) (Survivors, error) {
	data, _, err := c.read(ctx, survivorsKey, survivorsWay)
	if err != nil {
		return Survivors{}, err
	}
	var j survivorsJSON
	if err := decodeOwn(survivorsKey, survivorsWay, data, survivorsVersion, &j); err != nil {
		return Survivors{}, err
	}
	return j.Survivors, nil
}

// RemoveSurvivors is for when there is a quorum again. Removing what is gone is a success.
func (c *Catalog) RemoveSurvivors(ctx context.Context) error {
	if _, err := c.remove(ctx, survivorsKey, func(key string) bool { return key == survivorsKey }); err != nil {
		return fmt.Errorf("remove %s: %w", survivorsKey, err)
	}
	return nil
}
