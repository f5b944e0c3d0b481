package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/etcd-manager/etcd-manager/cmd/etcd-manager-ctl/internal/ui"
	"github.com/etcd-manager/etcd-manager/pkg/catalog"
	"github.com/etcd-manager/etcd-manager/pkg/changelog"
	"github.com/etcd-manager/etcd-manager/pkg/kube"
)

// lookCommands show what the archive has, and restore nothing.
func (a *app) lookCommands() []*cobra.Command {
	return []*cobra.Command{a.historyCommand(), a.beforeCommand(), a.extractCommand()}
}

// lastBefore finds the revision before the newest deletion of a key, or of what is below a prefix: one that ends with a slash. What Kubernetes marked first counts as being
// deleted from then on; of a namespace, what was deleted in it meanwhile is counted.
func (a *app) lastBefore(ctx context.Context, c *catalog.Catalog, key string, prefix bool, until changelog.Target) (*changelog.Before, error) {
	d := changelog.Deleted{Key: key, Prefix: prefix || strings.HasSuffix(key, "/"), Dying: kube.DeletionAsked, Until: until.Time, UntilRevision: until.Revision}
	if namespace, ok := strings.CutPrefix(key, kube.NamespacesPrefix); ok && !d.Prefix {
		d.With = kube.InNamespace(namespace)
	}
	return a.archive(c).LastBefore(ctx, d)
}

// whenFlag reads a flag that names a moment; empty is none.
func (a *app) whenFlag(name, value string) (time.Time, error) {
	if value == "" {
		return time.Time{}, nil
	}
	t, err := ui.ParseWhen(value, a.now())
	if err != nil {
		return time.Time{}, ui.Usagef("--%s: %w", name, err)
	}
	return t, nil
}
