package catalog

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/etcd-manager/etcd-manager/pkg/blob"
)

// ownAttempts bounds how often a record is written again after it was found to be the writer's own.
const ownAttempts = 4

// writeOwn stores a small object under a condition, for records whose content tells who wrote them. The answer to a write may be
// lost, and then the condition of the next one fails by what the writer has stored itself. So a record that stands in the way is
// read: if it holds just these bytes, they are stored. If own says that the same writer stored it, it is replaced.
// Everything else is ErrConflict. own may be nil: then only the same bytes are the writer's own.
func (c *Catalog) writeOwn(ctx context.Context, key string, data []byte, opts blob.PutOptions,
	own func(stored []byte) bool) (string, error) {
	var conflict error
	for range ownAttempts {
		version, err := c.write(ctx, key, data, opts)
		lost := errors.Is(err, ErrConflict) || errors.Is(err, ErrNotFound) || errors.Is(err, ErrTransient)
		if err == nil || !lost || ctx.Err() != nil {
			return version, err
		}
		stored, info, rerr := c.read(ctx, key, "")
		switch {
		case rerr != nil:
			return "", err
		case bytes.Equal(stored, data):
			return info.Version, nil
		case !errors.Is(err, ErrConflict) || info.Version == "" || own == nil || !own(stored):
			return "", err
		}
		conflict, opts = err, blob.PutOptions{IfVersion: info.Version}
	}
	return "", fmt.Errorf("write %s: it changes all the time: %w", key, conflict)
}
