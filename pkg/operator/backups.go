package operator

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/spelling"
)

// Latest is the name by which the newest good backup of the incarnation that serves can be asked for, wherever the name of a backup is.
const Latest = "latest"

// NoBackupError says that there is no backup of a name, and what there is instead. It is ErrNotFound.
type NoBackupError struct {
	Store string
	// Name may be Latest: then there is none at all.
	Name string
	// Missing is the object that an incomplete backup of that name lacks; empty if there is none.
	Missing string
	// Near are names that are spelled alike, Newest is the newest backup; empty if there is none.
	Near   []string
	Newest string
}

func (e *NoBackupError) Error() string {
	message := fmt.Sprintf("there is no backup %q in %s", e.Name, e.Store)
	switch {
	case e.Missing != "":
		message = fmt.Sprintf("the backup %q in %s is incomplete: %s is missing", e.Name, e.Store, e.Missing)
	case e.Name == Latest:
		message = "there is no backup in " + e.Store
	}
	switch {
	case len(e.Near) > 0:
		message += "; did you mean " + strings.Join(e.Near, ", ") + "?"
	case e.Newest != "":
		message += "; the newest is " + e.Newest
	case e.Name == Latest:
		message += ": check the URL"
	default:
		message += ": there are no backups; check the URL"
	}
	return message
}

// Unwrap gives ErrNotFound.
func (e *NoBackupError) Unwrap() error { return ErrNotFound }

// noBackup says what there is instead.
func (c *Client) noBackup(l catalog.BackupList, name string) error {
	e := &NoBackupError{Store: c.Store(), Name: name, Near: spelling.Closest(name, l.Names(), 3)}
	for _, left := range l.Leftovers {
		if left.Name == name {
			e.Missing = left.Missing
		}
	}
	if newest, ok := l.NewestAny(); ok {
		e.Newest = newest.Name
	}
	return e
}

// resolve replaces Latest by the name of the backup that it means. It is the only place that knows what it means.
func (c *Client) resolve(ctx context.Context, l catalog.BackupList, name string) (_ string, notes []string, err error) {
	if name != Latest || slices.Contains(l.Names(), Latest) {
		return name, nil, nil
	}
	n, err := c.archive.NewestGood(ctx, l, c.Now())
	switch {
	case errors.Is(err, ErrNotFound):
		return "", nil, c.noBackup(l, Latest)
	case err != nil:
		return "", nil, err
	}
	return n.Name, n.Notes, nil
}
