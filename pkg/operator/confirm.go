package operator

import (
	"context"
	"fmt"

	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/cluster"
)

// FormingError says that the store's marker is of a cluster that is being formed; the managers end that by themselves.
type FormingError struct {
	Store string
	Token cluster.Token
}

func (e *FormingError) Error() string {
	return fmt.Sprintf("the marker in %s is of a cluster that is being formed (%s); the managers finish this by themselves",
		e.Store, e.Token)
}

// BusyError says that a command is being executed, which has to end first.
type BusyError struct{ Command Command }

func (e *BusyError) Error() string {
	return fmt.Sprintf("%s is running and writes the marker itself; follow it", e.Command.Name)
}

// ConfirmCluster writes the token of the cluster that runs into the store's marker, which names the
// cluster whose data are the right ones. It is for a cluster that other software has restored: the
// managers leave both alone until a person decides. Nothing is stopped, started or deleted by it.
// It returns the token that the marker named before: the same one if nothing had to be written.
func (c *Client) ConfirmCluster(ctx context.Context, token cluster.Token) (before cluster.Token, err error) {
	if _, err := cluster.ParseToken(string(token)); err != nil {
		return "", &InvalidError{err}
	}
	ctx, cancel := c.limit(ctx)
	defer cancel()
	m, version, err := c.catalog.Marker(ctx)
	switch {
	case err != nil:
		return "", err
	case m.Phase != catalog.PhaseFormed:
		return "", &FormingError{c.Store(), m.Token}
	case m.Token == token:
		return token, nil
	}
	list, err := c.commands(ctx)
	if err != nil {
		return "", err
	}
	for _, e := range list {
		if e.Running() {
			return "", &BusyError{e}
		}
	}
	before = m.Token
	m.Token, m.Founders = token, nil
	_, err = c.catalog.ReplaceMarker(ctx, m, version)
	return before, err
}
