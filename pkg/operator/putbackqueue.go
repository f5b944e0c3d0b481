package operator

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/envelope"
	"github.com/etcd-manager/etcd-manager/pkg/putback"
)

// PutBackQueued is a put-back that was queued.
type PutBackQueued struct {
	Command catalog.Command
	// Restore is a restore that is queued or under way, for which it waits; empty if there is none.
	Restore string
}

// PutBack queues a put-back as planned. The leader carries it out as soon as it sees the command, within about half a minute. Nothing is
// restarted or stopped.
func (c *Client) PutBack(ctx context.Context, p *PutBackPlan) (PutBackQueued, error) {
	var out PutBackQueued
	if len(p.Entries) == 0 {
		return out, invalidf("there is nothing to write")
	}
	if err := c.managed(ctx); err != nil {
		return out, err
	}
	if err := c.noRestore(ctx, &out); err != nil {
		return out, err
	}
	sealer, err := c.sealerLike(p.manifest)
	if err != nil {
		return out, err
	}
	parts := putback.Split(p.Entries)
	q := catalog.PutBack{
		Set: c.Now().UTC().Format(time.RFC3339) + "-" + strings.ToLower(rand.Text()[:8]), Parts: len(parts), Entries: len(p.Entries),
		Bytes:     p.Bytes,
		ClusterID: p.clusterID, What: p.What, At: p.at, Overwrite: p.Request.Overwrite || p.strict, Strict: p.strict,
		Rate: p.Request.Rate, Reason: p.Request.Reason,
	}
	if p.Undoes != nil {
		q.Undoes = p.Undoes.ID
	}
	for i, part := range parts {
		if err := c.putPart(ctx, sealer, q.Set, i+1, part); err != nil {
			return out, errors.Join(err, c.removeSet(ctx, q.Set))
		}
	}
	ctx, cancel := c.limit(ctx)
	defer cancel()
	if out.Command, err = c.catalog.QueuePutBack(ctx, q); err != nil {
		return out, &UncertainError{err} // the parts stay: the command may be there
	}
	return out, nil
}

// noRestore finds out whether a restore comes first.
func (c *Client) noRestore(ctx context.Context, out *PutBackQueued) error {
	list, err := c.Commands(ctx)
	if err != nil {
		return err
	}
	for _, e := range list {
		if e.Problem == nil && e.Restores() && (e.Running() || e.Waiting()) {
			out.Restore = e.Name
		}
	}
	return nil
}

func (c *Client) putPart(ctx context.Context, s envelope.Sealer, set string, n int, entries []putback.Entry) error {
	data, err := putback.Encode(entries)
	if err != nil {
		return err
	}
	ctx, cancel := c.limit(ctx)
	defer cancel()
	return c.catalog.PutPutBackPartFor(ctx, s, set, catalog.PutBackPlan, n, data)
}

// removeSet clears away after a failure.
func (c *Client) removeSet(ctx context.Context, set string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), withdrawTimeout)
	defer cancel()
	return c.catalog.RemovePutBackSet(ctx, set)
}

// maxReadableKeyID is from where on a manifest may have cut an id.
const maxReadableKeyID = 128

// sealerLike seals for the keys that a backup is sealed for, unless the client was told which: values never lie in the clear beside
// backups that don't.
func (c *Client) sealerLike(m *catalog.Manifest) (envelope.Sealer, error) {
	if s := c.catalog.Sealer(); s != nil || m == nil || m.Encryption == nil {
		return s, nil
	}
	var specs []string
	for _, id := range m.Encryption.KeyIDs {
		switch {
		case strings.HasPrefix(id, "arn:"):
			specs = append(specs, "aws-kms:"+id)
		case strings.HasPrefix(id, "age1") && len(id) < maxReadableKeyID:
			specs = append(specs, "age:"+id)
		default:
			return nil, &ConfigError{FieldEncryption, fmt.Errorf("backup %s is encrypted for key %s, of which the manifest doesn't tell enough to "+
				"encrypt for it too: name the keys that the managers encrypt for", m.Backup, id)}
		}
	}
	s, err := envelope.NewSealer(envelope.Config{Cluster: m.ClusterName, KMS: c.config.KMS}, specs)
	if err != nil {
		return nil, &ConfigError{FieldEncryption, fmt.Errorf("encrypt as backup %s is: %w", m.Backup, err)}
	}
	return s, nil
}
