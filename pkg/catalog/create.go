package catalog

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

const (
	createFile   = "_create-backup.json"
	progressFile = "_progress.json"

	createVersion   = 1
	progressVersion = 1
)

// CreateBackup is a queued backup.
type CreateBackup struct {
	// Reason is the operator's own note; Pin keeps the backup for ever.
	Reason string `json:"reason,omitempty"`
	Pin    bool   `json:"pin,omitempty"`
	// Progress is nil until a leader has begun.
	Progress *CreateProgress `json:"-"`
}

// CreateProgress is how far a leader is with a queued backup.
type CreateProgress struct {
	At time.Time `json:"at"`
	// Node takes it, the Attempt counts from 1.
	Node    cluster.NodeID `json:"node,omitempty"`
	Attempt int            `json:"attempt"`
	// Error says why the attempt has failed, RetryAt when the next one comes; empty while it runs.
	Error   string    `json:"error,omitempty"`
	RetryAt time.Time `json:"retryAt,omitzero"`
}

type createJSON struct {
	Version   int   `json:"version"`
	Timestamp nanos `json:"timestamp"`
	CreateBackup
}

type progressJSON struct {
	Version int `json:"version"`
	CreateProgress
}

// QueueCreateBackup queues a backup, which the leader takes as soon as it sees the command.
func (c *Catalog) QueueCreateBackup(ctx context.Context, b CreateBackup) (Command, error) {
	now := c.now().UTC()
	cmd := Command{Time: time.Unix(0, now.UnixNano()).UTC(), Create: &b}
	data, err := encodeOwn(createJSON{Version: createVersion, Timestamp: nanos(now.UnixNano()), CreateBackup: b})
	if err != nil {
		return Command{}, err
	}
	return c.queue(ctx, cmd, now, func(cmd Command) (string, error) {
		return c.writeOwn(ctx, controlPrefix+cmd.Name+"/"+createFile, data, blob.PutOptions{IfAbsent: true}, nil)
	})
}

// creation reads a queued backup.
func (c *Catalog) creation(ctx context.Context, name, way string) (Command, error) {
	dir := controlPrefix + name + "/"
	data, info, err := c.read(ctx, dir+createFile, way)
	if err != nil {
		return Command{}, err
	}
	var j createJSON
	if err := decodeOwn(dir+createFile, way, data, createVersion, &j); err != nil {
		return Command{}, err
	}
	cmd := Command{Name: name, Time: time.Unix(0, int64(j.Timestamp)).UTC(), Create: &j.CreateBackup, Stamp: stamp(info)}
	data, _, err = c.read(ctx, dir+progressFile, way)
	if errors.Is(err, ErrNotFound) || unreadable(err) {
		return cmd, nil
	}
	if err != nil {
		return Command{}, err
	}
	var p progressJSON
	if err := decodeOwn(dir+progressFile, way, data, progressVersion, &p); err == nil {
		cmd.Create.Progress = &p.CreateProgress
	}
	return cmd, nil // the progress is only shown: the command can be carried out without it
}

// PutCreateProgress shows beside a queued backup how far a leader is with it.
func (c *Catalog) PutCreateProgress(ctx context.Context, name string, p CreateProgress) error {
	if err := validName("command", name); err != nil {
		return fmt.Errorf("write progress: %w", err)
	}
	data, err := encodeOwn(progressJSON{Version: progressVersion, CreateProgress: p})
	if err != nil {
		return err
	}
	_, err = c.write(ctx, controlPrefix+name+"/"+progressFile, data, blob.PutOptions{})
	return err
}
